//! A file that is appended to during a run: data that cannot be written (full disk) is kept and written with the next append.

use anyhow::{Context, Result};
use base::files;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file of whole pieces: lines, records. No half piece stays in it.
pub struct LogFile {
    path: PathBuf,
    /// Opened when the beginning is there.
    file: Option<File>,
    beginning: Vec<u8>,
    /// Bytes of whole pieces in the file.
    len: u64,
    unwritten: Vec<u8>,
    /// Half a piece may be behind them.
    is_torn: bool,
}

impl LogFile {
    /// A file that begins with `beginning`, whatever `path` holds now. Nothing is written yet.
    pub fn new(path: PathBuf, beginning: Vec<u8>) -> Self {
        Self { path, file: None, beginning, len: 0, unwritten: Vec::new(), is_torn: false }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// As [`Self::flush`].
    pub fn append(&mut self, piece: &[u8]) -> Result<()> {
        self.unwritten.extend_from_slice(piece);
        self.flush()
    }

    /// Writes what could not be written before.
    ///
    /// # Errors
    /// What the operating system refuses; everything is kept for the next time.
    pub fn flush(&mut self) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                // A pipe keeps nothing that a beginning could be put before, and a file would take its place.
                if !files::is_device(&self.path) {
                    files::write_atomically(&self.path, &self.beginning)?;
                }
                let file = OpenOptions::new().append(true).open(&self.path);
                self.len = std::mem::take(&mut self.beginning).len() as u64;
                self.file.insert(file.with_context(|| self.path.display().to_string())?)
            }
        };
        let context = || self.path.display().to_string();
        if self.is_torn {
            file.set_len(self.len).with_context(context)?;
            self.is_torn = false;
        }
        if let Err(error) = file.write_all(&self.unwritten) {
            self.is_torn = file.set_len(self.len).is_err();
            return Err(error).with_context(context);
        }
        self.len += self.unwritten.len() as u64;
        self.unwritten.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The folder comes later, as room on a disk does: nothing is lost, and nothing is there twice.
    #[test]
    fn what_cannot_be_written_is_written_with_the_next_piece() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = dir.path().join("later");
        let mut file = LogFile::new(folder.join("log"), b"old\n".to_vec());
        for piece in ["a\n", "b\n"] {
            assert!(file.append(piece.as_bytes()).is_err());
        }
        std::fs::create_dir(&folder).expect("created");
        std::fs::write(file.path(), "of another run\n").expect("written");
        file.append(b"c\n").expect("written");
        file.flush().expect("nothing to write");
        assert_eq!(std::fs::read(file.path()).expect("read"), b"old\na\nb\nc\n");
    }

    #[test]
    fn a_piece_that_is_half_written_is_taken_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut file = LogFile::new(dir.path().join("log"), Vec::new());
        file.append(b"a\n").expect("written");
        // As a disk that was full in the middle of a piece.
        std::fs::write(file.path(), b"a\nhal").expect("written");
        file.is_torn = true;
        file.append(b"b\n").expect("written");
        assert_eq!(std::fs::read(file.path()).expect("read"), b"a\nb\n");
    }

    #[test]
    fn a_pipe_gets_the_pieces_and_stays_a_pipe() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("made");
        let reader = std::thread::spawn({
            let path = path.clone();
            move || std::fs::read_to_string(path).expect("read")
        });
        let mut file = LogFile::new(path.clone(), b"old\n".to_vec());
        file.append(b"a\n").expect("written");
        file.append(b"b\n").expect("written");
        drop(file);
        assert_eq!(reader.join().expect("no panic"), "a\nb\n");
        assert!(files::is_device(&path));
    }

    #[test]
    fn a_device_that_is_full_is_an_error_and_takes_nothing() {
        let mut file = LogFile::new(PathBuf::from("/dev/full"), Vec::new());
        file.file = Some(OpenOptions::new().append(true).open("/dev/full").expect("Linux has it"));
        let error = file.append(b"a\n").expect_err("no space");
        assert!(format!("{error:#}").contains("No space left"), "{error:#}");
        assert_eq!(file.unwritten, b"a\n");
    }
}
