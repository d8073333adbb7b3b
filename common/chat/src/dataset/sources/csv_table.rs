//! A CSV file whose first line names its columns. Also the `metadata.csv` of Hugging Face's imagefolder.

use super::json_lines::table_name;
use super::{Findings, Form, Found, Kind, Listing, Source, Take, raw, require_distinct};
use crate::dataset::layouts;
use crate::dataset::rows::{RowPlace, SourceRow, file_name};
use base::{Error, Result, counted};
use csv::{Reader, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(super) const KIND: Kind = Kind { form: Form::Files, pictures_beside: true, find, rows };
/// The one that the first line has most often separates the columns.
const DELIMITERS: [u8; 4] = [b',', b'\t', b';', b'|'];

fn find(listing: &Listing, found: &mut Findings) -> Result<()> {
    for file in listing.with_ending(&["csv", "tsv"]) {
        let columns = match open(&listing.path(file)) {
            Ok((_, columns, _)) if columns.is_empty() => {
                found.others.push(format!("{} (an empty file)", file.display()));
                continue;
            }
            Ok((_, columns, _)) => columns,
            Err(Error::Invalid(fault)) => {
                found.others.push(format!("{} ({}: {})", file.display(), fault.found, fault.remedy));
                continue;
            }
            Err(error) => return Err(error),
        };
        match layouts::name_of(columns.iter()) {
            Some(layout) => {
                require_distinct(&format!("{}: line 1", listing.path(file).display()), columns.iter())?;
                let layout = table_name(file, layout);
                found.datasets.push(Found { kind: &KIND, layout, files: vec![file.clone()], pictures: None });
            }
            None => {
                found.note_columns(file, "columns", &columns.iter().collect::<Vec<_>>());
            }
        }
    }
    Ok(())
}

/// A reader behind the line of names, the names, and what separates the columns.
fn open(path: &Path) -> Result<(Reader<File>, StringRecord, u8)> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut first = Vec::new();
    BufReader::new(&file).read_until(b'\n', &mut first).map_err(Error::io(path))?;
    let count = |delimiter: &u8| first.iter().filter(|byte| *byte == delimiter).count();
    let delimiter = DELIMITERS.into_iter().rev().max_by_key(count).unwrap_or(b',');
    let file = File::open(path).map_err(Error::io(path))?;
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let columns = reader.headers().map_err(|error| malformed(path, &error))?;
    let columns = columns.iter().map(str::trim).collect();
    Ok((reader, columns, delimiter))
}

fn rows(source: &Source, _: super::Pass, take: Take<'_>) -> Result<()> {
    for path in source.paths() {
        let (mut reader, columns, delimiter) = open(&path)?;
        let file = file_name(&path);
        let quoting = Quoting { path: &path, file: File::open(&path).map_err(Error::io(&path))?, delimiter };
        let mut record = StringRecord::new();
        while reader.read_record(&mut record).map_err(|error| malformed(&path, &error))? {
            quoting.check(&record, reader.position())?;
            let line = record.position().map_or(0, csv::Position::line);
            let place = format!("{file} line {line}");
            let json = raw(&object(&columns, &record), &place)?;
            let place = RowPlace::Named(place);
            let row = SourceRow { number: 0, place, constants: 0, json, attachments: Vec::new(), fault: None };
            if take(row) == ControlFlow::Break(()) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Compares a row with its text in the file: the parser takes away quotation marks that are no pair around a cell, and reads on
/// to the next one, which may be many lines below.
struct Quoting<'a> {
    path: &'a Path,
    file: File,
    delimiter: u8,
}

impl Quoting<'_> {
    /// Refuses a row with a quotation mark that neither stands around a whole cell nor within one that has none around it, and
    /// one of several lines where columns are separated by tabs: there no cell has tabs and line ends.
    fn check(&self, record: &StringRecord, end: &csv::Position) -> Result<()> {
        let Some(start) = record.position() else { return Ok(()) };
        let span = end.byte().saturating_sub(start.byte());
        let mut text = vec![0; span as usize];
        self.file.read_exact_at(&mut text, start.byte()).map_err(Error::io(self.path))?;
        let swallows = record.iter().any(|cell| cell.contains('\n') && cell.contains('\t'));
        let found = match stray(text.trim_ascii_start(), self.delimiter) {
            Some(Stray::Open) => {
                format!("a cell without an end, over {}", counted((end.line() - start.line()).max(1) as usize, "line"))
            }
            Some(Stray::TextBehind(text)) => format!("{text:?} behind a cell's closing quotation mark"),
            None if swallows => {
                format!("a cell with tabs over {}", counted((end.line() - start.line()) as usize, "line"))
            }
            None => return Ok(()),
        };
        let place = format!("{}: line {}", self.path.display(), start.line());
        let expected = "a quotation mark at the beginning of a cell and one at its end, or none at its beginning";
        let remedy = "close the cell's quotation mark; one that is text is written \"\" in a cell within \"…\"";
        Err(Error::invalid(place, found, expected, remedy))
    }
}

/// What is wrong with the quotation marks of a row.
#[derive(Debug, PartialEq, Eq)]
enum Stray {
    /// A cell's is not closed.
    Open,
    /// This follows on the one that closes a cell.
    TextBehind(String),
}

fn stray(row: &[u8], delimiter: u8) -> Option<Stray> {
    let is_end = |byte: &u8| *byte == delimiter || *byte == b'\n' || *byte == b'\r';
    let mut rest = row;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix(b"\"") {
            rest = quoted;
            loop {
                let Some(mark) = rest.iter().position(|byte| *byte == b'"') else { return Some(Stray::Open) };
                rest = &rest[mark + 1..];
                match rest.strip_prefix(b"\"") {
                    Some(after) => rest = after,
                    None => break,
                }
            }
            let behind = &rest[..rest.iter().position(is_end).unwrap_or(rest.len())];
            if !behind.trim_ascii().is_empty() {
                return Some(Stray::TextBehind(String::from_utf8_lossy(behind).into_owned()));
            }
        }
        let end = rest.iter().position(is_end);
        rest = end.map_or(&[][..], |end| &rest[end + 1..]);
    }
    None
}

/// A row as an object: an empty cell is a missing value, and a column without a name is pandas' index.
fn object(columns: &StringRecord, record: &StringRecord) -> Map<String, Value> {
    let cells = columns.iter().zip(record).filter(|(name, _)| !name.is_empty());
    let value = |cell: &str| if cell.trim().is_empty() { Value::Null } else { Value::String(cell.to_owned()) };
    cells.map(|(name, cell)| (name.to_owned(), value(cell))).collect()
}

fn malformed(path: &Path, error: &csv::Error) -> Error {
    let place = match error.position() {
        Some(position) => format!("{}: line {}", path.display(), position.line()),
        None => path.display().to_string(),
    };
    let found = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} cells, where the first line has {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => {
            let remedy = "save the table as UTF-8: in Excel \"CSV UTF-8\"; elsewhere iconv -f ENCODING -t UTF-8";
            return Error::invalid(place, "text that is not UTF-8", "a CSV row in UTF-8", remedy);
        }
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    };
    let remedy = "repair the line (a cell with a separator, a quotation mark or a line's end in it stands in \"…\")";
    Error::invalid(place, found, "a CSV row in UTF-8", remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotation_marks_stand_around_whole_cells_or_within_bare_ones() {
        let behind = |text: &str| Some(Stray::TextBehind(text.to_owned()));
        for (row, delimiter, expected) in [
            ("a.jpg,A dog\n", b',', None),
            ("a.jpg,A \"big\" dog\n", b',', None),
            ("a.jpg,\"A \"\"big\"\" dog, red\"\r\n", b',', None),
            ("\"a.jpg\";\"two\nlines\"\n", b';', None),
            ("a.jpg,\"Big\" dog\n", b',', behind(" dog")),
            ("a.jpg\t\"Big\" dog and \"small\" cat\n", b'\t', behind(" dog and \"small\" cat")),
            ("\"a\"b,c\n", b',', behind("b")),
            ("a.jpg,\"Big dog\n", b',', Some(Stray::Open)),
            ("a.jpg,\"one\nb.jpg,the \"other\"\n", b',', behind("other\"")),
        ] {
            assert_eq!(stray(row.as_bytes(), delimiter), expected, "{row:?}");
        }
    }
}
