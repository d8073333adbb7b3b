//! Model directories of the reference material, and `infer` over them.

use crate::references::{self, Reference};
use crate::{program, reference};
use serde_json::Value;
use std::process::{Command, Output};
use store::checkpoint::copy_processor_files;

/// A whole model directory with the weights of one fixture folder; `tiny/llava` has the processor files.
pub fn model_dir(weights: &str) -> tempfile::TempDir {
    model_dir_of(references::TINY, weights.strip_prefix("tiny/").unwrap_or(weights))
}

/// The same of a reference model.
pub fn model_dir_of(family: Reference, weights: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    copy_processor_files(&family.llava(), dir.path()).expect("processor files");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(family.path(weights).join(name), dir.path().join(name)).expect("copied");
    }
    dir
}

/// JSON of a file of the reference material.
pub fn read_json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(reference(path)).expect("readable")).expect("JSON")
}

/// Runs `infer` with arguments.
pub fn infer(args: &[&str]) -> Output {
    Command::new(program("infer")).args(args).output().expect("infer runs")
}

/// stdout of a run that must succeed.
pub fn infer_ok(args: &[&str]) -> String {
    let output = infer(args);
    assert!(output.status.success(), "infer {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("stdout is UTF-8")
}
