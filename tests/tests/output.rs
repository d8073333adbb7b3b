//! stdout and stderr that are closed or on a full disk: an error or no effect, never a panic.

use serde_json::json;
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use tests::program;
use tests::training::shards;

/// Commands of the four programs that print a result.
fn commands(folder: &Path) -> Vec<Command> {
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        std::fs::write(&path, text).expect("written");
        path
    };
    let clip = json!({"model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128, "image_size": 56,
        "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "hidden_act": "quick_gelu"});
    let text = json!({"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 1000, "hidden_act": "silu",
        "max_position_embeddings": 512});
    let clip = write("clip/config.json", clip.to_string());
    let text = write("text/config.json", text.to_string());
    let recipe =
        "purpose = \"nothing\"\n[infer]\nmodel = \"m\"\nimages = \"i\"\noutput = \"o.jsonl\"\nstop = [\"a\", \"e\"]\n";
    let recipe = write("recipe.toml", recipe.to_string());

    let mut plan = Command::new(program("train"));
    plan.arg("plan").arg("--vision-tower").arg(clip.parent().expect("a folder"));
    plan.arg("--language-model").arg(text.parent().expect("a folder")).args(["--rows", "10"]);
    let mut verify = Command::new(program("preprocess"));
    verify.arg("verify").arg(shards());
    let mut score = Command::new(program("infer"));
    score.arg("score").arg("--model").arg(tests::reference("tiny/llava")).arg("--shards").arg(shards());
    score.args(["--limit", "1"]).arg("--output").arg(folder.join("score.jsonl"));
    let mut run = Command::new(program("pipelines"));
    run.arg("run").arg(&recipe).arg("--dry-run");
    vec![plan, verify, score, run]
}

fn full() -> Stdio {
    Stdio::from(OpenOptions::new().write(true).open("/dev/full").expect("Linux has it"))
}

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    Stdio::from(writer)
}

#[test]
fn stdout_that_takes_nothing_is_an_error_without_a_panic() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (what, stdout) in [("No space left on device", full as fn() -> Stdio), ("Broken pipe", closed)] {
        for mut command in commands(folder.path()) {
            let output = command.stdout(stdout()).stderr(Stdio::piped()).output().expect("the program starts");
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command:?}: {told}");
            assert!(told.contains(&format!("error: stdout: {what}")), "{command:?}: {told}");
        }
    }
}

#[test]
fn stderr_that_takes_nothing_stops_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for stderr in [full as fn() -> Stdio, closed] {
        for mut command in commands(folder.path()) {
            let output = command.stdout(Stdio::piped()).stderr(stderr()).output().expect("the program starts");
            assert_eq!(output.status.code(), Some(0), "{command:?}");
            assert!(!output.stdout.is_empty(), "{command:?}");
        }
        // Errors and usage have nowhere to go, and are errors all the same.
        for name in ["train", "preprocess", "infer", "pipelines"] {
            let status = Command::new(program(name)).stdout(Stdio::null()).stderr(stderr()).status();
            assert_eq!(status.expect("the program starts").code(), Some(2), "{name}");
        }
    }
}

/// The work of a run is on the disk: that its last line finds no room does not make it a failure.
#[test]
fn a_finished_run_is_no_failure_because_of_its_last_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("run");
    let mut command = tests::runs::train(&shards(), &output, &["--max_steps", "1", "--train_type", "projector"]);
    let done = command.stdout(full()).stderr(Stdio::piped()).output().expect("the program starts");
    let told = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(0), "{told}");
    assert!(told.contains("warning: stdout: No space left on device") && output.join("model.safetensors").exists());
}

/// `stop` is a list of texts, which may hold commas.
#[test]
fn a_recipes_stops_are_single_texts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut commands = commands(folder.path());
    let run = commands.last_mut().expect("pipelines");
    let stdout = File::create(folder.path().join("stdout")).expect("a file");
    assert!(run.stdout(stdout).stderr(Stdio::null()).status().expect("the program starts").success());
    let line = std::fs::read_to_string(folder.path().join("stdout")).expect("the command line");
    assert!(line.contains("--stop a --stop e"), "{line}");
}
