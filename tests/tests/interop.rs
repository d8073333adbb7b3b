//! Our model directories and adapters in transformers and peft: nothing missing, nothing unexpected, the same loss.

use chat::{ChatProcessor, Message, Role};
use kernels::device;
use model::Llava;
use model::batch::PackedBatch;
use model::config::{LlavaConfig, WeightDtype};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use store::adapter::{load_adapter, save_adapter};
use store::checkpoint::{LoadAs, TensorSource, copy_processor_files, load_model, save_model, write_file};
use tests::{program, python, python_script, reference, references, tiny};

/// f32 sums in another order, over a few hundred tokens.
const LOSS_TOLERANCE: f64 = 1e-5;

/// What `interop.py` found; `None` where there is no Python.
fn interop(model: &Path, adapter: Option<&Path>, batch: &Path) -> Option<Value> {
    let adapter = adapter.map_or("-".into(), |dir| dir.display().to_string());
    let output =
        python()?.arg(python_script("interop.py")).arg(model).arg(adapter).arg(batch).output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "interop.py: {text}{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_str(text.lines().last().expect("a line")).expect("JSON"))
}

fn loss(model: &Llava, batch: &PackedBatch, config: &LlavaConfig) -> f64 {
    let (sum, tokens) = model.loss(batch, config);
    f64::from(tiny::values(sum)[0]) / tokens as f64
}

fn assert_same_loss(what: &str, found: &Value, ours: f64) {
    let theirs = found["loss"].as_f64().expect("a loss");
    let difference = (theirs - ours).abs() / theirs;
    println!(
        "{what}: loss {ours} here, {theirs} in transformers {} + peft {}: relative difference {difference:e} (tolerance {LOSS_TOLERANCE:e})",
        found["transformers"], found["peft"]
    );
    assert!(difference <= LOSS_TOLERANCE, "{what}: {difference:e}");
    for key in ["missing", "unexpected", "mismatched"] {
        assert_eq!(found[key], Value::Array(Vec::new()), "{what}: {key} keys");
    }
}

/// Every pair of families.
#[test]
fn full_checkpoints_load_and_compute_the_same_loss() {
    for family in references::all() {
        let source = family.llava();
        let (config, model) = load_model(&source, LoadAs::F32, &device::cpu()).expect("loads");
        let batch_path = family.path("forward.safetensors");
        let batch = tiny::forward_batch(&tiny::read_tensors_at(&batch_path), config.image_token_index);
        for max_part_bytes in [usize::MAX, 300_000] {
            let folder = tempfile::tempdir().expect("a folder");
            save_model(&model, &config, folder.path(), max_part_bytes).expect("saved");
            copy_processor_files(&source, folder.path()).expect("copied");
            let Some(found) = interop(folder.path(), None, &batch_path) else { return };
            let what = format!("{}, full, parts of at most {max_part_bytes} bytes", family.name);
            assert_same_loss(&what, &found, loss(&model, &batch, &config));
        }
    }
}

/// Every pair of families.
#[test]
fn adapters_load_and_compute_the_same_loss() {
    for family in references::all() {
        let (config, mut model) = load_model(&family.llava(), LoadAs::F32, &device::cpu()).expect("loads");
        // As we write it: the reference's own config is 5.x's, of which 4.41 reads another rope_theta.
        let base = tempfile::tempdir().expect("a folder");
        save_model(&model, &config, base.path(), usize::MAX).expect("saved");
        let lora = load_adapter(&mut model, &family.path("train_use_lora"), &device::cpu()).expect("loads");
        let folder = tempfile::tempdir().expect("a folder");
        save_adapter(&model, &lora, &base.path().display().to_string(), folder.path()).expect("saved");
        let batch_path = family.path("forward.safetensors");
        let Some(found) = interop(base.path(), Some(folder.path()), &batch_path) else { return };
        let batch = tiny::forward_batch(&tiny::read_tensors_at(&batch_path), config.image_token_index);
        let what = format!("{}, adapter", family.name);
        assert_same_loss(&what, &found, loss(&model, &batch, &config));
        assert_eq!(found["adapter_missing"], Value::Array(Vec::new()), "{what}");
        // The other generation's spelling of the same tensors, which this one does not look at.
        let old = ["base_model.model.language_model.model.", "base_model.model.multi_modal_projector."];
        for key in found["adapter_unexpected"].as_array().expect("a list") {
            let key = key.as_str().expect("a key");
            assert!(old.iter().any(|prefix| key.starts_with(prefix)), "{what}: {key} is in no spelling");
        }
    }
}

#[test]
fn an_assembled_model_loads_with_its_processor() {
    // Grouped queries, tied embeddings, a tokenizer that has <image> already.
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("llava");
    let assembled = Command::new(program("preprocess"))
        .args(["model", "--vision-tower"])
        .arg(reference("tiny/clip"))
        .arg("--language-model")
        .arg(reference("tied_text"))
        .arg("--output")
        .arg(&dir)
        .output()
        .expect("preprocess starts");
    assert!(assembled.status.success(), "{}", String::from_utf8_lossy(&assembled.stderr));

    let (config, model) = load_model(&dir, LoadAs::F32, &device::cpu()).expect("loads");
    let chat = ChatProcessor::from_dir(&dir).expect("reads");
    let prompt =
        chat.encode_prompt(&[Message { role: Role::User, content: "<image>\nWhat is it?".into() }]).expect("ids");
    let batch = batch_of(&prompt, &config);
    let batch_path = folder.path().join("batch.safetensors");
    write_batch(&batch, &config, &batch_path);
    let Some(found) = interop(&dir, None, &batch_path) else { return };
    assert_same_loss("assembled, grouped queries, tied", &found, loss(&model, &batch, &config));
    assert_eq!(found["tied"], true);
    if let Some(ids) = found["prompt_ids"].as_array() {
        assert_eq!(*ids, prompt.iter().map(|&id| Value::from(id)).collect::<Vec<_>>(), "ids of the chat prompt");
        assert_eq!(found["image_tokens"], config.image_seq_length(), "features that the processor makes room for");
    }
}

/// The prompt with every token after the image supervised.
fn batch_of(prompt: &[u32], config: &LlavaConfig) -> PackedBatch {
    let mut batch = PackedBatch { num_images: 1, ids: vec!["row".into()], ..Default::default() };
    for &id in prompt {
        let is_image = id == config.image_token_index;
        for _ in 0..if is_image { config.image_seq_length() } else { 1 } {
            if is_image {
                batch.image_positions.push(batch.input_ids.len());
            }
            batch.input_ids.push(id);
            let supervised = !is_image && !batch.image_positions.is_empty();
            batch.labels.push(if supervised { id as i32 } else { base::IGNORE_INDEX });
        }
    }
    batch.seq_lens = vec![batch.input_ids.len()];
    let side = config.vision.image_size;
    batch.pixel_values = (0..3 * side * side).map(|index| (index as f32 * 0.37).sin()).collect();
    batch
}

/// The batch as `interop.py` reads it: one row, numbers in f32.
fn write_batch(batch: &PackedBatch, config: &LlavaConfig, path: &Path) {
    let (tokens, side) = (batch.input_ids.len(), config.vision.image_size);
    let tensor = |name: &str, shape: Vec<usize>, values: Vec<f32>| {
        let bytes = Box::new(move || Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect()));
        TensorSource { name: name.into(), dtype: WeightDtype::F32.into(), shape, bytes }
    };
    let tensors = vec![
        tensor("input_ids", vec![1, tokens], batch.input_ids.iter().map(|&id| id as f32).collect()),
        tensor("labels", vec![1, tokens], batch.labels.iter().map(|&label| label as f32).collect()),
        tensor("attention_mask", vec![1, tokens], vec![1.0; tokens]),
        tensor("pixel_values", vec![1, 3, side, side], batch.pixel_values.clone()),
    ];
    write_file(tensors, path).expect("written");
}
