//! GGUF files, read back by the `gguf` package of llama.cpp: every tensor, its name, and the metadata.

use model::config::{Activation, FeatureSelect};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use tests::inference::{infer_ok, model_dir_of};
use tests::references::{self, Reference};
use tests::tiny::read_tensors_at;
use tests::training::{fail, succeed};
use tests::{program, python, python_script, reference};

/// The command that exports a model.
pub fn export(model: &Path, output: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program("infer"));
    command.arg("export").arg("--model").arg(model).arg("--output").arg(output).args(more);
    command
}

/// Whether llama.cpp computes a reference's features: it drops the class token of a tower that has one.
pub fn is_computed(model: &Reference) -> bool {
    let config = model.config();
    config.vision_feature_select_strategy == FeatureSelect::Default || !config.vision.family.has_class_token()
}

/// What `read_gguf.py` found in the files that were exported from a model.
pub fn read_back(model: &Path, exported: &Path) -> Option<Value> {
    let printed = succeed(python()?.arg(python_script("read_gguf.py")).arg(model).arg(exported));
    Some(serde_json::from_slice(&printed.stdout).expect("JSON"))
}

#[test]
fn every_tensor_is_read_back_by_gguf() {
    for model in references::all() {
        let (name, folder) = (model.name, tempfile::tempdir().expect("a temporary folder"));
        if !is_computed(&model) {
            let error = fail(&mut export(&model.llava(), folder.path(), &[]));
            assert!(error.contains("vision_feature_select_strategy: found full"), "{name}: {error}");
            continue;
        }
        succeed(&mut export(&model.llava(), folder.path(), &[]));
        let Some(read) = read_back(&model.llava(), folder.path()) else { return };
        let (config, [_, text_family]) = (model.config(), model.families());
        let tensors = read_tensors_at(&model.llava().join("model.safetensors")).len();
        // Layers after the selected one (16 tensors each) and the last norm (2) are not computed.
        let layers = config.vision.num_hidden_layers - config.computed_vision_layers();
        assert_eq!(read["compared"], json!(tensors - 16 * layers - 2), "{name}");
        assert_eq!((&read["different"], &read["unexpected"]), (&json!([]), &json!([])), "{name}");
        assert_eq!((&read["architecture"], &read["other_numbers"]), (&json!(text_family), &json!([])), "{name}");
        assert_eq!(read["formats"], json!(["float16", "float32"]), "{name}");
        assert_eq!((&read["image"], &read["eos"]), (&json!("<image>"), &json!("<|im_end|>")), "{name}");
        assert_eq!(read["tokens"], json!(config.text.vocab_size), "{name}");
        let is_tanh = config.vision.hidden_act == Activation::GeluTanh;
        for (key, value) in [
            ("clip.projector_type", json!("mlp")),
            ("clip.has_llava_projector", json!(true)),
            ("clip.vision.block_count", json!(config.computed_vision_layers())),
            ("clip.vision.feature_layer", json!(config.selected_hidden_states())),
            ("clip.vision.image_size", json!(config.vision.image_size)),
            ("clip.vision.embedding_length", json!(config.vision.hidden_size)),
            ("clip.vision.projection_dim", json!(config.text.hidden_size)),
            ("clip.use_gelu", json!(is_tanh)),
        ] {
            assert_eq!(read["clip"][key], value, "{name}: {key}");
        }
        println!("{name}: {} of {tensors} tensors equal, the others are not computed", read["compared"]);
    }
}

#[test]
fn an_adapter_is_merged_on_the_way() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (model, adapter) = (reference("tiny/llava"), reference("tiny/train_use_lora"));
    let adapter = adapter.to_str().expect("UTF-8");
    let (exported, merged) = (folder.path().join("gguf"), folder.path().join("merged"));
    succeed(&mut export(&model, &exported, &["--adapter", adapter]));
    let mut merge = Command::new(program("infer"));
    merge.arg("merge").arg("--model").arg(&model).args(["--adapter", adapter]).arg("--output").arg(&merged);
    succeed(&mut merge);
    let Some(read) = read_back(&merged, &exported) else { return };
    assert_eq!((&read["different"], &read["unexpected"]), (&json!([]), &json!([])));
}

/// A script for the Python package xllamacpp; `None`, said on stdout, where the package is not there.
fn with_llama_cpp(script: &str) -> Option<Command> {
    let mut python = python()?;
    if !python.args(["-c", "import xllamacpp"]).output().expect("python starts").status.success() {
        println!("not run: LLAVA_PYTHON has no xllamacpp (tests/requirements.txt)");
        return None;
    }
    let mut command = Command::new(python.get_program());
    command.arg(python_script(script));
    Some(command)
}

/// What llama.cpp itself says, as the Python package xllamacpp has it, of models (name, directory, folder of the exported files)
/// against ours without pictures, and against transformers' with them: the number of texts. `None`, said on stdout, where the
/// package is not there.
///
/// With a CLIP it may be what transformers says when the class token stands behind the patches: llama.cpp puts it there
/// (ggml-org/llama.cpp, issue 25814), whatever the file says.
pub fn llama_cpp(models: &[(&str, &Path, &Path)], options: &[&str]) -> Option<usize> {
    const ROWS: usize = 6;
    let mut script = with_llama_cpp("llama_cpp.py")?;
    script.arg(reference("pictures")).arg(ROWS.to_string());
    for (_, model, exported) in models {
        script.arg(exported).arg(model);
    }
    let answers: Vec<Vec<Value>> = serde_json::from_slice(&succeed(&mut script).stdout).expect("JSON");
    assert_eq!(answers.len(), models.len());
    for ((name, model, _), rows) in models.iter().zip(&answers) {
        assert_eq!(rows.len(), ROWS);
        let (mut published, mut texts) = (0, BTreeSet::new());
        for row in rows {
            let (question, dir) = (row["question"].as_str().expect("a question"), model.to_str().expect("UTF-8"));
            let args = ["generate", "--model", dir, "--prompt", question, "--max-new-tokens", "24", "--json"];
            let ours = infer_ok(&[&args[..], options].concat());
            let ours: Value = serde_json::from_str(&ours).expect("JSON");
            let ours = ours["text"].as_str().expect("a text").trim_start();
            assert_eq!(row["plain"], json!(ours), "{name}: {question}");
            texts.insert(ours.to_string());
            assert!(row["seen"] == row["class_last"] || row["seen"] == row["published"], "{name}: {row}");
            published += usize::from(row["seen"] == row["published"]);
            texts.insert(row["seen"].to_string());
        }
        assert!(texts.len() > 3, "{name}: the same answer to everything is no comparison: {texts:?}");
        println!(
            "{name}: {ROWS} of {ROWS} texts without a picture are ours; {published} of {ROWS} with one are transformers',"
        );
        println!("and {ROWS} of {ROWS} are with a class token, if there is one, where llama.cpp puts it");
    }
    Some(2 * ROWS * models.len())
}

/// A reference's model trained until its answers differ from one another, in `folder`.
fn trained(model: Reference, folder: &Path) -> PathBuf {
    let (shards, run) = (folder.join("shards"), folder.join("model"));
    let mut preprocess = Command::new(program("preprocess"));
    preprocess.arg("shards").arg("--model").arg(model.llava()).arg("--data").arg(reference("pictures"));
    succeed(preprocess.arg("--output").arg(&shards));
    let mut train = Command::new(program("train"));
    train.arg("--model_name_or_path").arg(model.llava()).arg("--data_path").arg(shards).arg("--output_dir").arg(&run);
    train.args(["--train_type", "none", "--max_steps", "120", "--learning_rate", "0.004", "--warmup_steps", "4"]);
    train.args(["--per_device_train_batch_size", "4", "--shuffle", "false", "--save_strategy", "no"]);
    succeed(&mut train);
    run
}

#[test]
fn llama_cpp_says_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let models: Vec<_> = references::all()
        .filter(is_computed)
        .map(|model| {
            let folder = folder.path().join(model.name);
            let (dir, exported) = (trained(model, &folder), folder.join("gguf"));
            succeed(&mut export(&dir, &exported, &[]));
            (model.name, dir, exported)
        })
        .collect();
    let models: Vec<(&str, &Path, &Path)> =
        models.iter().map(|(name, dir, exported)| (*name, dir.as_path(), exported.as_path())).collect();
    llama_cpp(&models, &[]);
}

#[test]
fn llama_cpp_splits_texts_into_the_same_tokens() {
    let Some(mut script) = with_llama_cpp("llama_cpp_tokens.py") else { return };
    let byte_level = |own_split: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": own_split});
    let digits =
        json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level(true)]});
    let start = "<|endoftext|>";
    let llama3 = |file: &mut Value| {
        let split = &mut file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
        *split = json!(split.as_str().expect("a pattern").replace(r"|\p{N}|", r"|\p{N}{1,3}|"));
        file["model"]["ignore_merges"] = json!(true);
        let added = file["added_tokens"].as_array().expect("tokens");
        let id = added.iter().find(|token| token["content"] == start).expect("there")["id"].clone();
        let token = json!({"SpecialToken": {"id": start, "type_id": 0}});
        let [one, two] = ["A", "B"].map(|id| json!({"Sequence": {"id": id, "type_id": 0}}));
        file["post_processor"] = json!({"type": "TemplateProcessing", "single": [token, one], "pair": [token, one, two],
            "special_tokens": {start: {"id": start, "ids": [id], "tokens": [start]}}});
    };
    let models = [
        ("Qwen2's", changed("tokenizer.json", |_| {})),
        ("Llama 3's", changed("tokenizer.json", llama3)),
        ("GPT-2's", changed("tokenizer.json", |file| file["pre_tokenizer"] = byte_level(true))),
        ("SmolLM's", changed("tokenizer.json", |file| file["pre_tokenizer"] = digits.clone())),
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let published = reference("published_llava/model");
    let dirs = models.iter().map(|(name, dir)| (*name, dir.path())).chain([("Llama 2's", published.as_path())]);
    let mut names = Vec::new();
    for (name, dir) in dirs {
        let exported = folder.path().join(name);
        succeed(&mut export(dir, &exported, &[]));
        script.arg(&exported).arg(dir);
        names.push(name);
    }
    let found: Vec<Value> = serde_json::from_slice(&succeed(&mut script).stdout).expect("JSON");
    assert_eq!(found.len(), names.len());
    for (name, found) in names.iter().zip(&found) {
        assert_eq!(found["different"], json!([]), "{name}");
        println!("{name}: the same ids of {} texts", found["compared"]);
    }
}

/// A copy of the tiny model's directory with a file changed.
fn changed(file: &str, change: impl Fn(&mut Value)) -> TempDir {
    let dir = model_dir_of(references::TINY, "llava");
    let path = dir.path().join(file);
    let mut content: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    change(&mut content);
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, content.to_string()).expect("written");
    dir
}

#[test]
fn what_llama_cpp_cannot_compute_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32, "rope_theta": 5e6});
    let set = |key: &'static str, value: Value| move |content: &mut Value| content[key] = value.clone();
    for (word, dir) in [
        (
            "vision_feature_select_strategy",
            changed("config.json", set("vision_feature_select_strategy", json!("full"))),
        ),
        ("projector_hidden_act", changed("config.json", set("projector_hidden_act", json!("silu")))),
        ("head_dim", changed("config.json", |content| content["text_config"]["head_dim"] = json!(48))),
        ("rope_type", changed("config.json", |content| content["text_config"]["rope_parameters"] = llama3.clone())),
        (
            "pre_tokenizer",
            changed("tokenizer.json", |content| content["pre_tokenizer"]["pretokenizers"][0]["invert"] = json!(true)),
        ),
        ("ignore_merges", changed("tokenizer.json", |content| content["model"]["ignore_merges"] = json!(true))),
    ] {
        let error = fail(&mut export(dir.path(), &folder.path().join("gguf"), &[]));
        println!("{error}");
        assert!(error.contains(word), "{word}: {error}");
    }
}
