//! Rows of the JSON files that benchmarks come in: a list, an object with a list in it, or JSON lines.

use anyhow::Result;
use base::Error;
use base::json::Distinct;
use serde_json::{Map, Value};
use std::path::Path;

/// A row and its place in messages.
pub(super) struct Row {
    /// `questions.jsonl: line 3`.
    pub place: String,
    /// Its values.
    pub values: Map<String, Value>,
}

/// The rows of a file.
pub(super) struct Rows {
    /// In the order of the file.
    pub rows: Vec<Row>,
    /// The object around the list, without the list; empty where there is none.
    pub head: Map<String, Value>,
}

/// Endings of files that `preprocess shards` reads and that are not read here.
const TABLES: [&str; 4] = ["csv", "tsv", "parquet", "arrow"];

/// Reads a file's rows; `list` is the key of the list in an object.
///
/// # Errors
/// Malformed JSON, with line and column; rows that are not objects; no rows.
pub(super) fn read(path: &Path, list: &str) -> Result<Rows> {
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if TABLES.contains(&ending.as_str()) {
        let expected = "JSON: one object a line, or a list";
        let remedy = "write its rows as JSON lines with the keys question_id, image, text";
        return Err(Error::invalid(path.display(), format!("a table (.{ending})"), expected, remedy).into());
    }
    let text = std::fs::read_to_string(path).map_err(cli::inputs::unread(path, "a JSON or JSON-lines file"))?;
    let text = text.trim_start_matches('\u{feff}');
    let file = path.display();
    let rows = match serde_json::from_str(text) {
        Ok(Distinct(Value::Array(rows))) => Rows { rows: numbered(path, "row", rows)?, head: Map::new() },
        Ok(Distinct(Value::Object(mut head))) if head.get(list).is_some_and(Value::is_array) => {
            let rows = head.remove(list).and_then(|rows| Some(rows.as_array()?.clone())).unwrap_or_default();
            Rows { rows: numbered(path, "row", rows)?, head }
        }
        // Of a line, too: other mistakes may be those of a file with an object a line.
        Err(error) if error.is_data() => {
            return Err(Error::invalid(file, error, "each key once in an object", "correct the file").into());
        }
        // A single line is such an object, too.
        _ => Rows { rows: lines(path, text, list)?, head: Map::new() },
    };
    if rows.rows.is_empty() {
        return Err(Error::invalid(file, "no rows", "at least one", "give a file with rows").into());
    }
    Ok(rows)
}

fn lines(path: &Path, text: &str, list: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = format!("{}: line {}", path.display(), number + 1);
        let Distinct(value) = serde_json::from_str(line).map_err(|error| {
            let expected = format!("one JSON object a line, a JSON list, or an object with a list {list:?}");
            Error::invalid(&place, format!("{error}"), expected, "correct the file")
        })?;
        rows.push(row(place, value)?);
    }
    Ok(rows)
}

fn numbered(path: &Path, unit: &str, values: Vec<Value>) -> Result<Vec<Row>> {
    let rows = values.into_iter().enumerate();
    rows.map(|(number, value)| row(format!("{}: {unit} {number}", path.display()), value)).collect()
}

fn row(place: String, value: Value) -> Result<Row> {
    match value {
        Value::Object(values) => Ok(Row { place, values }),
        other => Err(Error::invalid(place, kind(&other), "an object", "correct the file").into()),
    }
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl Row {
    /// The first of the keys that has a value other than null.
    pub fn get(&self, keys: &[&'static str]) -> Option<(&'static str, &Value)> {
        keys.iter().find_map(|key| Some((*key, self.values.get(*key).filter(|value| !value.is_null())?)))
    }

    /// A text or the digits of a number.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn label(&self, keys: &[&'static str]) -> Result<Option<String>> {
        let Some((key, value)) = self.get(keys) else { return Ok(None) };
        Ok(Some(label_of(value).ok_or_else(|| self.unexpected(key, value, "text or a number"))?))
    }

    /// A value of another kind than the key has.
    pub fn unexpected(&self, key: &str, value: &Value, expected: &str) -> Error {
        Error::invalid(format!("{}: {key}", self.place), kind(value), expected, "correct the row")
    }
}

/// A text, or the digits of a number.
pub(super) fn label_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
