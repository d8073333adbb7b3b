//! Exit codes, by one rule in all programs: 0 done; 2 the words of the command line or of a recipe are refused, on every machine; 1
//! the work failed, or a file, folder, model or device is not there or does not go with the options; 3 the job does not fit the machine.

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
    /// Of any error but the system's: a file that is not there is no wrong usage.
    pub fn of(error: impl Into<anyhow::Error>) -> anyhow::Error {
        let error = error.into();
        match error.downcast_ref() {
            Some(base::Error::Io { .. }) => error,
            _ => Self(error).into(),
        }
    }
}

/// A job that does not fit the machine: exit code [`DOES_NOT_FIT`].
#[derive(Debug)]
pub struct DoesNotFit(pub String);

impl std::fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DoesNotFit {}

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
    match (is_usage, error.is::<DoesNotFit>()) {
        (true, _) => ExitCode::from(USAGE),
        (_, true) => ExitCode::from(DOES_NOT_FIT),
        _ => ExitCode::FAILURE,
    }
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
