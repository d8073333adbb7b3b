//! `PROGRAM check-options -- COMMAND LINE`: what the program would refuse of a command line, before any work, as data. `pipelines` asks it
//! for every stage of a recipe before it starts the first one.

use crate::args::{help_of, refused, with_dashes};
use base::error::Mismatch;
use base::{Error, Result};
use clap::Parser;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;

/// The subcommand's name.
pub const SUBCOMMAND: &str = "check-options";

/// Options of `PROGRAM check-options`.
#[derive(clap::Args, Clone, Debug)]
pub struct CheckArgs {
    /// The command line behind the program's name.
    #[arg(last = true)]
    pub words: Vec<OsString>,
}

impl CheckArgs {
    /// The command line with the program's name.
    pub fn line(&self, program: &str) -> Vec<OsString> {
        std::iter::once(program.into()).chain(self.words.iter().cloned()).collect()
    }

    /// The command line, parsed as the program parses its own.
    ///
    /// # Errors
    /// What clap refuses.
    pub fn parse<C: Parser>(&self) -> Result<C> {
        let command = C::command();
        let words = with_dashes(self.line(command.get_name()));
        let help = help_of(&command, &words);
        C::try_parse_from(words).map_err(|error| Error::Usage(refused(&error, &help)))
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The first option that is refused; its place is the option's name, where it is one option's.
    pub refused: Option<Mismatch>,
}

impl Answer {
    /// Of a check. Files that are not there yet may be there when the command line runs.
    pub fn of<T>(checked: Result<T>) -> Self {
        let refused = match checked {
            Err(Error::Usage(refused) | Error::Invalid(refused)) => Some(refused),
            Ok(_) | Err(Error::Io { .. }) => None,
        };
        Self { refused }
    }

    /// As the program prints it.
    ///
    /// # Errors
    /// None in practice: all is text.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::invalid(SUBCOMMAND, error, "text", "report this"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "program")]
    enum Program {
        /// Work.
        Work {
            #[arg(long)]
            top_k: usize,
        },
        /// Check.
        CheckOptions(CheckArgs),
    }

    #[test]
    fn a_command_line_is_checked_without_running() {
        let check = |words: &[&str]| {
            let line = [&["program", SUBCOMMAND, "--"], words].concat();
            let line = with_dashes(line.into_iter().map(OsString::from));
            let Program::CheckOptions(args) = Program::try_parse_from(line).expect("a check") else { unreachable!() };
            let answer = Answer::of(args.parse::<Program>());
            let again: Answer = serde_json::from_str(&answer.to_json().expect("JSON")).expect("the same");
            assert_eq!(again, answer);
            answer.refused.map(|refused| refused.to_string())
        };
        assert_eq!(check(&["work", "--top_k", "1"]), None);
        let refused = check(&["work", "--top_k", "many"]).expect("no number");
        assert_eq!(refused, "--top-k: found many, expected a whole number; see program work --help");
        let refused = check(&["work"]).expect("an option is missing");
        assert!(refused.contains("required arguments were not provided: --top-k <TOP_K>"), "{refused}");
    }
}
