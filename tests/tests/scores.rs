//! `train --eval_metric`: scores of held-out rows, the same on any number of ranks; the best model and early stopping by a score.

use clap::{Args, Command, FromArgMatches};
use metrics::{Expected, Metric};
use serde_json::{Value, json};
use shards::{ShardSet, Split};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use tests::runs::{json_file, json_lines, shards_with_validation, train};
use tests::training::{fail, final_weights, succeed};
use tests::{program, python, python_script};
use train::best::Best;
use train::config::Config;
use train::state::TrainerState;

fn evaluations(output: &Path) -> Vec<Value> {
    json_lines(&output.join("metrics.jsonl")).into_iter().filter(|line| line.get("eval_loss").is_some()).collect()
}

/// The figures of evaluations, without times.
fn figures(output: &Path) -> Vec<Value> {
    let figure = |line: &Value| json!([line["step"], line["eval_bleu_4"], line["eval_rouge_l"], line["eval_cider_d"]]);
    let found: Vec<Value> = evaluations(output).iter().map(figure).collect();
    assert!(!found.is_empty() && found.iter().all(|line| line[2].is_number()), "{found:?}");
    found
}

/// With a learning rate of 0 the weights of all runs are the same: so are the scores, bit for bit; and they are those of `infer
/// caption` on the same rows.
#[test]
fn scores_are_the_same_on_any_number_of_ranks_and_those_of_infer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    // Enough steps for answers that differ from picture to picture.
    let trained = folder.path().join("model");
    let learned = ["--max_steps", "120", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "1"];
    succeed(&mut train(&shards, &trained, &[&learned[..], &["--train_type", "none"]].concat()));
    let trained = trained.display().to_string();
    let words =
        ["--model_name_or_path", &trained, "--learning_rate", "0", "--train_type", "projector", "--max_steps", "1"];
    let asked = ["--eval_strategy", "steps", "--eval_steps", "1", "--eval_captions", "0", "--eval_metric", "caption"];
    let mut found = Vec::new();
    for (nproc, accumulation, eval_rows) in [("1", "2", "8"), ("2", "1", "3"), ("3", "1", "1")] {
        let output = folder.path().join(format!("run-{nproc}"));
        let ranks = [
            "--nproc",
            nproc,
            "--gradient_accumulation_steps",
            accumulation,
            "--per_device_eval_batch_size",
            eval_rows,
        ];
        let more = [&words[..], &asked, &ranks, &["--eval_max_new_tokens", "12"]].concat();
        succeed(&mut train(&shards, &output, &more));
        found.push(figures(&output));
    }
    println!("on 1, 2 and 3 ranks: {}", found[0][0]);
    assert!(found[1] == found[0] && found[2] == found[0], "{found:?}");

    let captions = folder.path().join("captions.jsonl");
    let mut infer = std::process::Command::new(program("infer"));
    infer.args(["caption", "--model", &trained, "--split", "validation", "--max-new-tokens", "12"]);
    succeed(infer.arg("--shards").arg(&shards).arg("--output").arg(&captions));
    let lines = json_lines(&captions);
    let different: BTreeSet<&str> = lines.iter().filter_map(|line| line["caption"].as_str()).collect();
    println!("{} rows, {} different answers", lines.len(), different.len());
    assert!(different.len() >= 4, "{different:?}");
    let expected: Vec<Expected> = lines
        .iter()
        .map(|line| Expected {
            answers: vec![line["references"][0].as_str().expect("text").to_string()],
            options: Vec::new(),
        })
        .collect();
    let pairs: Vec<(&str, &Expected)> =
        lines.iter().map(|line| line["caption"].as_str().expect("text")).zip(&expected).collect();
    let by_infer: Vec<f64> = Metric::Caption.figures(&pairs).into_iter().map(|(_, value)| value).collect();
    let by_train: Vec<f64> = (1..4).map(|column| found[0][0][column].as_f64().expect("a number")).collect();
    assert_eq!(by_train, by_infer);
    assert!(by_train[1] > 0.0, "answers that have something of the references: {by_train:?}");

    // Row by row, on any number of ranks: ids, answers and what they are compared with.
    let by_infer: Vec<Value> =
        lines.iter().map(|line| json!([line["id"], line["caption"], [line["references"][0]]])).collect();
    for nproc in ["1", "2", "3"] {
        let rows = json_lines(&folder.path().join(format!("run-{nproc}/answers-1.jsonl")));
        let rows: Vec<Value> = rows.iter().map(|row| json!([row["id"], row["answer"], row["expected"]])).collect();
        assert_eq!(rows, by_infer, "{nproc} ranks");
    }
}

/// Which rows `eval_metric_samples` takes is in the file of their answers: the first ones of the validation rows.
#[test]
fn the_rows_that_were_scored_are_recorded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let words = ["--train_type", "projector", "--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "1"];
    let asked = ["--eval_metric", "exact", "--eval_metric_samples", "3", "--eval_max_new_tokens", "4", "--nproc", "2"];
    succeed(&mut train(&shards, &output, &[&words[..], &asked].concat()));
    let set = ShardSet::open(&shards, Split::Validation).expect("shards");
    let ids: Vec<Value> = (0..3).map(|row| json!(set.read_row(row).expect("a row").id)).collect();
    for step in [1, 2] {
        let rows = json_lines(&output.join(format!("answers-{step}.jsonl")));
        assert_eq!(rows.iter().map(|row| row["id"].clone()).collect::<Vec<_>>(), ids);
        let right: f64 = rows.iter().map(|row| row["score"].as_f64().expect("exact has a score")).sum();
        let line = evaluations(&output).into_iter().find(|line| line["step"] == step).expect("a line");
        assert_eq!(line["eval_exact_match"].as_f64(), Some(right / 3.0));
    }
}

/// A run that is killed after a checkpoint goes on with the same scores, and its log holds all of them.
#[test]
fn scores_of_a_resumed_run_are_those_of_an_undisturbed_one() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let words = ["--train_type", "projector", "--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "1"];
    let asked = [
        "--eval_captions",
        "0",
        "--eval_metric",
        "caption",
        "--eval_max_new_tokens",
        "8",
        "--eval_metric_samples",
        "3",
    ];
    let saved = ["--save_strategy", "steps", "--save_steps", "2", "--metric_for_best_model", "rouge_l"];
    let words = [&words[..], &asked, &saved].concat();
    let (whole, output) = (folder.path().join("whole"), folder.path().join("resumed"));
    succeed(&mut train(&shards, &whole, &words));
    succeed(&mut train(&shards, &output, &words));
    std::fs::remove_dir_all(output.join("checkpoint-4")).expect("saved");
    succeed(&mut train(&shards, &output, &[&words[..], &["--resume_from_checkpoint", "true"]].concat()));
    assert!(final_weights(&output) == final_weights(&whole));
    assert_eq!(figures(&output), figures(&whole));
    let states = [&whole, &output].map(|dir| json_file(&dir.join("trainer_state.json")));
    for key in ["best_metric", "best_global_step", "best_model_checkpoint"] {
        assert_eq!(states[0][key], states[1][key], "{key}");
    }
    let run = |state: &Value| state["stateful_callbacks"]["train"]["attributes"].clone();
    assert_eq!(run(&states[0])["best_by"], json!({"name": "eval_rouge_l", "greater": true}));
    for key in ["best_by", "best_checkpoint_metric", "evaluations_without_improvement"] {
        assert_eq!(run(&states[0])[key], run(&states[1])[key], "{key}");
    }

    // Chosen by another figure from here on, the log decides.
    let by_loss = ["--resume_from_checkpoint", "true", "--max_steps", "5", "--metric_for_best_model", "loss"];
    succeed(&mut train(&shards, &output, &[&words[..], &by_loss].concat()));
    let losses = evaluations(&output);
    let lowest = losses.iter().filter_map(|line| line["eval_loss"].as_f64()).reduce(f64::min);
    assert_eq!(json_file(&output.join("trainer_state.json"))["best_metric"].as_f64(), lowest);
    println!("{losses:?}");

    // The page has a chart for each score.
    let page = folder.path().join("report.html");
    succeed(std::process::Command::new(program("pipelines")).arg("report").arg(&output).arg("--html").arg(&page));
    let page = std::fs::read_to_string(&page).expect("a page");
    for score in ["bleu_4", "rouge_l", "cider_d"] {
        assert!(page.contains(&format!("eval_{score}")), "{score}");
    }
}

/// A figure that falls while the loss does not count: the best checkpoint by it is the one that is put out.
#[test]
fn the_best_model_by_a_score_is_kept_and_loaded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let more = [
        &["--train_type", "none", "--max_steps", "14", "--learning_rate", "0.01", "--eval_strategy", "steps"][..],
        &[
            "--eval_steps",
            "2",
            "--save_strategy",
            "steps",
            "--save_steps",
            "2",
            "--save_total_limit",
            "1",
            "--eval_captions",
            "0",
        ],
        &["--eval_metric", "caption", "--eval_max_new_tokens", "12", "--metric_for_best_model", "eval_rouge_l"],
        &["--load_best_model_at_end", "--lr_scheduler_type", "constant"],
    ]
    .concat();
    let run = succeed(&mut train(&shards, &output, &more));
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    let values: Vec<(u64, f64)> = evaluations(&output)
        .iter()
        .map(|line| (line["step"].as_u64().expect("a step"), line["eval_rouge_l"].as_f64().expect("a number")))
        .collect();
    let highest = values.iter().map(|(_, value)| *value).fold(f64::MIN, f64::max);
    let (best_step, _) = *values.iter().find(|(_, value)| *value == highest).expect("evaluations");
    println!("{values:?}: the best is {highest} at step {best_step}");
    let state = json_file(&output.join("trainer_state.json"));
    assert_eq!((state["best_metric"].as_f64(), state["best_global_step"].as_u64()), (Some(highest), Some(best_step)));
    assert_eq!(state["best_model_checkpoint"], json!(format!("checkpoint-{best_step}")));
    assert!(said.contains("the model with the best eval_rouge_l"), "{said}");
    let checkpoint = output.join(format!("checkpoint-{best_step}/model.safetensors"));
    assert!(final_weights(&output) == std::fs::read(checkpoint).expect("the best is kept"));
    assert_eq!(json_file(&output.join("run.json"))["finished"]["weights_of_step"], best_step);
}

/// Direction, best step and the step at which early stopping ends a run, for values in any order.
#[test]
fn best_and_early_stopping_are_the_trainers() {
    let Some(mut python) = python() else { return };
    let values = [
        [3.0, 2.0, 2.0, 2.5, 1.0, 4.0, 4.0],
        [0.1, 0.5, 0.5, 0.4, 0.6, 0.2, 0.1],
        [1.0; 7],
        [-1.0, 0.0, -2.0, 3.0, 2.0, 1.0, 9.0],
    ];
    let mut cases = Vec::new();
    for values in values {
        for (metric, direction) in [
            ("loss", None),
            ("eval_loss", None),
            ("cider_d", None),
            ("eval_bleu_4", None),
            ("loss", Some(true)),
            ("rouge_l", Some(false)),
        ] {
            for patience in [1, 2, 3] {
                cases.push(
                    json!({"metric": metric, "greater_is_better": direction, "patience": patience, "values": values}),
                );
            }
        }
    }
    let mut child = python
        .arg(python_script("best_model.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("Python starts");
    child.stdin.take().expect("stdin").write_all(json!(cases).to_string().as_bytes()).expect("written");
    let output = child.wait_with_output().expect("Python ends");
    let theirs: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(theirs.len(), cases.len());
    for (case, theirs) in cases.iter().zip(&theirs) {
        let mut words = vec![
            "train",
            "--eval_metric",
            "caption",
            "--metric_for_best_model",
            case["metric"].as_str().expect("text"),
        ];
        let direction = case["greater_is_better"].as_bool().map(|greater| greater.to_string());
        words.extend(direction.iter().flat_map(|greater| ["--greater_is_better", greater.as_str()]));
        let matches = Config::augment_args(Command::new("train"))
            .get_matches_from(cli::args::with_dashes(words.iter().map(Into::into)));
        let config = Config::from_arg_matches(&matches).expect("options of train");
        let mut state = TrainerState::default();
        state.choose_by(Best::of(&config).expect("a figure"));
        let patience = case["patience"].as_u64().expect("a number") as usize;
        let values = case["values"].as_array().expect("values").iter().filter_map(Value::as_f64);
        let mut stopped = None;
        for (step, value) in (1..).zip(values) {
            state.note(step, value);
            if state.run.evaluations_without_improvement >= patience {
                stopped = Some(step);
                break;
            }
        }
        let found = json!({"greater_is_better": state.run.best_by.greater, "best_metric": state.best_metric,
            "best_step": state.best_global_step, "stopped_at": stopped});
        assert_eq!(&found, theirs, "{case}");
    }
    println!("{} sequences of evaluations: direction, best step and stop as in transformers", cases.len());
}

#[test]
fn what_a_score_needs_is_asked_for_before_training() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let evaluated = ["--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2"];
    for (more, expected) in [
        (&["--eval_metric", "accuracy"][..], &["found accuracy", "yes-no"][..]),
        (&["--metric_for_best_model", "accuracy"], &["metric_for_best_model", "\"accuracy\"", "--eval_metric"]),
        (&["--eval_metric", "exact", "--metric_for_best_model", "cider_d"], &["\"cider_d\"", "eval_exact_match"]),
        (&["--eval_metric", "exact", "--eval_strategy", "no"], &["eval_metric", "--eval_strategy"]),
        (&["--eval_metric", "yes-no"], &["held-out row", "yes or no", "--eval_metric"]),
        (&["--eval_metric", "exact", "--eval_max_new_tokens", "0"], &["eval_max_new_tokens"]),
    ] {
        let error = fail(&mut train(&shards, &output, &[&evaluated[..], more].concat()));
        assert!(expected.iter().all(|word| error.contains(word)), "{more:?}: {error}");
        assert!(!output.join("metrics.jsonl").exists(), "{more:?}: before training");
    }
}

/// The keys and values of answers that are generated together are in the forecast of memory.
#[test]
fn the_plan_counts_the_caches_of_answers() {
    let plan = |more: &[&str]| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = |name: &str| tests::project_file(&format!("configs/{name}"));
        let mut command = std::process::Command::new(program("train"));
        command.arg("plan").arg("--vision-tower").arg(config("clip-vit-large-patch14-336"));
        command
            .arg("--language-model")
            .arg(config("qwen1.5-4b-chat"))
            .arg("--output_dir")
            .arg(folder.path().join("run"));
        command.args(["--train_type", "use_lora", "--gradient_checkpointing", "--per_device_train_batch_size", "1"]);
        command.args(["--eval_strategy", "steps", "--eval_steps", "10", "--eval_captions", "0"]).args(more);
        // Whether the real model fits this machine does not matter here.
        let output = command.output().expect("the program starts");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let line = text.lines().find(|line| line.trim_start().starts_with("activations")).expect("a line").to_string();
        println!("{more:?}: {}", line.trim());
        line
    };
    let (without, with) = (plan(&[]), plan(&["--eval_metric", "exact", "--eval_max_new_tokens", "512"]));
    assert_ne!(without, with);
}
