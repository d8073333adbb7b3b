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
    let bytes = std::fs::read(path).map_err(cli::inputs::unread(path, "a JSON or JSON-lines file"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let found = format!("text that is not UTF-8 at byte {}", error.utf8_error().valid_up_to());
        Error::invalid(path.display(), found, "JSON in UTF-8", "save it in UTF-8 (iconv -t UTF-8)")
    })?;
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
            // Its line is always 1.
            let found = error.to_string().replace(" at line 1 column ", " at column ");
            Error::invalid(&place, found, expected, "correct the file")
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
        Value::Number(number) if !is_exact(number) => "a number of more than 64 bits, which is not kept exactly",
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

    /// Refuses keys of the same meaning with different values: which one counts is not for a program to choose.
    ///
    /// # Errors
    /// Two such keys.
    pub fn require_one_of(&self, keys: &[&'static str]) -> Result<()> {
        let Some((first, value)) = self.get(keys) else { return Ok(()) };
        let is_other =
            |key: &&&str| self.values.get(**key).is_some_and(|other| !other.is_null() && !holds(value, other));
        let Some(other) = keys.iter().find(is_other) else { return Ok(()) };
        let found = format!("{first:?} and {other:?} with different values");
        Err(Error::invalid(&self.place, found, "one of them, or the same in both", "take one out").into())
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

/// Whether a value, or what a list has, is all of another one, but for capital letters and white space around.
fn holds(value: &Value, other: &Value) -> bool {
    let texts = |value: &Value| -> Vec<String> {
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let inner =
            |value: &Value| ["answer", "caption"].iter().find_map(|key| value.get(key)).unwrap_or(value).clone();
        values
            .iter()
            .map(|value| label_of(&inner(value)).unwrap_or_else(|| value.to_string()).trim().to_lowercase())
            .collect()
    };
    let (held, others) = (texts(value), texts(other));
    others.iter().all(|other| held.contains(other))
}

/// A text, or the digits of a number. Of a number that is not kept exactly (10³⁰) no digits are known.
pub(super) fn label_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if is_exact(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Integers of 64 bits are, and fractions as far as two of them cannot be the same integer.
fn is_exact(number: &serde_json::Number) -> bool {
    const WHOLE: f64 = (1u64 << 53) as f64;
    !number.is_f64() || number.as_f64().is_some_and(|value| value.abs() < WHOLE)
}
