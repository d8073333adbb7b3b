//! A CSV file whose first line names its columns. Also the `metadata.csv` of Hugging Face's imagefolder.

use super::json_lines::table_name;
use super::{Findings, Form, Found, Kind, Listing, Source, Take, raw};
use crate::dataset::layouts;
use crate::dataset::rows::{RowPlace, SourceRow, file_name};
use base::{Error, Result};
use csv::{Reader, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::ControlFlow;
use std::path::Path;

pub(super) const KIND: Kind = Kind { form: Form::Files, find, rows };
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
        for record in reader.records() {
            let record = record.map_err(|error| malformed(&path, &error))?;
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
