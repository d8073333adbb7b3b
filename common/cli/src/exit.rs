//! Exit codes: 0 done, 1 failed, 2 wrong usage.

use std::process::ExitCode;

/// Exit code of wrong usage: an unknown option, or a value that an option cannot have. clap ends with the same.
pub const USAGE: u8 = 2;

/// Exit code of a job that does not fit the machine.
pub const DOES_NOT_FIT: u8 = 3;

/// An error with its causes; the operating system's own with the next step.
pub fn message(error: &anyhow::Error) -> String {
    let step = error.chain().find_map(|cause| base::error::next_step(cause.downcast_ref()?));
    step.map_or_else(|| format!("{error:#}"), |step| format!("{error:#}; {step}"))
}

/// An error of what was given, before any work: exit code [`USAGE`].
#[derive(Debug)]
pub struct WrongUsage(anyhow::Error);

impl WrongUsage {
    /// Of any error.
    pub fn of(error: impl Into<anyhow::Error>) -> anyhow::Error {
        Self(error.into()).into()
    }
}

impl std::fmt::Display for WrongUsage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&message(&self.0))
    }
}

impl std::error::Error for WrongUsage {}

/// Logs an error, and gives the exit code of its kind.
pub fn failed(error: &anyhow::Error) -> ExitCode {
    tracing::error!("{}", message(error));
    let is_usage = error.is::<WrongUsage>()
        || error.downcast_ref::<base::Error>().is_some_and(|error| matches!(error, base::Error::Usage(_)));
    if is_usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_next_step_stands_once() {
        let read = || std::fs::read("no/such/file");
        let of_system = read().context("no/such/file").expect_err("refused");
        let of_library = read().map_err(base::Error::io("no/such/file")).context("reading").expect_err("refused");
        for error in [of_system, of_library] {
            assert_eq!(message(&error).matches("check the path").count(), 1, "{}", message(&error));
        }
    }
}
