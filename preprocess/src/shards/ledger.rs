//! Rejected rows and counts of each shard, joined at the end.

use anyhow::{Context, Result};
use base::{Error, files};
use chat::dataset::{Fault, RecordError};
use serde::{Deserialize, Serialize};
use shards::ShardFile;
use std::path::{Path, PathBuf};

/// Folder, in the output, of what each finished shard covers; a shard counts as done when its file is there.
pub const LEDGER_DIR: &str = "ledger";
/// Every rejected row.
pub const REJECTED_FILE: &str = "rejected.jsonl";

/// Why a row did not become a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Not an object with the keys of a record and the right types.
    BadRow,
    /// A key that changes the row and is not read.
    UnreadKey,
    /// No conversation.
    NoTurns,
    /// Turns that do not alternate question, answer; an unknown speaker.
    BadTurns,
    /// An answer without text.
    EmptyAnswer,
    /// `<image>` markers and images are not equally many.
    ImageMarkers,
    /// The image is in none of the places.
    MissingImage,
    /// The image's file cannot be read.
    UnreadableImage,
    /// The file is not an image.
    NotAnImage,
    /// The image declares more pixels, or has more bytes, than allowed.
    ImageTooLarge,
    /// The image's data is damaged or ends early.
    DamagedImage,
    /// More tokens than `--max-length`.
    TooLong,
    /// The chat template or tokenizer refused the text.
    BadText,
    /// No supervised token, or an answer without its end token.
    NoSupervision,
    /// This program panicked over the row: a bug.
    InternalError,
}

impl Cause {
    /// Its name in files.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl From<Fault> for Cause {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::BadRow => Self::BadRow,
            Fault::UnreadKey => Self::UnreadKey,
            Fault::NoTurns => Self::NoTurns,
            Fault::BadTurns => Self::BadTurns,
            Fault::EmptyAnswer => Self::EmptyAnswer,
            Fault::ImageMarkers => Self::ImageMarkers,
        }
    }
}

/// Why one row is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which kind.
    pub cause: Cause,
    /// What exactly.
    pub detail: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(cause: Cause, detail: String) -> Self {
        Self { cause, detail }
    }
}

impl From<RecordError> for Refusal {
    fn from(error: RecordError) -> Self {
        Self::new(error.fault.into(), error.to_string())
    }
}

/// A line of rejected.jsonl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Index in the dataset, from 0.
    pub row: usize,
    /// `id`, if it could be read.
    pub id: Option<String>,
    /// `image`, if it could be read.
    pub image: Option<String>,
    /// Which kind of fault.
    pub cause: Cause,
    /// What exactly.
    pub detail: String,
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The id of a row without one is its number.
        let id = self.id.as_ref().map(|id| format!(" (id {id:?})")).unwrap_or_default();
        write!(f, "row {}{id}: {}: {}", self.row, self.cause.name(), self.detail)
    }
}

/// What became of the rows that a shard covers. Written after the shard's files: it says that they are whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLedger {
    /// Rows of the dataset that it covers.
    pub rows_in: usize,
    /// Its files, one a split that has rows.
    pub files: Vec<ShardFile>,
    /// The others.
    pub rejected: Vec<Rejected>,
}

impl ShardLedger {
    fn path(output: &Path, shard: usize) -> PathBuf {
        output.join(LEDGER_DIR).join(format!("{shard:05}.json"))
    }

    /// Reads a shard's ledger; `None` if the shard is not finished: no ledger, or files that are not as it says.
    pub fn read(output: &Path, shard: usize) -> Result<Option<Self>> {
        let path = Self::path(output, shard);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path)(error).into()),
        };
        let ledger: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{}: not a shard's ledger; delete it and run again", path.display()))?;
        for file in &ledger.files {
            let shard = file.path(output, &path)?;
            if !std::fs::metadata(shard).is_ok_and(|metadata| metadata.len() == file.bytes) {
                return Ok(None);
            }
        }
        Ok(Some(ledger))
    }

    /// Writes it; the shard is finished from here on.
    pub fn write(&self, output: &Path, shard: usize) -> Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        Ok(files::write_atomically(&Self::path(output, shard), &text)?)
    }
}
