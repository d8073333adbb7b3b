//! GGUF files, read back by the `gguf` package of llama.cpp: every tensor, its name, and the metadata.

use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use tests::tiny::read_tensors_at;
use tests::training::{fail, succeed};
use tests::{program, python, python_script, reference};

fn export(model: &Path, output: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program("infer"));
    command.arg("export").arg("--model").arg(model).arg("--output").arg(output).args(more);
    command
}

#[test]
fn every_tensor_is_read_back_by_gguf() {
    let Some(mut python) = python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = reference("tiny/llava");
    succeed(&mut export(&model, folder.path(), &[]));
    let printed = succeed(python.arg(python_script("read_gguf.py")).arg(&model).arg(folder.path()));
    let read: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    let tensors = read_tensors_at(&model.join("model.safetensors")).len();
    // The last of three vision layers (16 tensors) and the last norm (2) are computed for nobody.
    assert_eq!(read["compared"], json!(tensors - 18));
    assert_eq!((&read["different"], &read["unexpected"]), (&json!([]), &json!([])));
    assert_eq!(read["formats"], json!(["float16", "float32"]));
    assert_eq!((&read["tokens"], &read["image"], &read["eos"]), (&json!(640), &json!("<image>"), &json!("<|im_end|>")));
    assert_eq!(read["rope"], json!(5_000_000.0));
    let clip = &read["clip"];
    for (key, value) in [
        ("clip.projector_type", json!("mlp")),
        ("clip.has_llava_projector", json!(true)),
        ("clip.vision.block_count", json!(2)),
        ("clip.vision.feature_layer", json!([2])),
        ("clip.vision.image_size", json!(56)),
        ("clip.vision.embedding_length", json!(48)),
        ("clip.vision.projection_dim", json!(64)),
        ("clip.use_gelu", json!(false)),
    ] {
        assert_eq!(clip[key], value, "{key}");
    }
    println!("{} of {tensors} tensors equal, the others are not computed", read["compared"]);
}

#[test]
fn an_adapter_is_merged_on_the_way() {
    let Some(mut python) = python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (model, adapter) = (reference("tiny/llava"), reference("tiny/train_use_lora"));
    let adapter = adapter.to_str().expect("UTF-8");
    let (exported, merged) = (folder.path().join("gguf"), folder.path().join("merged"));
    succeed(&mut export(&model, &exported, &["--adapter", adapter]));
    let mut merge = Command::new(program("infer"));
    merge.arg("merge").arg("--model").arg(&model).args(["--adapter", adapter]).arg("--output").arg(&merged);
    succeed(&mut merge);
    let printed = succeed(python.arg(python_script("read_gguf.py")).arg(&merged).arg(&exported));
    let read: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    assert_eq!((&read["different"], &read["unexpected"]), (&json!([]), &json!([])));
}

/// llama.cpp itself, as the Python package xllamacpp has it. A picture's text is what transformers says when CLIP's class token
/// stands behind the patches: llama.cpp puts it there (ggml-org/llama.cpp, issue 25814), whatever the file says.
#[test]
fn llama_cpp_says_the_same() {
    const ROWS: usize = 6;
    let Some(mut python) = python() else { return };
    if !python.args(["-c", "import xllamacpp"]).output().expect("python starts").status.success() {
        println!("not run: LLAVA_PYTHON has no xllamacpp (tests/requirements.txt)");
        return;
    }
    let model = tests::inference::model_dir("tiny/train_none");
    let exported = tempfile::tempdir().expect("a temporary folder");
    succeed(&mut export(model.path(), exported.path(), &[]));
    let mut script = Command::new(python.get_program());
    script.arg(python_script("llama_cpp.py")).arg(exported.path()).arg(model.path());
    let printed = succeed(script.arg(reference("pictures")).arg(ROWS.to_string()));
    let rows: Vec<Value> = serde_json::from_slice(&printed.stdout).expect("JSON");
    assert_eq!(rows.len(), ROWS);
    let mut published = 0;
    for row in &rows {
        let question = row["question"].as_str().expect("a question");
        let dir = model.path().to_str().expect("UTF-8");
        let args = ["generate", "--model", dir, "--prompt", question, "--max-new-tokens", "24", "--json"];
        let ours: Value = serde_json::from_str(&tests::inference::infer_ok(&args)).expect("JSON");
        assert_eq!(row["plain"], ours["text"], "{question}");
        assert!(row["seen"] == row["class_last"] || row["seen"] == row["published"], "{row}");
        published += usize::from(row["seen"] == row["published"]);
    }
    println!("{ROWS} of {ROWS} texts without a picture are ours; {published} of {ROWS} with one are transformers',");
    println!("and {ROWS} of {ROWS} are with the class token where llama.cpp puts it");
}

#[test]
fn what_llama_cpp_cannot_compute_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = folder.path().join("model");
    std::fs::create_dir(&model).expect("a folder");
    for entry in std::fs::read_dir(reference("tiny/llava")).expect("readable").flatten() {
        std::fs::copy(entry.path(), model.join(entry.file_name())).expect("copied");
    }
    let config = std::fs::read_to_string(model.join("config.json")).expect("the config");
    let full = config
        .replace("\"vision_feature_select_strategy\": \"default\"", "\"vision_feature_select_strategy\": \"full\"");
    std::fs::remove_file(model.join("config.json")).expect("removed");
    std::fs::write(model.join("config.json"), full).expect("written");
    let error = fail(&mut export(&model, &folder.path().join("gguf"), &[]));
    assert!(error.contains("vision_feature_select_strategy"), "{error}");
}
