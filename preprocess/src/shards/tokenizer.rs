//! The tokenizer's files beside the shards: `preprocess inspect` shows tokens as text where the model is not at hand.

use base::{Error, Result, files, names};
use std::path::Path;

/// Folder, in the output, of the tokenizer that rows were encoded with.
pub const TOKENIZER_DIR: &str = "tokenizer";

/// Every file that a token's text may depend on.
const FILES: [&str; 4] =
    [names::TOKENIZER_FILE, names::TOKENIZER_CONFIG_FILE, names::SPECIAL_TOKENS_MAP_FILE, names::ADDED_TOKENS_FILE];

/// Copies them from a model directory.
pub fn copy(model: &Path, output: &Path) -> Result<()> {
    let dir = output.join(TOKENIZER_DIR);
    std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
    for name in FILES {
        let source = model.join(name);
        match std::fs::read(&source) {
            Ok(bytes) => files::write_atomically(&dir.join(name), &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(&source)(error)),
        }
    }
    Ok(())
}
