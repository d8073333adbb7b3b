//! JSON files: parse errors with line and column, written as Python's `json.dumps(indent=2)` writes them.

mod distinct;

pub use distinct::Distinct;

use crate::{Error, Result, files};
use serde::Deserialize;
use serde::Serialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde_json::Value;
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
        Error::invalid(path.display(), message(&error), "valid JSON with the documented fields", "correct the file")
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

/// Line and column as serde_json writes them behind a message; empty for an error without.
fn place(error: &serde_json::Error) -> String {
    match (error.line(), error.column()) {
        (0, _) => String::new(),
        (line, column) => format!(" at line {line} column {column}"),
    }
}

/// The message alone, without line and column.
pub fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.strip_suffix(&place(error)).unwrap_or(&text).to_string()
}

/// A JSON library's message with JSON's words for types. Line and column, where it has them, are kept.
pub fn message(error: &serde_json::Error) -> String {
    let text = reason(error).replace("invalid type: map", "invalid type: object");
    let text = text.replace("invalid type: sequence", "invalid type: list");
    const UNTAGGED: &str = "data did not match any variant of untagged enum ";
    let place = place(error);
    if text.starts_with(UNTAGGED) {
        return format!("a value of another type{place}");
    }
    let Some((found, name)) = text.rsplit_once(", expected ") else { return format!("{text}{place}") };
    let name = match name {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        name if name.starts_with("struct ") => "an object",
        name => name,
    };
    format!("{found}, expected {name}{place}")
}

/// A number, or a list of numbers.
#[derive(Clone)]
pub enum OneOrMany<T> {
    /// A number.
    One(T),
    /// A list.
    Many(Vec<T>),
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let read = match value {
            Value::Array(_) => serde_json::from_value(value.clone()).map(Self::Many),
            _ => serde_json::from_value(value.clone()).map(Self::One),
        };
        let refuse = |_| D::Error::custom(format!("invalid value: {value}, expected a number or a list of numbers"));
        read.map_err(refuse)
    }
}

impl<T: Clone> OneOrMany<T> {
    /// All of them.
    pub fn to_vec(&self) -> Vec<T> {
        match self {
            Self::One(value) => vec![value.clone()],
            Self::Many(values) => values.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    #[expect(dead_code, reason = "nothing is read as it here")]
    enum Either {
        Text(String),
        Flag(bool),
    }

    fn message_of<T: DeserializeOwned>(text: &str) -> String {
        message(&serde_json::from_str::<T>(text).err().expect("refused"))
    }

    #[test]
    fn messages_have_the_words_of_json() {
        for (found, expected) in [
            (message_of::<u32>("-7"), "invalid value: integer `-7`, expected a whole number from 0 at line 1 column 2"),
            (message_of::<Vec<f64>>("[true]"), "invalid type: boolean `true`, expected a number at line 1 column 5"),
            (message_of::<bool>("[]"), "invalid type: list, expected true or false at line 1 column 0"),
            (message_of::<Vec<i64>>("{}"), "invalid type: object, expected a list at line 1 column 0"),
            (message_of::<Either>("3"), "a value of another type"),
            (message_of::<OneOrMany<i64>>("\"-3\""), "invalid value: \"-3\", expected a number or a list of numbers"),
            (message_of::<OneOrMany<u32>>("[4, -1]"), "invalid value: [4,-1], expected a number or a list of numbers"),
            (message_of::<u32>("[1"), "invalid type: list, expected a whole number from 0"),
        ] {
            assert!(found.starts_with(expected), "{found} instead of {expected}");
        }
    }
}
