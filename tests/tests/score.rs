//! `infer score` against transformers' loss.

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tests::inference::{infer, infer_ok, model_dir};
use tests::{program, python, python_script, reference, tiny};

/// f32 summation order, relative.
const TOLERANCE: f64 = 1e-4;

fn path(shared_path: &str) -> String {
    reference(shared_path).to_str().expect("UTF-8").to_string()
}

/// Shards of the fixtures' dataset made with the fixtures' model.
fn shards(dir: &Path) -> String {
    let output = dir.join("shards").to_str().expect("UTF-8").to_string();
    let ran = Command::new(program("preprocess"))
        .args(["shards", "--model", &path("tiny/llava"), "--data", &path("pictures"), "--output", &output])
        .output()
        .expect("preprocess runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    output
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("the scores are readable");
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

fn close(name: &str, found: f64, expected: f64) {
    let difference = (found - expected).abs() / expected.abs();
    println!("{name}: {found}, relative difference {difference:e} (tolerance {TOLERANCE:e})");
    assert!(difference <= TOLERANCE, "{name}: {found} where {expected} is expected");
}

#[test]
fn row_losses_and_the_total_equal_transformers() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let shards = shards(dir.path());
    let output = dir.path().join("scores.jsonl");
    let args =
        ["score", "--model", &path("tiny/llava"), "--shards", &shards, "--output", output.to_str().expect("UTF-8")];
    let total: Value = serde_json::from_str(&infer_ok(&args)).expect("JSON");
    let rows = lines(&output);
    assert_eq!((rows.len(), total["rows"].as_u64()), (32, Some(32)));

    // forward.safetensors has the loss of the first four rows as one batch: sum over tokens ÷ tokens.
    let number = |row: &Value, key: &str| row[key].as_f64().expect("a number");
    let sum = |key: &str| rows[..4].iter().map(|row| number(row, key)).sum::<f64>();
    let expected = tiny::read_tensors("tiny/forward.safetensors").remove("loss").expect("loss").0[0];
    close("loss of the first four rows", sum("loss_sum") / sum("tokens"), f64::from(expected));
    let all = rows.iter().map(|row| number(row, "loss_sum")).sum::<f64>();
    close("total", number(&total, "loss_sum"), all);
    close("loss", number(&total, "loss"), all / number(&total, "tokens"));

    let Some(mut python) = python() else { return };
    let ran = python
        .arg(python_script("row_losses.py"))
        .args([path("tiny/llava"), path("tiny/samples.json"), path("tiny/pixels.safetensors")])
        .output()
        .expect("Python runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let expected: Vec<Value> = serde_json::from_slice(&ran.stdout).expect("JSON");
    for (row, expected) in rows.iter().zip(&expected) {
        assert_eq!(row["id"], expected["id"]);
        assert_eq!(row["tokens"], expected["tokens"]);
        close(row["id"].as_str().expect("id"), number(row, "loss_sum"), number(expected, "loss_sum"));
    }
}

/// Weights in 8-bit integers change the loss little, also where an adapter lies on top.
#[test]
fn int8_weights_change_the_loss_little() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let shards = shards(dir.path());
    let loss = |extra: &[&str]| {
        let output = dir.path().join("scores.jsonl");
        let model = path("tiny/llava");
        let args = ["score", "--model", &model, "--shards", &shards, "--output", output.to_str().expect("UTF-8")];
        let total: Value = serde_json::from_str(&infer_ok(&[&args[..], extra].concat())).expect("JSON");
        total["loss"].as_f64().expect("a number")
    };
    let adapter = path("tiny/train_use_lora");
    for extra in [vec![], vec!["--adapter", adapter.as_str()]] {
        let difference = loss(&[&extra[..], &["--quantize", "int8"]].concat()) - loss(&extra);
        println!("int8 − stored, {extra:?}: {difference:e} nats a token (tolerance 0.02)");
        assert!(difference.abs() < 0.02);
        assert_ne!(difference, 0.0, "int8 weights were not used");
    }
}

#[test]
fn shards_of_another_model_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let shards = shards(dir.path());
    let model = tests::inference::model_dir("tiny/llava");
    let config = model.path().join("preprocessor_config.json");
    let text = std::fs::read_to_string(&config).expect("readable");
    let changed = text.replacen("0.48145466", "0.5", 1);
    assert_ne!(changed, text, "the fixture's mean");
    std::fs::write(&config, changed).expect("written");
    let output = dir.path().join("scores.jsonl");
    let refused = infer(&[
        "score",
        "--model",
        model.path().to_str().expect("UTF-8"),
        "--shards",
        &shards,
        "--output",
        output.to_str().expect("UTF-8"),
    ]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("another image processor"), "{stderr}");
    assert!(!output.exists());
}

/// A model with one NaN, whose answers would look like empty ones, and sets without rows or pictures, whose figures would look
/// perfect.
#[test]
fn results_that_say_nothing_are_errors() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let shards = shards(dir.path());
    let broken = model_dir("tiny/llava");
    let file = broken.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("readable");
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).expect("JSON");
    let tensors = header.as_object().expect("an object");
    let (_, norm) = tensors.iter().find(|(name, _)| name.ends_with("model.norm.weight")).expect("a final norm");
    assert_eq!(norm["dtype"], "F32");
    let first = 8 + header_len + norm["data_offsets"][0].as_u64().expect("an offset") as usize;
    bytes[first..first + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).expect("written");

    let pictures = dir.path().join("pictures");
    std::fs::create_dir(&pictures).expect("a folder");
    std::fs::copy(reference("pictures/images/100000000.jpg"), pictures.join("a.jpg")).expect("copied");
    let (whole, broken) = (path("tiny/llava"), broken.path().to_str().expect("UTF-8").to_string());
    let (output, pictures) = (dir.path().join("out.jsonl"), pictures.to_str().expect("UTF-8").to_string());
    let output = output.to_str().expect("UTF-8");
    for (args, message) in [
        (&["generate", "--model", &broken, "--prompt", "Why?"][..], "logits that are NaN or infinite"),
        (
            &["caption", "--model", &broken, "--images", &pictures, "--output", output],
            "logits that are NaN or infinite",
        ),
        (&["score", "--model", &broken, "--shards", &shards, "--output", output], "its loss is NaN"),
        (&["score", "--model", &whole, "--shards", &shards, "--output", output, "--limit", "0"], "at least 1"),
        (
            &["score", "--model", &whole, "--shards", &shards, "--output", output, "--split", "validation"],
            "no rows to score: the split has 0",
        ),
        (&["caption", "--model", &whole, "--images", &pictures, "--output", output, "--limit", "0"], "at least 1"),
    ] {
        let ran = infer(args);
        let text = String::from_utf8_lossy(&ran.stderr);
        assert!(!ran.status.success() && text.contains(message), "{args:?}: {text}");
        assert!(ran.stdout.is_empty(), "{args:?}");
    }
}
