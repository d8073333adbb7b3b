//! More rejected rows than allowed end with exit code 1 and keep all files; causes name a remedy; each reason is printed once.

use serde_json::{Value, json};
use shards::ShardIndex;
use std::path::Path;
use std::process::Command;
use tests::dataset::{Dataset, answered, question};
use tests::{byte_model, program};

/// Ten rows of which some have no picture, and one of those no turns either.
fn dataset(missing: usize) -> Dataset {
    let dataset = Dataset::empty();
    dataset.write_pictures(1);
    let row = |number: usize| {
        let image = if number < missing { "gone.bmp" } else { "0.bmp" };
        let turns =
            if number == 1 && missing > 1 { json!([]) } else { json!([question("<image>"), answered("A slope.")]) };
        json!({"id": number, "image": image, "conversations": turns})
    };
    dataset.write(&(0..10).map(row).collect());
    dataset
}

#[test]
fn more_rejected_rows_than_allowed_are_a_failure_that_loses_nothing() {
    let model = byte_model::make();
    for (missing, args, code) in [
        (0, &[][..], 0),
        (1, &[], 0),
        (1, &["--max-rejected", "0"], 1),
        (3, &[], 1),
        (3, &["--max-rejected", "0.29"], 1),
        (3, &["--max-rejected", "0.3"], 0),
        (3, &["--max-rejected", "1"], 0),
    ] {
        let dataset = dataset(missing);
        let output = tempfile::tempdir().expect("a temporary folder");
        let args = [&["--rows-per-shard", "4"], args].concat();
        let run = dataset.run_for(model.path(), output.path(), &args);
        assert_eq!(run.code, Some(code), "{missing} missing, {args:?}: {}", run.stderr);
        let counts = ShardIndex::read(output.path()).expect("an index").counts;
        assert_eq!((counts.train, counts.rejected), (10 - missing, missing));
        let lines = std::fs::read_to_string(output.path().join("rejected.jsonl")).expect("read").lines().count();
        assert_eq!(lines, missing);
        if code == 1 && missing == 3 {
            // The most frequent cause first.
            for part in [
                "3 rejected (missing_image 2, no_turns 1)",
                "30.0 % of the rows",
                "--max-rejected 0.3",
                "rejected.jsonl",
            ] {
                assert!(run.stderr.contains(part), "{part:?} is missing in {}", run.stderr);
            }
            let accepted =
                dataset.run_for(model.path(), output.path(), &[&args[..2], &["--max-rejected", "1"]].concat());
            assert_eq!(accepted.code, Some(0), "the same folder: {}", accepted.stderr);
            assert!(accepted.stderr.contains("0 of them to do"), "{}", accepted.stderr);
        }
    }
    for share in ["1.5", "-0.1", "NaN"] {
        let run = dataset(0).run_for(model.path(), Path::new("/nowhere"), &[&format!("--max-rejected={share}")]);
        assert_eq!(run.code, Some(2), "{share}: {}", run.stderr);
        assert!(run.stderr.contains("expected a share between 0 and 1"), "{share}: {}", run.stderr);
    }
}

#[test]
fn parts_are_judged_together() {
    let (model, dataset) = (byte_model::make(), dataset(3));
    let output = tempfile::tempdir().expect("a temporary folder");
    for part in ["1/2", "2/2"] {
        let run = dataset.run_for(model.path(), output.path(), &["--rows-per-shard", "4", "--part", part]);
        assert_eq!(run.code, Some(0), "{part}: {}", run.stderr);
    }
    let index = |args: &[&str]| {
        Command::new(program("preprocess")).arg("index").arg(output.path()).args(args).output().expect("started")
    };
    let run = index(&[]);
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&run.stderr).contains("missing_image 2, no_turns 1"));
    assert_eq!(index(&["--max-rejected", "0.3"]).status.code(), Some(0));
}

#[test]
fn places_are_named_as_they_are() {
    let (model, dataset) = (byte_model::make(), Dataset::empty());
    dataset.write_pictures(1);
    std::fs::create_dir(dataset.data().join("images/folder")).expect("created");
    let row = |image: &str| json!({"id": image, "image": image, "conversations": [question("<image>"), answered("A slope.")]});
    dataset.write(&["0.bmp", "gone.bmp", "../0.bmp", "folder", "0.bmp/"].map(row).into_iter().collect());
    let output = tempfile::tempdir().expect("a temporary folder");
    let run = dataset.run_for(model.path(), output.path(), &["--max-rejected", "1"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let text = std::fs::read_to_string(output.path().join("rejected.jsonl")).expect("read");
    let details: Vec<Value> =
        text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["detail"].clone()).collect();
    let expected = [
        "gone.bmp is in none of images/, the data folder",
        "\"../0.bmp\" is not a file name inside the data folder",
        "folder: a folder or device, expected a file",
        "\"0.bmp/\" is not a file name inside the data folder",
    ];
    assert_eq!(details, expected);
}

/// Names as other systems write them: Windows' separators are read; another ending, a whole path and an address say what to do.
#[test]
fn names_of_other_systems_are_read_or_explained() {
    let (model, dataset) = (byte_model::make(), Dataset::empty());
    dataset.write_pictures(1);
    std::fs::create_dir(dataset.data().join("images/folder")).expect("created");
    for name in ["folder/1.bmp", "2.jpg"] {
        std::fs::copy(dataset.data().join("images/0.bmp"), dataset.data().join("images").join(name)).expect("copied");
    }
    let row = |image: &str| json!({"id": image, "image": image, "conversations": [question("<image>"), answered("A slope.")]});
    let names =
        ["folder\\1.bmp", ".\\0.bmp", "2.JPG", "0.gif", "folder/1.BMP", "/data/0.bmp", "https://example.org/0.bmp"];
    dataset.write(&names.map(row).into_iter().collect());
    let output = tempfile::tempdir().expect("a temporary folder");
    let run = dataset.run_for(model.path(), output.path(), &["--max-rejected", "1"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(ShardIndex::read(output.path()).expect("an index").counts.train, 2);
    let text = std::fs::read_to_string(output.path().join("rejected.jsonl")).expect("read");
    for part in [
        "there is 2.jpg",
        "there is 0.bmp",
        "there is folder/1.bmp",
        "give --data a folder that holds it",
        "pictures are not downloaded",
    ] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}

/// The system's reason once, in every program that can be given a file that is not there.
#[test]
fn no_reason_is_printed_twice() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (model, absent) = (byte_model::make(), dir.path().join("absent"));
    let (model, absent) = (model.path().to_str().expect("UTF-8"), absent.to_str().expect("UTF-8"));
    for (name, args) in [
        ("preprocess", &["shards", "--model", model, "--data", model, "--output", absent][..]),
        ("preprocess", &["shards", "--model", absent, "--data", model, "--output", absent]),
        ("preprocess", &["verify", absent]),
        ("preprocess", &["model", "--vision-tower", absent, "--language-model", absent, "--output", absent]),
        ("infer", &["score", "--model", absent, "--shards", absent, "--output", absent]),
        ("infer", &["generate", "--model", absent, "--image", absent, "--prompt", "What?"]),
        ("infer", &["caption", "--model", model, "--images", absent, "--output", absent]),
        (
            "train",
            &["--model-name-or-path", absent, "--data-path", absent, "--output-dir", absent, "--train-type", "none"],
        ),
        ("pipelines", &["run", absent]),
    ] {
        let run = Command::new(program(name)).args(args).current_dir(dir.path()).output().expect("started");
        let text = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(!run.status.success(), "{name} {args:?}: {text}");
        let reason = "No such file or directory";
        let printed = text.lines().map(|line| line.matches(reason).count()).max().unwrap_or_default();
        assert!(printed <= 1, "{name} {args:?}: {text}");
        assert!(!text.contains("os error") || text.contains("; check the path"), "{name} {args:?}: {text}");
        println!("{name} {}: {}", args[0], text.lines().last().unwrap_or_default());
    }
}
