//! Quantised GGUF files: every block is ggml's, types are llama.cpp's, and the report compares the files with the model.

use crate::export::{export, is_computed, read_back};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use tests::references;
use tests::training::{fail, succeed};
use tests::{program, reference};

/// What the files may cost, nats a token, by type: rounding to f16, 8 bits, 4 to 8 bits (widths of a tiny model fit few of the types).
const TYPES: [(&str, u64, f64); 3] = [("f16", 1, 1e-3), ("q8_0", 7, 0.01), ("q4_k_m", 15, 0.1)];

/// Shards of the pictures, for a model.
fn shards(model: &Path, folder: &Path) -> String {
    let output = folder.join("shards");
    let mut preprocess = Command::new(program("preprocess"));
    preprocess.arg("shards").arg("--model").arg(model).arg("--data").arg(reference("pictures"));
    succeed(preprocess.arg("--output").arg(&output));
    output.to_str().expect("UTF-8").to_string()
}

#[test]
fn quantised_files_are_ggmls_and_are_compared_with_the_model() {
    for model in references::all().filter(is_computed) {
        let (name, folder) = (model.name, tempfile::tempdir().expect("a temporary folder"));
        let shards = shards(&model.llava(), folder.path());
        for (kind, file_type, tolerance) in TYPES {
            let output = folder.path().join(kind);
            let more = ["--quantize", kind, "--check", "5", "--shards", &shards, "--split", "train"];
            let printed = succeed(&mut export(&model.llava(), &output, &more));
            let report = String::from_utf8(printed.stdout).expect("UTF-8");
            let loss = report.lines().find(|line| line.starts_with("loss of 5 rows")).expect("the losses");
            let difference =
                loss.rsplit_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).expect("the difference");
            println!("{name}, {kind}: {difference} nats a token (tolerance {tolerance:e})");
            assert!(difference.parse::<f64>().expect("a number").abs() <= tolerance, "{report}");
            assert!(report.contains("of 5 the same; "), "{report}");
            let modelfile = std::fs::read_to_string(output.join("Modelfile")).expect("a Modelfile");
            let first = format!("FROM ./model-{kind}.gguf\nFROM ./mmproj-model-f16.gguf\nTEMPLATE \"\"\"");
            assert!(
                modelfile.starts_with(&first) && modelfile.contains("PARAMETER stop \"<|im_end|>\""),
                "{modelfile}"
            );
            let Some(read) = read_back(&model.llava(), &output) else { continue };
            assert_eq!((&read["different"], &read["unexpected"]), (&json!([]), &json!([])), "{name}, {kind}");
            assert_eq!(read["file_type"], json!(file_type), "{name}, {kind}");
            let is_quantised = |name: &str| read["types"][name].as_str().is_some_and(|kind| kind.starts_with('Q'));
            // Rows that are no whole number of ggml's smallest blocks stay in f16, as llama.cpp leaves them.
            let width = &tests::runs::json_file(&model.llava().join("config.json"))["text_config"]["hidden_size"];
            let has_blocks = width.as_u64().expect("a width").is_multiple_of(32);
            let expected = kind != "f16" && has_blocks;
            assert_eq!(is_quantised("blk.0.ffn_up.weight"), expected, "{name}, {kind}: {}", read["types"]);
            assert!(!is_quantised("v.blk.0.ffn_up.weight"), "{name}, {kind}: the tower is in f16");
        }
    }
}

#[test]
fn what_cannot_be_exported_is_refused_before_work() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = references::TINY.llava();
    let shards = shards(&model, folder.path());
    let occupied = folder.path().join("occupied");
    std::fs::create_dir(&occupied).expect("a folder");
    std::fs::write(occupied.join("model-f16.gguf"), "mine").expect("a file");
    let new = folder.path().join("new");
    for (output, more, words) in [
        (&occupied, &[][..], &["occupied: not empty", "--output"][..]),
        (&new, &["--check", "3"], &["--shards"]),
        (&new, &["--shards", &shards], &["--check"]),
        (&new, &["--split", "train"], &["--check"]),
        (&new, &["--force"], &["--adapter"]),
        (&new, &["--check", "9999", "--shards", &shards, "--split", "train"], &["--check 9999", "give fewer"]),
        (&new, &["--quantize", "q2_k"], &["q2_k", "f16, q8_0, q4_k_m"]),
    ] {
        let error = fail(&mut export(&model, output, more));
        println!("{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
        assert!(!new.exists(), "nothing is left behind");
    }
    assert_eq!(std::fs::read_to_string(occupied.join("model-f16.gguf")).expect("a file"), "mine");
}
