//! Resumed runs: the same rows a step on other numbers of ranks, another number where it is allowed, branches, copies.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};
use tests::runs::{json_file, json_lines, shards_with_validation, train};
use tests::training::{fail, final_weights, succeed};

const RESUME: [&str; 2] = ["--resume_from_checkpoint", "true"];

fn stderr(command: &mut Command) -> String {
    String::from_utf8_lossy(&succeed(command).stderr).into_owned()
}

/// Step, epoch and learning rate of every logged step.
fn steps(output: &Path) -> Vec<(u64, f64, f64)> {
    let number = |line: &Value, key: &str| line[key].as_f64().expect("a number");
    let lines = json_lines(&output.join("metrics.jsonl"));
    let of = |line: &Value| (number(line, "step") as u64, number(line, "epoch"), number(line, "learning_rate"));
    lines.iter().map(of).collect()
}

fn copy(from: &Path, to: &Path) {
    succeed(Command::new("cp").arg("-r").arg(from).arg(to));
}

/// 24 rows, 12 a step on three ranks, 2.5 epochs: five steps.
#[test]
fn rows_a_step_stay_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let whole = folder.path().join("whole");
    let words = ["--train_type", "none", "--per_device_train_batch_size", "2", "--num_train_epochs", "2.5"];
    let words = [&words[..], &["--save_strategy", "steps", "--save_steps", "2"]].concat();
    let of = |ranks, more: &[&'static str]| [&words[..], &["--nproc", ranks], more].concat();
    succeed(&mut train(&shards, &whole, &of("3", &[])));
    let expected = steps(&whole);
    assert_eq!(expected.len(), 5);
    std::fs::remove_dir_all(whole.join("checkpoint-5")).expect("the last step is saved");
    std::fs::remove_dir_all(whole.join("checkpoint-4")).expect("saved");
    for (ranks, accumulation) in [("1", Some(6)), ("2", Some(3)), ("3", None), ("6", Some(1))] {
        let output = folder.path().join(ranks);
        copy(&whole, &output);
        let said = stderr(&mut train(&shards, &output, &of(ranks, &RESUME)));
        assert!(said.contains("checkpoint-2 at step 2"), "{said}");
        let line = accumulation.map(|accumulation| format!("gradient_accumulation_steps {accumulation} instead of 2"));
        assert_eq!(line.is_some(), said.contains("keep the run's 12 rows a step"), "{ranks} ranks: {said}");
        assert!(line.is_none_or(|line| said.contains(&line)), "{ranks} ranks: {said}");
        assert_eq!(steps(&output), expected, "{ranks} ranks");
        assert!(ranks != "3" || final_weights(&output) == final_weights(&whole), "other weights");
        // Once more: there is nothing left, whatever the number of ranks was.
        let again = stderr(&mut train(&shards, &output, &of(ranks, &RESUME)));
        assert!(again.contains("nothing left to train"), "{again}");
    }
    let output = folder.path().join("impossible");
    copy(&whole, &output);
    let error = fail(&mut train(&shards, &output, &of("4", &RESUME)));
    for part in ["12 rows a step", "use 1 or 2 or 3 or 6 ranks", "--allow_global_batch_change true"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// Begun with 4 rows a step (2.5 epochs of 24 rows: 15 steps); from step 5 on with 8, and then with 3.
#[test]
fn with_another_batch_that_is_allowed_epochs_and_schedule_end_where_they_would() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let words = ["--train_type", "none", "--num_train_epochs", "2.5", "--save_strategy", "steps", "--save_steps", "5"];
    succeed(&mut train(&shards, &output, &words));
    let undisturbed = steps(&output);
    assert_eq!((undisturbed.len(), undisturbed[14].1), (15, 2.5));
    for step in [10, 15] {
        std::fs::remove_dir_all(output.join(format!("checkpoint-{step}"))).expect("saved");
    }
    let change = |micro, accumulation| {
        let batch = ["--per_device_train_batch_size", micro, "--gradient_accumulation_steps", accumulation];
        [&words[..], &batch, &RESUME, &["--allow_global_batch_change", "true", "--save_steps", "8"]].concat()
    };
    let refused =
        fail(&mut train(&shards, &output, &[&words[..], &["--per_device_train_batch_size", "3"], &RESUME].concat()));
    assert!(
        refused.contains("4 rows a step") && refused.contains("--per_device_train_batch_size 1 or 2 or 4"),
        "{refused}"
    );
    let said = stderr(&mut train(&shards, &output, &change("4", "2")));
    assert!(said.contains("8 rows a step, where the checkpoint had 4"), "{said}");
    // 40 rows are left: one step of the four that complete the first epoch, three of the second, two of the half.
    let found = steps(&output);
    let epochs: Vec<f64> = found[5..].iter().map(|(_, epoch, _)| *epoch).collect();
    let rows: Vec<f64> = epochs.iter().map(|epoch| epoch * 24.0).collect();
    let expected = [24.0, 32.0, 40.0, 48.0, 56.0, 60.0];
    assert!(rows.len() == 6 && rows.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{rows:?}");
    assert_eq!(found[..5], undisturbed[..5]);
    // The sixth update's rate is that of the undisturbed sixth; the rest go down to zero in six equal parts.
    let top = undisturbed[5].2;
    for (index, (_, _, rate)) in found[5..].iter().enumerate() {
        let expected = top * (1.0 - index as f64 / 6.0);
        assert!((rate - expected).abs() < 1e-12, "step {}: {rate}, {expected}", index + 6);
    }
    // The state of step 8 (row 16 of the second epoch) knows what the run began with: 8 + 12 rows are left, three a step.
    std::fs::remove_dir_all(output.join("checkpoint-11")).expect("the last step is saved");
    let said = stderr(&mut train(&shards, &output, &change("1", "3")));
    assert!(said.contains("checkpoint-8 at step 8") && said.contains("3 rows a step"), "{said}");
    let last = *steps(&output).last().expect("steps");
    assert_eq!((last.0, last.1), (8 + 3 + 4, 2.5));
    // Resumed with the batch that it now has, it needs no permission.
    std::fs::remove_dir_all(output.join("checkpoint-15")).expect("the last step is saved");
    let state = json_file(&output.join("trainer_state.json"))["stateful_callbacks"]["train"]["attributes"].clone();
    assert_eq!((&state["global_batch_size"], &state["initial_global_batch_size"]), (&3.into(), &4.into()));
}

/// From an older checkpoint, a run branches off: what came after it is not used any more.
#[test]
fn checkpoints_of_a_branch_that_was_given_up_are_not_resumed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let words = ["--train_type", "none", "--save_strategy", "steps", "--save_steps", "2"];
    let run = |output: &Path, more: &[&str]| stderr(&mut train(&shards, output, &[&words[..], more].concat()));
    run(&output, &["--max_steps", "8"]);
    let second = output.join("checkpoint-2").display().to_string();
    let said = run(&output, &["--max_steps", "3", "--learning_rate", "0.01", "--resume_from_checkpoint", &second]);
    assert!(said.contains("checkpoint-8 and others after step 2 are given up"), "{said}");
    assert!(said.contains("learning_rate 0.002 → 0.01"), "{said}");
    // In another folder, the same branch is all there is.
    let elsewhere = folder.path().join("elsewhere");
    let said = run(&elsewhere, &["--max_steps", "3", "--learning_rate", "0.01", "--resume_from_checkpoint", &second]);
    assert!(said.contains("checkpoint-2 at step 2"), "{said}");
    assert!(final_weights(&output) == final_weights(&elsewhere));
    for dir in [&output, &elsewhere] {
        let said = run(dir, &["--max_steps", "5", "--learning_rate", "0.01", "--resume_from_checkpoint", "true"]);
        assert!(said.contains("checkpoint-3 at step 3"), "{said}");
    }
    assert!(final_weights(&output) == final_weights(&elsewhere));
    // The branch's first checkpoint is lost: it goes on from where it began, also from another folder.
    for dir in [&output, &elsewhere] {
        for step in [3, 4, 5] {
            std::fs::remove_dir_all(dir.join(format!("checkpoint-{step}"))).expect("saved");
        }
        let said = run(
            dir,
            &["--max_steps", "5", "--learning_rate", "0.01", "--nproc", "2", "--resume_from_checkpoint", "true"],
        );
        assert!(said.contains("checkpoint-2 at step 2"), "{said}");
    }
}

#[test]
fn a_checkpoint_that_was_copied_alone_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let (whole, copied) = (folder.path().join("whole"), folder.path().join("copied"));
    let words = ["--train_type", "none", "--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4"];
    succeed(&mut train(&shards, &whole, &words));
    std::fs::create_dir(&copied).expect("made");
    copy(&whole.join("checkpoint-2"), &copied.join("checkpoint-2"));
    for more in [&[][..], &["--resume_from_checkpoint", "true", "--seed", "1"]] {
        let error = fail(&mut train(&shards, &copied, &[&words[..], more].concat()));
        assert!(error.contains("already used") || error.contains("seed is 42 there, 1 is given"), "{error}");
    }
    succeed(&mut train(&shards, &copied, &[&words[..], &RESUME].concat()));
    assert!(final_weights(&copied) == final_weights(&whole));
    // One of a version without run ids.
    let manifest = copied.join("checkpoint-2/manifest.json");
    let files = json_file(&manifest)["files"].clone();
    for name in ["checkpoint-4", "run.json", "model.safetensors", "metrics.jsonl"] {
        succeed(Command::new("rm").arg("-r").arg(copied.join(name)));
    }
    base::json::write(&manifest, &files).expect("written");
    let error = fail(&mut train(&shards, &copied, &[&words[..], &RESUME].concat()));
    assert!(error.contains("no run_id"), "{error}");
}

/// Killed before its first checkpoint, a run begins again; in a new folder it says that there is nothing to go on from.
#[test]
fn a_run_without_a_checkpoint_yet_begins_and_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let (whole, output) = (folder.path().join("whole"), folder.path().join("killed"));
    let words = [&["--train_type", "none", "--max_steps", "200"][..], &RESUME].concat();
    let said = stderr(&mut train(&shards, &whole, &words));
    assert!(said.contains("no run in ") && said.contains("starting at step 1"), "{said}");
    let mut killed = train(&shards, &output, &words);
    let mut killed = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    while std::fs::read(output.join("metrics.jsonl")).unwrap_or_default().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    killed.kill().expect("killed");
    assert!(!killed.wait().expect("ended").success(), "the run must be longer for this test");
    let error = fail(&mut train(&shards, &output, &["--train_type", "none", "--max_steps", "200"]));
    assert!(error.contains("already used") && error.contains("metrics.jsonl"), "{error}");
    let error = fail(&mut train(&shards, &output, &[&words[..], &["--seed", "3"]].concat()));
    assert!(error.contains("seed is 42 there, 3 is given"), "{error}");
    let said = stderr(&mut train(&shards, &output, &words));
    assert!(said.contains("no checkpoint of run ") && said.contains("starting at step 1"), "{said}");
    assert!(final_weights(&output) == final_weights(&whole));
    assert_eq!(json_lines(&output.join("metrics.jsonl")).len(), 200);
}
