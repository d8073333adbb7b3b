//! Tokenizer files: transformers' ids for tokens beside the vocabulary and for texts with a space before them, or a refusal.

use chat::ChatProcessor;
use serde_json::{Value, json};
use tests::chat_models::{byte_tokenizer, directory, directory_with, prefix_space_tokenizer, write};
use tests::conversations::{CHATML, as_json, chatml_config, ids, messages, owned, template, transformers};

#[test]
fn tokens_beside_the_tokenizer_get_transformers_ids() {
    let text = "At <loc1><loc2> <seg>.</s><|im_end|>";
    let bracket = json!({"content": "<loc1>", "single_word": false, "lstrip": true, "rstrip": false, "normalized": false, "special": true});
    let mut typed = bracket.clone();
    typed["__type"] = json!("AddedToken");
    // What the files say, and the ids of the text that are no bytes.
    type Case<'a> = (Value, &'a [(&'a str, Value)], &'a [u32]);
    let table: [Case<'_>; 7] = [
        (json!({"extra_special_tokens": ["<image>", "<loc1>", "<loc2>"]}), &[], &[258, 259, 256]),
        (json!({"additional_special_tokens": ["<image>", typed]}), &[], &[258, 256]),
        (
            json!({"extra_special_tokens": {"image_token": "<image>", "seg_token": "<seg>"}, "pad_token": "</s>"}),
            &[],
            &[259, 257, 256],
        ),
        (
            json!({"added_tokens_decoder": {"256": {"content": "<seg>"}, "257": {"content": "<image>"}, "258": bracket}}),
            &[],
            &[258, 256, 259],
        ),
        (json!({"image_token": "<image>", "seg_token": "<seg>"}), &[], &[258, 256]),
        (
            json!({"eos_token": null}),
            &[(
                "special_tokens_map.json",
                json!({"eos_token": "<|im_end|>", "additional_special_tokens": ["<image>", "<loc2>"]}),
            )],
            &[258, 256],
        ),
        (
            json!({"extra_special_tokens": ["<image>"]}),
            &[("added_tokens.json", json!({"<seg>": 256, "<loc1>": 257}))],
            &[257, 256, 258],
        ),
    ];
    let mut cases = Vec::new();
    let mut found = Vec::new();
    let mut folders = Vec::new();
    for (config, files, expected) in table {
        let mut config = config;
        if config.get("eos_token").is_none() {
            config["eos_token"] = json!("<|im_end|>");
        }
        let folder = directory(&config, CHATML);
        for (name, content) in files {
            write(folder.path(), name, &content.to_string());
        }
        let chat = ChatProcessor::from_dir(folder.path()).unwrap_or_else(|error| panic!("{config}: {error}"));
        let ids = chat.encode(text).expect("it encodes");
        assert_eq!(ids.iter().copied().filter(|&id| id > 255).collect::<Vec<_>>(), expected, "{config} {files:?}");
        cases.push(json!({"dir": folder.path(), "text": text}));
        found.push(ids);
        folders.push(folder);
    }
    let Some(expected) = transformers(&cases) else { return };
    for ((found, expected), case) in found.iter().zip(&expected).zip(&cases) {
        assert_eq!(*found, ids(&expected["ids"]), "{case}");
    }
}

#[test]
fn tokenizer_files_that_disagree_are_refused_and_other_tokens_are_another_tokenizer() {
    let token = |content: &str| json!({"content": content, "special": true});
    let mut config = chatml_config();
    config["added_tokens_decoder"] = json!({"300": token("<image>")});
    let folder = directory(&config, CHATML);
    let error = ChatProcessor::from_dir(folder.path()).err().expect("refused").to_string();
    assert!(error.contains("\"<image>\" with id 300") && error.contains("id 256"), "{error}");

    let hash = |config: &Value, tokenizer: &Value| {
        let folder = directory_with(tokenizer, config, CHATML);
        ChatProcessor::from_dir(folder.path()).expect("it loads").tokenizer_sha256
    };
    let mut more = chatml_config();
    more["extra_special_tokens"].as_array_mut().expect("a list").push(json!("<loc>"));
    assert_ne!(hash(&chatml_config(), &byte_tokenizer()), hash(&more, &byte_tokenizer()));
}

#[test]
fn a_tokenizer_that_puts_spaces_before_texts_encodes_rows_as_transformers_does() {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": ["<image>"]});
    let mut cases = Vec::new();
    let mut found = Vec::new();
    let mut folders = Vec::new();
    for name in ["vicuna", "zephyr", "llama2", "alpaca"] {
        let folder = directory_with(&prefix_space_tokenizer(), &config, &template(name));
        let chat = ChatProcessor::from_dir(folder.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let turns = [("<image>\nWhat?", "A cat"), ("A?", "cat A")];
        let sample = chat.encode_sample("S", &owned(&turns)).expect("it encodes");
        let mut messages = messages("S", &turns);
        cases.push(json!({"dir": folder.path(), "messages": as_json(&messages, chat.has_default_system())}));
        messages.pop();
        let prompt = chat.encode_prompt(&messages).expect("it encodes");
        let row: Vec<u32> = sample.input_ids.iter().map(|&id| id as u32).collect();
        assert!(row.starts_with(&prompt), "{name}");
        found.push((name, prompt, row));
        folders.push(folder);
    }
    let Some(expected) = transformers(&cases) else { return };
    for (expected, (name, prompt, row)) in expected.iter().zip(found) {
        assert_eq!(prompt, ids(&expected["prompt"]), "{name}: prompt");
        assert!(ids(&expected["finished"]).starts_with(&row), "{name}: row");
    }
}
