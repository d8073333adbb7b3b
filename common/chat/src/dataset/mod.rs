//! The one reader of datasets: preprocess, infer and pipelines use it alike.
//!
//! [`Source`] finds the rows of a folder, whatever files they are in (`sources`): LLaVA's `chat.json` and other JSON lists, JSON
//! Lines, CSV, COCO captions, Parquet, WebDataset tars, text files beside pictures. Each row becomes JSON text with its place. JSON
//! is read as Python's json module reads it: a byte order mark is skipped; `NaN`, `Infinity` and `-Infinity` (pandas' missing
//! values) are null. A record is an object with these keys:
//!
//! | key | value |
//! |---|---|
//! | `id` | text or number: a label. Several rows may have the same one; a row without one is called `row N` |
//! | `image`, or `images` | a file name or a list of file names, in the order of the `<image>` markers; absent or null: none |
//! | `system`, or `system_prompt` | the row's system prompt; absent, null or empty: the run's |
//! | `conversations`, or `messages` | the turns: `from` (or `role`) and `value` (or `content`) each |
//! | `caption`, or `text` | where there are no turns: the answer to one of the run's [`Questions`]; the picture may then also be in `file_name`, `image_path`, … |
//!
//! Every other key is known to change nothing, or known to change the row (the row is refused, naming it), or unknown (the row
//! is kept and the key named in a warning): `keys`. Each row fares on its own; only files that are broken end the reading.

mod conversation;
mod fault;
mod keys;
mod layouts;
mod object;
mod python_json;
mod questions;
mod record;
mod rows;
mod sources;
mod survey;

pub use conversation::Conversation;
pub use fault::{Fault, RecordError};
pub use questions::{DEFAULT_QUESTION, Questions};
pub use record::{Record, RowNames, id_text};
pub use rows::{RowPlace, SourceRow, for_each_row};
pub use sources::{EXAMPLE, Identity, Pass, Source, TableRow, Tables, TakeRow, chat_file};
pub use survey::Survey;

use base::{Attachment, Error, Result};
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;

/// A record, or what identifies a row that cannot be read and the reason.
pub type ReadRecord = std::result::Result<Record, (RowNames, RecordError)>;

/// Reads all records of a dataset into memory, with the pictures that come with them.
///
/// # Errors
/// Files that are not as their layout has to be, with the place.
pub fn read_all(source: &Source, questions: &Questions) -> Result<Vec<(ReadRecord, Vec<Attachment>)>> {
    let mut records = Vec::new();
    source.for_each_row(Pass::Whole, |row| {
        let record = Record::read(&row, questions).map_err(|error| (RowNames::of(&row), error));
        records.push((record, row.attachments));
        ControlFlow::Continue(())
    })?;
    Ok(records)
}

/// Reads all records of a JSON list, whatever the file's name, into memory.
///
/// # Errors
/// A missing file; JSON that is not a list, with line and column.
pub fn read_file(path: &Path) -> Result<Vec<ReadRecord>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let (questions, mut records) = (Questions::default(), Vec::new());
    for_each_row(path, file, |row| {
        records.push(Record::read(&row, &questions).map_err(|error| (RowNames::of(&row), error)));
        ControlFlow::Continue(())
    })?;
    Ok(records)
}
