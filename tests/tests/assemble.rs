//! `preprocess model` against the LLaVA that transformers assembled from the same CLIP and Qwen2.

use chat::ChatProcessor;
use model::config::{LlavaConfig, TextConfig, WeightDtype};
use std::path::Path;
use std::process::{Command, Output};
use store::checkpoint::{TensorFiles, TensorSource, write_tensors};
use tests::{program, reference, tiny};

fn assemble(vision_tower: &Path, language_model: &Path, output: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(program("preprocess"));
    command.arg("model").arg("--vision-tower").arg(vision_tower).arg("--language-model").arg(language_model);
    command.arg("--output").arg(output).args(options).output().expect("preprocess starts")
}

fn assemble_tiny(output: &Path, options: &[&str]) -> String {
    let result = assemble(&reference("tiny/clip"), &reference("tiny/text"), output, options);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    String::from_utf8(result.stdout).expect("text")
}

/// What a run that must fail says.
fn failure(result: Output) -> String {
    assert_eq!(result.status.code(), Some(1), "exit code");
    String::from_utf8(result.stderr).expect("text")
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

#[test]
fn the_tiny_llava_is_assembled_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("llava");
    println!("{}", assemble_tiny(&output, &["--vision_feature_layer", "-2"]));
    assert_eq!(LlavaConfig::read(&output).expect("read"), tiny::config());

    let (found, expected) = (TensorFiles::open(&output).expect("opens"), reference("tiny/llava"));
    let expected_files = TensorFiles::open(&expected).expect("opens");
    assert_eq!(found.names(), expected_files.names());
    let mut compared = 0;
    for name in expected_files.names() {
        let (a, b) = (found.get(name).expect("there"), expected_files.get(name).expect("there"));
        assert_eq!((a.shape, a.dtype), (b.shape, b.dtype), "{name}");
        if !name.starts_with("multi_modal_projector") {
            assert!(a.bytes == b.bytes, "{name}: other bytes");
            compared += 1;
        }
    }
    println!("{compared} tensors equal bit for bit, 4 of the projector random");

    let chat = ChatProcessor::from_dir(&output).expect("reads");
    let reference = ChatProcessor::from_dir(&expected).expect("reads");
    assert_eq!(chat.image_token_id, 600);
    assert_eq!(chat.chat_template_sha256, reference.chat_template_sha256);
    let text = "<image>\nWhat is it?<|im_end|>";
    assert_eq!(chat.encode(text).expect("encodes"), reference.encode(text).expect("encodes"));
    for file in ["preprocessor_config.json", "processor_config.json", "generation_config.json", "chat_template.jinja"] {
        assert!(output.join(file).exists(), "{file}");
    }
}

#[test]
fn the_projector_is_a_function_of_the_seed_with_the_right_spread() {
    let folder = tempfile::tempdir().expect("a folder");
    let weights = |name: &str, seed: &str| {
        let output = folder.path().join(name);
        assemble_tiny(&output, &["--seed", seed]);
        std::fs::read(output.join("model.safetensors")).expect("read")
    };
    let (first, again, other) = (weights("a", "7"), weights("a", "7"), weights("b", "8"));
    assert!(first == again, "the same seed into the same directory gives the same bytes");
    assert!(first != other, "another seed gives another projector");
    let files = TensorFiles::open(&folder.path().join("b")).expect("opens");
    let weight = files.get("multi_modal_projector.linear_1.weight").expect("there").to_f32();
    let mean_square = weight.iter().map(|v| v * v).sum::<f32>() / weight.len() as f32;
    println!("spread of linear_1.weight {} (0.02 expected)", mean_square.sqrt());
    assert!((mean_square.sqrt() - 0.02).abs() < 0.001);
    assert!(files.get("multi_modal_projector.linear_1.bias").expect("there").to_f32().iter().all(|&v| v == 0.0));
}

#[test]
fn options_reach_the_config_and_the_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("llava");
    let options = ["--vision-feature-layer", "-2,-1", "--vision-feature-select-strategy", "full", "--dtype", "bf16"];
    assemble_tiny(&output, &options);
    let config = LlavaConfig::read(&output).expect("read");
    assert_eq!((config.vision_feature_layers.as_slice(), config.image_seq_length()), (&[-2, -1][..], 17));
    assert_eq!(config.dtype, WeightDtype::Bf16);
    let files = TensorFiles::open(&output).expect("opens");
    assert!(files.names().iter().all(|name| files.get(name).is_some_and(|view| view.dtype == WeightDtype::Bf16)));
    assert_eq!(files.get("multi_modal_projector.linear_1.weight").expect("there").shape, [64, 96]);
}

#[test]
fn embeddings_grow_only_when_the_id_does_not_fit() {
    // The tiny vocabulary is padded to 640; one that ends with the last token has no row for <image>.
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("text");
    std::fs::create_dir(&text).expect("made");
    copy(&reference("tiny/text"), &text);
    let source = TensorFiles::open(&text).expect("opens");
    let cut = |name: &&str| {
        let view = source.get(name).expect("there");
        let rows = if view.shape[0] == 640 { 600 } else { view.shape[0] };
        let bytes = view.bytes[..view.bytes.len() / view.shape[0] * rows].to_vec();
        let shape = [&[rows], &view.shape[1..]].concat();
        let bytes = Box::new(move || Ok(bytes));
        TensorSource { name: name.to_string(), dtype: view.dtype, shape, bytes }
    };
    write_tensors(source.names().iter().map(cut).collect(), &text, usize::MAX).expect("written");
    let config = std::fs::read_to_string(text.join("config.json")).expect("read");
    std::fs::write(text.join("config.json"), config.replace("\"vocab_size\": 640", "\"vocab_size\": 600"))
        .expect("written");

    let output = folder.path().join("llava");
    let result = assemble(&reference("tiny/clip"), &text, &output, &[]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    let config = LlavaConfig::read(&output).expect("read");
    assert_eq!((config.image_token_index, config.text.vocab_size), (600, 601));
    let files = TensorFiles::open(&output).expect("opens");
    for name in ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"] {
        let table = files.get(name).expect("there").to_f32();
        let (old, new) = table.split_at(600 * 64);
        let mean: Vec<f32> = (0..64)
            .map(|column| (old.iter().skip(column).step_by(64).map(|&v| f64::from(v)).sum::<f64>() / 600.0) as f32)
            .collect();
        tests::assert_close(name, new, &mean, 1e-7);
    }
}

#[test]
fn a_token_that_is_there_is_used_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = reference("tied_text");
    let output = folder.path().join("llava");
    let result = assemble(&reference("tiny/clip"), &text, &output, &[]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    let same =
        |name: &str| std::fs::read(output.join(name)).expect("read") == std::fs::read(text.join(name)).expect("read");
    assert!(same("tokenizer.json") && same("generation_config.json"));
    let (source, _) = TextConfig::read(&text).expect("read");
    let config = LlavaConfig::read(&output).expect("read");
    assert_eq!(config.text, source, "tied, grouped queries, vocabulary as it was");
    assert!(TensorFiles::open(&output).expect("opens").get("language_model.lm_head.weight").is_none());
}

#[test]
fn real_backbones_are_assembled() {
    let Some(backbones) = std::env::var_os("LLAVA_BACKBONES") else {
        println!("not run: LLAVA_BACKBONES is not set");
        return;
    };
    let backbones = Path::new(&backbones);
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("llava");
    let result = assemble(&backbones.join("dinov2s_as_clip336"), &backbones.join("smollm2_as_qwen2"), &output, &[]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    println!("{}", String::from_utf8_lossy(&result.stdout));
    let config = LlavaConfig::read(&output).expect("read");
    assert_eq!((config.image_token_index, config.text.vocab_size, config.dtype), (49152, 49280, WeightDtype::Bf16));
    assert_eq!(config.image_seq_length(), 576);
}

/// CLIP ViT-L/14-336 is published as `pytorch_model.bin` only.
#[test]
fn pickled_weights_are_read_bit_for_bit() {
    let Some(mut python) = tests::python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (clip, text) = (folder.path().join("clip"), reference("tiny/text"));
    std::fs::create_dir(&clip).expect("made");
    copy(&reference("tiny/clip"), &clip);
    // Saved as transformers 4 did it: with the buffer of positions, which is no weight.
    let pickle = "import sys, torch, safetensors.torch as st; w = st.load_file(sys.argv[1] + '/model.safetensors'); \
                  w['vision_model.embeddings.position_ids'] = torch.arange(5)[None]; torch.save(w, sys.argv[1] + '/pytorch_model.bin')";
    let saved = python.arg("-c").arg(pickle).arg(&clip).output().expect("python starts");
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    std::fs::remove_file(clip.join("model.safetensors")).expect("removed");
    let (pickled, plain) = (folder.path().join("pickled"), folder.path().join("plain"));
    let result = assemble(&clip, &text, &pickled, &[]);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    assemble_tiny(&plain, &[]);
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).expect("read");
    assert!(weights(&pickled) == weights(&plain), "the same weights whatever file they came from");

    let file = clip.join("pytorch_model.bin");
    let bytes = std::fs::read(&file).expect("read");
    std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("written");
    let damaged = failure(assemble(&clip, &text, &folder.path().join("x"), &[]));
    assert!(damaged.contains("pytorch_model.bin") && damaged.contains("download it again"), "{damaged}");
}

/// transformers 5 writes the image processor's settings into `processor_config.json` alone.
#[test]
fn a_tower_with_its_image_processor_in_processor_config_json_gives_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let clip = folder.path().join("clip");
    std::fs::create_dir(&clip).expect("made");
    copy(&reference("tiny/clip"), &clip);
    let own = clip.join("preprocessor_config.json");
    let settings: serde_json::Value = serde_json::from_slice(&std::fs::read(&own).expect("read")).expect("JSON");
    let nested = serde_json::json!({"processor_class": "CLIPProcessor", "image_processor": settings});
    std::fs::write(clip.join("processor_config.json"), nested.to_string()).expect("written");
    std::fs::remove_file(&own).expect("removed");
    let (output, usual) = (folder.path().join("llava"), folder.path().join("usual"));
    let assembled = assemble(&clip, &reference("tiny/text"), &output, &[]);
    assert!(assembled.status.success(), "{}", String::from_utf8_lossy(&assembled.stderr));
    assemble_tiny(&usual, &[]);
    for file in ["preprocessor_config.json", "processor_config.json"] {
        let json = |dir: &Path| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(dir.join(file)).expect("read")).expect("JSON")
        };
        assert_eq!(json(&output), json(&usual), "{file}");
    }
    let other = nested.to_string().replace("CLIPImageProcessor", "SiglipImageProcessor");
    std::fs::write(clip.join("processor_config.json"), other).expect("written");
    let error = failure(assemble(&clip, &reference("tiny/text"), &folder.path().join("siglip"), &[]));
    assert!(error.contains("SiglipImageProcessor"), "{error}");
}

#[test]
fn what_is_missing_or_foreign_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (clip, text) = (reference("tiny/clip"), reference("tiny/text"));
    let output = folder.path().join("llava");
    let swapped = failure(assemble(&text, &clip, &output, &[]));
    assert!(swapped.contains("--vision-tower") && swapped.contains("model_type"), "{swapped}");
    assert!(failure(assemble(&clip, &text, &output, &["--vision-feature-layer", "9"])).contains("hidden states"));

    let bare = folder.path().join("clip");
    std::fs::create_dir(&bare).expect("made");
    copy(&clip, &bare);
    let preprocessor = std::fs::read_to_string(bare.join("preprocessor_config.json")).expect("read");
    std::fs::write(bare.join("preprocessor_config.json"), preprocessor.replace(": 56", ": 28")).expect("written");
    assert!(failure(assemble(&bare, &text, &output, &[])).contains("28 pixels"));
    std::fs::remove_file(bare.join("preprocessor_config.json")).expect("removed");
    assert!(failure(assemble(&bare, &text, &output, &[])).contains("preprocessor_config.json"));

    std::fs::create_dir(&output).expect("made");
    std::fs::write(output.join("trainer_state.json"), "{}").expect("written");
    let foreign = failure(assemble(&clip, &text, &output, &[]));
    assert!(foreign.contains("trainer_state.json"), "{foreign}");
    assert!(output.join("trainer_state.json").exists());
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).expect("listed").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(left.len(), 2, "no temporary directory is left: {left:?}");
}
