//! `index.json`: which files belong to a set of shards, and the numbers of its rows.

use super::{FORMAT_VERSION, ShardMetadata, Split};
use base::{Error, Result, files};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the index in a folder of shards; written last.
pub const INDEX_FILE: &str = "index.json";

/// One file of shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFile {
    /// File name in the folder.
    pub file: String,
    /// Which part of the rows it holds.
    pub split: Split,
    /// Rows.
    pub rows: usize,
    /// Size, bytes.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

impl ShardFile {
    /// The file in `dir`; `source` is what names it.
    ///
    /// # Errors
    /// A name that leads out of the folder.
    pub fn path(&self, dir: &Path, source: &Path) -> Result<PathBuf> {
        files::in_folder(dir, &self.file, source.display())
    }
}

/// The account: `rows_in` = `train` + `validation` + `rejected`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows of chat.json.
    pub rows_in: usize,
    /// Rows to train on.
    pub train: usize,
    /// Rows held out.
    pub validation: usize,
    /// Rows in rejected.jsonl.
    pub rejected: usize,
    /// Rejected rows by cause.
    pub rejected_by_cause: BTreeMap<String, usize>,
}

/// `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardIndex {
    /// What the shards were made with.
    pub metadata: ShardMetadata,
    /// SHA-256 over the files' hashes: identifies the data.
    pub fingerprint: String,
    /// The account.
    pub counts: Counts,
    /// The files, in the order of their rows.
    pub shards: Vec<ShardFile>,
}

impl ShardIndex {
    /// An index of finished files.
    pub fn new(metadata: ShardMetadata, counts: Counts, shards: Vec<ShardFile>) -> Self {
        let fingerprint = fingerprint(&shards);
        Self { metadata, fingerprint, counts, shards }
    }

    /// Reads `dir/index.json`.
    ///
    /// # Errors
    /// A missing or foreign index, one of another format version, or one that contradicts itself.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(INDEX_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::invalid(
                    dir.display(),
                    format!("no {INDEX_FILE}"),
                    "a folder of finished shards",
                    "let preprocess shards finish there (or preprocess index, after all --part runs)",
                ));
            }
            Err(error) => return Err(Error::io(&path)(error)),
        };
        let invalid = |found: String, expected: String| {
            Error::invalid(path.display(), found, expected, "run preprocess shards of this version again")
        };
        let index: Self = serde_json::from_slice(&text)
            .map_err(|error| invalid(error.to_string(), "the index that preprocess shards writes".to_owned()))?;
        let version = index.metadata.format_version;
        if version != FORMAT_VERSION {
            return Err(invalid(format!("format version {version}"), format!("version {FORMAT_VERSION}")));
        }
        let fingerprint = fingerprint(&index.shards);
        if fingerprint != index.fingerprint {
            return Err(invalid(format!("fingerprint {}", index.fingerprint), format!("{fingerprint} of its files")));
        }
        index.shards.iter().try_for_each(|shard| shard.path(dir, &path).map(drop))?;
        Ok(index)
    }

    /// Writes `dir/index.json`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(INDEX_FILE);
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| Error::io(&path)(error.into()))?;
        text.push(b'\n');
        files::write_atomically(&path, &text)
    }
}

/// SHA-256 over the hashes of files, in order.
pub(super) fn fingerprint<'a>(shards: impl IntoIterator<Item = &'a ShardFile>) -> String {
    let hashes: Vec<&str> = shards.into_iter().map(|shard| shard.sha256.as_str()).collect();
    files::sha256_hex(hashes.join("\n").as_bytes())
}
