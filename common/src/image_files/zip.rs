//! `images.zip` read in place: a small index of its entries, positioned reads from any thread.

use super::{ImageFileError, MAX_IMAGE_BYTES, too_many_bytes};
use crate::{Error, Result, files};
use flate2::read::DeflateDecoder;
use rawzip::{CompressionMethod, FileReader, RECOMMENDED_BUFFER_SIZE, ZipArchive, ZipArchiveEntryWayfinder};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Names under which an entry for image `x` may stand.
const PREFIXES: [&str; 3] = ["", "images/", "images_dl/"];

pub(super) struct ZipFile {
    archive: ZipArchive<FileReader>,
    /// By hash of the name: an index of a million entries stays small. A wrong match would need a collision of 128 bits.
    entries: HashMap<u128, Entry>,
    bytes: u64,
    names_sha256: String,
}

struct Entry {
    wayfinder: ZipArchiveEntryWayfinder,
    method: CompressionMethod,
    encrypted: bool,
}

impl ZipFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let damaged = |found: String| Error::invalid(path.display(), found, "a whole zip file", "download it again");
        let file = File::open(path).map_err(Error::io(path))?;
        let bytes = file.metadata().map_err(Error::io(path))?.len();
        let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
        let archive = ZipArchive::from_file(file, &mut buffer).map_err(|error| damaged(error.to_string()))?;
        let mut entries = HashMap::new();
        let mut records = archive.entries(&mut buffer);
        let mut found = 0;
        let mut identity = files::HashingWriter::new(std::io::sink());
        while let Some(record) = records.next_entry().map_err(|error| damaged(error.to_string()))? {
            found += 1;
            let name = record.file_path();
            let name: &[u8] = name.as_ref();
            identity.write_all(name).map_err(Error::io(path))?;
            identity.write_all(&record.crc32().to_le_bytes()).map_err(Error::io(path))?;
            if !record.is_dir() {
                // Of entries with one name the last counts, as everywhere.
                let entry = Entry {
                    wayfinder: record.wayfinder(),
                    method: record.compression_method(),
                    encrypted: record.flags().is_encrypted(),
                };
                entries.insert(key(name), entry);
            }
        }
        let expected = archive.entries_hint();
        if found != expected {
            return Err(damaged(format!("{found} of {expected} entries")));
        }
        Ok(Self { archive, entries, bytes, names_sha256: identity.finish().1 })
    }

    /// Identity for the plan: size, and names and checksums of the entries.
    pub(super) fn describe(&self) -> String {
        format!(
            "images.zip ({} bytes, {} files, SHA-256 of names and checksums {})",
            self.bytes,
            self.entries.len(),
            self.names_sha256
        )
    }

    /// Bytes of an entry, its checksum verified; `None` if there is none of this name.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ImageFileError> {
        let entry = PREFIXES.iter().find_map(|prefix| self.entries.get(&key(format!("{prefix}{name}").as_bytes())));
        let Some(entry) = entry else { return Ok(None) };
        let size = entry.wayfinder.uncompressed_size_hint();
        if size > MAX_IMAGE_BYTES {
            return Err(too_many_bytes(name, size));
        }
        self.read_entry(entry)
            .map(Some)
            .map_err(|error| ImageFileError::Unreadable(format!("{name} in images.zip: {error}")))
    }

    fn read_entry(&self, entry: &Entry) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        if entry.encrypted {
            return Err("encrypted, expected a zip file without password".into());
        }
        let found = self.archive.get_entry(entry.wayfinder)?;
        let limit = entry.wayfinder.uncompressed_size_hint() + 1;
        // The declared size is not trusted with memory before the data is there.
        let mut bytes = Vec::with_capacity(limit.min(1 << 20) as usize);
        match entry.method {
            CompressionMethod::STORE => found.verifying_reader(found.reader()).take(limit).read_to_end(&mut bytes)?,
            CompressionMethod::DEFLATE => {
                let inflated = DeflateDecoder::new(found.reader());
                found.verifying_reader(inflated).take(limit).read_to_end(&mut bytes)?
            }
            other => return Err(format!("compressed by {other:?}, expected stored or deflated").into()),
        };
        Ok(bytes)
    }
}

fn key(name: &[u8]) -> u128 {
    let hash = files::sha256(name);
    u128::from_le_bytes(std::array::from_fn(|index| hash[index]))
}
