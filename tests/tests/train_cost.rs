//! Training: results do not depend on threads or cached features, memory does not grow over many steps.

use serde_json::Value;
use std::path::Path;
use tests::training::{Split, fail, shards, succeed, threads};

const SPLIT: Split = Split { ranks: 1, micro_batch: 4, accumulation: 1 };

fn metrics(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).expect("metrics were written");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

fn column(output: &Path, key: &str) -> Vec<f64> {
    metrics(output).iter().map(|line| line[key].as_f64().expect("a number")).collect()
}

#[test]
fn one_two_and_four_threads_give_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (train_type, weights) in [("none", "model.safetensors"), ("use_lora", "adapter_model.safetensors")] {
        let runs: Vec<Vec<u8>> = ["1", "2", "4"]
            .into_iter()
            .map(|count| {
                let output = folder.path().join(format!("{train_type}-{count}"));
                let dropout = if train_type == "use_lora" { &["--lora_dropout", "0.1"][..] } else { &[] };
                let mut command = threads(&output, train_type, SPLIT, dropout);
                succeed(command.env("RAYON_NUM_THREADS", count));
                std::fs::read(output.join(weights)).expect("weights")
            })
            .collect();
        assert!(runs[0] == runs[1], "{train_type}: 1 thread and 2");
        assert!(runs[0] == runs[2], "{train_type}: 1 thread and 4");
    }
}

/// The first run fills the file, the second only reads it: the same bits. Without it the features are not rounded to f16.
#[test]
fn kept_vision_features_change_no_more_than_their_rounding() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let run = |name: &str, more: &[&str]| {
        let output = folder.path().join(name);
        succeed(&mut threads(&output, "freeze_vision", SPLIT, more));
        output
    };
    let computed = run("computed", &[]);
    let kept = ["--cache-vision-features", "f16"];
    let (first, second) = (run("first", &kept), run("second", &kept));
    assert_eq!(column(&first, "loss"), column(&second, "loss"));
    let weights = |output: &Path| std::fs::read(output.join("model.safetensors")).expect("weights");
    assert!(weights(&first) == weights(&second), "filled and read give the same bits");
    for (step, (a, b)) in column(&computed, "loss").into_iter().zip(column(&first, "loss")).enumerate() {
        println!("step {}: loss {a} computed, {b} with features in f16", step + 1);
        assert!((a - b).abs() <= 2e-3 * a, "step {}: {a} and {b}", step + 1);
    }
    let files = std::fs::read_dir(shards()).expect("the shards' folder").flatten();
    let found = files.filter(|file| file.file_name().to_string_lossy().starts_with("vision_features-")).count();
    assert_eq!(found, 1, "one file beside the shards");
}

#[test]
fn features_of_a_trained_tower_are_not_kept() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (train_type, more) in [("none", &[][..]), ("use_lora", &["--lora_vision", "true"][..])] {
        let more: Vec<&str> = more.iter().copied().chain(["--cache-vision-features", "f16"]).collect();
        let stderr = fail(&mut threads(&folder.path().join(train_type), train_type, SPLIT, &more));
        assert!(stderr.contains("cache_vision_features") && stderr.contains("frozen"), "{stderr}");
    }
}

/// `LLAVA_MANY_STEPS` sets the number of steps (120).
#[test]
fn memory_does_not_grow_with_steps_nor_with_accumulation() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let steps = std::env::var("LLAVA_MANY_STEPS").unwrap_or_else(|_| "120".to_string());
    let output = folder.path().join("long");
    succeed(&mut threads(&output, "none", SPLIT, &["--max_steps", &steps, "--logging_steps", "20"]));
    let peaks = column(&output, "peak_rss_mb");
    println!("peak RSS every 20 steps, MB: {peaks:?}");
    let (early, late) = (peaks[1], peaks[peaks.len() - 1]);
    assert!(late <= early + 8.0, "{early} MB after 40 steps, {late} MB after {steps}");

    let peak = |accumulation: usize| {
        let output = folder.path().join(format!("accumulation-{accumulation}"));
        succeed(&mut threads(&output, "none", Split { accumulation, ..SPLIT }, &["--max_steps", "4"]));
        column(&output, "peak_rss_mb").last().copied().expect("a line")
    };
    let (once, eight_times) = (peak(1), peak(8));
    println!("peak RSS, MB: {once} with accumulation 1, {eight_times} with 8");
    assert!(eight_times <= once * 1.05 + 4.0, "{once} MB with accumulation 1, {eight_times} MB with 8");
}
