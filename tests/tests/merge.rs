//! `infer merge`: same logits, same text, refusals, and a checkpoint that transformers loads.

use serde_json::Value;
use tests::inference::{infer, infer_ok, read_json};
use tests::runs::{shards_with_validation, train};
use tests::training::succeed;
use tests::{python, python_script, reference};

/// f32 sums in another order; the fixture's logits reach about 1.
const TOLERANCE: f64 = 1e-4;

fn merged(dir: &std::path::Path) -> (String, Value) {
    let output = dir.join("merged").to_str().expect("UTF-8").to_string();
    let (model, adapter) = (path("tiny/llava"), path("tiny/train_use_lora"));
    let report = infer_ok(&["merge", "--model", &model, "--adapter", &adapter, "--output", &output]);
    (output, serde_json::from_str(&report).expect("JSON"))
}

fn path(shared_path: &str) -> String {
    reference(shared_path).to_str().expect("UTF-8").to_string()
}

#[test]
fn merged_and_unmerged_adapters_give_the_same_text() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (output, report) = merged(dir.path());
    let difference = report["largest_logit_difference"].as_f64().expect("a number");
    println!("merge: largest logit difference {difference:e} (tolerance {TOLERANCE:e}), report {report}");
    assert!(difference <= TOLERANCE);
    assert_eq!(report["same_argmax"], report["positions"]);
    assert_eq!(report["fine"], true);

    let chat = read_json("pictures/chat.json");
    for row in chat.as_array().expect("rows").iter().take(8) {
        let image = path(&format!("pictures/images/{}", row["image"].as_str().expect("image")));
        let question = row["conversations"][0]["value"].as_str().expect("a question");
        let ask = |model: &[&str]| {
            let rest = ["--image", image.as_str(), "--prompt", question, "--max-new-tokens", "24", "--json"];
            let json: Value = serde_json::from_str(&infer_ok(&[&["generate"], model, &rest].concat())).expect("JSON");
            json["new_ids"].clone()
        };
        let with_adapter = ask(&["--model", &path("tiny/llava"), "--adapter", &path("tiny/train_use_lora")]);
        assert_eq!(with_adapter, ask(&["--model", &output]), "{image}");
    }
}

#[test]
fn what_cannot_be_merged_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let adapter = dir.path().join("adapter");
    std::fs::create_dir(&adapter).expect("a folder");
    std::fs::copy(reference("tiny/train_use_lora/adapter_config.json"), adapter.join("adapter_config.json"))
        .expect("copied");
    let bytes = std::fs::read(reference("tiny/train_use_lora/adapter_model.safetensors")).expect("readable");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let missing = "layers.1.self_attn.v_proj.lora_B";
    let kept = tensors.tensors().into_iter().filter(|(name, _)| !name.contains(missing));
    safetensors::serialize_to_file(kept, None, &adapter.join("adapter_model.safetensors")).expect("written");

    let output = dir.path().join("merged");
    let (model, adapter, output) =
        (path("tiny/llava"), adapter.to_str().expect("UTF-8"), output.to_str().expect("UTF-8"));
    let refused = infer(&["merge", "--model", &model, "--adapter", adapter, "--output", output]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("v_proj") && !stderr.contains("panicked"), "{stderr}");
    assert!(!std::path::Path::new(output).exists(), "nothing is left behind");

    let taken =
        infer(&["merge", "--model", &model, "--adapter", &path("tiny/train_use_lora"), "--output", &path("pictures")]);
    assert_eq!(taken.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&taken.stderr).contains("not empty"));
}

/// The adapter of a run on tiny/llava, put on what it was merged into.
#[test]
fn an_adapter_of_another_model_is_a_warning_and_is_not_merged() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(dir.path());
    let run = dir.path().join("run");
    let lora = ["--train_type", "use_lora", "--lora_r", "2", "--max_steps", "2"];
    succeed(&mut train(&shards, &run, &lora));
    let text = |name: &str| dir.path().join(name).display().to_string();
    let (own, other, adapter, twice) = (path("tiny/llava"), text("merged"), text("run"), text("twice"));
    infer_ok(&["merge", "--model", &own, "--adapter", &adapter, "--output", &other]);
    for command in [
        &["merge", "--adapter", &adapter, "--output", &twice][..],
        &["export", "--adapter", &adapter, "--output", &twice],
        &["quantize", "--adapter", &adapter, "--output", &twice],
    ] {
        let refused = infer(&[command, &["--model", &other]].concat());
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{error}");
        for part in [&own, &other, "fingerprint", "--force true"] {
            assert!(error.contains(part), "{command:?}: {part}: {error}");
        }
        assert!(!dir.path().join("twice").exists(), "{command:?}");
    }
    let asked = |model: &str| {
        let words = ["generate", "--model", model, "--adapter", &adapter, "--prompt", "What?", "--max-new-tokens", "1"];
        String::from_utf8_lossy(&infer(&words).stderr).into_owned()
    };
    assert!(asked(&other).contains("warning: ") && asked(&other).contains("trained on"), "{}", asked(&other));
    assert!(!asked(&own).contains("trained on"), "{}", asked(&own));
    let again = ["--init_adapter", &adapter, "--train_type", "use_lora", "--max_steps", "1"];
    for (model, warns) in [(&other, true), (&own, false)] {
        let of_model = ["--model_name_or_path", model];
        let output = dir.path().join(format!("again-{warns}"));
        let ran = succeed(&mut train(&shards, &output, &[&again[..], &of_model].concat()));
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(said.contains("trained on"), warns, "{said}");
    }
    infer_ok(&["merge", "--model", &other, "--adapter", &adapter, "--output", &twice, "--force", "true"]);
}

/// transformers' logits of the merged checkpoint against peft's of base and adapter.
#[test]
fn transformers_loads_the_merged_checkpoint() {
    let Some(mut python) = python() else { return };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (output, _) = merged(dir.path());
    let ran = python
        .arg(python_script("merged_logits.py"))
        .args([path("tiny/llava"), path("tiny/train_use_lora"), output])
        .output()
        .expect("Python runs");
    let stdout = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{stdout}{}", String::from_utf8_lossy(&ran.stderr));
    let report: Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    let difference = report["largest_difference"].as_f64().expect("a number");
    println!(
        "transformers on the merged checkpoint: largest logit difference {difference:e} (tolerance {TOLERANCE:e})"
    );
    assert_eq!(report["missing"], serde_json::json!([]));
    assert_eq!(report["unexpected"], serde_json::json!([]));
    assert!(difference <= TOLERANCE);
}
