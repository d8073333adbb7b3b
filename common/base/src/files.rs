//! Nothing is written in place: temporary name, fsync, rename, fsync of the folder. The only code that renames, links or
//! copies files.

mod publish;

pub use publish::{
    copy_atomically, create_once, in_folder, is_device, publish, remove_leftovers, rename, require_no_device, sync_dir,
};

use crate::{Error, Result, pulse};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes read at a time when a file is hashed.
const CHUNK: usize = 1 << 20;
/// Bytes written at a time: few enough to be still in the cache when the system copies them.
const WRITE_CHUNK: usize = 128 << 10;
/// Bytes after which a file that is being written is put on disk as far as it is: the rest that [`AtomicFile::commit`] waits
/// for takes seconds, not many minutes without a mark of progress.
const SYNC_EVERY: u64 = 1 << 30;

/// A file that appears under its name whole, or not at all.
///
/// The temporary name is a function of the final one, so that what a killed process left behind is overwritten by the
/// next attempt and never piles up. One writer per path at a time. Dropped before [`Self::commit`], it leaves nothing: what
/// could not be written to a full disk must not keep it full.
pub struct AtomicFile {
    writer: BufWriter<File>,
    temporary: Temporary,
    path: PathBuf,
    /// Bytes since the file was last put on disk.
    unsynced: u64,
}

/// A temporary file, which is removed unless it has got its final name.
struct Temporary {
    path: PathBuf,
    is_published: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_published {
            // Best effort: the error that led here is the one to report.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl AtomicFile {
    /// Opens the temporary file beside `path`, empty.
    pub fn create(path: &Path) -> Result<Self> {
        require_no_device(path)?;
        let temporary = temporary_name(path)?;
        // A folder in the temporary file's place is the one fault that is of its name.
        let file = File::create(&temporary).map_err(|error| {
            let is_its_own = error.kind() == std::io::ErrorKind::IsADirectory;
            Error::io(if is_its_own { &temporary } else { path })(error)
        })?;
        let temporary = Temporary { path: temporary, is_published: false };
        let writer = BufWriter::with_capacity(WRITE_CHUNK, file);
        Ok(Self { writer, temporary, path: path.to_path_buf(), unsynced: 0 })
    }

    /// Puts the finished file on disk and under its name.
    pub fn commit(self) -> Result<()> {
        let Self { writer, mut temporary, path, .. } = self;
        let file = writer.into_inner().map_err(|error| Error::io(&path)(error.into_error()))?;
        file.sync_all().map_err(Error::io(&path))?;
        drop(file);
        pulse::mark();
        rename(&temporary.path, &path)?;
        temporary.is_published = true;
        Ok(())
    }

    /// The name that the file will have.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.writer.write(bytes)?;
        pulse::mark();
        self.unsynced += written as u64;
        if self.unsynced >= SYNC_EVERY {
            self.writer.flush()?;
            self.writer.get_ref().sync_data()?;
            self.unsynced = 0;
        }
        Ok(written)
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

/// A reader that counts and hashes the bytes of another.
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

/// Writes a file atomically: `path` has its old content or all of `bytes`, even after a crash.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(Error::io(path))?;
    file.commit()
}

/// Lower-case hex SHA-256 of a file, read in chunks.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut reader = HashingReader::new(File::open(path).map_err(Error::io(path))?);
    let mut buffer = vec![0; CHUNK];
    while reader.read(&mut buffer).map_err(Error::io(path))? > 0 {
        pulse::mark();
    }
    Ok(reader.finish().0)
}

/// Bytes that are hashed by one thread in [`tree_sha256_of_file`].
const LEAF: u64 = 64 << 20;

/// Lower-case hex SHA-256 over the SHA-256 of each 64 MiB of a file, which all cores hash side by side: identifies weights in
/// the time of reading them. Not the SHA-256 of the file.
pub fn tree_sha256_of_file(path: &Path) -> Result<String> {
    let file = File::open(path).map_err(Error::io(path))?;
    let bytes = file.metadata().map_err(Error::io(path))?.len();
    let leaf = |number: u64| -> std::io::Result<[u8; 32]> {
        let (mut digest, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
        let end = ((number + 1) * LEAF).min(bytes);
        let mut at = number * LEAF;
        while at < end {
            let chunk = &mut buffer[..CHUNK.min((end - at) as usize)];
            file.read_exact_at(chunk, at)?;
            digest.update(&*chunk);
            at += chunk.len() as u64;
        }
        Ok(digest.finalize().into())
    };
    let leaves: Vec<[u8; 32]> =
        (0..bytes.div_ceil(LEAF)).into_par_iter().map(leaf).collect::<std::io::Result<_>>().map_err(Error::io(path))?;
    Ok(sha256_hex(&[&bytes.to_le_bytes()[..], leaves.as_flattened()].concat()))
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
        assert!(dir.path().join(".state.json.tmp").exists());
        drop(half);
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing half is left on a full disk");
        std::fs::write(dir.path().join(".state.json.tmp"), "as a killed process leaves it").expect("written");
        assert_eq!(std::fs::read(&path).expect("read"), b"old");
        write_atomically(&path, b"new").expect("written");
        assert_eq!(std::fs::read(&path).expect("read"), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn devices_and_pipes_stay() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("socket");
        let _socket = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        let error = write_atomically(&path, b"new").expect_err("refused").to_string();
        assert!(error.contains("found a device, pipe or socket, expected a file"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing is left behind");
        let from = dir.path().join("file");
        std::fs::write(&from, "new").expect("written");
        rename(&from, &path).expect_err("refused");
        assert!(from.exists() && !path.symlink_metadata().expect("there").is_file());
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_atomically(Path::new("/nonexistent/file"), b"").expect_err("refused");
        assert!(error.to_string().starts_with("/nonexistent/file: "), "{error}");
        assert!(error.to_string().ends_with("there is no folder /nonexistent"), "{error}");
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

    #[test]
    fn a_tree_hash_sees_every_byte_and_the_length() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("weights");
        let file = File::create(&path).expect("created");
        file.set_len(2 * LEAF + 5).expect("a hole");
        let first = tree_sha256_of_file(&path).expect("read");
        let mut found = vec![first];
        for at in [0, LEAF - 1, LEAF, 2 * LEAF + 4] {
            file.write_all_at(&[1], at).expect("written");
            found.push(tree_sha256_of_file(&path).expect("read"));
            file.write_all_at(&[0], at).expect("written");
        }
        file.set_len(2 * LEAF + 4).expect("shorter");
        found.push(tree_sha256_of_file(&path).expect("read"));
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), 6);
    }
}
