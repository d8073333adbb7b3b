//! `images.zip` read in place: a small index of its entries, positioned reads from any thread.

use super::{ImageFileError, MAX_IMAGE_BYTES, too_many_bytes};
use base::{Error, Result, files};
use flate2::Crc;
use flate2::read::DeflateDecoder;
use rawzip::{CompressionMethod, FileReader, RECOMMENDED_BUFFER_SIZE, RangeReader, ReaderAt, ZipArchive};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Folders of which the zip file may hold the contents, or which may be in it.
const FOLDERS: [&str; 2] = ["images/", "images_dl/"];
/// What a count of 16 bits and an offset of 32 bits lose.
const COUNT_WRAP: u64 = 1 << 16;
const OFFSET_WRAP: u64 = 1 << 32;
/// The fixed part of a local header and its first bytes.
const LOCAL_HEADER_BYTES: usize = 30;
const LOCAL_HEADER_SIGNATURE: &[u8] = b"PK\x03\x04";

pub(super) struct ZipFile {
    archive: ZipArchive<FileReader>,
    /// By hash of the name: an index of a million entries stays small. A wrong match would need a collision of 128 bits.
    entries: HashMap<u128, Entry>,
    /// Of normalised names whose entries differ in size or checksum: the entries, for messages.
    ambiguous: HashMap<u128, Vec<String>>,
    bytes: u64,
    names_sha256: String,
    /// Name of the first file, for messages.
    first: String,
}

struct Entry {
    local_header_offset: u64,
    stored_bytes: u64,
    bytes: u64,
    crc32: u32,
    method: CompressionMethod,
    encrypted: bool,
}

impl Entry {
    /// Size and checksum: entries in which they are equal hold the same file.
    fn content(&self) -> (u64, u32) {
        (self.bytes, self.crc32)
    }
}

impl ZipFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let damaged = |found: String| {
            Error::invalid(path.display(), found, "a whole zip file", "download it again, or make it again (zip -r)")
        };
        let file = File::open(path).map_err(Error::io(path))?;
        let bytes = file.metadata().map_err(Error::io(path))?.len();
        let mut buffer = vec![0; RECOMMENDED_BUFFER_SIZE];
        let archive = ZipArchive::from_file(file, &mut buffer).map_err(|error| damaged(error.to_string()))?;
        refuse_split(&archive, path)?;
        let mut entries: HashMap<u128, Entry> = HashMap::new();
        let mut ambiguous = HashMap::new();
        // Read to the directory's end, whatever the count says.
        let mut records = archive.entries(&mut buffer);
        let mut found = 0;
        let mut first = None;
        let mut identity = files::HashingWriter::new(std::io::sink());
        while let Some(record) = records.next_entry().map_err(|error| damaged(error.to_string()))? {
            found += 1;
            let name = record.file_path();
            let name: &[u8] = name.as_ref();
            identity.write_all(name).map_err(Error::io(path))?;
            identity.write_all(&record.crc32().to_le_bytes()).map_err(Error::io(path))?;
            if let Some(name) = normal(name).filter(|_| !record.is_dir()) {
                let entry = Entry {
                    local_header_offset: record.local_header_offset(),
                    stored_bytes: record.compressed_size_hint(),
                    bytes: record.uncompressed_size_hint(),
                    crc32: record.crc32(),
                    method: record.compression_method(),
                    encrypted: record.flags().is_encrypted(),
                };
                let key = key(&name);
                let content = entry.content();
                if entries.insert(key, entry).is_some_and(|other| other.content() != content) {
                    ambiguous.insert(key, Vec::new());
                }
                first.get_or_insert_with(|| String::from_utf8_lossy(&name).into_owned());
            }
        }
        // macOS writes more than 65,535 entries without zip64; what remains of the count is checked all the same.
        let expected = archive.entries_hint();
        if found != expected && (expected >= COUNT_WRAP || found % COUNT_WRAP != expected) {
            return Err(damaged(format!("{found} entries, where its end counts {expected}")));
        }
        name_ambiguous(&archive, &mut ambiguous, &mut buffer).map_err(|error| damaged(error.to_string()))?;
        let (names_sha256, first) = (identity.finish().1, first.unwrap_or_default());
        Ok(Self { archive, entries, ambiguous, bytes, names_sha256, first })
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

    /// Its content for messages; one name shows how the others begin.
    pub(super) fn contents(&self) -> String {
        match self.entries.len() {
            0 => "images.zip (which has no files)".to_owned(),
            files => format!("images.zip ({files} files, such as {:?})", self.first),
        }
    }

    /// Bytes of an entry, size and checksum verified; `None` if there is none of this name.
    ///
    /// The zip file stands for the data folder or for the images' folder in it: the name itself is looked up first, then the
    /// names that it would have in the other folder.
    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ImageFileError> {
        let Some((key, entry)) = self.find(name) else { return Ok(None) };
        if let Some(entries) = self.ambiguous.get(&key) {
            let entries = entries.join(" and ");
            return Err(ImageFileError::Unreadable(format!(
                "{name} in images.zip is ambiguous: found {entries}, expected one entry or equal ones; remove the wrong ones"
            )));
        }
        if entry.bytes > MAX_IMAGE_BYTES {
            return Err(too_many_bytes(name, entry.bytes));
        }
        self.read_entry(key, entry)
            .map(Some)
            .map_err(|error| ImageFileError::Unreadable(format!("{name} in images.zip: {error}")))
    }

    /// Whether there is an entry that [`Self::read`] would read.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<(u128, &Entry)> {
        let name = String::from_utf8(normal(name.as_bytes())?).ok()?;
        let within = FOLDERS.iter().map(|folder| format!("{folder}{name}"));
        let of_folder = FOLDERS.iter().filter_map(|folder| name.strip_prefix(folder).map(str::to_owned));
        let mut names = [name.clone()].into_iter().chain(within).chain(of_folder);
        names.find_map(|name| {
            let key = key(name.as_bytes());
            self.entries.get(&key).map(|entry| (key, entry))
        })
    }

    fn read_entry(&self, key: u128, entry: &Entry) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        if entry.encrypted {
            return Err("encrypted, expected a zip file without password".into());
        }
        let start = self.data_offset(key, entry)?;
        let end = start.checked_add(entry.stored_bytes).ok_or("ends beyond every file")?;
        let stored = RangeReader::new(self.archive.get_ref(), start..end);
        // One byte more than declared shows that the declaration is wrong; the declared size is not trusted with memory
        // before the data is there.
        let limit = entry.bytes + 1;
        let mut bytes = Vec::with_capacity(limit.min(1 << 20) as usize);
        match entry.method {
            CompressionMethod::STORE => stored.take(limit).read_to_end(&mut bytes)?,
            CompressionMethod::DEFLATE => DeflateDecoder::new(stored).take(limit).read_to_end(&mut bytes)?,
            other => return Err(format!("compressed by method {other}, expected stored or deflated").into()),
        };
        if bytes.len() as u64 > entry.bytes {
            return Err(format!("holds more than the {} bytes that are declared", entry.bytes).into());
        }
        if (bytes.len() as u64) < entry.bytes {
            return Err(format!("holds {} of the {} bytes that are declared", bytes.len(), entry.bytes).into());
        }
        let mut crc = Crc::new();
        crc.update(&bytes);
        if crc.sum() != entry.crc32 {
            let (found, expected) = (crc.sum(), entry.crc32);
            return Err(format!("damaged: checksum {found:08x}, expected {expected:08x}").into());
        }
        Ok(bytes)
    }

    /// Where an entry's data begins.
    ///
    /// macOS writes files of more than 4 GiB without zip64, too: of an offset its low 32 bits remain. The entry is where its
    /// name stands.
    fn data_offset(&self, key: u128, entry: &Entry) -> Result<u64, Box<dyn std::error::Error>> {
        let declared = entry.local_header_offset;
        if declared > self.bytes.saturating_add(OFFSET_WRAP) {
            return Err("begins beyond the zip file's end".into());
        }
        let mut offsets = (0..=declared / OFFSET_WRAP).map(|wraps| declared - wraps * OFFSET_WRAP);
        let one = declared < OFFSET_WRAP;
        let found = offsets.find_map(|offset| self.local_header(offset, (!one).then_some(key)).transpose());
        found.unwrap_or_else(|| Err("no entry where the zip file's directory says; the file is damaged".into()))
    }

    /// End of the local header at an offset; `None` if there is none, or one of another name.
    fn local_header(&self, offset: u64, name: Option<u128>) -> Result<Option<u64>, Box<dyn std::error::Error>> {
        let mut header = [0; LOCAL_HEADER_BYTES];
        let file = self.archive.get_ref();
        if file.read_exact_at(&mut header, offset).is_err() || !header.starts_with(LOCAL_HEADER_SIGNATURE) {
            return Ok(None);
        }
        let [name_bytes, extra_bytes] = [26, 28].map(|at| u16::from_le_bytes([header[at], header[at + 1]]));
        let name_offset = offset + LOCAL_HEADER_BYTES as u64;
        if let Some(expected) = name {
            let mut name = vec![0; usize::from(name_bytes)];
            file.read_exact_at(&mut name, name_offset)?;
            if normal(&name).is_none_or(|name| key(&name) != expected) {
                return Ok(None);
            }
        }
        Ok(Some(name_offset + u64::from(name_bytes) + u64::from(extra_bytes)))
    }
}

/// Notes one entry of each content for every ambiguous name. The index keeps no names: they are read a second time, which
/// few zip files need.
fn name_ambiguous(
    archive: &ZipArchive<FileReader>,
    ambiguous: &mut HashMap<u128, Vec<String>>,
    buffer: &mut [u8],
) -> Result<(), rawzip::Error> {
    if ambiguous.is_empty() {
        return Ok(());
    }
    let mut contents = HashSet::new();
    let mut records = archive.entries(buffer);
    while let Some(record) = records.next_entry()? {
        let path = record.file_path();
        let path: &[u8] = path.as_ref();
        let Some(key) = normal(path).filter(|_| !record.is_dir()).map(|name| key(&name)) else { continue };
        let Some(entries) = ambiguous.get_mut(&key) else { continue };
        let (bytes, crc32) = (record.uncompressed_size_hint(), record.crc32());
        if contents.insert((key, bytes, crc32)) {
            let path = String::from_utf8_lossy(path);
            entries.push(format!("{path:?} ({bytes} bytes, CRC-32 {crc32:08x})"));
        }
    }
    Ok(())
}

/// Of a zip file in several parts the last one has the directory and little else.
fn refuse_split(archive: &ZipArchive<FileReader>, path: &Path) -> Result<()> {
    let mut end = [0; 6];
    archive.get_ref().read_exact_at(&mut end, archive.eocd_offset()).map_err(Error::io(path))?;
    let part = u16::from_le_bytes([end[4], end[5]]);
    // All ones refer to zip64's record.
    if part == 0 || part == u16::MAX {
        return Ok(());
    }
    let found = format!("part {} of a zip file in several parts", u32::from(part) + 1);
    Err(Error::invalid(
        path.display(),
        found,
        "a zip file in one part",
        "join the parts: zip -s 0 FILE --out images.zip",
    ))
}

/// A name as a file system resolves it: `./a//b` is `a/b`. `None` for one that leads out of the folder. Old programs on
/// Windows separate by `\`.
fn normal(name: &[u8]) -> Option<Vec<u8>> {
    let windows = !name.contains(&b'/');
    let parts = name.split(|&byte| byte == b'/' || (windows && byte == b'\\'));
    let parts: Vec<&[u8]> = parts.filter(|part| !part.is_empty() && *part != b".").collect();
    (!parts.is_empty() && !parts.contains(&&b".."[..])).then(|| parts.join(&b'/'))
}

fn key(name: &[u8]) -> u128 {
    let hash = files::sha256(name);
    u128::from_le_bytes(std::array::from_fn(|index| hash[index]))
}
