//! Every program on every pair of families: shards, scores, a merged adapter and the server's answers, one beside the other.

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tests::inference::{infer_ok, model_dir_of};
use tests::server::{Server, about_the_picture};
use tests::training::succeed;
use tests::{program, reference, references};

/// f32 sums in another order; the references' logits reach about 1.
const TOLERANCE: f64 = 1e-4;

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_string()
}

fn json_of(args: &[&str]) -> Value {
    serde_json::from_str(&infer_ok(args)).expect("JSON")
}

/// The ids that `generate` answers to the first picture with.
fn answer(model: &[&str]) -> Value {
    let image = text(&reference("pictures/images/100000000.jpg"));
    let rest = ["--image", &image, "--prompt", "What is this?", "--max-new-tokens", "12", "--json"];
    json_of(&[&["generate"], model, &rest].concat())["new_ids"].clone()
}

#[test]
fn a_merged_adapter_scores_and_answers_as_the_adapter_does() {
    for family in references::all() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let (model, adapter) = (text(&family.llava()), text(&family.path("train_use_lora")));
        let merged = text(&dir.path().join("merged"));
        let report = json_of(&["merge", "--model", &model, "--adapter", &adapter, "--output", &merged]);
        let difference = report["largest_logit_difference"].as_f64().expect("a number");
        println!("{}: merge: largest logit difference {difference:e} (tolerance {TOLERANCE:e})", family.name);
        assert!(difference <= TOLERANCE, "{}", family.name);

        let shards = dir.path().join("shards");
        let mut preprocess = Command::new(program("preprocess"));
        preprocess.args(["shards", "--limit", "6", "--model", &model, "--data"]).arg(reference("pictures"));
        succeed(preprocess.arg("--output").arg(&shards));
        let score = |name: &str, model: &[&str]| {
            let output = text(&dir.path().join(name));
            let rest = ["--shards", &text(&shards), "--output", &output];
            json_of(&[&["score"], model, &rest].concat())["loss"].as_f64().expect("a loss")
        };
        let with_adapter = score("adapter.jsonl", &["--model", &model, "--adapter", &adapter]);
        let of_merged = score("merged.jsonl", &["--model", &merged]);
        let relative = (with_adapter - of_merged).abs() / with_adapter;
        println!("{}: score: {with_adapter} and {of_merged}, relative difference {relative:e}", family.name);
        assert!(relative <= 1e-5, "{}", family.name);
        assert_eq!(
            answer(&["--model", &model, "--adapter", &adapter]),
            answer(&["--model", &merged]),
            "{}",
            family.name
        );
    }
}

/// PEFT's `all-linear` trains the pooling head of a SigLIP too, which no LLaVA computes.
#[test]
fn lora_of_a_pooling_head_changes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let siglips = references::all().filter(|family| family.families()[0] == "siglip");
    for family in siglips {
        let adapter = family.path("train_use_lora");
        let bytes = std::fs::read(adapter.join("adapter_model.safetensors")).expect("readable");
        let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
        let (values, shape) = ([1u8; 16], vec![2, 2]);
        let of_head = ["lora_A", "lora_B"].map(|matrix| {
            let name = format!("base_model.model.model.vision_tower.head.attention.out_proj.{matrix}.weight");
            (name, TensorView::new(Dtype::F32, shape.clone(), &values).expect("a tensor"))
        });
        let more = dir.path().join(family.name);
        std::fs::create_dir(&more).expect("a folder");
        std::fs::copy(adapter.join("adapter_config.json"), more.join("adapter_config.json")).expect("copied");
        let all = tensors.tensors().into_iter().chain(of_head);
        safetensors::serialize_to_file(all, None, &more.join("adapter_model.safetensors")).expect("written");
        let model = text(&family.llava());
        let found = answer(&["--model", &model, "--adapter", &text(&more)]);
        assert_eq!(found, answer(&["--model", &model, "--adapter", &text(&adapter)]), "{}", family.name);
    }
}

#[test]
fn the_server_answers_as_the_command_line_does() {
    for family in references::all() {
        // With random weights answers depend on everything in the prompt.
        let model = model_dir_of(family, "llava");
        let server = Server::of(model.path(), &[]);
        let mut body = about_the_picture("What is this?");
        body["max_tokens"] = 12.into();
        let image = text(&reference("pictures/images/100000000.jpg"));
        let rest = ["--image", &image, "--prompt", "What is this?", "--max-new-tokens", "12", "--json"];
        let expected = json_of(&[&["generate", "--model", &text(model.path())], &rest[..]].concat());
        assert_eq!(server.text(&body), expected["text"].as_str().expect("text"), "{}", family.name);
    }
}
