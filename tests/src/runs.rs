//! Small training runs on the tiny fixtures.

use crate::training::succeed;
use crate::{program, reference};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Shards of the 32 tiny photos in `folder/shards`, a quarter of them held out.
pub fn shards_with_validation(folder: &Path) -> PathBuf {
    let shards = folder.join("shards");
    let mut command = Command::new(program("preprocess"));
    command.arg("shards").arg("--model").arg(reference("tiny/llava"));
    command.arg("--data").arg(reference("pictures")).arg("--output").arg(&shards);
    succeed(command.args(["--validation-fraction", "0.25"]));
    shards
}

/// `train` on the tiny LLaVA: 4 rows a step, as many steps as asked for.
pub fn train(shards: &Path, output: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program("train"));
    command.arg("--model_name_or_path").arg(reference("tiny/llava"));
    command.arg("--data_path").arg(shards).arg("--output_dir").arg(output);
    command.args(["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"]);
    command.args(["--learning_rate", "0.002", "--logging_steps", "1", "--save_strategy", "no"]);
    command.args(more);
    command
}

/// The lines of a JSON-lines file.
pub fn json_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// A JSON file.
pub fn json_file(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("the file is JSON")
}
