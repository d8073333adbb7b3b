//! The library's error type: every message says where, what was found, what was expected and what to do.

use std::fmt::{Display, Formatter};
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
    Invalid {
        /// File, row, tensor or option.
        place: String,
        /// The content found.
        found: String,
        /// The content expected.
        expected: String,
        /// The remedy.
        remedy: String,
    },
}

impl Display for Error {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Self::Invalid { place, found, expected, remedy } => {
                write!(f, "{place}: found {found}, expected {expected}; {remedy}")
            }
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// Wraps an I/O error with its path.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// Builds [`Error::Invalid`]; all four parts are required.
    pub fn invalid(place: impl ToString, found: impl ToString, expected: impl ToString, remedy: impl ToString) -> Self {
        Self::Invalid {
            place: place.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
            remedy: remedy.to_string(),
        }
    }
}
