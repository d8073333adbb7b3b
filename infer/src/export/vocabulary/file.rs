//! `tokenizer.json` as far as it becomes GGUF.

use super::Kind;
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::HashMap;

#[derive(Deserialize)]
pub struct TokenizerFile {
    pub model: Bpe,
    pub normalizer: Option<Json>,
    pub pre_tokenizer: Option<Json>,
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
pub struct Bpe {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub vocab: HashMap<String, usize>,
    #[serde(default)]
    merges: Vec<Merge>,
    pub unk_token: Option<String>,
    /// Characters without a token are written as bytes: SentencePiece's tokenizers.
    #[serde(default)]
    pub byte_fallback: bool,
    /// A word that is a token is taken whole, whatever the merges would make of it.
    #[serde(default)]
    pub ignore_merges: bool,
}

/// `"a b"` as older files have it, or `["a", "b"]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair([String; 2]),
}

#[derive(Deserialize)]
pub struct AddedToken {
    pub id: usize,
    pub content: String,
    pub special: bool,
}

impl Bpe {
    /// The merges in their order. A space inside a token is written in another character, so one space separates.
    pub fn merges(&self) -> impl Iterator<Item = (&str, &str)> {
        self.merges.iter().map(|merge| match merge {
            Merge::Joined(text) => text.split_once(' ').unwrap_or((text, "")),
            Merge::Pair([left, right]) => (left.as_str(), right.as_str()),
        })
    }
}

impl TokenizerFile {
    /// The kind of a token of the vocabulary.
    pub fn kind(&self, text: &str) -> Kind {
        let is_byte = || text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        if self.model.byte_fallback && is_byte() { Kind::Byte } else { Kind::Normal }
    }
}
