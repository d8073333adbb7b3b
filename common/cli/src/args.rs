//! Command lines written for the Hugging Face `Trainer` work unchanged: `--under_score` equals `--under-score`.

use clap::Parser;
use clap::error::{ContextKind, ErrorKind};
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::num::{ParseFloatError, ParseIntError};

/// Parses the command line of a program whose `--version` prints `long_version`. Ends the program where clap does: wrong
/// usage, `--help`, `--version`.
pub fn parse<C: Parser>(args: impl IntoIterator<Item = OsString>, long_version: &'static str) -> C {
    let matches = C::command().long_version(long_version).try_get_matches_from(with_dashes(args));
    let matches = matches.unwrap_or_else(|error| plain(error).exit());
    C::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// clap's error of a value that is no number with the expected value in place of the parser's words.
fn plain(error: clap::Error) -> clap::Error {
    let Some(source) = error.source().filter(|_| error.kind() == ErrorKind::ValueValidation) else { return error };
    let value = error.get(ContextKind::InvalidValue).map(ToString::to_string).unwrap_or_default();
    let option = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
    let expected = match (source.is::<ParseIntError>(), source.is::<ParseFloatError>()) {
        // A negative number is refused where the least one is 0.
        (true, _) if value.starts_with('-') => "a whole number, at least 0",
        (true, _) => "a whole number",
        (_, true) => "a number",
        _ => return error,
    };
    clap::Error::raw(ErrorKind::ValueValidation, format!("{option}: found {value:?}, expected {expected}\n"))
}

/// Turns the underscores of every long option's name into dashes, and `--name -1e-4` into `--name=-1e-4`, because clap takes
/// some negative numbers for options. Other values stay as they are, and so does everything behind `--`, which is no option.
pub fn with_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = Vec::new();
    let mut only_values = false;
    for arg in args {
        only_values |= arg == "--";
        let option = words.last_mut().filter(|word| !only_values && is_option_without_value(word));
        match option {
            Some(option) if is_negative_number(&arg) => {
                option.push("=");
                option.push(arg);
            }
            _ => words.push(if only_values { arg } else { dashed(arg) }),
        }
    }
    words
}

fn is_option_without_value(word: &OsStr) -> bool {
    word.to_str().is_some_and(|text| text.starts_with("--") && text.len() > 2 && !text.contains('='))
}

fn is_negative_number(word: &OsStr) -> bool {
    word.to_str().is_some_and(|text| text.starts_with('-') && text.parse::<f64>().is_ok())
}

fn dashed(arg: OsString) -> OsString {
    let Some(text) = arg.to_str().filter(|text| text.starts_with("--") && text.len() > 2) else { return arg };
    match text.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
        None => text.replace('_', "-").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_numbers_say_what_is_expected() {
        #[derive(Debug, Parser)]
        struct Args {
            #[arg(long, value_name = "K")]
            row: Option<usize>,
            #[arg(long, value_name = "F")]
            share: Option<f64>,
        }
        for (words, expected) in [
            (["--row", "-1"], "error: --row <K>: found \"-1\", expected a whole number, at least 0\n"),
            (["--row", "x"], "error: --row <K>: found \"x\", expected a whole number\n"),
            (["--share", "x"], "error: --share <F>: found \"x\", expected a number\n"),
        ] {
            let words = ["program"].into_iter().chain(words).map(OsString::from);
            let error = plain(Args::try_parse_from(with_dashes(words)).expect_err("refused"));
            assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 2));
        }
        let args = Args::try_parse_from(["program", "--row", "1", "--share", "0.5"]).expect("numbers");
        assert_eq!((args.row, args.share), (Some(1), Some(0.5)));
    }

    #[test]
    fn names_get_dashes_and_values_stay() {
        let given =
            ["train", "a_b.toml", "--max_steps", "-1e-4", "--run_name=a_b", "-1", "--x_y", "-z", "--", "--a_b", "-1"];
        let expected =
            ["train", "a_b.toml", "--max-steps=-1e-4", "--run-name=a_b", "-1", "--x-y", "-z", "--", "--a_b", "-1"];
        assert_eq!(with_dashes(given.map(OsString::from)), expected.map(OsString::from));
    }
}
