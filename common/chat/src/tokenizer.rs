//! `tokenizer.json`, used as the model's makers wrote it, with the tokens that the files beside it add.

use super::added_tokens;
use base::{Error, Result, files, names};
use std::path::Path;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

pub use super::added_tokens::TokenizerConfig;

/// A model directory's tokenizer.
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    sha256: String,
    from_config: Vec<(u32, AddedToken)>,
}

impl TextTokenizer {
    /// Reads `dir/tokenizer.json`, and from `tokenizer_config.json` (`special_tokens_map.json`, `added_tokens.json`) the tokens
    /// that transformers adds to it.
    ///
    /// Truncation and padding that the file may ask for are switched off: rows keep their own lengths.
    ///
    /// # Errors
    /// Files that give a token different ids, and a model with dropout.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join(names::TOKENIZER_FILE);
        require_tokenizer(dir)?;
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let mut tokenizer = load(&bytes, &path)?;
        let from_config = added_tokens::add(&mut tokenizer, &TokenizerConfig::from_dir(dir)?, dir)?;
        let mut identity = bytes;
        for (id, token) in &from_config {
            // With other tokens, it is another tokenizer.
            identity.extend_from_slice(format!("\n{id} {token:?}").as_bytes());
        }
        Ok(Self { tokenizer, sha256: files::sha256_hex(&identity), from_config })
    }

    /// The library's tokenizer.
    pub(super) fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Lower-case hex SHA-256 of the file and of the tokens that other files add.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Ids of a text, special tokens recognised, nothing added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| failure("encoding a text", &error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids that the tokenizer puts before a text when it is asked to add special tokens: Llama 2's `<s>`. What it would put behind
    /// one is not looked at: a prompt goes on.
    pub fn start_ids(&self) -> Result<Vec<u32>> {
        let text = "a";
        let plain = self.encode(text)?;
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|error| failure("encoding a text", &error))?;
        let whole = encoding.get_ids();
        let start = whole.windows(plain.len()).position(|ids| ids == plain.as_slice()).unwrap_or_default();
        Ok(whole[..start].to_vec())
    }

    /// Text of ids.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special_tokens).map_err(|error| failure("decoding ids", &error))
    }

    /// Id of a token, added or not.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Whether a token is beside the model's vocabulary: it is found in texts before anything is split.
    pub fn is_added(&self, id: u32) -> bool {
        self.tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id)
    }

    /// Whether a text's ids depend on the text before it, as with tokenizers that put a space before every text.
    pub fn depends_on_context(&self) -> Result<bool> {
        let apart = [self.encode("\n")?, self.encode("ab c")?].concat();
        Ok(apart != self.encode("\nab c")?)
    }

    /// Tokens that are not, or otherwise, in `tokenizer.json`, by id.
    pub fn tokens_of_config(&self) -> &[(u32, AddedToken)] {
        &self.from_config
    }

    /// The largest id in use, added tokens included, plus one.
    pub fn next_free_id(&self) -> u32 {
        self.tokenizer.get_vocab(true).values().max().map_or(0, |&id| id + 1)
    }
}

/// A folder without the file is a wrong path, an adapter, an incomplete download, or has SentencePiece's file alone, as Vicuna and
/// Llama 2 were published.
fn require_tokenizer(dir: &Path) -> Result<()> {
    let has = |name: &str| dir.join(name).exists();
    if has(names::TOKENIZER_FILE) {
        return Ok(());
    }
    let (place, file) = (dir.display(), names::TOKENIZER_FILE);
    let wrong = |found: String, expected: String, remedy: String| Err(Error::invalid(&place, found, expected, remedy));
    if !dir.is_dir() {
        let meant = base::did_you_mean(dir);
        let remedy = format!("{meant}check the path, or download a model: hf download OWNER/NAME --local-dir DIR");
        return wrong("no such folder".into(), "a model directory".into(), remedy);
    }
    if has(names::ADAPTER_CONFIG_FILE) {
        let remedy = "give its base as --model and this folder as --adapter, or infer merge joins them";
        return wrong("an adapter".into(), format!("a model directory with {file}"), remedy.into());
    }
    if has(names::SENTENCEPIECE_FILE) {
        let remedy = format!(
            "convert it: python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{place}').save_pretrained('{place}')\""
        );
        let found = format!("{} and no {file}", names::SENTENCEPIECE_FILE);
        return wrong(found, format!("{file}, the fast tokenizer's file"), remedy);
    }
    let remedy = "copy the tokenizer's files (tokenizer.json, tokenizer_config.json, chat_template.jinja) from the model that it comes \
                  from: hf download OWNER/NAME --local-dir DIR";
    wrong(format!("no {file}"), "a model directory with its tokenizer".into(), remedy.into())
}

fn load(bytes: &[u8], path: &Path) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| {
        Error::invalid(
            path.display(),
            format!("a file that the tokenizers library refuses ({error})"),
            "a fast tokenizer",
            "download the model's tokenizer.json again, or convert a slow tokenizer with transformers",
        )
    })?;
    refuse_dropout(&tokenizer, path)?;
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| failure(path.display(), &error))?;
    Ok(tokenizer)
}

/// With dropout, a text's ids are random, in transformers as well: there are no ids to be equal to, and shards would not be
/// reproducible. It is refused rather than switched off: whoever loads the trained model reads the same file.
fn refuse_dropout(tokenizer: &Tokenizer, path: &Path) -> Result<()> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return Ok(()) };
    match model.dropout.filter(|dropout| *dropout > 0.0) {
        Some(dropout) => Err(Error::invalid(
            format!("{}: model.dropout", path.display()),
            dropout,
            "null or 0 (with dropout, the ids of a text differ from call to call)",
            "set it to null",
        )),
        None => Ok(()),
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
    fn dropout_of_the_model_is_refused() {
        for (dropout, is_refused) in
            [(json!(null), false), (json!(0.0), false), (json!(0.125), true), (json!(1.0), true)]
        {
            let model =
                json!({"type": "BPE", "dropout": dropout, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]});
            let file = json!({"version": "1.0", "added_tokens": [], "model": model}).to_string();
            let loaded = load(file.as_bytes(), Path::new("tokenizer.json"));
            let error = loaded.err().map(|error| error.to_string()).unwrap_or_default();
            let word = if is_refused {
                format!("tokenizer.json: model.dropout: found {}", dropout.as_f64().unwrap_or_default())
            } else {
                String::new()
            };
            assert!(error.starts_with(&word) && error.is_empty() == word.is_empty(), "{dropout}: {error}");
        }
    }
}
