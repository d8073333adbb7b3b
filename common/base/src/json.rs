//! JSON files: parse errors with line and column, written as Python's `json.dumps(indent=2)` writes them.

use crate::{Error, Result, files};
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::Path;

/// Reads a whole JSON file.
///
/// # Errors
/// The file cannot be read, is not JSON (line and column are named), or lacks what `T` needs.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    parse(&bytes, path)
}

/// As [`read`], but `None` when there is no such file.
pub fn read_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}

/// Parses the bytes of `path`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::invalid(path.display(), error, "valid JSON with the documented fields", "correct the file")
    })
}

/// Writes atomically, indented by two spaces, with a final newline.
pub fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| {
        Error::invalid(
            path.display(),
            error,
            "values that JSON can hold",
            "report this: it is a mistake of the program",
        )
    })?;
    text.push(b'\n');
    files::write_atomically(path, &text)
}

/// A number, or a list of numbers.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T: Clone> OneOrMany<T> {
    pub fn to_vec(&self) -> Vec<T> {
        match self {
            Self::One(value) => vec![value.clone()],
            Self::Many(values) => values.clone(),
        }
    }
}
