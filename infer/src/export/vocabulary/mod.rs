//! A tokenizer in GGUF: tokens, their kinds, how a text is split into them, special ids, chat template.
//!
//! # Source
//! llama.cpp `convert_hf_to_gguf.py`, `TextModel.get_vocab_base`, and `gguf-py/gguf/vocab.py`, `SpecialVocab`, `LlamaHfVocab`.

mod byte_level;
mod file;
mod sentencepiece;

use super::gguf::Value;
use super::{entry, number};
use anyhow::{Context, Result, bail};
use base::{Error, json as json_files, names};
use chat::ChatProcessor;
use file::TokenizerFile;
use model::config::TextConfig;
use std::path::Path;

/// llama.cpp's kinds of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// Tokens by id, with their kinds.
type Tokens = Vec<(String, Kind)>;

/// Everything that llama.cpp has to know of the tokenizer.
pub fn metadata(dir: &Path, config: &TextConfig) -> Result<Vec<(String, Value)>> {
    let path = dir.join(names::TOKENIZER_FILE);
    let file: TokenizerFile = json_files::read(&path)?;
    if file.model.kind.as_deref().unwrap_or("BPE") != "BPE" {
        bail!("{}: model type {:?}, expected BPE: llama.cpp reads no other here", path.display(), file.model.kind);
    }
    let chat = ChatProcessor::from_dir(dir)?;
    let tokens = tokens(&file, &chat, config, &path)?;
    let mut metadata = match file.model.byte_fallback {
        true => sentencepiece::metadata(&file, &tokens, &path)?,
        false => byte_level::metadata(&file, &path)?,
    };
    let (texts, kinds) = tokens.into_iter().map(|(text, kind)| (text, kind as i32)).unzip();
    metadata.push(entry("tokenizer.ggml.tokens", Value::Texts(texts)));
    metadata.push(entry("tokenizer.ggml.token_type", Value::I32s(kinds)));
    metadata.extend(chat.eos_token_ids.first().map(|&id| number("tokenizer.ggml.eos_token_id", id as usize)));
    let start = match *chat.start_ids() {
        [] => None,
        [id] => Some(id),
        ref ids => {
            let found = format!("{} tokens before a text", ids.len());
            let remedy = "keep the safetensors";
            return Err(
                Error::invalid(format!("{}: post_processor", path.display()), found, "one at most", remedy).into()
            );
        }
    };
    metadata.extend(start.or(config.bos_token_id).map(|id| number("tokenizer.ggml.bos_token_id", id as usize)));
    metadata.push(entry("tokenizer.ggml.add_bos_token", Value::Bool(start.is_some())));
    // llama.cpp makes texts of lists itself.
    let template = chat::without_list_contents(chat.template_source());
    metadata.push(entry("tokenizer.chat_template", Value::Text(template.into())));
    Ok(metadata)
}

fn tokens(file: &TokenizerFile, chat: &ChatProcessor, config: &TextConfig, path: &Path) -> Result<Tokens> {
    let mut tokens: Tokens = (0..config.vocab_size).map(|id| (format!("[PAD{id}]"), Kind::Unused)).collect();
    let added_kind = |special: bool| if special { Kind::Control } else { Kind::UserDefined };
    let normal = file.model.vocab.iter().map(|(text, &id)| (id, text.as_str(), file.kind(text)));
    let added = file.added_tokens.iter().map(|token| (token.id, token.content.as_str(), added_kind(token.special)));
    let of_config = chat.tokens_of_config().map(|(id, text, special)| (id as usize, text, added_kind(special)));
    for (id, text, kind) in normal.chain(added).chain(of_config) {
        let place = tokens.get_mut(id).with_context(|| {
            format!("{}: token {text:?} has id {id}, the model has {} rows", path.display(), config.vocab_size)
        })?;
        *place = (text.to_string(), if file.model.unk_token.as_deref() == Some(text) { Kind::Unknown } else { kind });
    }
    Ok(tokens)
}
