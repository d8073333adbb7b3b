//! Image files in a folder.

use super::{ENDINGS, ImageFileError, MAX_IMAGE_BYTES, too_many_bytes};
use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Most files of a folder whose names are kept for messages about missing ones.
const MAX_LISTED: usize = 100_000;

/// Names of the files of a folder by their small letters.
type Names = HashMap<String, String>;

pub(super) struct Folder {
    /// Name in the data folder.
    pub(super) name: String,
    path: PathBuf,
    /// Of folders in it that were searched for a similar name.
    listed: Mutex<HashMap<PathBuf, Names>>,
}

impl Folder {
    pub(super) fn new(name: &str, path: PathBuf) -> Self {
        Self { name: name.to_owned(), path, listed: Mutex::default() }
    }

    pub(super) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Size of a file, bytes; `None` if it is not here.
    pub(super) fn file_size(&self, name: &str) -> Option<u64> {
        std::fs::metadata(self.path.join(name)).ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len())
    }

    /// A file of `folder` in it with the same name in other letters, or with the same name and another ending of a picture.
    pub(super) fn similar(&self, folder: &Path, file: &str) -> Option<String> {
        // A thread that panicked has left no half of a list.
        let mut listed = self.listed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let names = listed.entry(folder.to_path_buf()).or_insert_with(|| names_of(&self.path.join(folder)));
        let small = file.to_lowercase();
        let stem = Path::new(&small).file_stem()?.to_str()?;
        let endings = ENDINGS.into_iter().map(|ending| format!("{stem}.{ending}"));
        std::iter::once(small.clone()).chain(endings).find_map(|name| names.get(&name)).cloned()
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

/// Names of a folder's files; none where there are more than [`MAX_LISTED`].
fn names_of(folder: &Path) -> Names {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()));
    let mut files: Vec<String> =
        files.filter_map(|entry| entry.file_name().into_string().ok()).take(MAX_LISTED + 1).collect();
    if files.len() > MAX_LISTED {
        return Names::new();
    }
    // Of names that differ in capital letters alone the last one counts, in every run the same.
    files.sort_unstable();
    files.into_iter().map(|name| (name.to_lowercase(), name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_other_letters_or_with_another_ending_is_found() {
        let data = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(data.path().join("below")).expect("created");
        for name in ["p4.bmp", "Cat.TIF", "below/a.gif", "notes.txt"] {
            std::fs::write(data.path().join(name), "").expect("written");
        }
        let folder = Folder::new("", data.path().to_path_buf());
        for (below, name, expected) in [
            ("", "P4.BMP", Some("p4.bmp")),
            ("", "p4.jpg", Some("p4.bmp")),
            ("", "cat.png", Some("Cat.TIF")),
            ("below", "A.tiff", Some("a.gif")),
            ("", "a.gif", None),
            ("", "notes.jpg", None),
            ("other", "p4.bmp", None),
        ] {
            assert_eq!(folder.similar(Path::new(below), name).as_deref(), expected, "{below}/{name}");
        }
    }
}
