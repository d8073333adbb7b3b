//! Nothing is written in place: temporary name, fsync, rename, fsync of the folder.

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes read at a time when a file is hashed.
const CHUNK: usize = 1 << 20;
/// Bytes written at a time: few enough to be still in the cache when the system copies them.
const WRITE_CHUNK: usize = 128 << 10;

/// A file that appears under its name whole, or not at all.
///
/// The temporary name is a function of the final one, so that what a killed process left behind is overwritten by the
/// next attempt and never piles up. One writer per path at a time.
pub struct AtomicFile {
    writer: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
}

impl AtomicFile {
    /// Opens the temporary file beside `path`, empty.
    pub fn create(path: &Path) -> Result<Self> {
        let temporary = temporary_name(path)?;
        let file = File::create(&temporary).map_err(Error::io(&temporary))?;
        Ok(Self { writer: BufWriter::with_capacity(WRITE_CHUNK, file), temporary, path: path.to_path_buf() })
    }

    /// Puts the finished file on disk and under its name.
    pub fn commit(self) -> Result<()> {
        let Self { writer, temporary, path } = self;
        let file = writer.into_inner().map_err(|error| Error::io(&temporary)(error.into_error()))?;
        file.sync_all().map_err(Error::io(&temporary))?;
        drop(file);
        publish(&temporary, &path)
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

/// Counts and hashes what passes through to another writer.
pub struct HashingWriter<W> {
    inner: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Starts at zero bytes.
    pub fn new(inner: W) -> Self {
        Self { inner, digest: Sha256::new(), bytes: 0 }
    }

    /// The inner writer, lower-case hex SHA-256 and number of the bytes written.
    pub fn finish(self) -> (W, String, u64) {
        (self.inner, hex(&self.digest.finalize()), self.bytes)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Counts and hashes what is read from another reader.
pub struct HashingReader<R> {
    inner: R,
    digest: Sha256,
    bytes: u64,
}

impl<R: Read> HashingReader<R> {
    /// Starts at zero bytes.
    pub fn new(inner: R) -> Self {
        Self { inner, digest: Sha256::new(), bytes: 0 }
    }

    /// Lower-case hex SHA-256 and number of the bytes read.
    pub fn finish(self) -> (String, u64) {
        (hex(&self.digest.finalize()), self.bytes)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.digest.update(&bytes[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Writes `bytes` so that `path` holds either what it held before or all of them, whatever happens.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.commit()
}

/// fsyncs a folder, so that renames in it survive a power cut.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|folder| folder.sync_all()).map_err(Error::io(dir))
}

/// Renames a finished folder or file into place and fsyncs the parent.
pub fn publish(temporary: &Path, path: &Path) -> Result<()> {
    std::fs::rename(temporary, path).map_err(Error::io(path))?;
    sync_dir(parent(path))
}

/// Lower-case hex SHA-256 of a file, read in chunks.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut reader = HashingReader::new(File::open(path).map_err(Error::io(path))?);
    let mut buffer = vec![0; CHUNK];
    while reader.read(&mut buffer).map_err(Error::io(path))? > 0 {}
    Ok(reader.finish().0)
}

/// SHA-256 of bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Lower-case hex SHA-256 of bytes.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&sha256(bytes))
}

/// Lower-case hex of bytes.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Bytes of hex digits; `None` for anything else.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `dir/name` → `dir/.name.tmp`: hidden, and on the same file system.
fn temporary_name(path: &Path) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(Error::invalid(path.display(), "no file name", "a file to write", "name the file"));
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    Ok(path.with_file_name(temporary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("state.json");
        write_atomically(&path, b"old").expect("written");
        let mut half = AtomicFile::create(&path).expect("created");
        half.write_all(b"half").expect("written");
        drop(half); // as if killed: never committed
        assert_eq!(std::fs::read(&path).expect("read"), b"old");
        write_atomically(&path, b"new").expect("written");
        assert_eq!(std::fs::read(&path).expect("read"), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_atomically(Path::new("/nonexistent/file"), b"").expect_err("refused");
        assert!(error.to_string().contains("/nonexistent/"), "{error}");
    }

    #[test]
    fn hashes_agree_with_each_other_and_the_standard() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("abc");
        let mut writer = HashingWriter::new(File::create(&path).expect("created"));
        writer.write_all(b"abc").expect("written");
        let (_, sha256, bytes) = writer.finish();
        assert_eq!(sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!((sha256_of_file(&path).expect("read"), bytes), (sha256.clone(), 3));
        assert_eq!(sha256_hex(b"abc"), sha256);
        assert_eq!(hex(&from_hex(&sha256).expect("hex")), sha256);
        assert!(from_hex("0").is_none() && from_hex("0g").is_none());
    }
}
