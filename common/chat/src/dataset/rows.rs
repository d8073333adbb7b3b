//! A JSON list as a stream of rows: memory holds one row, whatever the file's size.

use super::python_json::{Position, PythonJson};
use base::{Attachment, Error, Result};
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// A row as JSON text, whatever file it is from, and where it stands.
#[derive(Debug)]
pub struct SourceRow {
    /// Index in the dataset, from 0.
    pub number: usize,
    /// Where it stands.
    pub place: RowPlace,
    /// `NaN`, `Infinity` and `-Infinity` in it, null in `json`.
    pub constants: usize,
    /// Its text.
    pub json: Box<RawValue>,
    /// Pictures stored with the row. Other names of pictures in the row are files.
    pub attachments: Vec<Attachment>,
    /// Why it cannot be read although the file can.
    pub fault: Option<String>,
}

/// Where a row stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowPlace {
    /// Its text is a part of a JSON file.
    Text {
        /// Name of the file.
        file: Arc<str>,
        /// Line of its first character, from 1.
        line: u64,
        /// Column of its first character, from 1.
        column: u64,
    },
    /// Its text was made of something else: `captions.csv line 7`.
    Named(String),
}

/// A file's name without its folder, for places of rows.
pub(super) fn file_name(path: &Path) -> Arc<str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into()
}

/// Hands every row to `take` until the end or its `Break`.
///
/// # Errors
/// JSON that is not a list, with line and column; the system's reason for an unreadable file.
pub fn for_each_row(path: &Path, reader: impl Read, take: impl FnMut(SourceRow) -> ControlFlow<()>) -> Result<()> {
    let position = Position::default();
    let reader = PythonJson::new(reader, position.clone());
    let mut json = serde_json::Deserializer::from_reader(reader);
    let mut stopped = false;
    let rows = Rows { position: position.clone(), file: file_name(path), take, stopped: &mut stopped };
    let result = rows.deserialize(&mut json);
    if stopped {
        return Ok(());
    }
    result.and_then(|()| json.end()).map_err(|error| {
        if error.is_io() {
            return Error::io(path)(error.into());
        }
        let (line, column) = (error.line(), error.column());
        let place = format!("{}: line {line}, column {}", path.display(), position.column(line, column));
        let remedy = match position.is_object() {
            true => "put the rows into a list, or one on each line",
            false => "repair the file and run again",
        };
        Error::invalid(place, base::json::reason(&error), "a JSON list of conversations", remedy)
    })
}

struct Rows<'a, F> {
    position: Position,
    file: Arc<str>,
    take: F,
    stopped: &'a mut bool,
}

impl<'de, F: FnMut(SourceRow) -> ControlFlow<()>> DeserializeSeed<'de> for Rows<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(SourceRow) -> ControlFlow<()>> Visitor<'de> for Rows<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut rows: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(json) = rows.next_element::<Box<RawValue>>()? {
            let ((line, column), constants) = self.position.end_row();
            let place = RowPlace::Text { file: self.file.clone(), line, column };
            let row = SourceRow { number, place, constants, json, attachments: Vec::new(), fault: None };
            if (self.take)(row).is_break() {
                *self.stopped = true;
                return Err(serde::de::Error::custom("stopped"));
            }
            number += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Result<Vec<SourceRow>> {
        let mut rows = Vec::new();
        for_each_row(Path::new("chat.json"), text.as_bytes(), |row| {
            rows.push(row);
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    #[test]
    fn rows_come_with_their_places() {
        let rows = rows("[ {\"id\": 1},\n  {\"id\":\n 2} ,{\"id\": 3}]\n").expect("a list");
        let position = |row: &SourceRow| match row.place {
            RowPlace::Text { line, column, .. } => (line, column),
            RowPlace::Named(_) => (0, 0),
        };
        let places: Vec<_> = rows.iter().map(|row| (row.number, position(row).0, position(row).1)).collect();
        assert_eq!(places, [(0, 1, 3), (1, 2, 3), (2, 3, 6)]);
        assert_eq!(rows[1].json.get(), "{\"id\":\n 2}");
        assert!(self::rows("[]").expect("empty").is_empty());
        let rows = self::rows("\u{feff}[{\"a\": NaN, \"b\": -Infinity}, NaN,\n {}]").expect("Python's JSON");
        let found: Vec<_> = rows.iter().map(|row| (row.json.get(), position(row).1, row.constants)).collect();
        assert_eq!(found, [("{\"a\": null, \"b\": null}", 2, 2), ("null", 30, 1), ("{}", 2, 0)]);
    }

    #[test]
    fn an_object_is_refused_with_the_remedy() {
        let error = rows("{\"id\": 1}").expect_err("refused").to_string();
        assert!(error.contains("put the rows into a list, or one on each line"), "{error}");
    }

    #[test]
    fn malformed_json_is_an_error_with_line_and_column() {
        for (text, place) in [
            ("[{\"id\": 1},\n {\"id\" 2}]", "line 2, column 8"),
            ("{\"id\": 1}", "line 1, column 1"),
            ("[{\"id\": 1}", "line 1, column 10"),
            ("[] x", "line 1, column 4"),
            ("", "line 1, column 0"),
            ("[NaN, -Infinity, \"a\" 2]", "line 1, column 22"),
            ("\u{feff}[{\"id\" 2}]", "line 1, column 8"),
        ] {
            let error = rows(text).expect_err("refused").to_string();
            assert!(error.contains(place), "{text:?}: {error}");
        }
    }

    #[test]
    fn deep_nesting_and_invalid_text_end_in_an_error() {
        assert!(rows(&"[".repeat(100_000)).is_err());
        let mut taken = 0;
        let result = for_each_row(Path::new("chat.json"), &b"[\"\xff\xfe\", 1]"[..], |_| {
            taken += 1;
            ControlFlow::Continue(())
        });
        assert!(result.is_err() && taken == 0);
    }

    #[test]
    fn it_stops_when_told() {
        let mut taken = 0;
        for_each_row(Path::new("chat.json"), &b"[1, 2, 3, oops"[..], |_| {
            taken += 1;
            if taken == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .expect("stopped before the mistake");
        assert_eq!(taken, 2);
    }
}
