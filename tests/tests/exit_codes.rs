//! One rule of exit codes in the four programs: 2 where the words are wrong on every machine, 1 where something is not there or does
//! not go with them, 3 where a job does not fit.

use std::path::Path;
use std::process::Command;
use tests::dataset::llava;
use tests::program;
use tests::training::shards;

const USAGE: i32 = 2;
const FAILED: i32 = 1;
const DOES_NOT_FIT: i32 = 3;

/// A recipe that trains the tiny model with some more settings.
fn write_recipe(path: &Path, more: &str) {
    let recipe = format!(
        "[train]\nmodel_name_or_path = {:?}\ndata_path = {:?}\noutput_dir = \"o\"\ntrain_type = \"none\"\n{more}\n",
        llava(),
        shards(),
    );
    std::fs::write(path, recipe).expect("written");
}

#[test]
fn exit_codes_follow_one_rule() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_recipe(&folder.path().join("typo.toml"), "lerning_rate = 1.0");
    write_recipe(&folder.path().join("large.toml"), "nproc = 20000");
    let (model, data) = (llava(), shards());
    let [model, data] = [&model, &data].map(|path| path.to_str().expect("UTF-8"));
    let train = ["--model_name_or_path", model, "--data_path", data, "--output_dir", "o", "--train_type", "none"];
    let with_train = |words: &[&'static str]| [&train[..], words].concat();
    let ask = ["generate", "--prompt", "What?", "--model", model];
    let with_ask = |words: &[&'static str]| [&ask[..], words].concat();
    let make = ["shards", "--model", model, "--data", "d", "--output", "s"];
    let with_make = |words: &[&'static str]| [&make[..], words].concat();
    let cases: Vec<(&str, Vec<&str>, i32)> = vec![
        ("preprocess", vec!["shard"], USAGE),
        ("preprocess", vec!["shards"], USAGE),
        ("preprocess", with_make(&["--part", "3/2"]), USAGE),
        ("preprocess", with_make(&["--validation-fraction", "1"]), USAGE),
        ("preprocess", with_make(&["--pixel", "jpeg"]), USAGE),
        ("preprocess", with_make(&["--limit", "0"]), USAGE),
        ("preprocess", with_make(&["--max-length", "0"]), USAGE),
        ("preprocess", vec!["inspect", data, "--row", "-1"], USAGE),
        ("preprocess", with_make(&[]), FAILED),
        ("preprocess", vec!["inspect", "none"], FAILED),
        ("preprocess", vec!["inspect", data, "--row", "x"], USAGE),
        ("preprocess", vec!["inspect", data, "--row", "100000"], FAILED),
        ("train", vec![], USAGE),
        ("train", vec!["plan"], USAGE),
        ("train", with_train(&["--lerning_rate", "1"]), USAGE),
        ("train", with_train(&["--learning_rate", "-1"]), USAGE),
        ("train", with_train(&["--load_in_8bit", "true"]), USAGE),
        ("train", with_train(&["--metric_for_best_model", "cider_d"]), USAGE),
        ("train", with_train(&["--deepspeed", "{\"zero_optimization\": {\"stage\": 3}}"]), USAGE),
        ("train", with_train(&["--deepspeed", "none.json"]), FAILED),
        ("train", with_train(&["--device", "cuda:0"]), FAILED),
        ("train", with_train(&["--nproc", "20000"]), DOES_NOT_FIT),
        ("train", [&["plan"], &train[..], &["--nproc", "20000"]].concat(), DOES_NOT_FIT),
        ("train", vec!["none.toml"], FAILED),
        ("train", vec!["typo.toml"], USAGE),
        ("train", vec!["large.toml"], DOES_NOT_FIT),
        ("infer", vec!["generate"], USAGE),
        ("infer", with_ask(&["--max-new-tokens", "0"]), USAGE),
        ("infer", with_ask(&["--temperature", "-1"]), USAGE),
        ("infer", with_ask(&["--device", "cuda:0"]), FAILED),
        ("infer", with_ask(&["--device", "metal"]), FAILED),
        ("infer", with_ask(&["--image", "none.png"]), FAILED),
        ("infer", vec!["score", "--model", model, "--shards", data, "--output", "o", "--limit", "0"], USAGE),
        ("infer", vec!["caption", "--model", model, "--output", "o"], USAGE),
        ("infer", vec!["serve", "--model", model, "--port", "70000"], USAGE),
        ("infer", vec!["serve", "--model", model, "--host", "example"], USAGE),
        ("infer", vec!["serve", "--model", "none/model"], FAILED),
        ("pipelines", vec!["doctor", "--port", "x"], USAGE),
        ("pipelines", vec!["report"], USAGE),
        ("pipelines", vec!["report", "none"], FAILED),
        ("pipelines", vec!["quickstart", "--held-out", "0"], USAGE),
        ("pipelines", vec!["run", "none.toml"], FAILED),
        ("pipelines", vec!["run", "typo.toml"], USAGE),
        ("pipelines", vec!["run", "large.toml"], DOES_NOT_FIT),
    ];
    let mut faults = Vec::new();
    for (name, words, expected) in &cases {
        let run = Command::new(program(name)).args(words).current_dir(folder.path()).output().expect("it starts");
        let stderr = String::from_utf8_lossy(&run.stderr);
        println!("{name} {}: {:?}\n  {}", words.join(" "), run.status.code(), stderr.trim());
        if run.status.code() != Some(*expected) {
            faults.push(format!("{name} {}: {:?}, expected {expected}: {stderr}", words.join(" "), run.status.code()));
        }
        assert!(run.stdout.is_empty() || *expected == DOES_NOT_FIT, "{name} {words:?}: results on stdout");
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
