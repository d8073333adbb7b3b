//! chat.json as a stream of rows: memory holds one row, whatever the file's size.

use common::{Error, Result};
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::cell::Cell;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

/// Longest row, bytes: beyond it the file is not a list of conversations.
const MAX_ROW_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 1 << 18;

/// A row's JSON text and where it stands.
#[derive(Debug)]
pub struct SourceRow {
    /// Index in the list, from 0.
    pub number: usize,
    /// Line of its first character, from 1.
    pub line: u64,
    /// Column of its first character, from 1.
    pub column: u64,
    /// Its text.
    pub json: Box<RawValue>,
}

/// Hands every row to `take` until the end or its `Break`.
///
/// # Errors
/// JSON that is not a list, with line and column; the system's reason for an unreadable file.
pub fn for_each_row(path: &Path, reader: impl Read, take: impl FnMut(SourceRow) -> ControlFlow<()>) -> Result<()> {
    let position = Position::default();
    let reader = PositionReader::new(reader, position.clone());
    let mut json = serde_json::Deserializer::from_reader(reader);
    let mut stopped = false;
    let rows = Rows { position, take, stopped: &mut stopped };
    let result = rows.deserialize(&mut json);
    if stopped {
        return Ok(());
    }
    result.and_then(|()| json.end()).map_err(|error| {
        if error.is_io() {
            return Error::io(path)(error.into());
        }
        let (line, column) = (error.line(), error.column());
        let what = error.to_string().replace(&format!(" at line {line} column {column}"), "");
        let place = format!("{}: line {line}, column {column}", path.display());
        Error::invalid(place, what, "a JSON list of conversations", "repair the file and run again")
    })
}

/// Line, column and bytes read, shared with the reader that counts them.
#[derive(Clone, Default)]
struct Position(Rc<PositionCells>);

#[derive(Default)]
struct PositionCells {
    row_start: Cell<Option<(u64, u64)>>,
    row_bytes: Cell<u64>,
}

struct PositionReader<R> {
    inner: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    line: u64,
    column: u64,
    position: Position,
}

impl<R: Read> PositionReader<R> {
    fn new(inner: R, position: Position) -> Self {
        Self { inner, buffer: vec![0; BUFFER_BYTES], start: 0, end: 0, line: 1, column: 0, position }
    }

    fn count(&mut self, byte: u8) -> std::io::Result<()> {
        self.column += 1;
        let PositionCells { row_start, row_bytes } = &*self.position.0;
        row_bytes.set(row_bytes.get() + 1);
        if row_bytes.get() > MAX_ROW_BYTES {
            let place = format!("line {}, column {}: a row longer than {MAX_ROW_BYTES} bytes", self.line, self.column);
            return Err(std::io::Error::other(place));
        }
        if row_start.get().is_none() && !byte.is_ascii_whitespace() && byte != b',' && byte != b'[' {
            row_start.set(Some((self.line, self.column)));
        }
        if byte == b'\n' {
            self.line += 1;
            self.column = 0;
        }
        Ok(())
    }
}

impl<R: Read> Read for PositionReader<R> {
    /// serde_json asks for one byte at a time.
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let Some(out) = out.first_mut() else { return Ok(0) };
        if self.start == self.end {
            self.start = 0;
            self.end = self.inner.read(&mut self.buffer)?;
            if self.end == 0 {
                return Ok(0);
            }
        }
        *out = self.buffer[self.start];
        self.start += 1;
        self.count(*out)?;
        Ok(1)
    }
}

struct Rows<'a, F> {
    position: Position,
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
        f.write_str("a list of conversations")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut rows: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(json) = rows.next_element::<Box<RawValue>>()? {
            let (line, column) = self.position.0.row_start.take().unwrap_or_default();
            self.position.0.row_bytes.set(0);
            if (self.take)(SourceRow { number, line, column, json }).is_break() {
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
        let places: Vec<_> = rows.iter().map(|row| (row.number, row.line, row.column)).collect();
        assert_eq!(places, [(0, 1, 3), (1, 2, 3), (2, 3, 6)]);
        assert_eq!(rows[1].json.get(), "{\"id\":\n 2}");
        assert!(self::rows("[]").expect("empty").is_empty());
    }

    #[test]
    fn malformed_json_is_an_error_with_line_and_column() {
        for (text, place) in [
            ("[{\"id\": 1},\n {\"id\" 2}]", "line 2, column 8"),
            ("{\"id\": 1}", "line 1, column 1"),
            ("[{\"id\": 1}", "line 1, column 10"),
            ("[] x", "line 1, column 4"),
            ("", "line 1, column 0"),
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
