//! Parquet with pictures' bytes and columns of text, as Hugging Face's `datasets` writes it.
//!
//! The file format has its own crate, which programs that read Parquet hand in ([`Tables`]).

use super::{Findings, Form, Kind, Listing, Pass, Source, Take, groups, require_distinct};
use crate::dataset::layouts;
use crate::dataset::rows::{RowPlace, SourceRow, file_name};
use base::{Attachment, Error, Result};
use serde_json::value::RawValue;
use std::ops::ControlFlow;
use std::path::Path;

pub(super) const KIND: Kind = Kind { form: Form::Tables, pictures_beside: true, find, rows };

/// A row of a table: its columns as a JSON object, and its pictures.
#[derive(Debug)]
pub struct TableRow {
    /// Text columns, and under `image` the names of the pictures.
    pub json: Box<RawValue>,
    /// Empty in a pass over texts.
    pub attachments: Vec<Attachment>,
}

/// Receives the rows of a table until the end or its `Break`.
pub type TakeRow<'t> = &'t mut dyn FnMut(TableRow) -> ControlFlow<()>;

/// Reads Parquet.
pub struct Tables {
    /// Names of a file's columns.
    pub columns: fn(&Path) -> Result<Vec<String>>,
    /// Hands on a file's rows; pictures only if asked for.
    pub rows: fn(&Path, bool, TakeRow<'_>) -> Result<()>,
    /// What changes when a file's pictures change.
    pub identity: fn(&Path) -> Result<String>,
}

fn find(listing: &Listing, found: &mut Findings) -> Result<()> {
    let (mut files, mut layout) = (Vec::new(), "captions");
    for file in listing.with_ending(&["parquet"]) {
        let Some(tables) = listing.tables else {
            found.others.push(format!("{} (this program reads no Parquet)", file.display()));
            continue;
        };
        match (tables.columns)(&listing.path(file)) {
            Err(error) if listing.is_file => return Err(error),
            Err(error) => found.others.push(format!("{} (unreadable: {error})", file.display())),
            Ok(columns) => match layouts::name_of(columns.iter().map(String::as_str)) {
                Some(name) => {
                    let place = listing.path(file).display().to_string();
                    require_distinct(&place, columns.iter().map(String::as_str))?;
                    layout = name;
                    files.push(file.clone());
                }
                None => {
                    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
                    found.note_columns(file, "columns", &columns);
                }
            },
        }
    }
    groups::add(&KIND, &format!("Parquet with {layout}"), files, found)
}

fn rows(source: &Source, pass: Pass, take: Take<'_>) -> Result<()> {
    let Some(tables) = source.tables else { return Ok(()) };
    for path in source.paths() {
        let file = file_name(&path);
        let (mut number, mut stopped) = (0, false);
        (tables.rows)(&path, pass == Pass::Whole, &mut |TableRow { json, attachments }| {
            let place = RowPlace::Named(format!("{file} row {number}"));
            number += 1;
            let taken = take(SourceRow { number: 0, place, constants: 0, json, attachments, fault: None });
            stopped = taken == ControlFlow::Break(());
            taken
        })?;
        if stopped {
            return Ok(());
        }
    }
    Ok(())
}

impl TableRow {
    /// A row of text columns, with the names of its pictures; `others` are columns of bytes that are not read.
    ///
    /// # Errors
    /// Columns that are no JSON object.
    pub fn new(
        columns: &str,
        names: &[String],
        others: &[&str],
        attachments: Vec<Attachment>,
        place: &str,
    ) -> Result<Self> {
        let bug = |error: serde_json::Error| Error::invalid(place, error, "a row", "report this as a bug");
        let mut object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(columns).map_err(bug)?;
        // A text, so that keys that name a picture are refused.
        object.extend(others.iter().map(|name| ((*name).to_owned(), "bytes".into())));
        if !names.is_empty() {
            object.insert("image".to_owned(), names.into());
        }
        Ok(Self { json: serde_json::value::to_raw_value(&object).map_err(bug)?, attachments })
    }
}
