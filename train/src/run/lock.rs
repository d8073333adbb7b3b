//! One program at a time writes a run's folder, and a file of metrics elsewhere.

use super::clock;
use crate::collective::guard::host;
use anyhow::{Context, Result, bail};
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The lock's file. It stays when a run has begun: only the lock on it counts. A folder that is refused gets none.
const LOCK: &str = "run.lock";
/// A killed program's lock is let go a moment after it is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// Held while a run writes its folder; gone with the process, however it ends.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    path: PathBuf,
    /// The file goes when the lock does: it is this program's, and no run has begun.
    is_removed: bool,
}

impl Drop for RunLock {
    fn drop(&mut self) {
        if self.is_removed && is_file_of(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether the file has this path still: another program may have removed it.
fn is_file_of(file: &File, path: &Path) -> bool {
    let identity = |about: Metadata| (about.dev(), about.ino());
    let (open, there) = (file.metadata().map(identity), std::fs::metadata(path).map(identity));
    matches!((open, there), (Ok(open), Ok(there)) if open == there)
}

impl RunLock {
    /// Takes the lock of a folder, which must exist. On a file system without locks that is a warning.
    ///
    /// # Errors
    /// Another program holds it, named with its process, host and start; what the operating system refuses.
    pub fn take(output_dir: &Path) -> Result<Self> {
        Self::take_of(output_dir, output_dir.join(LOCK), "this folder", "--output_dir")
    }

    /// Takes the lock of a file of metrics outside the run's folder: `FILE.lock`, which goes with the program. `None` for what is
    /// no file, and in a folder where no file can be made.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_metrics(metrics: &Path) -> Result<Option<Self>> {
        if metrics.metadata().is_ok_and(|about| !about.is_file()) {
            return Ok(None);
        }
        let mut path = metrics.as_os_str().to_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        if OpenOptions::new().create(true).append(true).open(&path).is_err() {
            return Ok(None);
        }
        let mut lock = Self::take_of(metrics, path, "this file", "--metrics")?;
        lock.is_removed = true;
        Ok(Some(lock))
    }

    fn take_of(of: &Path, path: PathBuf, shown: &str, option: &str) -> Result<Self> {
        let is_new = !path.exists();
        let open = || {
            let open = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path);
            open.with_context(|| path.display().to_string())
        };
        let mut file = open()?;
        let mut has_locks = true;
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) if is_file_of(&file, &path) => break,
                // A program that was refused has removed it meanwhile.
                Ok(()) => file = open()?,
                Err(TryLockError::WouldBlock) if begin.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    bail!(
                        "{}: another train writes {shown}: {}; wait until it ends, stop it, or give another {option}",
                        of.display(),
                        if holder.is_empty() { "a process of another machine" } else { holder.trim() }
                    );
                }
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(
                        "{}: this file system has no locks ({error}); make sure that no second run writes {shown}",
                        path.display()
                    );
                    has_locks = false;
                    break;
                }
            }
        }
        let holder = format!("process {} on {}, since {}\n", std::process::id(), host(), clock::now());
        let written = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
        // A full disk: the lock holds without its holder's name.
        let _ = written;
        Ok(Self { file, path, is_removed: is_new && has_locks })
    }

    /// A run begins in the folder: the file stays.
    pub fn keep(&mut self) {
        self.is_removed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_metrics_has_a_lock_that_goes_with_the_run() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let metrics = dir.path().join("m.jsonl");
        let first = RunLock::take_metrics(&metrics).expect("free").expect("a lock");
        let error = RunLock::take_metrics(&metrics).expect_err("held").to_string();
        assert!(error.contains("another train writes this file") && error.contains("another --metrics"), "{error}");
        drop(first);
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "nothing is left");
        assert!(RunLock::take_metrics(Path::new("/dev/null")).expect("no file").is_none());
    }

    #[test]
    fn a_second_run_is_told_who_holds_the_folder_and_may_have_it_afterwards() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = RunLock::take(dir.path()).expect("free");
        let error = RunLock::take(dir.path()).expect_err("held").to_string();
        assert!(error.contains(&format!("process {} on {}", std::process::id(), host())), "{error}");
        drop(first);
        assert!(!dir.path().join(LOCK).exists(), "no run has begun");
        RunLock::take(dir.path()).expect("free again").keep();
        assert!(dir.path().join(LOCK).exists());
        drop(RunLock::take(dir.path()).expect("free again"));
        assert!(dir.path().join(LOCK).exists(), "of an earlier run");
    }
}
