//! Directories with a tokenizer and a chat template, made by the tests themselves.

use serde_json::{Map, Value, json};
use std::path::Path;
use tempfile::TempDir;

/// A tokenizer whose vocabulary is the 256 bytes: every text has ids, and every id is a text.
pub fn byte_tokenizer() -> Value {
    let vocabulary: Map<String, Value> =
        (0..=255u8).map(|byte| (byte_letter(byte).to_string(), json!(u32::from(byte)))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}

/// A tokenizer that puts a space before every text, as Llama 2's does, with the same vocabulary.
pub fn prefix_space_tokenizer() -> Value {
    let mut tokenizer = byte_tokenizer();
    let mut vocabulary: Map<String, Value> =
        (0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), json!(u32::from(byte)))).collect();
    for (index, text) in ["<unk>", "▁", "A", "▁A", "c", "a", "t"].into_iter().enumerate() {
        vocabulary.insert(text.to_string(), json!(256 + index));
    }
    let normalizers = json!([
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]);
    tokenizer["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers});
    tokenizer["pre_tokenizer"] = Value::Null;
    tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    tokenizer["model"]["vocab"] = Value::Object(vocabulary);
    tokenizer["model"]["merges"] = json!([["▁", "A"]]);
    tokenizer["model"]["unk_token"] = json!("<unk>");
    tokenizer["model"]["fuse_unk"] = json!(true);
    tokenizer["model"]["byte_fallback"] = json!(true);
    tokenizer
}

/// The letter that byte-level BPE writes for a byte.
fn byte_letter(byte: u8) -> char {
    let is_printed = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match is_printed(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|&other| !is_printed(other)).count() as u32;
            char::from_u32(256 + before).expect("a letter of Latin Extended-A")
        }
    }
}

/// A directory of the byte tokenizer, with `tokenizer_config.json` (the class is added) and a template.
pub fn directory(config: &Value, template: &str) -> TempDir {
    directory_with(&byte_tokenizer(), config, template)
}

/// The same with another tokenizer.
pub fn directory_with(tokenizer: &Value, config: &Value, template: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = config.clone();
    if config["tokenizer_class"].is_null() {
        config["tokenizer_class"] = json!("PreTrainedTokenizerFast");
    }
    write(folder.path(), "tokenizer.json", &tokenizer.to_string());
    write(folder.path(), "tokenizer_config.json", &config.to_string());
    write(folder.path(), "chat_template.jinja", template);
    folder
}

/// Writes a file of a directory.
pub fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("written");
}
