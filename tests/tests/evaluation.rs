//! Evaluation, sample captions, the best model, early stopping, event files, the manifest of trained tensors.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use kernels::device::cpu;
use model::named::{NamedMapper, map_named};
use serde_json::Value;
use std::path::Path;
use tests::runs::{json_file, json_lines, shards_with_validation, train};
use tests::tiny::read_tensors_at;
use tests::training::{fail, succeed};
use tests::{python, python_script};
use train::config::TrainType;
use train::trainability::Trainability;
use train::trainable::Choice;

const EVALUATED: [&str; 6] = ["--max_steps", "6", "--eval_strategy", "steps", "--eval_steps", "2"];

fn eval_losses(lines: &[Value]) -> Vec<(u64, f64)> {
    let of = |line: &Value| Some((line["step"].as_u64()?, line["eval_loss"].as_f64()?));
    lines.iter().filter_map(of).collect()
}

#[test]
fn losses_of_validation_rows_are_the_same_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let mut found = Vec::new();
    for (nproc, eval_rows) in [("1", "8"), ("2", "3")] {
        let output = folder.path().join(format!("run-{nproc}"));
        let mut more = [&EVALUATED[..], &["--train_type", "none", "--nproc", nproc]].concat();
        let accumulation = if nproc == "1" { "2" } else { "1" };
        more.extend(["--gradient_accumulation_steps", accumulation, "--per_device_eval_batch_size", eval_rows]);
        succeed(&mut train(&shards, &output, &more));
        let losses = eval_losses(&json_lines(&output.join("metrics.jsonl")));
        assert_eq!(losses.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4, 6]);
        let history = json_file(&output.join("trainer_state.json"))["log_history"].clone();
        assert_eq!(eval_losses(history.as_array().expect("a list")), losses, "trainer_state.json says the same");
        found.push(losses);
    }
    for ((step, a), (_, b)) in found[0].iter().zip(&found[1]) {
        println!("step {step}: eval_loss {a} on one rank, {b} on two (relative tolerance 1e-4)");
        assert!((a - b).abs() <= 1e-4 * a, "step {step}: {a}, {b}");
    }
    assert!(found[0][2].1 < found[0][0].1, "training lowers the loss of held-out rows: {:?}", found[0]);
}

#[test]
fn sample_captions_are_what_infer_says() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    // Enough steps for answers that are not one word over and over.
    let learned = ["--max_steps", "20", "--learning_rate", "0.008", "--per_device_train_batch_size", "8"];
    let asked = ["--train_type", "none", "--eval_strategy", "steps", "--eval_steps", "20", "--eval_captions", "3"];
    succeed(&mut train(&shards, &output, &[&learned[..], &asked].concat()));
    let captions = json_lines(&output.join("captions-20.jsonl"));
    assert_eq!(captions.len(), 3);
    // The final model is that of step 20: the same rows through `infer caption`.
    let by_infer = folder.path().join("infer.jsonl");
    let mut infer = std::process::Command::new(tests::program("infer"));
    infer.arg("caption").arg("--model").arg(&output).arg("--shards").arg(&shards).arg("--output").arg(&by_infer);
    succeed(infer.args(["--split", "validation", "--limit", "3", "--max-new-tokens", "64"]));
    for (ours, theirs) in captions.iter().zip(json_lines(&by_infer)) {
        println!("{}: {:?}, infer {:?}", ours["id"], ours["caption"], theirs["caption"]);
        assert_eq!((&ours["id"], &ours["caption"]), (&theirs["id"], &theirs["caption"]));
        assert!(ours["references"][0].as_str().is_some_and(|text| !text.is_empty()));
    }
}

#[test]
fn the_best_model_is_kept_and_loaded_and_the_run_stops_when_it_gets_worse() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    // A learning rate at which the loss soon rises.
    let more = [
        &["--train_type", "none", "--max_steps", "40", "--learning_rate", "0.02", "--eval_strategy", "steps"][..],
        &["--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "1"],
        &["--load_best_model_at_end", "--early_stopping_patience", "3", "--lr_scheduler_type", "constant"],
    ]
    .concat();
    succeed(&mut train(&shards, &output, &more));
    let losses = eval_losses(&json_lines(&output.join("metrics.jsonl")));
    let (best_step, best) = losses.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).expect("evaluations");
    let last = losses.last().expect("evaluations").0;
    println!("lowest loss {best} at step {best_step}, stopped at step {last} of 40");
    assert!(last < 40 && last == best_step + 3, "{losses:?}");
    let state = json_file(&output.join("trainer_state.json"));
    assert_eq!((state["best_metric"].as_f64(), state["best_global_step"].as_u64()), (Some(best), Some(best_step)));
    let checkpoint = output.join(format!("checkpoint-{best_step}"));
    assert_eq!(state["best_model_checkpoint"], Value::from(format!("checkpoint-{best_step}")));
    // The limit of one checkpoint leaves the newest and the best.
    assert!(checkpoint.is_dir() && output.join(format!("checkpoint-{last}")).is_dir());
    let weights = |dir: &Path| std::fs::read(dir.join("model.safetensors")).expect("weights");
    assert!(
        weights(&output) == weights(&checkpoint)
            && weights(&output) != weights(&output.join(format!("checkpoint-{last}")))
    );
}

#[test]
fn what_an_evaluation_needs_is_asked_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = folder.path().join("shards");
    let mut command = std::process::Command::new(tests::program("preprocess"));
    command.arg("shards").arg("--model").arg(tests::reference("tiny/llava"));
    command.arg("--data").arg(tests::reference("pictures")).arg("--output").arg(&shards);
    succeed(&mut command);
    let output = folder.path().join("run");
    let error = fail(&mut train(&shards, &output, &EVALUATED));
    assert!(error.contains("--validation-fraction"), "{error}");
    let error = fail(&mut train(&shards, &output, &[&EVALUATED[..], &["--load_best_model_at_end"]].concat()));
    assert!(error.contains("save_strategy"), "{error}");
    let saved = ["--save_strategy", "steps", "--save_steps", "3", "--load_best_model_at_end"];
    let error = fail(&mut train(&shards, &output, &[&EVALUATED[..], &saved].concat()));
    assert!(error.contains("a multiple of --eval_steps"), "{error}");
}

#[test]
fn tensorboard_reads_the_event_files() {
    let Some(mut python) = python() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let output = folder.path().join("run");
    let board =
        ["--train_type", "projector", "--report_to", "tensorboard", "--save_strategy", "steps", "--save_steps", "3"];
    let more = [&EVALUATED[..], &board].concat();
    succeed(&mut train(&shards, &output, &more));
    // Going on from step 3 takes back what the first run said of later steps.
    std::fs::remove_dir_all(output.join("checkpoint-6")).expect("a checkpoint of step 6");
    succeed(&mut train(&shards, &output, &[&more[..], &["--resume_from_checkpoint", "true"]].concat()));
    let printed = succeed(python.arg(python_script("read_events.py")).arg(&output));
    let events: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
    let lines = json_lines(&output.join("metrics.jsonl"));
    for (tag, key) in [("train/loss", "loss"), ("train/learning_rate", "learning_rate"), ("eval/loss", "eval_loss")] {
        let expected: Vec<(u64, f64)> =
            lines.iter().filter_map(|line| Some((line["step"].as_u64()?, line[key].as_f64()?))).collect();
        let found = events["scalars"][tag].as_array().unwrap_or_else(|| panic!("no {tag} in {events}"));
        assert_eq!(found.len(), expected.len(), "{tag}: {found:?}");
        for (event, (step, value)) in found.iter().zip(expected) {
            assert_eq!(event[0].as_u64(), Some(step), "{tag}");
            let read = event[1].as_f64().expect("a number");
            assert!((read - value).abs() <= 1e-6 * value.abs(), "{tag} at {step}: {read}, {value}");
        }
        println!("{tag}: {} events as in metrics.jsonl", found.len());
    }
    let text = events["texts"]["eval/captions"][0].as_str().expect("captions");
    assert!(text.contains("| id | caption | reference |"), "{text}");
}

/// What a run does at its end, on a model of which one value has changed meanwhile.
#[test]
fn a_frozen_part_that_has_changed_is_noticed_by_its_hash() {
    struct Tamper<'a>(&'a str);
    impl NamedMapper for Tamper<'_> {
        fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if name != self.0 {
                return param;
            }
            let tensor = param.val();
            let (shape, device) = (tensor.dims(), tensor.device());
            let mut values = tests::tiny::values(tensor);
            let last = values.len() - 1;
            values[last] = f32::from_bits(values[last].to_bits() ^ 1);
            param.map(|_| Tensor::from_data(TensorData::new(values.clone(), shape), &device))
        }
    }
    let (config, model) = (tests::tiny::config(), tests::tiny::model("llava", &cpu()));
    let layer = "language_model.model.layers.1.mlp.down_proj.weight";
    let tower = "vision_tower.vision_model.encoder.layers.0.mlp.fc2.bias";
    for (train_type, frozen, trained) in [
        (TrainType::Projector, &[layer, tower][..], "multi_modal_projector.linear_2.bias"),
        (TrainType::FreezeVision, &[tower], layer),
        (TrainType::None, &["vision_tower.vision_model.post_layernorm.bias"], tower),
    ] {
        let manifest = Trainability::of(&model, Choice::new(train_type, None), &config);
        manifest.check_frozen(&model).expect("nothing has changed");
        for name in frozen {
            let changed = map_named(model.clone(), &mut Tamper(name));
            let error = manifest.check_frozen(&changed).expect_err(name).to_string();
            assert!(error.contains("frozen parts of the model have changed"), "{error}");
        }
        let changed = map_named(model.clone(), &mut Tamper(trained));
        manifest.check_frozen(&changed).expect("trained parts may change");
        println!("{train_type:?}: the last bit of one value of {frozen:?} is noticed");
    }
}

#[test]
fn the_manifest_lists_what_is_trained_and_warns_of_what_cannot_be() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    for (train_type, more, unreachable) in
        [("none", &[][..], true), ("use_lora", &["--lora_vision", "true"], true), ("freeze_vision", &[], false)]
    {
        let output = folder.path().join(train_type);
        let more = [&["--train_type", train_type, "--max_steps", "1"][..], more].concat();
        let run = succeed(&mut train(&shards, &output, &more));
        let said = String::from_utf8_lossy(&run.stderr).into_owned();
        assert_eq!(said.contains("cannot receive gradients"), unreachable, "{train_type}: {said}");
        let manifest = json_file(&output.join("trainable.json"));
        let list = |key: &str| manifest[key].as_array().expect("a list").clone();
        assert_eq!(list("cannot_receive_gradients").is_empty(), !unreachable, "{train_type}");
        let values: u64 = list("trained").iter().map(|tensor| tensor["values"].as_u64().expect("a number")).sum();
        assert_eq!(Some(values), manifest["trained_values"].as_u64());
        let frozen = manifest["frozen"]["values"].as_u64().expect("a number");
        println!("{train_type}: {values} trained, {frozen} frozen values");
        if train_type == "use_lora" {
            continue;
        }
        // What is listed has changed, and nothing else.
        let before = read_tensors_at(&tests::reference("tiny/llava/model.safetensors"));
        let after = read_tensors_at(&output.join("model.safetensors"));
        let trained: Vec<Value> = list("trained").iter().map(|tensor| tensor["name"].clone()).collect();
        for (name, (values, _)) in &before {
            // A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
            let listed = trained.contains(&Value::from(name.as_str()));
            assert!(after[name].0 == *values || listed, "{train_type}: {name} changed");
            assert!(after[name].0 != *values || !listed, "{train_type}: {name} did not change");
        }
        assert_eq!(values + frozen, before.values().map(|(values, _)| values.len() as u64).sum::<u64>());
    }
}
