//! Rows of several turns, of several images and of none: through preprocessing, other readers, and training.

use base::IGNORE_INDEX;
use chat::ChatProcessor;
use images::image_processor::ImageProcessor;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use shards::{Row, ShardSet, Split};
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::dataset::{Dataset, answered, llava, question, reference_rows};

fn rows(output: &Path) -> Vec<Row> {
    let set = ShardSet::open(output, Split::Train).expect("shards");
    (0..set.len()).map(|index| set.read_row(index).expect("a row")).collect()
}

#[test]
fn several_turns_several_images_and_no_image() {
    let dataset = Dataset::empty();
    let images: Vec<String> = dataset.copy_images("pictures", 2);
    let system = json!({"from": "system", "value": "Be brief."});
    dataset.write(&json!([
        {"id": "turns", "image": images[0],
         "conversations": [question("<image>\nWhat?"), answered("A cat."), question("Why?"), answered("It sleeps.")]},
        {"id": "two", "image": images,
         "conversations": [question("<image> and <image>"), answered("Two.")]},
        {"id": 3, "conversations": [system, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    ]));
    let output = dataset.shards(&["--system-prompt", "You are terse."]);
    let rows = rows(output.path());
    let chat = ChatProcessor::from_dir(&llava()).expect("a tokenizer");
    let pair = |question: &str, answer: &str| (question.to_owned(), answer.to_owned());
    let expected = [
        (
            "turns",
            1,
            chat.encode_sample("You are terse.", &[pair("<image>\nWhat?", "A cat."), pair("Why?", "It sleeps.")]),
        ),
        ("two", 2, chat.encode_sample("You are terse.", &[pair("<image> and <image>", "Two.")])),
        ("3", 0, chat.encode_sample("Be brief.", &[pair("Hi", "Hello")])),
    ];
    let processor = ImageProcessor::from_dir(&llava()).expect("a processor");
    let values = 3 * processor.crop_size * processor.crop_size;
    for (row, (id, images, tokens)) in rows.iter().zip(expected) {
        let tokens = tokens.expect("tokens");
        assert_eq!((row.id.as_str(), row.images.len()), (id, images));
        assert_eq!((&row.input_ids, &row.labels), (&tokens.input_ids, &tokens.labels), "{id}");
        assert_eq!(row.pixel_values.len(), images * values);
    }
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0].pixel_values[..], rows[1].pixel_values[..values], "the same image in both rows");
    let answers = rows[0].labels.windows(2).filter(|pair| pair[0] == IGNORE_INDEX && pair[1] != IGNORE_INDEX).count();
    assert_eq!(answers, 2, "both answers of the first row are supervised");
}

#[test]
fn python_turns_rows_into_transformers_pixel_values() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let documents = [root.join("docs/formats.md"), root.join("common/shards/src/lib.rs")];
    let dataset = mixed_rows();
    for format in ["predicted", "u8"] {
        let Some(mut python) = tests::python() else { return };
        let output = dataset.shards(&["--pixels", format]);
        let shard = output.path().join("shard-00000.parquet");
        let (script, images) = (tests::python_script("read_shard.py"), dataset.data().join("images"));
        let run = python.args([&script, &shard, &llava(), &images]).args(&documents).output().expect("python runs");
        println!("{format}: {}", String::from_utf8_lossy(&run.stdout));
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }
}

/// The tiny dataset, and rows of several turns, of several images and of none between.
fn mixed_rows() -> Dataset {
    let dataset = Dataset::empty();
    let mut rows = reference_rows("pictures");
    let images = dataset.copy_images("pictures", rows.len());
    for (number, names) in images.chunks_exact(4).enumerate() {
        let turns = [question("<image>\nWhat?"), answered("A cat."), question("Why?"), answered("It sleeps.")];
        rows.insert(5 * number, json!({"id": format!("turns {number}"), "image": names[0], "conversations": turns}));
        let turns = [question("<image> or <image>?"), answered("Both."), question("And <image>?"), answered("No.")];
        rows.insert(5 * number, json!({"id": format!("three {number}"), "image": names[1..], "conversations": turns}));
        let turns = [question("Hello."), answered("Hello to you.")];
        rows.insert(5 * number, json!({"id": format!("none {number}"), "conversations": turns}));
    }
    dataset.write(&Value::Array(rows));
    dataset
}

/// Rows of a step: one without image, one with three, one with one and two turns, two plain ones.
const BATCH: usize = 5;
/// f32 sums in another order.
const LOSS_TOLERANCE: f64 = 1e-4;

/// transformers' loss sum and tokens of each row alone.
fn reference_losses(rows: &[Row], folder: &Path) -> Option<Vec<(f64, f64)>> {
    let mut python = tests::python()?;
    let samples: Vec<Value> = rows
        .iter()
        .map(|row| json!({"id": row.id, "input_ids": row.input_ids, "labels": row.labels, "images": row.images.len()}))
        .collect();
    let (list, pixels) = (folder.join("samples.json"), folder.join("pixels.safetensors"));
    std::fs::write(&list, Value::Array(samples).to_string()).expect("written");
    let bytes: Vec<u8> = rows.iter().flat_map(|row| &row.pixel_values).flat_map(|value| value.to_le_bytes()).collect();
    let side = ImageProcessor::from_dir(&llava()).expect("a processor").crop_size;
    let images = rows.iter().map(|row| row.images.len()).sum();
    let view = TensorView::new(Dtype::F32, vec![images, 3, side, side], &bytes).expect("a tensor");
    safetensors::serialize_to_file([("pixel_values", view)], None, &pixels).expect("written");
    let run = python.arg(tests::python_script("row_losses.py")).arg(llava()).arg(&list).arg(&pixels).output();
    let run = run.expect("Python runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let losses: Vec<Value> = serde_json::from_slice(&run.stdout).expect("JSON");
    let number = |row: &Value, key: &str| row[key].as_f64().expect("a number");
    Some(losses.iter().map(|row| (number(row, "loss_sum"), number(row, "tokens"))).collect())
}

/// Loss and gradient norm of two steps in the order of the rows.
fn train(shards: &Path, output: &Path, train_type: &str, nproc: usize, more: &[&str]) -> Vec<(f64, f64)> {
    let per_device = (BATCH / nproc).to_string();
    let run = Command::new(tests::program("train"))
        .arg("--model_name_or_path")
        .arg(llava())
        .arg("--data_path")
        .arg(shards)
        .arg("--output_dir")
        .arg(output)
        .args(["--train_type", train_type, "--nproc", &nproc.to_string(), "--per_device_train_batch_size", &per_device])
        .args(["--learning_rate", "0.001", "--max_steps", "2", "--logging_steps", "1", "--lora_dropout", "0"])
        .args(["--shuffle", "false", "--save_strategy", "no"])
        .args(more)
        .output()
        .expect("train starts");
    assert!(run.status.success(), "{train_type}: {}", String::from_utf8_lossy(&run.stderr));
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.map(|line| (line["loss"].as_f64().expect("a loss"), line["grad_norm"].as_f64().expect("a norm"))).collect()
}

fn close(name: &str, found: f64, expected: f64) {
    let difference = (found - expected).abs() / expected.abs();
    println!("{name}: {found}, relative difference {difference:e} (tolerance {LOSS_TOLERANCE:e})");
    assert!(difference <= LOSS_TOLERANCE, "{name}: {found} where {expected} is expected");
}

/// With five ranks, one of them has a step without any image.
#[test]
fn mixed_rows_train_to_the_loss_of_transformers() {
    let output = mixed_rows().shards(&[]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let rows = rows(output.path());
    let images: Vec<usize> = rows[..BATCH].iter().map(|row| row.images.len()).collect();
    assert_eq!(images, [0, 3, 1, 1, 1]);
    let expected = reference_losses(&rows[..BATCH], folder.path());
    let expected =
        expected.map(|rows| rows.iter().map(|row| row.0).sum::<f64>() / rows.iter().map(|row| row.1).sum::<f64>());
    for train_type in ["none", "use_lora", "projector"] {
        let run = |nproc: usize| {
            train(output.path(), &folder.path().join(format!("{train_type}-{nproc}")), train_type, nproc, &[])
        };
        let (alone, ranks) = (run(1), run(BATCH));
        assert_eq!((alone.len(), ranks.len()), (2, 2));
        if let Some(expected) = expected {
            close(&format!("{train_type}: loss of the first step"), alone[0].0, expected);
        }
        for (step, (ranks, alone)) in ranks.iter().zip(&alone).enumerate() {
            close(&format!("{train_type}: loss of step {step} on five ranks"), ranks.0, alone.0);
            close(&format!("{train_type}: gradient norm of step {step} on five ranks"), ranks.1, alone.1);
        }
        assert_ne!(alone[0].0, alone[1].0, "{train_type}: nothing was learned");
    }
}

/// Every image has its place in the file of vision features, whatever row it is in; first starts of several ranks make one file.
/// Filled, read, or both, on one rank or five: the same numbers, and those of the computed features to their rounding.
#[test]
fn features_of_mixed_rows_are_kept_image_by_image() {
    let output = mixed_rows().shards(&[]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images: usize = rows(output.path()).iter().map(|row| row.images.len()).sum();
    let run = |name: &str, nproc: usize, more: &[&str]| {
        // All rows are seen.
        let steps = ["--max_steps", "12"];
        train(output.path(), &folder.path().join(name), "freeze_vision", nproc, &[&steps[..], more].concat())
    };
    let computed = run("computed", 1, &[]);
    for format in ["f16", "bf16"] {
        let kept = ["--cache-vision-features", format];
        let first = run(&format!("{format}-five"), BATCH, &kept);
        let alone = [run(&format!("{format}-filled"), 1, &kept), run(&format!("{format}-read"), 1, &kept)];
        assert_eq!(alone[0], alone[1], "{format}: read twice");
        for (file, name) in vision_feature_files(output.path()) {
            std::fs::remove_file(file).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert_eq!(run(&format!("{format}-empty"), 1, &kept), alone[0], "{format}: computed again, and rounded");
        let files = vision_feature_files(output.path());
        assert_eq!(files.len(), 1, "{files:?}");
        assert_eq!(filled_slots(&files[0].0), images, "{format}: every image of every row is in the file");
        std::fs::remove_file(&files[0].0).expect("removed");
        for (step, (found, expected)) in first.iter().chain(&alone[0]).zip(computed.iter().cycle()).enumerate() {
            let difference = (found.0 - expected.0).abs() / expected.0;
            println!("{format}, step {step}: relative difference {difference:e}");
            assert!(difference <= 2e-2, "{format}, step {step}: {} and {}", found.0, expected.0);
        }
    }
}

fn vision_feature_files(shards: &Path) -> Vec<(PathBuf, String)> {
    let names = std::fs::read_dir(shards).expect("readable").map(|entry| entry.expect("an entry").path());
    let names = names.map(|path| (path.clone(), path.file_name().expect("a name").to_string_lossy().into_owned()));
    names.filter(|(_, name)| name.starts_with("vision_features-") || name.contains(".tmp")).collect()
}

/// Slots behind the header that hold something.
fn filled_slots(file: &Path) -> usize {
    let config = tests::tiny::config();
    let values = config.image_seq_length() * config.vision.hidden_size * config.vision_feature_layers.len();
    let bytes = std::fs::read(file).expect("readable");
    let slots = bytes[4096..].chunks((8 + 2 * values).next_multiple_of(8));
    slots.filter(|slot| slot.iter().any(|&byte| byte != 0)).count()
}
