//! A tiny model in the files of the published LLaVA-1.5 (`tests/reference/make_published_llava.py`): a config.json with Llama's
//! defaults left out, f16 weights in two parts, a tokenizer from SentencePiece's, the template in `chat_template.json`.

use crate::export::{export, llama_cpp, read_back};
use chat::{ChatProcessor, Message, Role};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use tests::inference::infer_ok;
use tests::training::{compare, metrics, succeed};
use tests::{program, reference};

fn model() -> PathBuf {
    reference("published_llava/model")
}

fn values() -> Value {
    let file = std::fs::read(reference("published_llava/reference.json")).expect("readable");
    serde_json::from_slice(&file).expect("JSON")
}

/// Its template takes system prompts, which the published model was not trained with.
const NO_SYSTEM_PROMPT: [&str; 2] = ["--system-prompt", ""];

#[test]
fn prompts_and_greedy_answers_are_those_of_transformers() {
    let (chat, values, dir) = (ChatProcessor::from_dir(&model()).expect("read"), values(), model());
    let answers = values["answers"].as_array().expect("answers");
    for answer in answers {
        let text = |key: &str| answer[key].as_str().expect("a text");
        let message = |role, content: &str| Message { role, content: content.into() };
        let ids = chat.encode_prompt(&[message(Role::System, ""), message(Role::User, text("question"))]).expect("ids");
        // 56 / 14 patches a side.
        let copies = |id: &u32| vec![*id; if *id == chat.image_token_id { 16 } else { 1 }];
        assert_eq!(json!(ids.iter().flat_map(copies).collect::<Vec<_>>()), answer["prompt_ids"], "{answer}");

        let image = reference("pictures/images").join(text("image"));
        let [dir, image] = [&dir, &image].map(|path| path.to_str().expect("UTF-8"));
        let question = text("question").replace("<image>", "");
        let args = [
            "generate",
            "--model",
            dir,
            "--image",
            image,
            "--prompt",
            question.trim(),
            "--max-new-tokens",
            "20",
            "--json",
        ];
        let ours: Value = serde_json::from_str(&infer_ok(&[&args[..], &NO_SYSTEM_PROMPT].concat())).expect("JSON");
        assert_eq!(ours["text"], answer["text"], "{question}");
    }
    println!("{} prompts and answers are transformers'", answers.len());
}

#[test]
fn two_steps_of_training_are_those_of_transformers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (shards, run) = (folder.path().join("shards"), folder.path().join("run"));
    let mut preprocess = Command::new(program("preprocess"));
    preprocess.arg("shards").arg("--model").arg(model()).arg("--data").arg(reference("pictures"));
    succeed(preprocess.arg("--output").arg(&shards).args(NO_SYSTEM_PROMPT));
    let values = values();
    let mut train = Command::new(program("train"));
    train.arg("--model_name_or_path").arg(model()).arg("--data_path").arg(&shards).arg("--output_dir").arg(&run);
    train.args(["--train_type", "none", "--shuffle", "false", "--logging_steps", "1", "--save_strategy", "no"]);
    for (option, value) in values["job"].as_object().expect("options") {
        train.arg(format!("--{option}")).arg(value.as_str().map_or_else(|| value.to_string(), str::to_string));
    }
    succeed(&mut train);
    let (found, expected) = (metrics(&run), values["steps"].as_array().expect("steps").clone());
    compare("LLaVA-1.5", "loss", &found, &expected, 1e-4);
    compare("LLaVA-1.5", "grad_norm", &found, &expected, 1e-3);
}

#[test]
fn its_gguf_files_are_read_back_and_llama_cpp_says_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    succeed(&mut export(&model(), folder.path(), &[]));
    let Some(read) = read_back(&model(), folder.path()) else { return };
    assert_eq!((&read["different"], &read["unexpected"], &read["other_numbers"]), (&json!([]), &json!([]), &json!([])));
    assert_eq!((&read["architecture"], &read["tokens"]), (&json!("llama"), &json!(684)));
    assert_eq!((&read["image"], &read["eos"]), (&json!("<image>"), &json!("</s>")));
    let Some(answers) = llama_cpp(&[("LLaVA-1.5", &model(), folder.path())], &NO_SYSTEM_PROMPT) else { return };
    println!("{answers} texts of llama.cpp are ours and transformers'");
}
