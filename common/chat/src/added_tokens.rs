//! Tokens in the files beside `tokenizer.json`, added as transformers' fast tokenizers add them.
//!
//! # Source
//! transformers `tokenization_utils_base.py`, `_from_pretrained`; `tokenization_utils_tokenizers.py`, `TokenizersBackend.__init__`.

use base::{Error, Result, json, names};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::{AddedToken, Tokenizer};

/// Special tokens with a role of their own, in the order in which transformers adds them.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

const SPLIT_SPECIAL_TOKENS: &str = "split_special_tokens";

/// Roles that a tokenizer's class fills when the config has no such key.
const CLASS_DEFAULTS: [(&str, &[(&str, &str)]); 3] = [
    (
        "Qwen2Tokenizer",
        &[("unk_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
    ),
    ("LlamaTokenizer", &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")]),
    (
        "GPT2Tokenizer",
        &[("unk_token", "<|endoftext|>"), ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")],
    ),
];

/// The fields used of `tokenizer_config.json` and, where it has no `added_tokens_decoder`, of the files that older versions wrote
/// beside it.
#[derive(Clone, Debug, Default)]
pub struct TokenizerConfig {
    /// A text, or a list of named templates.
    pub chat_template: Option<Value>,
    fields: Map<String, Value>,
    /// `added_tokens.json`.
    added_tokens: BTreeMap<String, u32>,
}

impl TokenizerConfig {
    /// Reads `dir`; everything is absent when there are no such files.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let fields: Option<Map<String, Value>> = json::read_if_there(&dir.join(names::TOKENIZER_CONFIG_FILE))?;
        let mut config = Self::from_fields(fields.unwrap_or_default());
        config.refuse_split_special_tokens(dir)?;
        if config.decoder().is_some() {
            return Ok(config);
        }
        let older: Option<Map<String, Value>> = json::read_if_there(&dir.join(names::SPECIAL_TOKENS_MAP_FILE))?;
        for (key, value) in older.unwrap_or_default() {
            match (config.fields.get_mut(&key), value) {
                (Some(Value::Array(list)), Value::Array(more)) if key == names::EXTRA_SPECIAL_TOKENS => {
                    list.extend(more);
                }
                (_, value) => {
                    config.fields.insert(key, value);
                }
            }
        }
        config.added_tokens = json::read_if_there(&dir.join(names::ADDED_TOKENS_FILE))?.unwrap_or_default();
        Ok(config)
    }

    /// With it, transformers cuts special tokens that stand in a text, those of the chat template among them, into pieces.
    fn refuse_split_special_tokens(&self, dir: &Path) -> Result<()> {
        match self.fields.get(SPLIT_SPECIAL_TOKENS) {
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(value) => Err(Error::invalid(
                dir.join(names::TOKENIZER_CONFIG_FILE).display(),
                format!("{SPLIT_SPECIAL_TOKENS} {value}"),
                "false (special tokens in a text are one token each)",
                "set it to false",
            )),
        }
    }

    pub(super) fn from_fields(fields: Map<String, Value>) -> Self {
        Self { chat_template: fields.get(names::CHAT_TEMPLATE).cloned(), fields, added_tokens: BTreeMap::new() }
    }

    /// `added_tokens_decoder`; null, as some writers leave it, is none.
    fn decoder(&self) -> Option<&Value> {
        self.fields.get(names::ADDED_TOKENS_DECODER).filter(|decoder| !decoder.is_null())
    }

    /// Text of the token that ends a text, and, in most chat models, an answer.
    pub fn eos_token(&self) -> Option<String> {
        self.special_tokens().remove("eos_token")
    }

    /// Text of the padding token.
    pub fn pad_token(&self) -> Option<String> {
        self.special_tokens().remove("pad_token")
    }

    /// `bos_token`, `eos_token`, … that are set: the template's variables.
    pub fn special_tokens(&self) -> BTreeMap<String, String> {
        let mut tokens: BTreeMap<String, String> =
            self.named().into_iter().filter_map(|(key, value)| Some((key, text(value)?.to_string()))).collect();
        let class = self.fields.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
        let class = class.strip_suffix("Fast").unwrap_or(class);
        for (key, default) in CLASS_DEFAULTS.iter().filter(|(name, _)| *name == class).flat_map(|(_, roles)| *roles) {
            if !self.fields.contains_key(*key) {
                tokens.entry((*key).to_string()).or_insert_with(|| (*default).to_string());
            }
        }
        tokens
    }

    /// Tokens with a name, in the order in which they are added: roles, then the model's own (`image_token`, or named ones of
    /// `extra_special_tokens`).
    fn named(&self) -> Vec<(String, &Value)> {
        let roles = ROLES.iter().filter_map(|&role| Some((role.to_string(), self.fields.get(role)?)));
        let others = self.fields.iter().filter(|(key, _)| key.ends_with("_token") && !ROLES.contains(&key.as_str()));
        let others = others.map(|(key, value)| (key.clone(), value));
        let extra = self.fields.get(names::EXTRA_SPECIAL_TOKENS).and_then(Value::as_object);
        let extra = extra.into_iter().flatten().map(|(key, value)| (key.clone(), value));
        roles.chain(others).chain(extra).filter(|(_, value)| text(value).is_some()).collect()
    }

    /// Special tokens without a name. The older key counts where the newer one is absent or empty.
    fn unnamed(&self) -> &[Value] {
        let list = |key: &str| self.fields.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        match self.fields.get(names::EXTRA_SPECIAL_TOKENS) {
            Some(Value::Array(list)) if !list.is_empty() => list,
            Some(Value::Object(named)) if !named.is_empty() => &[],
            _ => list(names::ADDITIONAL_SPECIAL_TOKENS),
        }
    }
}

/// A string, or an `AddedToken` object's `content`.
fn text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get(names::TOKEN_CONTENT)?.as_str())
}

/// A string becomes a special token; an object has its flags.
fn token(value: &Value, default_special: bool) -> Option<AddedToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(default_special);
    Some(
        AddedToken::from(text(value)?, special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}

/// Adds the tokens of the config to a tokenizer; returns, by id, the tokens that it did not have or had with other flags.
///
/// # Errors
/// A token whose id in the config is not the one that it gets.
pub fn add(tokenizer: &mut Tokenizer, config: &TokenizerConfig, dir: &Path) -> Result<Vec<(u32, AddedToken)>> {
    let before = tokenizer.get_added_tokens_decoder();
    let with_ids = tokens_with_ids(tokenizer, config, dir)?;
    let mut tokens: Vec<AddedToken> = with_ids.iter().map(|(_, token)| token.clone()).collect();
    let named = config.named();
    for token in &mut tokens {
        token.special |= named.iter().any(|(_, value)| text(value) == Some(&token.content));
    }
    let is_known =
        |tokens: &[AddedToken], content: &str| before.values().chain(tokens).any(|token| token.content == content);
    for (_, value) in named {
        if let Some(token) = token(value, true).filter(|token| !is_known(&tokens, &token.content)) {
            tokens.push(token.special(true));
        }
    }
    for value in config.unnamed() {
        let token = token(value, true).ok_or_else(|| malformed(dir, value))?;
        if !is_known(&tokens, &token.content) {
            tokens.push(token);
        }
    }
    tokenizer.add_tokens(tokens).map_err(|error| malformed(dir, &Value::from(error.to_string())))?;
    for (id, token) in &with_ids {
        let found = tokenizer.token_to_id(&token.content);
        if found != Some(*id) {
            return Err(Error::invalid(
                dir.join(names::TOKENIZER_CONFIG_FILE).display(),
                format!("token {:?} with id {id}", token.content),
                format!("id {}, which {} gives it", found.unwrap_or_default(), names::TOKENIZER_FILE),
                "take both files from the same model",
            ));
        }
    }
    let mut changed: Vec<(u32, AddedToken)> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    changed.retain(|(id, token)| before.get(id) != Some(token));
    changed.sort_by_key(|(id, _)| *id);
    Ok(changed)
}

/// `added_tokens_decoder`, or `added_tokens.json` as far as `tokenizer.json` has not those ids; by id.
fn tokens_with_ids(tokenizer: &Tokenizer, config: &TokenizerConfig, dir: &Path) -> Result<Vec<(u32, AddedToken)>> {
    let mut tokens = Vec::new();
    match config.decoder() {
        Some(decoder) => {
            for (id, value) in decoder.as_object().ok_or_else(|| malformed(dir, decoder))? {
                let id = id.parse().map_err(|_| malformed(dir, &Value::from(id.as_str())))?;
                tokens.push((id, token(value, false).ok_or_else(|| malformed(dir, value))?));
            }
        }
        None => {
            let known = tokenizer.get_added_tokens_decoder();
            let special: Vec<&str> =
                config.named().into_iter().map(|(_, value)| value).chain(config.unnamed()).filter_map(text).collect();
            for (content, &id) in config.added_tokens.iter().filter(|(_, id)| !known.contains_key(id)) {
                tokens.push((id, AddedToken::from(content.as_str(), special.contains(&content.as_str()))));
            }
        }
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}

fn malformed(dir: &Path, value: &Value) -> Error {
    Error::invalid(
        dir.join(names::TOKENIZER_CONFIG_FILE).display(),
        format!("the token {value}"),
        "a text, or an object with content",
        "correct the file",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn special_tokens_that_are_to_be_split_are_refused() {
        for (fields, refused) in [
            (json!({"split_special_tokens": true, "eos_token": "e"}), Some("split_special_tokens true")),
            (json!({"split_special_tokens": 1}), Some("split_special_tokens 1")),
            (json!({"split_special_tokens": false}), None),
            (json!({"split_special_tokens": null}), None),
            (json!({}), None),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            std::fs::write(folder.path().join("tokenizer_config.json"), fields.to_string()).expect("written");
            let error = TokenizerConfig::from_dir(folder.path()).err().map(|error| error.to_string());
            let is_right =
                error.as_ref().map_or(refused.is_none(), |error| refused.is_some_and(|word| error.contains(word)));
            assert!(is_right, "{fields}: {error:?}");
        }
    }

    #[test]
    fn special_tokens_are_texts_or_objects_or_the_class_has_them() {
        let tokens = |fields: Value| {
            let fields = fields.as_object().cloned().unwrap_or_default();
            TokenizerConfig::from_fields(fields).special_tokens().into_iter().collect::<Vec<_>>()
        };
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|&(key, value)| (key.to_string(), value.to_string())).collect::<Vec<_>>()
        };
        for (fields, expected) in [
            (
                json!({"eos_token": {"content": "<|im_end|>"}, "pad_token": "p", "bos_token": null, "add_bos_token": true}),
                &[("eos_token", "<|im_end|>"), ("pad_token", "p")][..],
            ),
            (json!({"extra_special_tokens": {"image_token": "<image>"}}), &[("image_token", "<image>")]),
            (
                json!({"tokenizer_class": "LlamaTokenizerFast", "unk_token": null, "eos_token": "e"}),
                &[("bos_token", "<s>"), ("eos_token", "e")],
            ),
            (json!({"tokenizer_class": "PreTrainedTokenizerFast"}), &[]),
        ] {
            assert_eq!(tokens(fields.clone()), pairs(expected), "{fields}");
        }
    }
}
