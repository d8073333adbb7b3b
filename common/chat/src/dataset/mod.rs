//! The one reader of a dataset's records, `chat.json` in all its spellings: preprocess, infer and pipelines use it alike.
//!
//! The file is one JSON list in UTF-8, read as Python's json module reads it: a byte order mark at its start is skipped;
//! `NaN`, `Infinity` and `-Infinity` (pandas' missing values) are null. A record is an object with these keys:
//!
//! | key | value |
//! |---|---|
//! | `id` | text or number: a label. Several rows may have the same one; a row without one is called `row N` |
//! | `image`, or `images` | a file name or a list of file names, in the order of the `<image>` markers; absent or null: none |
//! | `system`, or `system_prompt` | the row's system prompt; absent, null or empty: the run's |
//! | `conversations`, or `messages` | the turns: `from` (or `role`) and `value` (or `content`) each |
//!
//! Every other key is known to change nothing, or known to change the row (the row is refused, naming it), or unknown (the row
//! is kept and the key named in a warning): `keys`. Each row fares on its own; only JSON that is broken ends the reading.

mod conversation;
mod fault;
mod keys;
mod layouts;
mod object;
mod python_json;
mod record;
mod rows;
mod survey;

pub use conversation::Conversation;
pub use fault::{Fault, Place, RecordError};
pub use record::{Record, RowNames, id_text};
pub use rows::{SourceRow, for_each_row};
pub use survey::Survey;

use base::{Error, Result};
use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The records' file in a dataset's folder.
pub fn chat_file(dataset: &Path) -> PathBuf {
    dataset.join("chat.json")
}

/// A record, or what identifies a row that cannot be read and the reason.
pub type ReadRecord = std::result::Result<Record, (RowNames, RecordError)>;

/// Reads all records of a dataset's folder into memory.
///
/// # Errors
/// A missing file; JSON that is not a list, with line and column.
pub fn read_all(dataset: &Path) -> Result<Vec<ReadRecord>> {
    read_file(&chat_file(dataset))
}

/// Reads all records of a file, whatever its name, into memory.
///
/// # Errors
/// As [`read_all`].
pub fn read_file(path: &Path) -> Result<Vec<ReadRecord>> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut records = Vec::new();
    for_each_row(path, file, |row| {
        records.push(Record::read(&row).map_err(|error| (RowNames::of(&row), error)));
        ControlFlow::Continue(())
    })?;
    Ok(records)
}
