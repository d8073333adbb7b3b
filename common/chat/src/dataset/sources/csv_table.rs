//! A CSV file whose first line names its columns. Also the `metadata.csv` of Hugging Face's imagefolder.

use super::json_lines::table_name;
use super::{Findings, Form, Found, Kind, Listing, Source, Take, raw};
use crate::dataset::layouts;
use crate::dataset::rows::{RowPlace, SourceRow, file_name};
use base::{Error, Result};
use csv::{Reader, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;

pub(super) const KIND: Kind = Kind { form: Form::Files, pictures_beside: true, find, rows };
/// The one that the first line has most often separates the columns.
const DELIMITERS: [u8; 4] = [b',', b'\t', b';', b'|'];

fn find(listing: &Listing, found: &mut Findings) -> Result<()> {
    for file in listing.with_ending(&["csv", "tsv"]) {
        let Ok(columns) = open(&listing.path(file)).map(|(_, columns)| columns) else {
            found.others.push(format!("{} (not UTF-8, or without a first line)", file.display()));
            continue;
        };
        match layouts::name_of(columns.iter()) {
            Some(layout) => {
                let layout = table_name(file, layout);
                found.datasets.push(Found { kind: &KIND, layout, files: vec![file.clone()], pictures: None });
            }
            None => {
                let columns: Vec<&str> = columns.iter().collect();
                found.others.push(format!("{} (columns {})", file.display(), columns.join(", ")));
            }
        }
    }
    Ok(())
}

/// A reader behind the line of names, and the names.
fn open(path: &Path) -> Result<(Reader<File>, StringRecord)> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut first = Vec::new();
    BufReader::new(&file).read_until(b'\n', &mut first).map_err(Error::io(path))?;
    let count = |delimiter: &u8| first.iter().filter(|byte| *byte == delimiter).count();
    let delimiter = DELIMITERS.into_iter().rev().max_by_key(count).unwrap_or(b',');
    let file = File::open(path).map_err(Error::io(path))?;
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(file);
    let columns = reader.headers().map_err(|error| malformed(path, &error))?;
    let columns = columns.iter().map(str::trim).collect();
    Ok((reader, columns))
}

fn rows(source: &Source, _: super::Pass, take: Take<'_>) -> Result<()> {
    for path in source.paths() {
        let (mut reader, columns) = open(&path)?;
        let file = file_name(&path);
        let mut record = StringRecord::new();
        while reader.read_record(&mut record).map_err(|error| malformed(&path, &error))? {
            require_closed(&path, &record, reader.position())?;
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

/// Refuses a row of several lines that a quotation mark without its second one has made, up to the file's end or to the next such
/// mark: where columns are separated by tabs, no cell has tabs and line ends.
fn require_closed(path: &Path, record: &StringRecord, end: &csv::Position) -> Result<()> {
    let Some(start) = record.position().filter(|start| end.line() > start.line() + 1) else { return Ok(()) };
    let mut text = Vec::new();
    let mut file = File::open(path).map_err(Error::io(path))?;
    file.seek(SeekFrom::Start(start.byte())).map_err(Error::io(path))?;
    file.take(end.byte() - start.byte()).read_to_end(&mut text).map_err(Error::io(path))?;
    let is_open = text.iter().filter(|byte| **byte == b'"').count() % 2 == 1;
    let swallows = record.iter().any(|cell| cell.contains('\n') && cell.contains('\t'));
    if !is_open && !swallows {
        return Ok(());
    }
    let place = format!("{}: line {}", path.display(), start.line());
    let found = format!("a cell over {} lines", end.line() - start.line());
    let remedy = "close the cell's quotation mark; one that is text is written \"\" in a cell within \"…\"";
    Err(Error::invalid(place, found, "a quotation mark at its end", remedy))
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
        csv::ErrorKind::Utf8 { .. } => "text that is not UTF-8".to_owned(),
        csv::ErrorKind::Io(error) => error.to_string(),
        _ => error.to_string(),
    };
    let remedy = "repair the line (a cell with a separator, a quotation mark or a line's end in it stands in \"…\")";
    Error::invalid(place, found, "a CSV row in UTF-8", remedy)
}
