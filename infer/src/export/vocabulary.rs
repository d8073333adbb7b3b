//! A byte-level BPE tokenizer in GGUF.
//!
//! # Source
//! llama.cpp `convert_hf_to_gguf.py`, `TextModel.get_vocab_base` and `gguf-py/gguf/vocab.py`, `SpecialVocab`.

use super::gguf::Value;
use super::{entry, number};
use anyhow::{Context, Result, bail};
use base::{Error, json as json_files, names};
use chat::ChatProcessor;
use model::config::TextConfig;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::path::Path;

/// llama.cpp's kinds of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

#[derive(Deserialize)]
struct TokenizerFile {
    model: Bpe,
    pre_tokenizer: Option<Json>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct Bpe {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, usize>,
    #[serde(default)]
    merges: Vec<Merge>,
}

/// `"a b"` as older files have it, or `["a", "b"]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair([String; 2]),
}

#[derive(Deserialize)]
struct AddedToken {
    id: usize,
    content: String,
    special: bool,
}

/// Tokens, their kinds, merges, special ids, chat template.
pub fn metadata(dir: &Path, config: &TextConfig) -> Result<Vec<(String, Value)>> {
    let path = dir.join(names::TOKENIZER_FILE);
    let file: TokenizerFile = json_files::read(&path)?;
    if file.model.kind.as_deref().unwrap_or("BPE") != "BPE" {
        bail!("{}: model type {:?}, expected BPE: llama.cpp's Qwen2 has no other", path.display(), file.model.kind);
    }
    let pre_tokenizer = pre_tokenizer(file.pre_tokenizer.as_ref(), &path)?;
    let mut tokens: Vec<(String, i32)> = (0..config.vocab_size).map(|id| (format!("[PAD{id}]"), UNUSED)).collect();
    let normal = file.model.vocab.into_iter().map(|(text, id)| (id, text, NORMAL));
    let added = file
        .added_tokens
        .into_iter()
        .map(|token| (token.id, token.content, if token.special { CONTROL } else { USER_DEFINED }));
    let chat = ChatProcessor::from_dir(dir)?;
    let of_config = chat
        .tokens_of_config()
        .map(|(id, text, special)| (id as usize, text.to_string(), if special { CONTROL } else { USER_DEFINED }));
    for (id, text, kind) in normal.chain(added).chain(of_config) {
        let place = tokens.get_mut(id).with_context(|| {
            format!("{}: token {text:?} has id {id}, the model has {} rows", path.display(), config.vocab_size)
        })?;
        *place = (text, kind);
    }
    let (texts, kinds) = tokens.into_iter().unzip();
    let merges = file.model.merges.into_iter().map(|merge| match merge {
        Merge::Joined(text) => text,
        // A space inside a token is written as the byte-level alphabet writes it, so one space separates.
        Merge::Pair([left, right]) => format!("{left} {right}"),
    });
    let mut metadata = vec![
        entry("tokenizer.ggml.model", Value::Text("gpt2".into())),
        entry("tokenizer.ggml.pre", Value::Text(pre_tokenizer.into())),
        entry("tokenizer.ggml.tokens", Value::Texts(texts)),
        entry("tokenizer.ggml.token_type", Value::I32s(kinds)),
        entry("tokenizer.ggml.merges", Value::Texts(merges.collect())),
    ];
    metadata.extend(chat.eos_token_ids.first().map(|&id| number("tokenizer.ggml.eos_token_id", id as usize)));
    metadata.extend(config.bos_token_id.map(|id| number("tokenizer.ggml.bos_token_id", id as usize)));
    metadata.push(entry("tokenizer.ggml.add_bos_token", Value::Bool(false)));
    metadata.push(entry("tokenizer.chat_template", Value::Text(chat.template_source().into())));
    Ok(metadata)
}

/// How Qwen2 splits a text before its merges.
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's name of the way in which a text is split before the merges: it knows them by name only.
///
/// # Errors
/// A way without a name here: another split would give other tokens, silently.
fn pre_tokenizer(found: Option<&Json>, path: &Path) -> base::Result<&'static str> {
    let steps = found.and_then(|found| found["pretokenizers"].as_array()).map_or(&[][..], Vec::as_slice);
    let is = |step: &Json, expected: Json| expected.as_object().is_some_and(|e| e.iter().all(|(k, v)| step[k] == *v));
    let byte_level = |own_split| json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": own_split });
    match steps {
        [split, bytes]
            if split["pattern"]["Regex"] == QWEN2_SPLIT
                && is(split, json!({ "type": "Split", "behavior": "Isolated", "invert": false }))
                && is(bytes, byte_level(false)) =>
        {
            Ok("qwen2")
        }
        [digits, bytes]
            if is(digits, json!({ "type": "Digits", "individual_digits": true })) && is(bytes, byte_level(true)) =>
        {
            Ok("smollm")
        }
        _ => Err(Error::invalid(
            format!("{}: pre_tokenizer", path.display()),
            found.map_or("none".into(), Json::to_string),
            "Qwen2's or SmolLM's",
            "llama.cpp would split texts otherwise; keep the safetensors",
        )),
    }
}
