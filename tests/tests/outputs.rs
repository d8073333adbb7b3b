//! Outputs that a command line names: a file of something else is not replaced unless that is asked for.

use serde_json::json;
use std::path::Path;
use std::process::{Command, Output};
use tests::runs::{shards_with_validation, train};
use tests::training::{fail, succeed};
use tests::{program, reference};

const FOREIGN: &str = "image,caption\na.jpg,A cat.\n";

/// Runs a command whose output is a file of something else: it ends before any work, the file is as it was, and `--overwrite` as
/// well as a second run replace it.
fn check(name: &str, output: &Path, command: &dyn Fn() -> Command, has_overwrite: bool) {
    let run = |more: &[&str]| -> Output { command().args(more).output().expect("the program starts") };
    let stderr = |run: &Output| String::from_utf8_lossy(&run.stderr).into_owned();
    std::fs::write(output, FOREIGN).expect("written");
    let refused = run(&[]);
    let words = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{name}: {words}");
    assert!(
        words.contains("a file of something else") && words.contains(&output.display().to_string()),
        "{name}: {words}"
    );
    assert_eq!(std::fs::read_to_string(output).expect("there"), FOREIGN, "{name}");
    assert_eq!(words.contains("--overwrite true"), has_overwrite, "{name}: {words}");
    println!("{name}: {}", words.trim());
    if has_overwrite {
        let replaced = run(&["--overwrite", "true"]);
        assert!(replaced.status.success(), "{name}: {}", stderr(&replaced));
        let own = std::fs::read(output).expect("there");
        assert_ne!(own, FOREIGN.as_bytes(), "{name}");
        // The program's own file needs no word.
        let again = run(&[]);
        assert!(again.status.success(), "{name}: {}", stderr(&again));
    }
}

#[test]
fn files_of_another_origin_are_not_replaced() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let path = |name: &str| folder.path().join(name);
    let questions = path("questions.jsonl");
    let question = json!({"question_id": 1, "image": "100000000.jpg", "text": "What is it?", "answer": "A cat"});
    std::fs::write(&questions, format!("{question}\n")).expect("written");
    let infer = |words: &[&str]| {
        let mut command = Command::new(program("infer"));
        command.args(words).arg("--model").arg(reference("tiny/llava"));
        command
    };

    let output = path("scores.jsonl");
    let score = || {
        let mut command = infer(&["score", "--limit", "2"]);
        command.arg("--shards").arg(&shards).arg("--output").arg(&output);
        command
    };
    check("infer score", &output, &score, true);

    let output = path("captions.jsonl");
    let caption = || {
        let mut command = infer(&["caption", "--limit", "1", "--max-new-tokens", "2"]);
        command.arg("--shards").arg(&shards).arg("--output").arg(&output);
        command
    };
    check("infer caption", &output, &caption, true);

    let output = path("answers.jsonl");
    let eval = || {
        let mut command = infer(&["eval", "--metric", "exact", "--max-new-tokens", "2"]);
        command.arg("--questions").arg(&questions).arg("--images").arg(reference("pictures/images"));
        command.arg("--output").arg(&output);
        command
    };
    check("infer eval", &output, &eval, true);
    // The files beside the answers.
    for ending in [".settings.json", ".scores.json", ".scored.jsonl"] {
        let beside = |ending: &str| path(&format!("answers.jsonl{ending}"));
        for ending in ["", ".settings.json", ".scores.json", ".scored.jsonl"] {
            std::fs::remove_file(beside(ending)).expect("removed");
        }
        check(&format!("infer eval, {ending}"), &beside(ending), &eval, true);
    }
    // No option gives the questions away.
    let output = &questions;
    let mut itself = infer(&["eval", "--metric", "exact", "--max-new-tokens", "2", "--overwrite", "true"]);
    itself
        .arg("--questions")
        .arg(&questions)
        .arg("--images")
        .arg(reference("pictures/images"))
        .arg("--output")
        .arg(output);
    let refused = fail(&mut itself);
    assert!(refused.contains("the file of --questions"), "{refused}");
    assert_eq!(std::fs::read_to_string(&questions).expect("there"), format!("{question}\n"));

    let output = path("shards.html");
    let inspect = || {
        let mut command = Command::new(program("preprocess"));
        command.arg("inspect").arg(&shards).arg("--html").arg(&output);
        command
    };
    check("preprocess inspect", &output, &inspect, true);

    let run = path("run");
    succeed(&mut train(&shards, &run, &["--train_type", "projector", "--max_steps", "1"]));
    let output = path("report.html");
    let report = || {
        let mut command = Command::new(program("pipelines"));
        command.arg("report").arg(&run).arg("--html").arg(&output);
        command
    };
    check("pipelines report", &output, &report, true);

    let (other, metrics) = (path("other"), path("metrics.csv"));
    let with_metrics = || {
        let more = ["--train_type", "projector", "--max_steps", "1", "--metrics", metrics.to_str().expect("UTF-8")];
        train(&shards, &other, &more)
    };
    check("train --metrics", &metrics, &with_metrics, false);
    let overwriting = fail(with_metrics().args(["--overwrite_output_dir", "true"]));
    assert!(overwriting.contains("a file of something else"), "{overwriting}");
}
