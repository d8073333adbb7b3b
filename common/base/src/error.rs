//! The library's error type: every message says where, what was found, what was expected and what to do.

use serde::{Deserialize, Serialize};
use std::fmt::{Display, Formatter};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Result of everything fallible in `common`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Linux' numbers for it: of the system and of the program (ENFILE, EMFILE). They have no [`ErrorKind`].
const TOO_MANY_OPEN_FILES: [i32; 2] = [23, 24];

/// Errors of files, formats and values that a user controls.
///
/// The message is whole: [`std::error::Error::source`] gives nothing, so that programs that print a chain of causes do not
/// print the system's reason twice.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused: the path and its reason.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Content of a file or a value that is not accepted.
    Invalid(Mismatch),
    /// A value of an option that is not accepted: wrong usage.
    Usage(Mismatch),
}

/// A value that is not accepted, and its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// File, row, tensor or option.
    pub place: String,
    /// The content found.
    pub found: String,
    /// The content expected.
    pub expected: String,
    /// The remedy.
    pub remedy: String,
}

impl Mismatch {
    /// All four parts are required.
    pub fn new(place: impl ToString, found: impl ToString, expected: impl ToString, remedy: impl ToString) -> Self {
        Self {
            place: place.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
            remedy: remedy.to_string(),
        }
    }
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { place, found, expected, remedy } = self;
        write!(f, "{place}: found {found}, expected {expected}; {remedy}")
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { path, source } => {
                write!(f, "{}: {source}", path.display())?;
                next_step(source).map_or(Ok(()), |step| write!(f, "; {step}"))?;
                if source.kind() != ErrorKind::NotFound {
                    return Ok(());
                }
                match (crate::nearest_path(path), missing_folder(path)) {
                    (Some(near), _) => write!(f, " (there is {})", near.display()),
                    (None, Some(folder)) => write!(f, ": there is no folder {}", folder.display()),
                    (None, None) => Ok(()),
                }
            }
            Self::Invalid(mismatch) | Self::Usage(mismatch) => mismatch.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

/// The first folder on the way to a path that is not there.
fn missing_folder(path: &Path) -> Option<&Path> {
    let above: Vec<&Path> = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty()).collect();
    above.into_iter().rev().find(|folder| !folder.exists())
}

/// What to do about an error of the operating system; `None` for one that a program has made, whose text says it.
pub fn next_step(error: &std::io::Error) -> Option<&'static str> {
    // tempfile's errors have the system's words and no number.
    if error.raw_os_error().is_none() && !error.to_string().contains("(os error ") {
        return None;
    }
    if error.raw_os_error().is_some_and(|number| TOO_MANY_OPEN_FILES.contains(&number)) {
        return Some("allow more open files (ulimit -n), then run the same command again");
    }
    Some(match error.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::NotADirectory => "a part of the path is a file: check the path",
        ErrorKind::AlreadyExists => "a file has this name: give a folder, or another name",
        ErrorKind::DirectoryNotEmpty => "the folder is not empty: choose another",
        ErrorKind::InvalidFilename => "choose a shorter name",
        ErrorKind::AddrNotAvailable => "this machine has no such address: choose another",
        ErrorKind::IsADirectory => "this is a folder: give a file",
        ErrorKind::PermissionDenied => "check the owner and the permissions (ls -l)",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free space there (df -h), then run the same command again; or choose a place on another disk"
        }
        ErrorKind::ReadOnlyFilesystem => "choose a folder on another file system",
        ErrorKind::AddrInUse => "another program uses it: choose another",
        ErrorKind::OutOfMemory => "free memory (free -h), then run the same command again",
        ErrorKind::BrokenPipe => "the program that reads the output has ended",
        _ => "check the disk and its file system, then run the same command again",
    })
}

impl Error {
    /// Wraps an I/O error with its path.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// [`Error::Invalid`] of its four parts.
    pub fn invalid(place: impl ToString, found: impl ToString, expected: impl ToString, remedy: impl ToString) -> Self {
        Self::Invalid(Mismatch::new(place, found, expected, remedy))
    }

    /// [`Error::Usage`] of its four parts; the place is the option.
    pub fn usage(option: impl ToString, found: impl ToString, expected: impl ToString, remedy: impl ToString) -> Self {
        Self::Usage(Mismatch::new(option, found, expected, remedy))
    }

    /// The same, at another place: what `place` makes of the one that it has.
    pub fn placed(mut self, place: impl FnOnce(&str) -> String) -> Self {
        if let Self::Invalid(mismatch) | Self::Usage(mismatch) = &mut self {
            mismatch.place = place(&mismatch.place);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_system_comes_with_a_next_step_and_others_have_their_own() {
        let error = |path: &Path| std::fs::read(path).map_err(Error::io(path)).expect_err("refused").to_string();
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = error(&folder.path().join("file"));
        assert!(missing.ends_with("/file: No such file or directory (os error 2); check the path"), "{missing}");
        let below = error(&folder.path().join("no/such/file"));
        let first = folder.path().join("no");
        assert!(below.ends_with(&format!("; check the path: there is no folder {}", first.display())), "{below}");
        std::fs::write(folder.path().join("taken"), "").expect("written");
        let taken = std::fs::create_dir(folder.path().join("taken")).map_err(Error::io("taken")).expect_err("refused");
        assert!(taken.to_string().ends_with("; a file has this name: give a folder, or another name"), "{taken}");
        let many = Error::io("a")(std::io::Error::from_raw_os_error(24)).to_string();
        assert!(many.contains("ulimit -n"), "{many}");
        assert_eq!(Error::io("a")(std::io::Error::other("what to do")).to_string(), "a: what to do");
    }
}
