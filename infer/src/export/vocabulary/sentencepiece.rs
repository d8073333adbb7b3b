//! A tokenizer that was made from SentencePiece's: llama.cpp merges by scores of pieces, `tokenizer.json` by a list of merges.
//!
//! # Source
//! llama.cpp `src/llama-vocab.cpp`, `llm_tokenizer_spm_session`; transformers `convert_slow_tokenizer.py`, `generate_merges`, which
//! makes the list from the scores: of every piece all ways to part it in two pieces, best score first.

use super::super::gguf::Value;
use super::super::{entry, number};
use super::file::TokenizerFile;
use super::{Kind, Tokens};
use base::{Error, Result};
use serde_json::{Value as Json, json};
use std::collections::{HashMap, HashSet};
use std::path::Path;

const SPACE: &str = "\u{2581}";

/// Scores, and what is done with spaces.
///
/// # Errors
/// A list of merges that scores do not stand for, and a way of writing spaces that llama.cpp does not have: other tokens would
/// come out, silently.
pub fn metadata(file: &TokenizerFile, tokens: &Tokens, path: &Path) -> Result<Vec<(String, Value)>> {
    let mut metadata = vec![
        entry("tokenizer.ggml.model", Value::Text("llama".into())),
        entry("tokenizer.ggml.pre", Value::Text("default".into())),
        entry("tokenizer.ggml.scores", Value::F32s(scores(file, tokens, path)?)),
        entry("tokenizer.ggml.add_space_prefix", Value::Bool(has_space_prefix(file, path)?)),
    ];
    let unknown = tokens.iter().position(|(_, kind)| *kind == Kind::Unknown);
    metadata.extend(unknown.map(|id| number("tokenizer.ggml.unknown_token_id", id)));
    Ok(metadata)
}

/// Minus the place of a piece's merges in the list; pieces without merges come last.
fn scores(file: &TokenizerFile, tokens: &Tokens, path: &Path) -> Result<Vec<f32>> {
    let refuse = |found: String| {
        let place = format!("{}: model.merges", path.display());
        let expected =
            "all ways to part a piece in two, one piece behind the other, as SentencePiece's scores give them";
        Error::invalid(place, found, expected, "keep the safetensors")
    };
    let (mut rank_of, mut last) = (HashMap::<String, usize>::new(), String::new());
    let mut merges = HashSet::new();
    for (left, right) in file.model.merges() {
        let piece = format!("{left}{right}");
        if piece != last {
            let rank = rank_of.len();
            if rank_of.insert(piece.clone(), rank).is_some() {
                return Err(refuse(format!("merges to {piece:?} in two places")));
            }
            last = piece;
        }
        merges.insert((left, right));
    }
    let vocabulary = &file.model.vocab;
    for (piece, _) in tokens.iter().filter(|(_, kind)| *kind == Kind::Normal) {
        let parts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        for (left, right) in
            parts.filter(|(left, right)| vocabulary.contains_key(*left) && vocabulary.contains_key(*right))
        {
            if !merges.contains(&(left, right)) {
                return Err(refuse(format!("no merge of {left:?} and {right:?}")));
            }
        }
    }
    let worst = rank_of.len();
    Ok(tokens.iter().map(|(text, _)| -(*rank_of.get(text).unwrap_or(&worst) as f32)).collect())
}

/// Whether a space is put before a text and before what follows a special token. Other ways are not known to llama.cpp.
fn has_space_prefix(file: &TokenizerFile, path: &Path) -> Result<bool> {
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let prepend = json!({ "type": "Prepend", "prepend": SPACE });
    let (found, splits) = (file.normalizer.as_ref(), file.pre_tokenizer.as_ref().is_some_and(|found| !found.is_null()));
    let steps = found.map(|found| &found["normalizers"]);
    if !splits && steps == Some(&json!([prepend, replace])) {
        return Ok(true);
    }
    if !splits && (found == Some(&replace) || steps == Some(&json!([replace]))) {
        return Ok(false);
    }
    let text = |json: Option<&Json>| json.map_or("null".into(), Json::to_string);
    Err(Error::invalid(
        format!("{}: normalizer and pre_tokenizer", path.display()),
        format!("{} and {}", text(found), text(file.pre_tokenizer.as_ref())),
        "Llama 2's: spaces are replaced, one is put before each text, nothing is split",
        "llama.cpp would put spaces elsewhere; keep the safetensors",
    ))
}
