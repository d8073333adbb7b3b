//! `pipelines doctor`: looks at the machine and says what will work, with the next step for what will not.

mod abilities;
mod hub;
mod machine;

use crate::programs::Programs;
use anyhow::{Result, bail};
use machine::Machine;
use std::fmt::Write;
use std::path::PathBuf;

/// Options of `pipelines doctor`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder where runs are to be; its disk is looked at
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,
    /// Port for infer serve
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub port: u16,
}

/// The state of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    /// Not there, and only some jobs need it.
    Absent,
    /// In the way of every job.
    Bad,
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    subject: &'static str,
    state: State,
    found: String,
    /// What helps, unless the state is good.
    next: Option<String>,
}

impl Finding {
    fn good(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, state: State::Good, found: found.into(), next: None }
    }

    fn absent(subject: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { subject, state: State::Absent, found: found.into(), next: Some(next.into()) }
    }

    fn bad(subject: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { subject, state: State::Bad, found: found.into(), next: Some(next.into()) }
    }
}

/// Looks, and reports. The text is the result for stdout.
///
/// # Errors
/// Something is in the way of every job; the error is the report.
pub fn run(args: &Args, programs: &Programs) -> Result<String> {
    let findings = Machine::look(args, programs).findings();
    let report = report(&findings);
    let problems = findings.iter().filter(|finding| finding.state == State::Bad).count();
    if problems > 0 {
        bail!("{problems} of {} checks failed\n{report}", findings.len());
    }
    Ok(report)
}

fn report(findings: &[Finding]) -> String {
    let mut text = String::from("found");
    for Finding { subject, state, found, .. } in findings {
        let mark = match state {
            State::Good => "ok",
            State::Absent => "--",
            State::Bad => "!!",
        };
        let _ = write!(text, "\n  {mark}  {subject:<14}{found}");
    }
    text += "\n\nwhat will work";
    for ability in abilities::of(findings) {
        let _ = match &ability.next {
            None => write!(text, "\n  yes {}", ability.what),
            Some(next) => write!(text, "\n  no  {}\n        next: {next}", ability.what),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thing_that_is_missing_has_a_next_step() {
        let findings =
            [Finding::good("processor", "2 cores"), Finding::absent("GPU", "no driver", "install the NVIDIA driver")];
        let report = report(&findings);
        println!("{report}");
        assert!(report.contains("ok  processor") && report.contains("--  GPU"), "{report}");
        let lines: Vec<&str> = report.lines().collect();
        for (at, _) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("  no ")) {
            assert!(lines[at + 1].starts_with("        next: "), "{report}");
        }
        assert!(report.contains("next: install the NVIDIA driver"), "{report}");
    }
}
