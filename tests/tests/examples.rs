//! The programs of `examples/`, as their first lines say to run them.

use std::process::Command;
use tests::inference::{infer_ok, model_dir};
use tests::training::{fail, shards, succeed};
use tests::{program, reference};

/// stdout of an example that must succeed.
fn example(name: &str, args: &[&str]) -> String {
    let output = succeed(Command::new(program(&format!("examples/{name}"))).args(args));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn read_shard_shows_a_row() {
    let (shards, model) = (shards(), reference("tiny/llava"));
    let (shards, model) = (shards.to_str().expect("UTF-8"), model.to_str().expect("UTF-8"));
    let shown = example("read_shard", &[shards, "3", model]);
    let rows = tests::dataset::reference_rows("pictures");
    let id = shown.lines().next().and_then(|line| line.strip_prefix("id ")).expect("an id").trim();
    let row = rows.iter().find(|row| row["id"] == id).expect("a row of the dataset");
    let answer = row["conversations"][1]["value"].as_str().expect("an answer");
    assert!(shown.contains(&format!("tokens: {:?}", format!("{answer}<|im_end|>"))), "{shown}");
    assert!(shown.contains("pixel_values  [1, 3, ") && shown.contains("mean blue"), "{shown}");
    let stderr = fail(Command::new(program("examples/read_shard")).args([shards, "100000", model]));
    assert!(stderr.contains("100000"), "{stderr}");
}

#[test]
fn caption_picture_answers_as_infer_does() {
    let (model, picture) = (model_dir("tiny/train_none"), reference("pictures/images/100000000.jpg"));
    let (model, picture) = (model.path().to_str().expect("UTF-8"), picture.to_str().expect("UTF-8"));
    let question = "What is this?";
    let expected =
        infer_ok(&["generate", "--model", model, "--image", picture, "--prompt", question, "--max-new-tokens", "64"]);
    assert_eq!(example("caption_picture", &[model, picture, question]), expected);
}

#[test]
fn add_kernel_agrees_with_its_definition() {
    let shown = example("add_kernel", &[]);
    assert_eq!(shown.lines().filter(|line| line.contains("largest difference")).count(), 4, "{shown}");
}
