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
                next_step(source.kind()).map_or(Ok(()), |next| write!(f, "; {next}"))
            }
            Self::Invalid(mismatch) | Self::Usage(mismatch) => mismatch.fmt(f),
        }
    }
}

/// What helps where the system refuses.
fn next_step(refusal: ErrorKind) -> Option<&'static str> {
    match refusal {
        ErrorKind::NotFound => Some("check the path"),
        ErrorKind::PermissionDenied => Some("change its permissions, or choose another place"),
        ErrorKind::ReadOnlyFilesystem => Some("choose a place on another file system"),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some("free space there, or choose a place on another disk")
        }
        ErrorKind::NotADirectory => Some("a file stands where a folder has to be: choose another place"),
        ErrorKind::IsADirectory => Some("give a file, not a folder"),
        _ => None,
    }
}

impl std::error::Error for Error {}

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
