//! Exit codes: 0 done, 1 failed, 2 wrong usage.

use std::process::ExitCode;

/// Exit code of wrong usage: an unknown option, or a value that an option cannot have. clap ends with the same.
pub const USAGE: u8 = 2;

/// Logs an error, and gives the exit code of its kind.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    tracing::error!("{error:#}");
    let is_usage = error.downcast_ref::<base::Error>().is_some_and(|error| matches!(error, base::Error::Usage(_)));
    if is_usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}
