//! The trainer against transformers' Trainer: losses, gradient norms, learning rates of every step, final weights.

use std::path::Path;
use tests::tiny::read_tensors_at;
use tests::training::{Split, compare_jobs, compare_log, compare_with_reference, succeed, threads, threads_of};
use tests::{reference, references};

/// The reference's settings: micro-batch 2 × ranks × accumulation = 4 rows a step.
fn train(output: &Path, train_type: &str, nproc: usize, more: &[&str]) {
    let split = Split { ranks: nproc, micro_batch: 2, accumulation: 2 / nproc };
    succeed(&mut threads(output, train_type, split, more));
}

#[test]
fn eight_steps_equal_transformers_trainer() {
    compare_with_reference("fused", |output, train_type, split| {
        succeed(&mut threads(output, train_type, split, &[]));
    });
}

#[test]
fn six_steps_of_every_family_equal_transformers_trainer() {
    for model in references::all().filter(|model| model.name != references::TINY.name) {
        compare_jobs(model, "fused", 2, |output, train_type, split| {
            succeed(&mut threads_of(model, output, train_type, split, &[]));
        });
    }
}

#[test]
fn recomputing_blocks_changes_nothing_that_matters() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("run");
    train(&output, "none", 1, &["--gradient_checkpointing", "true"]);
    compare_log("gradient checkpointing", &output, "none");
}

#[test]
fn the_projector_alone_is_trained_and_nothing_else_changes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("run");
    train(&output, "projector", 1, &[]);
    let before = read_tensors_at(&reference("tiny/llava/model.safetensors"));
    let after = read_tensors_at(&output.join("model.safetensors"));
    for (name, (values, _)) in &before {
        let changed = after[name].0 != *values;
        assert_eq!(changed, name.starts_with("multi_modal_projector."), "{name} changed: {changed}");
    }
}

#[test]
fn a_run_resumes_bit_for_bit_and_on_other_numbers_of_ranks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let whole = folder.path().join("whole");
    train(&whole, "none", 1, &[]);
    let expected = std::fs::read(whole.join("model.safetensors")).expect("weights");
    for nproc in [1, 2] {
        let output = folder.path().join(format!("resumed-{nproc}"));
        train(&output, "none", 1, &["--save_strategy", "steps", "--save_steps", "3"]);
        for step in [6, 8] {
            std::fs::remove_dir_all(output.join(format!("checkpoint-{step}"))).expect("a checkpoint");
        }
        train(&output, "none", nproc, &["--resume_from_checkpoint", "true"]);
        compare_log(&format!("resumed on {nproc}"), &output, "none");
        let same_bits = std::fs::read(output.join("model.safetensors")).expect("weights") == expected;
        println!("resumed at step 3 on {nproc} ranks: same bits as undisturbed: {same_bits}");
        assert!(same_bits || nproc != 1, "resuming on the same number of ranks must not change a bit");
    }
}
