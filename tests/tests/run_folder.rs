//! A run's folder: what a new run may not replace, whose checkpoints are whose, two programs at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tests::reference;
use tests::runs::{json_file, json_lines, shards_with_validation, train};
use tests::training::{fail, succeed};

const SAVED: [&str; 4] = ["--train_type", "none", "--save_strategy", "steps"];

/// Every file below a folder but the lock, with its bytes.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("readable").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            found.extend(files(&entry.path()).into_iter().map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else if name != "run.lock" {
            found.insert(name, std::fs::read(entry.path()).expect("readable"));
        }
    }
    found
}

fn checkpoints(dir: &Path) -> Vec<u64> {
    let names = std::fs::read_dir(dir).expect("readable").flatten();
    let step = |name: String| name.strip_prefix("checkpoint-").and_then(|step| step.parse().ok());
    let mut steps: Vec<u64> =
        names.filter_map(|entry| step(entry.file_name().to_string_lossy().into_owned())).collect();
    steps.sort_unstable();
    steps
}

fn stderr(command: &mut Command) -> String {
    String::from_utf8_lossy(&succeed(command).stderr).into_owned()
}

#[test]
fn a_used_folder_is_left_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let (run, no_checkpoint) = (folder.path().join("run"), folder.path().join("no-checkpoint"));
    let saved = [&SAVED[..], &["--save_steps", "2", "--max_steps", "4"]].concat();
    succeed(&mut train(&shards, &run, &saved));
    succeed(&mut train(&shards, &no_checkpoint, &["--train_type", "none", "--max_steps", "2"]));
    // Another run's metrics, named by an option.
    let metrics = no_checkpoint.join("metrics.jsonl").display().to_string();
    let elsewhere = folder.path().join("elsewhere");
    let (older, run_text) = (run.join("checkpoint-2").display().to_string(), run.display().to_string());
    let (model, resume) = (reference("tiny/llava"), ["--resume_from_checkpoint", "true"]);
    let foreign = folder.path().join("foreign");
    succeed(Command::new("cp").arg("-r").arg(&model).arg(&foreign));
    succeed(Command::new("chmod").arg("-R").arg("u+w").arg(&foreign));
    let foreign_text = foreign.display().to_string();
    let pictures = folder.path().join("pictures");
    std::fs::create_dir(&pictures).expect("created");
    std::fs::write(pictures.join("a.PNG"), "a picture").expect("written");
    let nowhere = folder.path().join("nowhere/metrics.jsonl").display().to_string();
    for (name, output, more, named) in [
        ("a new run", &run, &[][..], "--overwrite_output_dir true"),
        ("a new run where no checkpoint is", &no_checkpoint, &[], "model.safetensors"),
        ("resume without a checkpoint", &no_checkpoint, &resume, "no checkpoint to go on from"),
        ("resume with another seed", &run, &[&resume[..], &["--seed", "7"]].concat(), "seed is 42 there, 7 is given"),
        (
            "resume with another type",
            &run,
            &["--resume_from_checkpoint", "--train_type", "projector"],
            "train_type is none",
        ),
        (
            "resume with overwrite",
            &run,
            &[&resume[..], &["--seed", "7", "--overwrite_output_dir"]].concat(),
            "seed is 42",
        ),
        (
            "resume by name with another order",
            &run,
            &["--resume_from_checkpoint", &older, "--shuffle", "false"],
            "shuffle",
        ),
        ("another run's metrics", &elsewhere, &["--metrics", &metrics], "the metrics of another run"),
        (
            "another run's metrics, to overwrite",
            &elsewhere,
            &["--metrics", &metrics, "--overwrite_output_dir"],
            "give another --metrics, or remove the file",
        ),
        (
            "a base in the run that is replaced",
            &run,
            &["--model_name_or_path", &older, "--overwrite_output_dir"],
            "whose run is to be replaced",
        ),
        (
            "rows without yes or no",
            &run,
            &["--eval_strategy", "steps", "--eval_metric", "yes-no", "--overwrite_output_dir"],
            "held-out row ",
        ),
        (
            "rows without yes or no in a new folder",
            &elsewhere,
            &["--eval_strategy", "steps", "--eval_metric", "yes-no"],
            "held-out row ",
        ),
        ("another run's checkpoint", &no_checkpoint, &["--resume_from_checkpoint", &older], "used by another run"),
        ("a model that is no output", &foreign, &["--overwrite_output_dir"], "no output of train"),
        ("metrics in a folder that is not there", &elsewhere, &["--metrics", &nowhere], "found no folder"),
        ("a file", &no_checkpoint.join("metrics.jsonl"), &[], "found a file, expected a folder"),
        ("a folder of pictures", &pictures, &[], "expected a new folder"),
        ("the base model's folder", &foreign, &["--model_name_or_path", &foreign_text], "--model_name_or_path"),
        ("the shards' folder", &shards, &["--overwrite_output_dir"], "--data_path"),
        ("a checkpoint's folder", &run.join("checkpoint-2"), &["--overwrite_output_dir"], "a checkpoint's folder"),
        ("resume by the run's folder", &run, &["--resume_from_checkpoint", &run_text], "no manifest.json"),
    ] {
        let before = [&run, &no_checkpoint, &foreign, &shards, &pictures].map(|dir| files(dir));
        let words = [&["--train_type", "none", "--max_steps", "6"][..], more].concat();
        let error = fail(&mut train(&shards, output, &words));
        assert!(error.contains(named), "{name}: {error}");
        let after = [&run, &no_checkpoint, &foreign, &shards, &pictures].map(|dir| files(dir));
        for (before, after) in before.iter().zip(&after) {
            let changed: Vec<&String> = after.keys().filter(|file| before.get(*file) != after.get(*file)).collect();
            assert!(changed.is_empty() && before.len() == after.len(), "{name}: {changed:?} changed");
        }
        println!("{name}: {}", error.lines().last().unwrap_or_default());
    }
    for dir in [&foreign, &shards, &pictures, &elsewhere] {
        assert!(!dir.join("run.lock").exists(), "{}: no run has begun", dir.display());
        assert!(!dir.join("run.json").exists(), "{}: no run has begun", dir.display());
    }
}

/// A file of metrics outside the folder is the run's own, whether it resumes or is replaced, and no other's.
#[test]
fn metrics_elsewhere_belong_to_one_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let (run, other, metrics) =
        (folder.path().join("run"), folder.path().join("other"), folder.path().join("lines.jsonl"));
    let words = |steps: &'static str| {
        let metrics = ["--metrics", metrics.to_str().expect("UTF-8")];
        [&SAVED[..], &["--save_steps", "2", "--max_steps", steps], &metrics].concat()
    };
    let steps = || json_lines(&metrics).iter().filter_map(|line| line["step"].as_u64()).collect::<Vec<_>>();
    succeed(&mut train(&shards, &run, &words("2")));
    succeed(&mut train(&shards, &run, &[&words("4")[..], &["--resume_from_checkpoint", "true"]].concat()));
    assert_eq!(steps(), [1, 2, 3, 4]);
    let checkpoint = run.join("checkpoint-2").display().to_string();
    let before = std::fs::read(&metrics).expect("lines");
    for more in [
        &[][..],
        &["--overwrite_output_dir"],
        &["--resume_from_checkpoint"],
        &["--resume_from_checkpoint", &checkpoint],
    ] {
        let error = fail(&mut train(&shards, &other, &[&words("4")[..], more].concat()));
        assert!(error.contains("the metrics of another run") && error.contains("give another --metrics"), "{error}");
        assert!(before == std::fs::read(&metrics).expect("lines") && !other.join("run.json").exists(), "{more:?}");
    }
    succeed(&mut train(&shards, &run, &[&words("2")[..], &["--overwrite_output_dir"]].concat()));
    assert_eq!(steps(), [1, 2]);
    assert!(!folder.path().join("lines.jsonl.lock").exists(), "the lock goes with the run");
}

#[test]
fn a_run_that_replaces_another_never_uses_its_checkpoints() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let (output, alone) = (folder.path().join("run"), folder.path().join("alone"));
    let lora = ["--train_type", "use_lora", "--lora_r", "2", "--save_strategy", "steps", "--save_steps", "3"];
    succeed(&mut train(&shards, &output, &[&lora[..], &["--max_steps", "9", "--report_to", "tensorboard"]].concat()));
    let older = json_file(&output.join("run.json"))["run_id"].clone();
    // It gets worse from evaluation to evaluation: the best one of the folder would be the older run's.
    let more = [&SAVED[..], &["--save_steps", "2", "--save_total_limit", "1", "--learning_rate", "0.005"]].concat();
    let more = [&more[..], &["--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end"]].concat();
    let begun = [&more[..], &["--max_steps", "4"]].concat();
    succeed(&mut train(&shards, &alone, &begun));
    let said = stderr(&mut train(&shards, &output, &[&begun[..], &["--overwrite_output_dir", "true"]].concat()));
    assert!(said.contains("of other runs stay in the folder and are not used: 3"), "{said}");
    assert!(!output.join("adapter_model.safetensors").exists(), "the older run's output");
    assert_eq!(json_lines(&output.join("metrics.jsonl")).len(), 6, "four steps and two evaluations");
    let events = std::fs::read_dir(&output).expect("readable").flatten();
    assert_eq!(events.filter(|entry| entry.file_name().to_string_lossy().starts_with("events")).count(), 0);
    // Three of the older run stay, of this one the newest (which is the best, too).
    assert_eq!(checkpoints(&output), [3, 4, 6, 9]);
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).expect("weights");
    assert!(weights(&output) == weights(&alone), "other weights than alone in a folder");
    let record = json_file(&output.join("run.json"));
    assert_ne!(record["run_id"], older);
    for step in [3, 6, 9] {
        assert_eq!(json_file(&output.join(format!("checkpoint-{step}/manifest.json")))["run_id"], older);
    }
    let newest = json_file(&output.join("checkpoint-4/manifest.json"));
    assert_eq!((&newest["run_id"], &newest["global_step"]), (&record["run_id"], &4.into()));
    let state = json_file(&output.join("trainer_state.json"));
    assert_eq!(state["stateful_callbacks"]["train"]["attributes"]["run_id"], record["run_id"]);
    assert_eq!(record["finished"]["global_step"], 4);
    // It goes on from step 4, not from the older run's step 9.
    let resumed = [&more[..], &["--max_steps", "6", "--resume_from_checkpoint", "true"]].concat();
    for dir in [&output, &alone] {
        let said = stderr(&mut train(&shards, dir, &resumed));
        assert!(said.contains("checkpoint-4 at step 4") && said.contains("max_steps 4 → 6"), "{said}");
    }
    assert!(weights(&output) == weights(&alone), "other weights than alone in a folder");
    assert_eq!(checkpoints(&output), [3, 6, 9]);
    assert_eq!(json_file(&output.join("checkpoint-6/manifest.json"))["run_id"], record["run_id"]);
    // The older run's step 6 has another name, and can still be resumed from.
    let kept = output.join(format!("checkpoint-6.of-{}", older.as_str().expect("an id")));
    assert_eq!(json_file(&kept.join("manifest.json"))["run_id"], older);
    let (again, kept) = (folder.path().join("again"), kept.display().to_string());
    let from = [&lora[..], &["--max_steps", "7", "--resume_from_checkpoint", &kept]].concat();
    let said = stderr(&mut train(&shards, &again, &from));
    assert!(said.contains("at step 6"), "{said}");
}

/// Resumed with fewer steps than it has, another learning rate and event files: nothing of that is the run's.
#[test]
fn a_finished_run_that_is_resumed_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let words = ["--train_type", "projector", "--save_strategy", "steps", "--save_steps", "2"];
    succeed(&mut train(&shards, &output, &[&words[..], &["--max_steps", "4", "--learning_rate", "0.001"]].concat()));
    let before = files(&output);
    let more = ["--max_steps", "3", "--resume_from_checkpoint", "true", "--report_to", "tensorboard"];
    let again = succeed(&mut train(&shards, &output, &[&words[..], &more].concat()));
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("nothing left to train: step 4 of 3") && said.contains("is unchanged"), "{said}");
    let said = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(said.contains("step 4: nothing was left to train") && !said.contains("loss"), "{said}");
    let after = files(&output);
    let changed: Vec<&String> = after.keys().filter(|file| before.get(*file) != after.get(*file)).collect();
    assert!(changed.is_empty() && before.len() == after.len(), "{changed:?} changed");
    // An output that was removed is made again.
    std::fs::remove_file(output.join("model.safetensors")).expect("removed");
    succeed(&mut train(&shards, &output, &[&words[..], &more[..4]].concat()));
    assert_eq!(files(&output).get("model.safetensors"), before.get("model.safetensors"));
}

/// The second run names the first one, and the first one is not disturbed.
#[test]
fn two_runs_at_once_in_a_folder_are_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let metrics = folder.path().join("lines.jsonl");
    let steps = ["--train_type", "none", "--max_steps", "200", "--metrics", metrics.to_str().expect("UTF-8")];
    let mut first = train(&shards, &output, &steps);
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts");
    let begin = Instant::now();
    while !output.join("run.json").exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "the run does not start");
        std::thread::sleep(Duration::from_millis(2));
    }
    // It stands still meanwhile, so that it cannot end before the others have begun.
    let signal = |name: &str| succeed(Command::new("kill").args(["-s", name, &first.id().to_string()]));
    signal("STOP");
    for more in [&["--overwrite_output_dir"][..], &["--resume_from_checkpoint"]] {
        let error = fail(&mut train(&shards, &output, &[&steps[..], more].concat()));
        assert!(error.contains(&format!("process {} on ", first.id())), "{error}");
    }
    // Its file of metrics is elsewhere.
    let error = fail(&mut train(&shards, &folder.path().join("other"), &steps));
    assert!(error.contains("another train writes this file") && error.contains("give another --metrics"), "{error}");
    signal("CONT");
    assert!(first.wait().expect("ended").success());
    let steps: Vec<u64> = json_lines(&metrics).iter().filter_map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, (1..=200).collect::<Vec<_>>());
}
