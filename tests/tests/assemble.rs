//! `preprocess model` against the LLaVA that transformers assembled from the same CLIP and Qwen2.

use chat::{ChatProcessor, TextTokenizer};
use images::image_processor::ImageProcessor;
use model::config::{LlavaConfig, TextConfig, WeightDtype};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};
use store::checkpoint::{TensorFiles, TensorSource, write_tensors};
use tests::references::Reference;
use tests::{program, reference, references};

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

/// The message of a run that must fail.
fn failure(result: Output) -> String {
    ended_with(1, result)
}

fn ended_with(code: i32, result: Output) -> String {
    assert_eq!(result.status.code(), Some(code), "exit code");
    String::from_utf8(result.stderr).expect("text")
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

#[test]
fn every_llava_is_assembled_bit_for_bit() {
    references::all().for_each(assembled_bit_for_bit);
}

fn assembled_bit_for_bit(model: Reference) {
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("llava");
    let spec = model.spec();
    let layers = spec["feature_layer"].to_string();
    let strategy = spec["select"].as_str().expect("a strategy");
    let options =
        ["--vision-feature-layer", layers.trim_matches(['[', ']']), "--vision-feature-select-strategy", strategy];
    let result = assemble(&model.vision_tower(), &model.language_model(), &output, &options);
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    println!("{}", String::from_utf8_lossy(&result.stdout));
    assert_eq!(LlavaConfig::read(&output).expect("read"), model.config(), "{}", model.name);

    let (found, expected) = (TensorFiles::open(&output).expect("opens"), model.llava());
    let expected_files = TensorFiles::open(&expected).expect("opens");
    assert_eq!(found.names(), expected_files.names(), "{}", model.name);
    let mut compared = 0;
    for name in expected_files.names() {
        let (a, b) = (found.get(name).expect("there"), expected_files.get(name).expect("there"));
        assert_eq!((a.shape, a.dtype), (b.shape, b.dtype), "{}: {name}", model.name);
        if !name.starts_with("multi_modal_projector") {
            assert!(a.bytes == b.bytes, "{}: {name}: other bytes", model.name);
            compared += 1;
        }
    }
    println!("{}: {compared} tensors equal bit for bit, 4 of the projector random", model.name);

    let chat = ChatProcessor::from_dir(&output).expect("reads");
    let reference = ChatProcessor::from_dir(&expected).expect("reads");
    assert_eq!(chat.image_token_id, model.config().image_token_index);
    assert_eq!(chat::without_list_contents(chat.template_source()), reference.template_source());
    let text = "<image>\nWhat is it?<|im_end|>";
    assert_eq!(chat.encode(text).expect("encodes"), reference.encode(text).expect("encodes"));
    let images = |dir: &Path| ImageProcessor::from_dir(dir).expect("reads");
    assert_eq!(images(&output), images(&expected), "{}", model.name);
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

/// A copy of a language model's directory whose vocabulary ends with the tokenizer's last token: there is no row for `<image>`.
fn without_spare_rows(source: &Path, copy_to: &Path) -> usize {
    std::fs::create_dir(copy_to).expect("made");
    copy(source, copy_to);
    let tokens = TextTokenizer::from_dir(source).expect("a tokenizer").next_free_id() as usize;
    let path = copy_to.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    let padded = config["vocab_size"].as_u64().expect("vocab_size") as usize;
    assert!(tokens < padded, "{} has spare rows", source.display());
    let files = TensorFiles::open(source).expect("opens");
    let cut = |name: &&str| {
        let view = files.get(name).expect("there");
        let rows = if view.shape[0] == padded { tokens } else { view.shape[0] };
        let bytes = view.bytes[..view.bytes.len() / view.shape[0] * rows].to_vec();
        let shape = [&[rows], &view.shape[1..]].concat();
        TensorSource { name: name.to_string(), dtype: view.dtype.into(), shape, bytes: Box::new(move || Ok(bytes)) }
    };
    write_tensors(files.names().iter().map(cut).collect(), copy_to, usize::MAX).expect("written");
    config["vocab_size"] = json!(tokens);
    std::fs::write(path, config.to_string()).expect("written");
    tokens
}

/// Tied and untied. New rows have transformers' distribution: mean ± √(1e-9 · variance) of the old ones, in every column.
#[test]
fn embeddings_grow_only_when_the_id_does_not_fit() {
    const TABLES: [&str; 2] = ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"];
    for name in ["tiny", "siglip_qwen2"] {
        let folder = tempfile::tempdir().expect("a folder");
        let (text, output) = (folder.path().join("text"), folder.path().join("llava"));
        let tokens = without_spare_rows(&reference(&format!("{name}/text")), &text);
        let assembled = |seed: &str| {
            let result = assemble(&reference("tiny/clip"), &text, &output, &["--seed", seed]);
            assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
            std::fs::read(output.join("model.safetensors")).expect("read")
        };
        assert!(assembled("3") != assembled("4"), "{name}: another seed draws other rows");
        let first = assembled("3");
        assert!(first == assembled("3"), "{name}: the same seed gives the same bytes");
        let config = LlavaConfig::read(&output).expect("read");
        assert_eq!((config.image_token_index as usize, config.text.vocab_size), (tokens, tokens + 1));
        let files = TensorFiles::open(&output).expect("opens");
        let (width, mut deviations) = (config.text.hidden_size, Vec::new());
        let tables = if config.text.tie_word_embeddings { &TABLES[..1] } else { &TABLES[..] };
        assert_eq!(files.get(TABLES[1]).is_none(), config.text.tie_word_embeddings);
        for table in tables {
            let table = files.get(table).expect("there").to_f32();
            let (old, new) = table.split_at(tokens * width);
            for (column, &new) in new.iter().enumerate() {
                let old: Vec<f64> = old.iter().skip(column).step_by(width).map(|&value| f64::from(value)).collect();
                let mean = old.iter().sum::<f64>() / tokens as f64;
                let variance = old.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / tokens as f64;
                deviations.push((f64::from(new) - mean) / (1e-9 * variance).sqrt());
            }
        }
        let spread = (deviations.iter().map(|value| value * value).sum::<f64>() / deviations.len() as f64).sqrt();
        let largest = deviations.iter().fold(0f64, |largest, value| largest.max(value.abs()));
        println!("{name}: {} columns: spread {spread:.3} (1 expected), largest {largest:.2}", deviations.len());
        assert!((0.7..1.3).contains(&spread) && largest < 5.0, "{name}: spread {spread}, largest {largest}");
        loads_in_transformers(&output, tokens + 1);
    }
}

/// Without a missing, unexpected or misshapen key, and without a warning.
fn loads_in_transformers(model: &Path, vocabulary: usize) {
    let Some(mut python) = tests::python() else { return };
    let script = "import sys, transformers as t; t.utils.logging.disable_progress_bar(); \
                  m, info = t.LlavaForConditionalGeneration.from_pretrained(sys.argv[1], output_loading_info=True); \
                  print({k: sorted(map(str, v)) for k, v in info.items() if v}, m.get_input_embeddings().weight.shape[0], \
                  m.get_output_embeddings().weight.shape[0], m.config.text_config.vocab_size)";
    let output = python.arg("-c").arg(script).arg(model).output().expect("python starts");
    let (found, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert_eq!(found.trim(), format!("{{}} {vocabulary} {vocabulary} {vocabulary}"));
    assert!(said.trim().is_empty(), "transformers says: {said}");
}

/// Vicuna and base models have no chat template; Vicuna has no tokenizer.json either.
#[test]
fn a_language_model_without_a_chat_template_is_given_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (text, output) = (folder.path().join("text"), folder.path().join("llava"));
    std::fs::create_dir(&text).expect("made");
    copy(&reference("tiny/text"), &text);
    let template = std::fs::read_to_string(text.join("chat_template.jinja")).expect("a template");
    std::fs::remove_file(text.join("chat_template.jinja")).expect("removed");
    let error = failure(assemble(&reference("tiny/clip"), &text, &output, &[]));
    assert!(error.contains("no chat template") && error.contains("--chat-template"), "{error}");
    let file = folder.path().join("chat.jinja");
    std::fs::write(&file, &template).expect("written");
    let file = file.to_str().expect("UTF-8");
    let given = assemble(&reference("tiny/clip"), &text, &output, &["--chat-template", file]);
    assert!(given.status.success(), "{}", String::from_utf8_lossy(&given.stderr));
    let written = std::fs::read_to_string(output.join("chat_template.jinja")).expect("written");
    assert_eq!(chat::without_list_contents(&written), template);
    let broken = failure(assemble(&reference("tiny/clip"), &text, &output, &["--chat-template", "/nonexistent.jinja"]));
    assert!(broken.contains("--chat-template") && broken.contains("/nonexistent.jinja"), "{broken}");
    std::fs::rename(text.join("tokenizer.json"), text.join("tokenizer.model")).expect("renamed");
    let slow = failure(assemble(&reference("tiny/clip"), &text, &output, &["--chat-template", file]));
    assert!(slow.contains("tokenizer.model and no tokenizer.json") && slow.contains("save_pretrained"), "{slow}");
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
    // A vocabulary with spare rows, and one that grows by <image>.
    for (language_model, vocab_size) in [("smollm2_as_qwen2", 49_280), ("smollm2", 49_153)] {
        let folder = tempfile::tempdir().expect("a folder");
        let output = folder.path().join("llava");
        let result = assemble(&backbones.join("dinov2s_as_clip336"), &backbones.join(language_model), &output, &[]);
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        println!("{}", String::from_utf8_lossy(&result.stdout));
        let config = LlavaConfig::read(&output).expect("read");
        let sizes = (config.image_token_index, config.text.vocab_size, config.dtype);
        assert_eq!(sizes, (49_152, vocab_size, WeightDtype::Bf16), "{language_model}");
        assert_eq!(config.image_seq_length(), 576);
    }
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
    let other = nested.to_string().replace("CLIPImageProcessor", "Siglip2ImageProcessor");
    std::fs::write(clip.join("processor_config.json"), other).expect("written");
    let error = failure(assemble(&clip, &reference("tiny/text"), &folder.path().join("siglip"), &[]));
    assert!(error.contains("Siglip2ImageProcessor"), "{error}");
}

#[test]
fn what_is_missing_or_foreign_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (clip, text) = (reference("tiny/clip"), reference("tiny/text"));
    let output = folder.path().join("llava");
    let swapped = failure(assemble(&text, &clip, &output, &[]));
    assert!(swapped.contains("--vision-tower") && swapped.contains("model_type"), "{swapped}");
    let layer = ended_with(2, assemble(&clip, &text, &output, &["--vision-feature-layer", "9"]));
    assert!(layer.contains("hidden state"), "{layer}");

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
