//! Learning rates by part of the model, against torch's AdamW with LLaVA's parameter groups; in resumed runs; refusals.

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tests::runs::json_file;
use tests::tiny::read_tensors_at;
use tests::training::{Split, compare, fail, final_weights, metrics, shards, succeed, threads};
use tests::{assert_norm_close, program, python, python_script, reference};

const PROJECTOR: &str = "0.0002";
const VISION_TOWER: &str = "0.0005";

/// Twelve rows a step.
const SPLITS: [Split; 3] = [
    Split { ranks: 1, micro_batch: 2, accumulation: 6 },
    Split { ranks: 2, micro_batch: 2, accumulation: 3 },
    Split { ranks: 3, micro_batch: 2, accumulation: 2 },
];

/// Options of a train type, and the parts that have a rate of their own.
fn rates(train_type: &str) -> Vec<&'static str> {
    match train_type {
        "none" => vec!["--mm_projector_lr", PROJECTOR, "--vision_tower_lr", VISION_TOWER],
        _ => vec!["--mm_projector_lr", PROJECTOR],
    }
}

#[test]
fn eight_steps_equal_torch_with_parameter_groups_on_any_number_of_ranks() {
    for (train_type, weights) in [("none", "model.safetensors"), ("use_lora", "adapter_model.safetensors")] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let expected = folder.path().join("torch");
        let options = rates(train_type);
        let parts: Vec<&str> = options.iter().step_by(2).map(|option| option.trim_start_matches('-')).collect();
        let values = options.iter().skip(1).step_by(2);
        let of_parts: Vec<String> =
            parts.iter().zip(values).map(|(part, rate)| format!("\"{part}\": {rate}")).collect();
        let Some(mut python) = python() else { return };
        python.arg(python_script("parameter_groups.py")).arg(reference("tiny")).arg(&expected);
        succeed(python.args([train_type, &format!("{{{}}}", of_parts.join(", ")), "12"]));
        let log = json_file(&expected.join("log.json")).as_array().expect("steps").clone();
        for split in SPLITS {
            let name = format!("{train_type}, {} ranks", split.ranks);
            let output = folder.path().join(split.ranks.to_string());
            succeed(&mut threads(&output, train_type, split, &options));
            let found = metrics(&output);
            compare(&name, "loss", &found, &log, 1e-4);
            compare(&name, "grad_norm", &found, &log, 1e-3);
            for key in parts.iter().chain(&["learning_rate"]) {
                compare(&name, key, &found, &log, 0.0);
            }
            let found = read_tensors_at(&output.join(weights));
            for (tensor, (expected, _)) in read_tensors_at(&expected.join(weights)) {
                assert_norm_close(&format!("{name}: {tensor}"), &found[&tensor].0, &expected, 1e-3);
            }
        }
    }
}

/// A rate of its own that is the common one changes no bit; another one changes its part from the first update on.
#[test]
fn the_common_rate_spelled_out_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = |name: &str, more: &[&str]| {
        let output = folder.path().join(name);
        succeed(&mut threads(&output, "none", SPLITS[0], more));
        output
    };
    let plain = run("plain", &[]);
    let same = run("same", &["--mm_projector_lr", "0.002", "--mm_vision_tower_lr", "0.002"]);
    assert!(final_weights(&plain) == final_weights(&same), "the same rate for every part");
    assert!(metrics(&plain).iter().all(|line| line.get("mm_projector_lr").is_none()), "no rate of its own");
    // At rate 0 the projector stays as it is, and nothing else does.
    let still = run("still", &["--mm_projector_lr", "0"]);
    let (before, after) = (reference("tiny/llava/model.safetensors"), still.join("model.safetensors"));
    let (before, after) = (read_tensors_at(&before), read_tensors_at(&after));
    for (name, (values, _)) in before.iter().filter(|(name, _)| !name.contains("vision_tower")) {
        assert_eq!(after[name].0 == *values, name.starts_with("multi_modal_projector."), "{name}");
    }
}

fn steps_of(checkpoint: &Path) -> Value {
    json_file(&checkpoint.join("trainer_state.json"))["global_step"].clone()
}

/// Resumed with the same rates: the same bits. From a checkpoint of a version that had one rate, and with others: a line.
#[test]
fn a_resumed_run_has_its_rates_and_may_change_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let whole = folder.path().join("whole");
    let options = rates("none");
    let saving = [&options[..], &["--save_strategy", "steps", "--save_steps", "3"]].concat();
    succeed(&mut threads(&whole, "none", SPLITS[0], &saving));
    let expected = final_weights(&whole);
    for step in [6, 8] {
        std::fs::remove_dir_all(whole.join(format!("checkpoint-{step}"))).expect("saved");
    }
    let resume = |split: Split, more: &[&str]| {
        let mut command = threads(&whole, "none", split, &[more, &["--resume_from_checkpoint", "true"]].concat());
        String::from_utf8_lossy(&succeed(&mut command).stderr).into_owned()
    };
    let said = resume(SPLITS[0], &options);
    assert!(final_weights(&whole) == expected, "resumed: other bits");
    assert!(!said.contains("_lr 0.0002 → ") && !said.contains("_lr not set → "), "{said}");
    assert!(said.contains("learning rates: 0.002, mm_projector_lr 0.0002, vision_tower_lr 0.0005"), "{said}");
    assert_eq!(steps_of(&whole.join("checkpoint-3")), 3);

    // As an older version wrote it.
    let checkpoint = whole.join("checkpoint-3");
    let (settings, manifest) = (checkpoint.join("train_config.json"), checkpoint.join("manifest.json"));
    let mut old = json_file(&settings);
    for key in ["mm_projector_lr", "vision_tower_lr"] {
        old.as_object_mut().expect("settings").remove(key).expect("a setting of this version");
    }
    base::json::write(&settings, &old).expect("written");
    let mut hashes = json_file(&manifest);
    hashes["files"]["train_config.json"] = base::files::sha256_of_file(&settings).expect("a hash").into();
    base::json::write(&manifest, &hashes).expect("written");
    let _ = std::fs::remove_dir_all(whole.join("checkpoint-8"));
    let said = resume(SPLITS[2], &["--mm_projector_lr", "0.0002"]);
    assert!(said.contains("differ from the checkpoint's: mm_projector_lr not set → 0.0002"), "{said}");
    assert!(final_weights(&whole) != expected, "the vision tower has the common rate now");
}

#[test]
fn rates_without_an_effect_are_refused_before_work() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let adapter = reference("tiny/train_use_lora_init").display().to_string();
    let rate = ["--vision_tower_lr", "1e-4"];
    let cases = [
        // Whether it trains the tower, the adapter says.
        (vec!["--train_type", "use_lora", "--init_adapter", &adapter], "vision_tower_lr: found 0.0001 for a part"),
        (vec!["--train_type", "projector"], "vision_tower_lr: found 0.0001, which has no effect"),
    ];
    for (options, named) in cases {
        for plans in [false, true] {
            let mut command = Command::new(program("train"));
            command.args(plans.then_some("plan")).arg("--model_name_or_path").arg(reference("tiny/llava"));
            command.arg("--data_path").arg(shards()).arg("--output_dir").arg(folder.path().join("run"));
            let error = fail(command.args(&options).args(rate));
            assert!(error.contains(named) && error.contains("leave --vision_tower_lr out"), "{error}");
        }
    }
    assert!(!folder.path().join("run").exists(), "nothing was begun");
    let mut plan = Command::new(program("train"));
    plan.arg("plan").arg("--model_name_or_path").arg(reference("tiny/llava")).arg("--data_path").arg(shards());
    let output = succeed(plan.args(["--train_type", "use_lora", "--mm_projector_lr", "2e-5"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("learning rate       0.00005, mm_projector_lr 0.00002"), "{text}");
}
