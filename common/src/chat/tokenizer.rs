//! `tokenizer.json`, used as the model's makers wrote it.

use crate::{Error, Result, files, json, names};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::Tokenizer;

/// What is used of `tokenizer_config.json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct TokenizerConfig {
    /// A text, or a list of named templates.
    pub chat_template: Option<Value>,
    eos_token: Option<Value>,
    pad_token: Option<Value>,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

impl TokenizerConfig {
    /// Reads `dir/tokenizer_config.json`; everything is absent when there is no such file.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        Ok(json::read_if_there(&dir.join(names::TOKENIZER_CONFIG_FILE))?.unwrap_or_default())
    }

    /// Text of the token that ends an answer.
    pub fn eos_token(&self) -> Option<&str> {
        token_text(self.eos_token.as_ref()?)
    }

    /// Text of the padding token.
    pub fn pad_token(&self) -> Option<&str> {
        token_text(self.pad_token.as_ref()?)
    }

    /// `bos_token`, `eos_token`, … that are set: the template's variables.
    pub fn special_tokens(&self) -> BTreeMap<String, String> {
        let named = self.other.iter().filter(|(key, _)| key.ends_with("_token"));
        let mut tokens: BTreeMap<String, String> =
            named.filter_map(|(key, value)| Some((key.clone(), token_text(value)?.to_string()))).collect();
        let named = [("eos_token", self.eos_token()), ("pad_token", self.pad_token())];
        tokens.extend(named.into_iter().filter_map(|(key, text)| Some((key.to_string(), text?.to_string()))));
        tokens
    }
}

/// A string, or an `AddedToken` object's `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A model directory's tokenizer.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    sha256: String,
}

impl TextTokenizer {
    /// Reads `dir/tokenizer.json`.
    ///
    /// Truncation and padding that the file may ask for are switched off: rows keep their own lengths.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join(names::TOKENIZER_FILE);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        Self::from_bytes(&bytes, &path)
    }

    /// From the bytes of a `tokenizer.json`; `path` is for messages.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| {
            Error::invalid(
                path.display(),
                format!("a file that the tokenizers library refuses ({error})"),
                "a fast tokenizer",
                "download the model's tokenizer.json again, or convert a slow tokenizer with transformers",
            )
        })?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| failure(path.display(), &error))?;
        Ok(Self { tokenizer, sha256: files::sha256_hex(bytes) })
    }

    /// The library's tokenizer.
    pub(super) fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Lower-case hex SHA-256 of the file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Ids of a text, special tokens recognised, nothing added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| failure("encoding a text", &error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of ids.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special_tokens).map_err(|error| failure("decoding ids", &error))
    }

    /// Id of a token, added or not.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The largest id in use, added tokens included, plus one.
    pub fn next_free_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |&id| id + 1)
    }
}

fn failure(place: impl ToString, error: &tokenizers::Error) -> Error {
    Error::invalid(place, error, "a text that tokenizer.json can process", "check tokenizer.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tokens_are_texts_or_objects() {
        let config =
            json!({"eos_token": {"content": "<|im_end|>"}, "pad_token": "p", "bos_token": null, "errors": "replace"});
        let config: TokenizerConfig = serde_json::from_value(config).expect("it parses");
        let expected = BTreeMap::from([("eos_token".into(), "<|im_end|>".into()), ("pad_token".into(), "p".into())]);
        assert_eq!(config.special_tokens(), expected);
        assert_eq!(config.eos_token(), Some("<|im_end|>"));
    }
}
