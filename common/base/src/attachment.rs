//! A picture that comes with its row, in place of a file beside the rows.

use std::fs::File;
use std::sync::Arc;

/// A picture of one row: a cell of a table, or a member of an archive.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// The name by which the row calls it.
    pub name: String,
    /// Its bytes.
    pub content: Content,
}

/// Where an attachment's bytes are.
#[derive(Clone, Debug)]
pub enum Content {
    /// Here.
    Bytes(Vec<u8>),
    /// In an open file: read when they are needed, from any thread.
    Range {
        /// The archive.
        file: Arc<File>,
        /// Of the first byte.
        offset: u64,
        /// Size, bytes.
        bytes: u64,
    },
}

impl Content {
    /// Size, bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Range { bytes, .. } => *bytes,
        }
    }
}
