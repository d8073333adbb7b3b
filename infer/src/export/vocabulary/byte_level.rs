//! A byte-level BPE: merges, and the name of the way in which a text is split before them.

use super::super::entry;
use super::super::gguf::Value;
use super::file::TokenizerFile;
use base::{Error, Result};
use serde_json::{Value as Json, json};
use std::path::Path;

/// How Qwen2 splits a text before its merges.
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Llama 3 does: three digits at a time.
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's name of Llama 3's way, with which a word that is a token is taken whole.
const LLAMA3: &str = "llama-bpe";

/// The merges and the way of splitting.
pub fn metadata(file: &TokenizerFile, path: &Path) -> Result<Vec<(String, Value)>> {
    let pre_tokenizer = pre_tokenizer(file.pre_tokenizer.as_ref(), path)?;
    let (found, expected) = (file.model.ignore_merges, pre_tokenizer == LLAMA3);
    if found != expected {
        let place = format!("{}: model.ignore_merges", path.display());
        let expected = format!("{expected}, as llama.cpp does with {pre_tokenizer}");
        return Err(Error::invalid(place, found, expected, "keep the safetensors"));
    }
    let merges = file.model.merges().map(|(left, right)| format!("{left} {right}")).collect();
    Ok(vec![
        entry("tokenizer.ggml.model", Value::Text("gpt2".into())),
        entry("tokenizer.ggml.pre", Value::Text(pre_tokenizer.into())),
        entry("tokenizer.ggml.merges", Value::Texts(merges)),
    ])
}

/// llama.cpp's name of the way in which a text is split before the merges: it knows them by name only.
///
/// # Errors
/// A way without a name here: another split would give other tokens, silently.
fn pre_tokenizer(found: Option<&Json>, path: &Path) -> Result<&'static str> {
    let one: Vec<Json> = found.cloned().into_iter().collect();
    let steps = found.and_then(|found| found["pretokenizers"].as_array()).map_or(&one[..], Vec::as_slice);
    let is = |step: &Json, expected: Json| expected.as_object().is_some_and(|e| e.iter().all(|(k, v)| step[k] == *v));
    let byte_level = |own_split| json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": own_split });
    let isolated = json!({ "type": "Split", "behavior": "Isolated", "invert": false });
    match steps {
        [split, bytes] if is(split, isolated) && is(bytes, byte_level(false)) => {
            match split["pattern"]["Regex"].as_str() {
                Some(QWEN2_SPLIT) => return Ok("qwen2"),
                Some(LLAMA3_SPLIT) => return Ok(LLAMA3),
                _ => {}
            }
        }
        [digits, bytes]
            if is(digits, json!({ "type": "Digits", "individual_digits": true })) && is(bytes, byte_level(true)) =>
        {
            return Ok("smollm");
        }
        [bytes] if is(bytes, byte_level(true)) => return Ok("gpt-2"),
        _ => {}
    }
    Err(Error::invalid(
        format!("{}: pre_tokenizer", path.display()),
        found.map_or("none".into(), Json::to_string),
        "Qwen2's, Llama 3's, SmolLM's or GPT-2's",
        "llama.cpp would split texts otherwise; keep the safetensors",
    ))
}
