//! One program at a time writes a run's folder.

use super::clock;
use crate::collective::guard::host;
use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// The lock's file. It stays when the run ends: only the lock on it counts.
const LOCK: &str = "run.lock";
/// A killed program's lock is let go a moment after it is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// Held while a run writes its folder; gone with the process, however it ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes the lock of a folder, which must exist. On a file system without locks that is a warning.
    ///
    /// # Errors
    /// Another program holds it, named with its process, host and start; what the operating system refuses.
    pub fn take(output_dir: &Path) -> Result<Self> {
        let path = output_dir.join(LOCK);
        let open = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(&path);
        let mut file = open.with_context(|| path.display().to_string())?;
        let begin = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if begin.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    bail!(
                        "{}: another train writes this folder: {}; wait until it ends, stop it, or give another --output_dir",
                        output_dir.display(),
                        if holder.is_empty() { "a process of another machine" } else { holder.trim() }
                    );
                }
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(
                        "{}: this file system has no locks ({error}); make sure that no second run writes this folder",
                        path.display()
                    );
                    break;
                }
            }
        }
        let holder = format!("process {} on {}, since {}\n", std::process::id(), host(), clock::now());
        let written = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
        // A full disk: the lock holds without its holder's name.
        let _ = written;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_told_who_holds_the_folder_and_may_have_it_afterwards() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = RunLock::take(dir.path()).expect("free");
        let error = RunLock::take(dir.path()).expect_err("held").to_string();
        assert!(error.contains(&format!("process {} on {}", std::process::id(), host())), "{error}");
        drop(first);
        RunLock::take(dir.path()).expect("free again");
    }
}
