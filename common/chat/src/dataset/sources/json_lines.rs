//! JSON Lines: an object a line. Also the `metadata.jsonl` of Hugging Face's imagefolder.

use super::sniff::{Json, object_keys, sniff};
use super::{Findings, Form, Found, Kind, Listing, Source, Take};
use crate::dataset::layouts;
use crate::dataset::python_json::{MAX_ROW_BYTES, Position, PythonJson};
use crate::dataset::rows::{RowPlace, SourceRow, file_name};
use base::{Error, Result};
use serde_json::value::RawValue;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

pub(super) const KIND: Kind = Kind { form: Form::Files, pictures_beside: true, find, rows };
/// Name, without its ending, of the table of an imagefolder.
pub(super) const IMAGEFOLDER: &str = "metadata";

fn find(listing: &Listing, found: &mut Findings) -> Result<()> {
    for file in listing.with_ending(&["jsonl", "ndjson", "json"]) {
        let path = listing.path(file);
        let is_json = super::folder::has_ending(file, &["json"]);
        let keys = match sniff(&path) {
            Json::Lines(keys) => keys,
            Json::Object(keys) if !is_json || listing.is_file && layouts::name_of(names(&keys)).is_some() => keys,
            Json::Other if listing.is_file && !is_json => first_keys(&path),
            _ => continue,
        };
        match layouts::name_of(names(&keys)) {
            Some(layout) => {
                let layout = table_name(file, layout);
                found.datasets.push(Found { kind: &KIND, layout, files: vec![file.clone()], pictures: None });
            }
            None => found.note_columns(file, "rows with the keys", &names(&keys).collect::<Vec<_>>()),
        }
    }
    Ok(())
}

fn names(keys: &[String]) -> impl Iterator<Item = &str> + Clone {
    keys.iter().map(String::as_str)
}

/// The layout's name of a list or table of captions, by the name of its file.
pub(super) fn table_name(file: &Path, layout: &str) -> String {
    let is_imagefolder = file.file_stem().is_some_and(|stem| stem == IMAGEFOLDER);
    if is_imagefolder { "Hugging Face imagefolder".to_owned() } else { layout.to_owned() }
}

fn first_keys(path: &Path) -> Vec<String> {
    let mut line = String::new();
    let read = File::open(path).and_then(|file| BufReader::new(file).read_line(&mut line));
    read.map_or(Vec::new(), |_| object_keys(&line))
}

fn rows(source: &Source, _: super::Pass, take: Take<'_>) -> Result<()> {
    for path in source.paths() {
        let file = file_name(&path);
        let mut reader = BufReader::new(File::open(&path).map_err(Error::io(&path))?);
        let mut text = Vec::new();
        for line in 1.. {
            text.clear();
            // One byte more shows that the line is too long.
            let read =
                reader.by_ref().take(MAX_ROW_BYTES + 1).read_until(b'\n', &mut text).map_err(Error::io(&path))?;
            if read == 0 {
                break;
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let (json, constants) = parse(&path, line, &text)?;
            // White space before the text is not a part of it.
            let column = text.iter().take_while(|byte| byte.is_ascii_whitespace()).count() as u64 + 1;
            let place = RowPlace::Text { file: file.clone(), line, column };
            let row = SourceRow { number: 0, place, constants, json, attachments: Vec::new(), fault: None };
            if take(row) == ControlFlow::Break(()) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// One line as Python's json module reads it, and the constants in it.
fn parse(path: &Path, line: u64, text: &[u8]) -> Result<(Box<RawValue>, usize)> {
    let place = |column: i64| format!("{}: line {line}, column {column}", path.display());
    if text.len() as u64 > MAX_ROW_BYTES {
        let found = format!("a line longer than {MAX_ROW_BYTES} bytes");
        return Err(Error::invalid(place(1), found, "a JSON object a line", "repair the file and run again"));
    }
    let position = Position::default();
    let result: serde_json::Result<Box<RawValue>> = serde_json::from_reader(PythonJson::new(text, position.clone()));
    let constants = position.end_row().1;
    match result {
        Ok(json) => Ok((json, constants)),
        Err(error) => {
            let column = position.column(error.line(), error.column());
            let found = base::json::reason(&error);
            Err(Error::invalid(place(column), found, "a JSON object a line", "repair the line and run again"))
        }
    }
}
