//! Python's JSON as plain JSON: without a byte order mark, `NaN`, `Infinity` and `-Infinity` as null.

use base::names;
use std::cell::Cell;
use std::io::{Error, Read, Result};
use std::rc::Rc;

/// Longest row, bytes: beyond it the file is not a list of conversations.
pub(super) const MAX_ROW_BYTES: u64 = 64 << 20;
const BUFFER_BYTES: usize = 1 << 18;
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];
/// First bytes of files that are often given in place of a JSON file, with their kind and the remedy.
const OTHER_FILES: [(&[u8], &str); 5] = [
    (&[0xff, 0xfe], "UTF-16 text, expected UTF-8; convert it (iconv -f UTF-16 -t UTF-8)"),
    (&[0xfe, 0xff], "UTF-16 text, expected UTF-8; convert it (iconv -f UTF-16 -t UTF-8)"),
    (&[0x1f, 0x8b], "a gzip file, expected JSON text; unpack it (gunzip)"),
    (b"PK\x03\x04", "a zip file, expected JSON text; unpack it"),
    (names::LFS_POINTER, "a pointer of Git LFS, expected JSON text; download the file itself (git lfs pull)"),
];
/// Bytes that tell them apart.
const BEGIN_BYTES: usize = names::LFS_POINTER.len();
/// What Python writes for floats that JSON has no text for.
const CONSTANTS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];

/// Where the reader is, shared with its user.
#[derive(Clone, Default)]
pub(super) struct Position(Rc<Cells>);

#[derive(Default)]
struct Cells {
    /// Line and column of the row's first byte; 0 before it.
    row_start: Cell<(u64, u64)>,
    row_bytes: Cell<u64>,
    constants: Cell<usize>,
    /// The first byte of the file that is no white space; 0 before it.
    first: Cell<u8>,
    /// Line, and bytes given out beyond those read of it.
    shift: Cell<(u64, i64)>,
}

impl Position {
    /// Line and column of the row's first byte, and the constants in it; the next row begins.
    pub(super) fn end_row(&self) -> ((u64, u64), usize) {
        self.0.row_bytes.set(0);
        (self.0.row_start.take(), self.0.constants.take())
    }

    /// The file begins as an object, where a list is expected.
    pub(super) fn is_object(&self) -> bool {
        self.0.first.get() == b'{'
    }

    /// Column in the file, from a column in the translated text.
    pub(super) fn column(&self, line: usize, column: usize) -> i64 {
        let (shifted, by) = self.0.shift.get();
        column as i64 - if shifted == line as u64 { by } else { 0 }
    }
}

/// Counts lines, columns and bytes while reading.
pub(super) struct PythonJson<R> {
    inner: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    started: bool,
    line: u64,
    column: u64,
    in_text: bool,
    escaped: bool,
    /// Bytes to give out before the next is read, last first.
    waiting: Vec<u8>,
    position: Position,
}

impl<R: Read> PythonJson<R> {
    pub(super) fn new(inner: R, position: Position) -> Self {
        position.0.shift.set((1, 0));
        Self {
            inner,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            started: false,
            line: 1,
            column: 0,
            in_text: false,
            escaped: false,
            waiting: Vec::new(),
            position,
        }
    }

    /// Reads on; at the begin until enough is there to tell another file by, and to skip the byte order mark.
    #[cold]
    fn fill(&mut self) -> Result<()> {
        self.start = 0;
        if self.started {
            self.end = self.inner.read(&mut self.buffer)?;
            return Ok(());
        }
        self.started = true;
        while self.end < BEGIN_BYTES {
            let read = self.inner.read(&mut self.buffer[self.end..])?;
            if read == 0 {
                break;
            }
            self.end += read;
        }
        let begin = &self.buffer[..self.end];
        if let Some((_, what)) = OTHER_FILES.iter().find(|(bytes, _)| begin.starts_with(bytes)) {
            return Err(Error::other(*what));
        }
        if begin.starts_with(&BYTE_ORDER_MARK) {
            self.start = BYTE_ORDER_MARK.len();
        }
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        if self.start == self.end {
            self.fill()?;
        }
        Ok((self.start < self.end).then(|| self.buffer[self.start]))
    }

    fn next(&mut self) -> Result<Option<u8>> {
        let byte = self.peek()?;
        if let Some(byte) = byte {
            self.start += 1;
            self.count(byte)?;
        }
        Ok(byte)
    }

    fn count(&mut self, byte: u8) -> Result<()> {
        self.column += 1;
        let Cells { row_start, row_bytes, first, shift, .. } = &*self.position.0;
        row_bytes.set(row_bytes.get() + 1);
        if row_bytes.get() > MAX_ROW_BYTES {
            let place = format!("line {}, column {}: a row longer than {MAX_ROW_BYTES} bytes", self.line, self.column);
            return Err(Error::other(place));
        }
        if first.get() == 0 && !byte.is_ascii_whitespace() {
            first.set(byte);
        }
        if row_start.get().0 == 0 && !byte.is_ascii_whitespace() && byte != b',' && byte != b'[' {
            row_start.set((self.line, self.column));
        }
        if byte == b'\n' {
            self.line += 1;
            self.column = 0;
            shift.set((self.line, 0));
        }
        Ok(())
    }

    /// The byte to give out for one that was read outside of text: itself, or the first of null.
    fn begin_word(&mut self, first: u8) -> Result<u8> {
        let mut word = vec![first];
        while word.len() < 10 {
            match self.peek()? {
                Some(byte) if byte.is_ascii_alphabetic() => word.extend(self.next()?),
                _ => break,
            }
        }
        if CONSTANTS.contains(&word.as_slice()) {
            let Cells { constants, shift, .. } = &*self.position.0;
            constants.set(constants.get() + 1);
            let (line, by) = shift.get();
            shift.set((line, by + 4 - word.len() as i64));
            word = b"null".to_vec();
        }
        self.waiting = word.into_iter().rev().collect();
        Ok(self.waiting.pop().unwrap_or(first))
    }
}

impl<R: Read> Read for PythonJson<R> {
    /// serde_json asks for one byte at a time.
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let Some(out) = out.first_mut() else { return Ok(0) };
        if !self.waiting.is_empty() {
            *out = self.waiting.pop().unwrap_or_default();
            return Ok(1);
        }
        let Some(byte) = self.next()? else { return Ok(0) };
        *out = byte;
        if self.in_text {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_text = false,
                _ => {}
            }
        } else if byte == b'"' {
            self.in_text = true;
        } else if matches!(byte, b'N' | b'I' | b'-') {
            *out = self.begin_word(byte)?;
        }
        Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a few bytes at a time, so that every word lies across a border once.
    struct Slowly<'a>(&'a [u8], usize);

    impl Read for Slowly<'_> {
        fn read(&mut self, out: &mut [u8]) -> Result<usize> {
            let len = self.1.min(self.0.len()).min(out.len());
            let (now, rest) = self.0.split_at(len);
            out[..len].copy_from_slice(now);
            self.0 = rest;
            Ok(len)
        }
    }

    fn plain(text: &[u8], at_once: usize) -> Result<String> {
        let mut plain = String::new();
        PythonJson::new(Slowly(text, at_once), Position::default()).read_to_string(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn constants_are_null_outside_of_texts_only() {
        for (text, expected) in [
            ("[NaN,Infinity, -Infinity]", "[null,null, null]"),
            (r#"["NaN", "\"NaN", "\\", NaN]"#, r#"["NaN", "\"NaN", "\\", null]"#),
            ("[-1, -0.5e-3, -x]", "[-1, -0.5e-3, -x]"),
            ("[NaNa, Nan, Inf, InfinityInfinity]", "[NaNa, Nan, Inf, InfinityInfinity]"),
            ("\u{feff}[1]", "[1]"),
            ("[\"\u{feff}\"]", "[\"\u{feff}\"]"),
            ("", ""),
            ("NaN", "null"),
        ] {
            for at_once in [1, 2, 3, 5, 100] {
                assert_eq!(plain(text.as_bytes(), at_once).expect("read"), expected, "{text}, {at_once} bytes at once");
            }
        }
    }

    #[test]
    fn other_files_are_named() {
        for (text, what) in [
            (&b"\xff\xfe[\0]\0"[..], "UTF-16"),
            (b"\xfe\xff\0[\0]", "UTF-16"),
            (b"\x1f\x8b\x08\0", "gunzip"),
            (b"PK\x03\x04\x14", "zip file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ] {
            assert!(plain(text, 3).expect_err("refused").to_string().contains(what), "{what}");
        }
    }
}
