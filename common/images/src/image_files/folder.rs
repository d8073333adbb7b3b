//! Image files in a folder.

use super::{ImageFileError, MAX_IMAGE_BYTES, too_many_bytes};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

pub(super) struct Folder {
    /// Name in the data folder.
    pub(super) name: String,
    path: PathBuf,
}

impl Folder {
    pub(super) fn new(name: &str, path: PathBuf) -> Self {
        Self { name: name.to_owned(), path }
    }

    pub(super) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Size of a file, bytes; `None` if it is not here.
    pub(super) fn file_size(&self, name: &str) -> Option<u64> {
        std::fs::metadata(self.path.join(name)).ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len())
    }

    /// Bytes of a file; `None` if it is not here.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ImageFileError> {
        let path = self.path.join(name);
        let unreadable = |what: &dyn std::fmt::Display| ImageFileError::Unreadable(format!("{name}: {what}"));
        // Looked at before it is opened: opening a pipe would wait for ever.
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(error) => return Err(unreadable(&error)),
        };
        if !metadata.is_file() {
            return Err(unreadable(&"a folder or device, expected a file"));
        }
        if metadata.len() > MAX_IMAGE_BYTES {
            return Err(too_many_bytes(name, metadata.len()));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
        let file = File::open(&path).map_err(|error| unreadable(&error))?;
        file.take(MAX_IMAGE_BYTES).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
        Ok(Some(bytes))
    }
}
