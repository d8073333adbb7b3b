//! Tokenizer and chat template against the ids that transformers gave.

use base::IGNORE_INDEX;
use chat::{ChatProcessor, Message, Role, SYSTEM_PROMPT, TextTokenizer};
use serde_json::Value;
use std::path::Path;
use tests::{reference, references, shared};

fn json(path: &Path) -> Value {
    let bytes = std::fs::read(path).expect("the reference file is readable");
    serde_json::from_slice(&bytes).expect("the reference file is JSON")
}

fn ids(value: &Value) -> Vec<i32> {
    value.as_array().expect("a list of ids").iter().map(|id| id.as_i64().expect("an id") as i32).collect()
}

fn user(content: &str) -> Message {
    Message { role: Role::User, content: content.into() }
}

#[test]
fn every_golden_string_has_its_recorded_ids() {
    let Some(folder) = shared("tokenizer") else { return };
    let tokenizer = TextTokenizer::from_dir(&folder.join("qwen1.5")).expect("the tokenizer loads");
    let golden = json(&folder.join("golden_encodings.json"));
    let golden = golden.as_array().expect("a list");
    for entry in golden {
        let text = entry["text"].as_str().expect("a text");
        let found: Vec<i32> = tokenizer.encode(text).expect("it encodes").into_iter().map(|id| id as i32).collect();
        assert_eq!(found, ids(&entry["ids"]), "ids of {text:?}");
    }
    println!("{} strings, all with their recorded ids", golden.len());
    assert!(golden.len() > 10, "the reference holds strings");
}

#[test]
fn the_chat_prompt_of_qwen_has_its_known_ids() {
    let Some(folder) = shared("tokenizer/qwen1.5-image") else { return };
    let chat = ChatProcessor::from_dir(&folder).expect("the processor loads");
    let expected: [u32; 26] = [
        151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198, 151646, 198, 3838, 525,
        1493, 30, 151645, 198, 151644, 77091, 198, 0,
    ];
    assert_eq!(chat.encode_prompt(&[user("<image>\nWhat are these?")]).expect("it encodes"), expected[..25]);
    assert_eq!((chat.image_token_id, chat.eos_token_ids[0]), (151646, 151645));
}

#[test]
fn all_rows_equal_the_reference_samples() {
    let rows = json(&reference("pictures/chat.json"));
    let rows = rows.as_array().expect("a list");
    for model in references::all() {
        let chat = ChatProcessor::from_dir(&model.llava()).expect("the processor loads");
        let samples = model.json("samples.json");
        let samples = samples.as_array().expect("a list");
        for (row, sample) in rows.iter().zip(samples) {
            let turn = |index: usize| row["conversations"][index]["value"].as_str().expect("a text").to_string();
            let found = chat.encode_sample(SYSTEM_PROMPT, &[(turn(0), turn(1))]).expect("it encodes");
            assert_eq!(found.input_ids, ids(&sample["input_ids"]), "{}: input_ids of {}", model.name, sample["id"]);
            assert_eq!(found.labels, ids(&sample["labels"]), "{}: labels of {}", model.name, sample["id"]);
        }
        assert_eq!(Some(samples.len() as u64), model.spec()["rows"].as_u64(), "{}", model.name);
    }
}

#[test]
fn further_turns_continue_the_rendered_conversation() {
    let chat = ChatProcessor::from_dir(&reference("tiny/llava")).expect("the processor loads");
    let turns = [("<image>\nWhat is it?", "A cat."), ("Where?", "On a sofa."), ("Sure?", "Yes.")];
    let turns = turns.map(|(question, answer)| (question.to_string(), answer.to_string()));
    let sample = chat.encode_sample(SYSTEM_PROMPT, &turns).expect("it encodes");

    let mut messages = vec![Message { role: Role::System, content: SYSTEM_PROMPT.into() }];
    for (question, answer) in &turns {
        messages.push(user(question));
        messages.push(Message { role: Role::Assistant, content: answer.clone() });
    }
    let whole = chat.render(&messages, false).expect("it renders");
    let whole = chat.encode(whole.strip_suffix('\n').expect("the template ends with a newline")).expect("it encodes");
    assert_eq!(sample.input_ids, whole.iter().map(|&id| id as i32).collect::<Vec<_>>());

    let supervised: Vec<u32> =
        sample.labels.iter().filter(|&&label| label != IGNORE_INDEX).map(|&label| label as u32).collect();
    assert_eq!(
        chat.decode(&supervised, false).expect("it decodes"),
        "A cat.<|im_end|>On a sofa.<|im_end|>Yes.<|im_end|>"
    );

    let question = messages.split_off(5);
    messages.push(question[0].clone());
    let prompt = chat.encode_prompt(&messages).expect("it encodes");
    assert!(whole.starts_with(&prompt), "generation sees what training saw");
}

#[test]
fn generation_ends_at_every_eos_of_the_generation_config() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = reference("tiny/llava");
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(source.join(file), folder.path().join(file)).expect("copied");
    }
    let tokenizer = TextTokenizer::from_dir(&source).expect("the tokenizer loads");
    let ids = ["<|im_end|>", "<|endoftext|>"].map(|token| tokenizer.token_id(token).expect("a token"));
    let config = serde_json::json!({"eos_token_id": [ids[1], ids[0]]});
    std::fs::write(folder.path().join("generation_config.json"), config.to_string()).expect("written");
    let chat = ChatProcessor::from_dir(folder.path()).expect("the processor loads");
    assert_eq!(chat.eos_token_ids, ids);
}

#[test]
fn what_is_missing_is_named() {
    let error = |dir: &std::path::Path| ChatProcessor::from_dir(dir).err().expect("an error").to_string();
    let no_image = error(&reference("tiny/text"));
    assert!(no_image.contains("<image>") && no_image.contains("preprocess model"), "{no_image}");
    let nothing = tempfile::tempdir().expect("a folder");
    assert!(error(nothing.path()).contains("tokenizer.json"));
    let chat = ChatProcessor::from_dir(&reference("tiny/llava")).expect("the processor loads");
    assert!(chat.encode_sample(SYSTEM_PROMPT, &[]).expect_err("no turns").to_string().contains("no turns"));
    assert!(chat.encode_prompt(&[]).is_err());
}
