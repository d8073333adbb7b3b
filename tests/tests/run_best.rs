//! Ends of epochs and of runs, the best checkpoint of a folder that was moved, evaluations that are not finite, stops after
//! skipped steps.

use crate::faults::model_with_infinite_token;
use clap::{Args, FromArgMatches};
use kernels::device::cpu;
use serde_json::json;
use shards::{ShardSet, Split};
use std::path::Path;
use std::time::Duration;
use tests::python;
use tests::runs::{json_file, json_lines, shards_with_validation, train};
use tests::training::{final_weights, succeed};
use train::collective::launch::run_ranks;
use train::config::Config;
use train::signals::StopRequest;
use train::{recipe, trainer};

fn evaluated_at(output: &Path) -> Vec<u64> {
    let lines = json_lines(&output.join("metrics.jsonl"));
    lines.iter().filter(|line| line.get("eval_loss").is_some()).filter_map(|line| line["step"].as_u64()).collect()
}

fn saved_at(output: &Path) -> Vec<u64> {
    let names = std::fs::read_dir(output).expect("readable").flatten();
    let step = |name: String| name.strip_prefix("checkpoint-").and_then(|step| step.parse().ok());
    let mut steps: Vec<u64> =
        names.filter_map(|entry| step(entry.file_name().to_string_lossy().into_owned())).collect();
    steps.sort_unstable();
    steps
}

/// 24 rows, 4 a step: 6 steps an epoch. Where transformers 5.24 evaluates and saves (DefaultFlowCallback).
#[test]
fn evaluations_and_checkpoints_are_where_the_trainer_has_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    for (words, evaluated, saved) in [
        ("--num_train_epochs 1.75 --eval_strategy epoch --save_strategy epoch", &[6, 11][..], &[6, 11][..]),
        ("--max_steps 5 --eval_strategy epoch --save_strategy epoch", &[5], &[5]),
        ("--num_train_epochs 2 --eval_strategy epoch --save_strategy epoch", &[6, 12], &[6, 12]),
        (
            "--max_steps 5 --eval_strategy steps --eval_steps 3 --save_strategy steps --save_steps 2",
            &[3, 5],
            &[2, 4, 5],
        ),
        ("--max_steps 4 --eval_strategy steps --eval_steps 9 --save_strategy epoch", &[4], &[4]),
        ("--max_steps 4 --eval_strategy steps --eval_steps 2 --save_strategy no", &[2, 4], &[]),
        ("--max_steps 4 --eval_strategy no --save_strategy steps", &[], &[4]),
    ] {
        let more: Vec<&str> = words.split(' ').chain(["--train_type", "projector", "--eval_captions", "0"]).collect();
        succeed(&mut train(&shards, &output, &more));
        assert_eq!((evaluated_at(&output), saved_at(&output)), (evaluated.to_vec(), saved.to_vec()), "{words}");
        std::fs::remove_dir_all(&output).expect("removed");
    }
}

/// The loss rises after the first steps; the folder is moved, and the run goes on from another working directory.
/// The learning rate rises until the loss does, too.
#[test]
fn the_best_model_of_a_folder_that_was_moved_is_found() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let words = ["--train_type", "none", "--learning_rate", "2", "--lr_scheduler_type", "constant_with_warmup"];
    let words = [&words[..], &["--warmup_steps", "40", "--eval_captions", "0"]].concat();
    let saved = ["--eval_strategy", "steps", "--eval_steps", "3", "--save_strategy", "steps", "--save_steps", "3"];
    let words = [&words[..], &saved, &["--load_best_model_at_end"]].concat();
    let run = |from: &Path, output: &str, more: &[&str]| {
        let mut command = train(&shards, Path::new(output), &[&words[..], more].concat());
        let output = succeed(command.current_dir(from));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    run(folder.path(), "first", &["--max_steps", "30"]);
    let first = folder.path().join("first");
    let losses: Vec<(u64, f64)> = json_lines(&first.join("metrics.jsonl"))
        .iter()
        .filter_map(|line| Some((line["step"].as_u64()?, line["eval_loss"].as_f64()?)))
        .collect();
    let mut order = losses.clone();
    order.sort_by(|a, b| a.1.total_cmp(&b.1));
    let (best, second) = (order[0].0, order[1].0);
    assert!(best < 30, "the last model must not be the best for this test: {losses:?}");
    let state = json_file(&first.join("trainer_state.json"));
    assert_eq!(state["best_model_checkpoint"], json!(format!("checkpoint-{best}")));
    let inner = folder.path().join("moved");
    std::fs::create_dir(&inner).expect("made");
    std::fs::rename(&first, inner.join("second")).expect("moved");
    let moved = inner.join("second");
    let resume = ["--max_steps", "31", "--resume_from_checkpoint", "true"];
    let said = run(&inner, "second", &resume);
    let weights =
        |step: u64| std::fs::read(moved.join(format!("checkpoint-{step}/model.safetensors"))).expect("weights");
    assert!(said.contains(&format!("that of second/checkpoint-{best}")), "{said}");
    assert!(final_weights(&moved) == weights(best) && final_weights(&moved) != weights(31));
    assert_eq!(json_file(&moved.join("run.json"))["finished"]["weights_of_step"], best);
    // Without it the next best is put out, and said so.
    std::fs::remove_dir_all(moved.join(format!("checkpoint-{best}"))).expect("there");
    let said = run(&inner, "./second", &resume);
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("best eval_loss")).collect();
    assert_eq!(lines.len(), 1, "one sentence says it: {said}");
    let line = lines[0];
    assert!(line.starts_with("warning: ") && line.contains(&format!("checkpoint-{second} has the best")), "{line}");
    assert!(line.contains("of the checkpoints that there are"), "{line}");
    assert!(line.contains(&format!("at step {best}) has no checkpoint")), "{line}");
    assert!(final_weights(&moved) == weights(second));
}

/// A token of held-out rows alone has an infinite embedding: every evaluation is NaN, training is not.
#[test]
fn evaluations_that_are_not_finite_leave_checkpoints_readable() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let tokens = |split| -> Vec<i32> {
        let rows = ShardSet::open(&shards, split).expect("shards");
        (0..rows.len()).flat_map(|row| rows.read_row(row).expect("a row").input_ids.clone()).collect()
    };
    let trained = tokens(Split::Train);
    let held_out = tokens(Split::Validation);
    let token = held_out.iter().find(|token| !trained.contains(token)).expect("a token of held-out rows alone");
    let model = folder.path().join("model");
    model_with_infinite_token(&model, *token as usize);
    let model = model.display().to_string();
    let words =
        ["--train_type", "projector", "--model_name_or_path", &model, "--max_steps", "5", "--eval_captions", "0"];
    let saved = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "2"];
    let words = [&words[..], &saved].concat();
    let (whole, output) = (folder.path().join("whole"), folder.path().join("resumed"));
    succeed(&mut train(&shards, &whole, &words));
    succeed(&mut train(&shards, &output, &words));
    for step in [4, 5] {
        std::fs::remove_dir_all(output.join(format!("checkpoint-{step}"))).expect("saved");
    }
    let at_two = std::fs::read_to_string(output.join("checkpoint-2/trainer_state.json")).expect("a state");
    let history = |text: &str| {
        text.split_once("\"log_history\": [")
            .and_then(|(_, rest)| rest.split_once("\n  ]"))
            .map(|(lines, _)| lines.to_string())
    };
    let at_two = history(&at_two).expect("a log");
    succeed(&mut train(&shards, &output, &[&words[..], &["--resume_from_checkpoint", "true"]].concat()));
    assert!(final_weights(&output) == final_weights(&whole));
    // What was in the state is in it still, digit for digit.
    let text = std::fs::read_to_string(output.join("trainer_state.json")).expect("a state");
    assert!(text.contains(&at_two), "{text}\nwhere this is expected:\n{at_two}");
    assert_eq!(text.matches("\"eval_loss\": \"NaN\"").count(), 5, "{text}");
    let Some(mut python) = python() else { return };
    let script = "import sys; from transformers import TrainerState; s = TrainerState.load_from_json(sys.argv[1]); \
                  print(s.global_step, [x['step'] for x in s.log_history if 'eval_loss' in x and float(x['eval_loss']) != float(x['eval_loss'])])";
    let printed = succeed(python.args(["-c", script]).arg(output.join("trainer_state.json")));
    assert_eq!(String::from_utf8_lossy(&printed.stdout).trim(), "5 [1, 2, 3, 4, 5]");
}

/// One rank in this process; `stop`: it is asked to stop after its first step.
fn in_process(shards: &Path, output: &Path, more: &[&str], stop: bool) {
    let command = train(shards, output, more);
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_os_string()).collect();
    let matches = Config::augment_args(clap::Command::new("train")).args_override_self(true);
    let matches = matches.get_matches_from(cli::args::with_dashes(words));
    let config = Config::from_arg_matches(&matches).expect("options of train");
    let config = recipe::resolve(config, &matches, None).expect("valid options");
    let request = StopRequest::default();
    if stop {
        request.set();
    }
    let run = |rank| trainer::run(&config, rank, &cpu().autodiff(), &request);
    run_ranks(1, None, Duration::from_secs(60), run).expect("the run succeeds");
}

/// Step 2 is skipped: the second batch has a row with a token whose embedding is infinite.
#[test]
fn a_stop_after_a_skipped_step_leaves_its_checkpoint_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let rows = ShardSet::open(&shards, Split::Train).expect("shards");
    let rows: Vec<Vec<i32>> = (0..rows.len()).map(|row| rows.read_row(row).expect("a row").input_ids.clone()).collect();
    let of_one_row = |row: usize| {
        let elsewhere = |token: &i32| (0..rows.len()).any(|other| other != row && rows[other].contains(token));
        rows[row].iter().find(|token| !elsewhere(token)).copied()
    };
    let token = (4..8).find_map(of_one_row).expect("a token of one row of the second batch");
    let model = folder.path().join("model");
    model_with_infinite_token(&model, token as usize);
    let model = model.display().to_string();
    let words = ["--train_type", "projector", "--model_name_or_path", &model, "--shuffle", "false", "--max_steps", "3"];
    let words = [&words[..], &["--save_strategy", "steps", "--save_steps", "1"]].concat();
    let resume = [&words[..], &["--resume_from_checkpoint", "true"]].concat();
    let (whole, output) = (folder.path().join("whole"), folder.path().join("stopped"));
    succeed(&mut train(&shards, &whole, &words));
    in_process(&shards, &output, &words, true);
    assert_eq!(saved_at(&output), [1]);
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(output.join("checkpoint-1")).expect("there"));
    let before = (inode(), json_file(&output.join("checkpoint-1/manifest.json")));
    in_process(&shards, &output, &resume, true);
    assert_eq!(saved_at(&output), [1], "the second step is skipped");
    assert_eq!((inode(), json_file(&output.join("checkpoint-1/manifest.json"))), before, "saved a second time");
    in_process(&shards, &output, &resume, false);
    assert!(final_weights(&output) == final_weights(&whole));
    let skipped =
        |dir: &Path| json_file(&dir.join("trainer_state.json"))["stateful_callbacks"]["train"]["attributes"].clone();
    assert_eq!(skipped(&output)["skipped_steps"], 1);
    assert_eq!(skipped(&output)["cursor"], skipped(&whole)["cursor"]);
}

/// A run that early stopping has ended is at its end when it is resumed; with more patience it goes on.
#[test]
fn a_run_that_was_stopped_early_stays_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let words =
        ["--train_type", "none", "--learning_rate", "0.05", "--lr_scheduler_type", "constant", "--eval_captions", "0"];
    let saved = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "50"];
    let words = [&words[..], &saved, &["--max_steps", "40"]].concat();
    succeed(&mut train(&shards, &output, &[&words[..], &["--early_stopping_patience", "2"]].concat()));
    let last = json_lines(&output.join("metrics.jsonl")).last().expect("lines")["step"].as_u64().expect("a step");
    assert!(last < 38, "it must be stopped early for this test: {last}");
    assert_eq!(saved_at(&output), [last], "the last step is saved, whatever save_steps is");
    let weights = final_weights(&output);
    let resume = |patience| [&words[..], &["--resume_from_checkpoint", "--early_stopping_patience", patience]].concat();
    let run = succeed(&mut train(&shards, &output, &resume("2")));
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(said.contains(&format!("nothing left to train: step {last} of 40")), "{said}");
    assert!(final_weights(&output) == weights);
    succeed(&mut train(&shards, &output, &resume("3")));
    assert!(saved_at(&output).into_iter().max() > Some(last));
}

/// Chosen by the loss, then by the highest loss: earlier checkpoints are the best from then on, and no state names one that is gone.
#[test]
fn the_state_names_a_checkpoint_that_is_there_whatever_the_best_is_chosen_by() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let saved = ["--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2"];
    let words = ["--train_type", "projector", "--eval_captions", "0", "--save_total_limit", "2"];
    let words = [&words[..], &saved, &["--lr_scheduler_type", "constant"]].concat();
    // Of the newest checkpoint's state, and of the output's.
    let check = |greater: bool| {
        let losses: Vec<(u64, f64)> = json_lines(&output.join("metrics.jsonl"))
            .iter()
            .filter_map(|line| Some((line["step"].as_u64()?, line["eval_loss"].as_f64()?)))
            .collect();
        let there = saved_at(&output);
        let newest = output.join(format!("checkpoint-{}", there.last().expect("saved")));
        let cost = |loss: f64| if greater { -loss } else { loss };
        let best = losses
            .iter()
            .filter(|(step, _)| there.contains(step))
            .min_by(|a, b| cost(a.1).total_cmp(&cost(b.1)))
            .expect("an evaluated checkpoint");
        println!("{losses:?}, of which {there:?} are there: {best:?}");
        for state in [newest, output.clone()].map(|dir| json_file(&dir.join("trainer_state.json"))) {
            assert_eq!(state["best_model_checkpoint"], json!(format!("checkpoint-{}", best.0)), "{state}");
            let metric = &state["stateful_callbacks"]["train"]["attributes"]["best_checkpoint_metric"];
            assert_eq!(metric.as_f64(), Some(best.1));
        }
    };
    succeed(&mut train(&shards, &output, &[&words[..], &["--max_steps", "8"]].concat()));
    check(false);
    let greater = ["--resume_from_checkpoint", "true", "--greater_is_better", "true"];
    for max_steps in ["10", "12", "14"] {
        let run = succeed(&mut train(&shards, &output, &[&words[..], &greater, &["--max_steps", max_steps]].concat()));
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        let line =
            "the best is chosen by eval_loss (greater is better) from now on, not by eval_loss (lower is better)";
        assert_eq!(said.contains(line), max_steps == "10", "{said}");
        check(true);
    }
    // One that a user has removed is not named either.
    let state = json_file(&output.join("trainer_state.json"));
    let best = state["best_model_checkpoint"].as_str().expect("a name");
    std::fs::remove_dir_all(output.join(best)).expect("removed");
    succeed(&mut train(&shards, &output, &[&words[..], &greater, &["--max_steps", "16"]].concat()));
    check(true);
}
