//! `datasets.load_dataset(FOLDER)` of Hugging Face opens a folder of shards with its splits and ignores other files in it.

use serde_json::{Value, json};
use shards::{ShardSet, Split};
use std::path::Path;
use tests::dataset::{Dataset, answered, question};
use tests::{byte_model, python, python_script};

/// What `load_dataset.py` found; `None` where there is no Python.
fn load(folder: &Path) -> Option<Value> {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let mut command = python()?;
    command.arg(python_script("load_dataset.py")).arg(folder).arg(cache.path().join("cache"));
    // Nothing is asked of the network, and nothing is left in the user's cache.
    command.env("HF_HUB_OFFLINE", "1").env("HF_DATASETS_OFFLINE", "1").env("HF_HOME", cache.path());
    let output = command.output().expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "load_dataset.py: {text}{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_str(text.lines().last().expect("a line")).expect("JSON"))
}

fn ids(folder: &Path, split: Split) -> Vec<String> {
    let set = ShardSet::open(folder, split).expect("shards");
    set.texts().map(|row| row.expect("a row").id).collect()
}

#[test]
fn load_dataset_opens_the_folder_with_its_splits() {
    let (model, dataset) = (byte_model::make(), Dataset::empty());
    dataset.write_pictures(3);
    let row = |number: usize| {
        // One row in 21 has no picture; a text-only row is among them.
        let image = if number == 20 { "absent.bmp".to_owned() } else { format!("{}.bmp", number % 3) };
        match number {
            7 => json!({"id": "text", "conversations": [question("Hi."), answered("Hello.")]}),
            _ => json!({"id": number, "image": image, "conversations": [question("<image>"), answered("A slope.")]}),
        }
    };
    dataset.write(&(0..21).map(row).collect());
    for fraction in ["0", "0.3"] {
        let output = tempfile::tempdir().expect("a temporary folder");
        let args = ["--rows-per-shard", "4", "--validation-fraction", fraction];
        let run = dataset.run_for(model.path(), output.path(), &args);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let [train, validation] = Split::ALL.map(|split| ids(output.path(), split));
        assert_eq!((train.len() + validation.len(), validation.is_empty()), (20, fraction == "0"));
        let Some(found) = load(output.path()) else { return };
        println!("--validation-fraction {fraction}: {found}");
        let expected = match validation.is_empty() {
            true => json!({"train": train}),
            false => json!({"train": train, "validation": validation}),
        };
        assert_eq!(found["splits"], expected);
        assert!(found["columns"].as_array().expect("a list").contains(&json!("pixel_values")), "{found}");
        assert!(found["pixel_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{found}");
    }
}
