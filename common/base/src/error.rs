//! The library's error type: every message says where, what was found, what was expected and what to do.

use std::fmt::{Display, Formatter};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Result of everything fallible in `common`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

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
#[derive(Clone, Debug, PartialEq, Eq)]
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
                match (source.kind() == ErrorKind::NotFound).then(|| crate::nearest_path(path)).flatten() {
                    Some(near) => write!(f, " (there is {})", near.display()),
                    None => Ok(()),
                }
            }
            Self::Invalid(mismatch) | Self::Usage(mismatch) => mismatch.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

/// What to do about an error of the operating system; `None` for one that a program has made, whose text says it.
pub fn next_step(error: &std::io::Error) -> Option<&'static str> {
    // tempfile's errors have the system's words and no number.
    if error.raw_os_error().is_none() && !error.to_string().contains("(os error ") {
        return None;
    }
    Some(match error.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::NotADirectory => "a part of the path is a file: check the path",
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
        let error = std::fs::read("no/such/file").map_err(Error::io("no/such/file")).expect_err("refused").to_string();
        assert!(error.starts_with("no/such/file: ") && error.ends_with("; check the path"), "{error}");
        assert_eq!(Error::io("a")(std::io::Error::other("what to do")).to_string(), "a: what to do");
    }
}
