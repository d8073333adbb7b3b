//! The trainer held against transformers' Trainer: losses, gradient norms, learning rates of every step, final weights.

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tests::tiny::read_tensors_at;
use tests::{program, shared};

/// Runs a program and demands success; its stderr is shown otherwise.
fn succeed(command: &mut Command) {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn make_shards(dir: &Path) {
    let (model, data) = (shared("fixtures/tiny/llava"), shared("data/coco224_tiny"));
    succeed(
        Command::new(program("preprocess"))
            .arg("shards")
            .arg("--model")
            .arg(model)
            .arg("--data")
            .arg(data)
            .arg("--output")
            .arg(dir),
    );
}

/// The reference's settings: file order, micro-batch 2 × ranks × accumulation = 4 rows a step.
fn train(shards: &Path, output: &Path, train_type: &str, nproc: usize, more: &[&str]) {
    let accumulation = (2 / nproc).to_string();
    let mut command = Command::new(program("train"));
    command.arg("--model_name_or_path").arg(shared("fixtures/tiny/llava"));
    command.arg("--data_path").arg(shards).arg("--output_dir").arg(output);
    command.args(["--train_type", train_type, "--nproc", &nproc.to_string()]);
    command.args(["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", &accumulation]);
    command.args(["--learning_rate", "0.002", "--weight_decay", "0.01", "--max_steps", "8", "--warmup_steps", "2"]);
    command.args(["--logging_steps", "1", "--shuffle", "false", "--save_strategy", "no"]);
    if train_type == "use_lora" {
        command.arg("--init_adapter").arg(shared("fixtures/tiny/train_use_lora_init")).args(["--lora_dropout", "0"]);
    }
    succeed(command.args(more));
}

/// Largest relative difference of a number over all steps; fails above the tolerance, naming the step.
fn compare(name: &str, key: &str, found: &[Value], expected: &[Value], tolerance: f64) {
    let mut largest = 0f64;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (a, b) = (found[key].as_f64().expect("a number"), expected[key].as_f64().expect("a number"));
        let difference = if a == b { 0.0 } else { (a - b).abs() / b.abs() };
        assert!(difference <= tolerance, "{name}: step {}: {key} {a} where {b} is expected", index + 1);
        largest = largest.max(difference);
    }
    println!("{name}: {key}: largest relative difference {largest:e} (tolerance {tolerance:e})");
}

fn compare_log(name: &str, output: &Path, reference: &str) {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).expect("metrics were written");
    let found: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let file = std::fs::read(shared(reference)).expect("the reference is readable");
    let reference: Value = serde_json::from_slice(&file).expect("the reference is JSON");
    let expected = reference["steps_log"].as_array().expect("a list of steps");
    assert_eq!(found.len(), expected.len(), "{name}: logged steps");
    compare(name, "loss", &found, expected, 1e-4);
    compare(name, "grad_norm", &found, expected, 1e-3);
    compare(name, "learning_rate", &found, expected, 0.0);
}

/// Every tensor of the reference's file against the same name in ours, relative to its own norm.
fn compare_weights(name: &str, found: &Path, reference: &str) {
    let found = read_tensors_at(found);
    for (tensor, (expected, _)) in read_tensors_at(&shared(reference)) {
        let (values, _) = found.get(&tensor).unwrap_or_else(|| panic!("{name}: no tensor {tensor}"));
        tests::assert_norm_close(&format!("{name}: {tensor}"), values, &expected, 1e-3);
    }
}

#[test]
fn eight_steps_equal_transformers_trainer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = folder.path().join("shards");
    make_shards(&shards);
    let cases = [
        ("none", "model.safetensors"),
        ("freeze_vision", "model.safetensors"),
        ("use_lora", "adapter_model.safetensors"),
    ];
    for (train_type, weights) in cases {
        for nproc in [1, 2] {
            let name = format!("{train_type}, {nproc} ranks");
            let output = folder.path().join(format!("{train_type}-{nproc}"));
            train(&shards, &output, train_type, nproc, &[]);
            compare_log(&name, &output, &format!("fixtures/tiny/train_{train_type}.json"));
            compare_weights(&name, &output.join(weights), &format!("fixtures/tiny/train_{train_type}/{weights}"));
        }
    }
}

#[test]
fn recomputing_blocks_changes_nothing_that_matters() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = folder.path().join("shards");
    make_shards(&shards);
    let output = folder.path().join("run");
    train(&shards, &output, "none", 1, &["--gradient_checkpointing", "true"]);
    compare_log("gradient checkpointing", &output, "fixtures/tiny/train_none.json");
}

#[test]
fn the_projector_alone_is_trained_and_nothing_else_changes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = folder.path().join("shards");
    make_shards(&shards);
    let output = folder.path().join("run");
    train(&shards, &output, "projector", 1, &[]);
    let before = read_tensors_at(&shared("fixtures/tiny/llava/model.safetensors"));
    let after = read_tensors_at(&output.join("model.safetensors"));
    for (name, (values, _)) in &before {
        let changed = after[name].0 != *values;
        assert_eq!(changed, name.starts_with("multi_modal_projector."), "{name} changed: {changed}");
    }
}

#[test]
fn a_run_resumes_bit_for_bit_and_on_other_numbers_of_ranks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = folder.path().join("shards");
    make_shards(&shards);
    let whole = folder.path().join("whole");
    train(&shards, &whole, "none", 1, &[]);
    let expected = std::fs::read(whole.join("model.safetensors")).expect("weights");
    for nproc in [1, 2] {
        let output = folder.path().join(format!("resumed-{nproc}"));
        train(&shards, &output, "none", 1, &["--save_strategy", "steps", "--save_steps", "3"]);
        std::fs::remove_dir_all(output.join("checkpoint-6")).expect("a checkpoint of step 6");
        train(&shards, &output, "none", nproc, &["--resume_from_checkpoint", "true"]);
        compare_log(&format!("resumed on {nproc}"), &output, "fixtures/tiny/train_none.json");
        let same_bits = std::fs::read(output.join("model.safetensors")).expect("weights") == expected;
        println!("resumed at step 3 on {nproc} ranks: same bits as undisturbed: {same_bits}");
        assert!(same_bits || nproc != 1, "resuming on the same number of ranks must not change a bit");
    }
}
