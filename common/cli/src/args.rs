//! Command lines written for the Hugging Face `Trainer` work unchanged: `--under_score` equals `--under-score`. What clap refuses is
//! told as all errors are: place, found, expected, next step.

use base::error::Mismatch;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Parser};
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::num::{IntErrorKind, ParseFloatError, ParseIntError};

/// Parses the command line of a program whose `--version` prints `long_version`. Ends the program where clap does: wrong
/// usage, `--help`, `--version`.
pub fn parse<C: Parser>(args: impl IntoIterator<Item = OsString>, long_version: &'static str) -> C {
    let args = with_dashes(args);
    let help = help_of(&C::command(), &args);
    let matches = C::command().long_version(long_version).try_get_matches_from(args);
    let matches = matches.unwrap_or_else(|error| plain(error, &help).exit());
    C::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The command that lists the options of a command line: `infer caption --help`.
pub fn help_of(command: &Command, args: &[OsString]) -> String {
    let subcommand = args.get(1).and_then(|word| command.find_subcommand(word));
    let words = [Some(command.get_name()), subcommand.map(Command::get_name), Some("--help")];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// clap's error of a value in the words of [`refused_value`].
fn plain(error: clap::Error, help: &str) -> clap::Error {
    match refused_value(&error, help) {
        Some(refused) => clap::Error::raw(error.kind(), format!("{refused}\n")),
        None => error,
    }
}

/// A value that clap refuses, the place being its option as clap spells it; `None` for an error of another kind. `help` is the
/// command that lists the options.
pub fn refused_value(error: &clap::Error, help: &str) -> Option<Mismatch> {
    let text = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let (argument, value) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue));
    let place = match argument.split_once(' ') {
        Some((option, _)) if option.starts_with("--") => option.to_string(),
        _ => argument,
    };
    let found = if value.is_empty() { "an empty text".to_string() } else { value.clone() };
    let see = format!("see {help}");
    match (error.kind(), error.get(ContextKind::ValidValue), error.source()) {
        // Without a value, clap says that one is missing.
        (ErrorKind::InvalidValue, Some(ContextValue::Strings(choices)), _) if !value.is_empty() => {
            let remedy = match error.get(ContextKind::SuggestedValue) {
                Some(suggested) => format!("did you mean {suggested}? {help} says what each is"),
                None => see,
            };
            Some(Mismatch::new(place, found, choices.join(", "), remedy))
        }
        (ErrorKind::ValueValidation, _, Some(reason)) => Some(match reason.downcast_ref() {
            Some(base::Error::Invalid(own) | base::Error::Usage(own)) => Mismatch { place, ..own.clone() },
            _ => of_reason(place, found, &value, reason, see),
        }),
        _ => None,
    }
}

/// A value with a parser's reason: that of a number, or one that is written as `found …, expected …; …` or the end of it.
fn of_reason(place: String, found: String, value: &str, reason: &(dyn Error + 'static), see: String) -> Mismatch {
    if let Some(reason) = reason.downcast_ref::<ParseIntError>() {
        return Mismatch::new(place, found, whole_number(value, reason.kind()), see);
    }
    if reason.is::<ParseFloatError>() {
        return Mismatch::new(place, found, "a number", see);
    }
    let text = reason.to_string();
    if let Some(range) = text.rsplit_once(" is not in ").and_then(|(_, range)| range_of(range, value)) {
        return Mismatch::new(place, found, range, see);
    }
    let (found, expected) = match text.strip_prefix("expected ") {
        Some(expected) => (found, expected),
        None => match text.strip_prefix("found ").and_then(|text| text.split_once(", expected ")) {
            Some((found, expected)) => (found.to_string(), expected),
            None => return Mismatch::new(place, found, format!("a value of the option's type ({text})"), see),
        },
    };
    let (expected, remedy) = expected.split_once("; ").unwrap_or((expected, &see));
    Mismatch::new(place, found, expected, remedy)
}

fn whole_number(value: &str, reason: &IntErrorKind) -> &'static str {
    let digits = value.strip_prefix('-').unwrap_or_default();
    match reason {
        // Only a type with a sign refuses it.
        IntErrorKind::PosOverflow if value.parse::<u64>().is_ok() => {
            "a whole number, at most 9223372036854775807 (2⁶³ − 1)"
        }
        IntErrorKind::PosOverflow => "a whole number, at most 18446744073709551615 (2⁶⁴ − 1)",
        IntErrorKind::NegOverflow => "a whole number, at least -9223372036854775808 (−2⁶³)",
        // A negative number is refused where the least one is 0.
        _ if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => "a whole number, at least 0",
        _ => "a whole number",
    }
}

/// clap's `1..=65535`. The largest number of a type is named only where the value has as many digits.
fn range_of(text: &str, value: &str) -> Option<String> {
    let (low, high) = text.split_once("..")?;
    let high = high.trim_start_matches('=');
    let is_of_type = high == i64::MAX.to_string() || high == u64::MAX.to_string();
    let is_open = high.is_empty() || is_of_type && value.len() < high.len();
    Some(match is_open {
        true => format!("a whole number, at least {low}"),
        false => format!("a whole number from {low} to {high}"),
    })
}

/// Whatever clap refuses, for one who reads it as data: [`refused_value`], and other errors with clap's words.
pub fn refused(error: &clap::Error, help: &str) -> Mismatch {
    refused_value(error, help).unwrap_or_else(|| {
        let text = error.to_string();
        let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Mismatch::new(
            "",
            format!("options that are refused ({words})"),
            "options that go together",
            format!("see {help}"),
        )
    })
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
            #[arg(long)]
            steps: Option<i64>,
            #[arg(long, value_name = "F")]
            share: Option<f64>,
            #[arg(long)]
            port: Option<u16>,
            #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
            least: Option<u64>,
            #[arg(long, value_parser = crate::values::share)]
            part: Option<f64>,
            #[arg(long, value_parser = crate::values::boolean)]
            flag: Option<bool>,
            #[arg(long)]
            kind: Option<Speed>,
        }
        #[derive(Clone, Debug, clap::ValueEnum)]
        enum Speed {
            Fast,
            Slow,
        }
        for (words, expected) in [
            (["--row", "-1"], "--row: found -1, expected a whole number, at least 0"),
            (["--row", "x"], "--row: found x, expected a whole number"),
            (["--row", ""], "--row: found an empty text, expected a whole number"),
            (
                ["--row", "99999999999999999999"],
                "--row: found 99999999999999999999, expected a whole number, at most 18446744073709551615",
            ),
            (
                ["--steps", "9223372036854775808"],
                "--steps: found 9223372036854775808, expected a whole number, at most 9223372036854775807",
            ),
            (["--port", "65536"], "--port: found 65536, expected a whole number from 0 to 65535"),
            (["--port", "x"], "--port: found x, expected a whole number"),
            (
                ["--least", "99999999999999999999"],
                "--least: found 99999999999999999999, expected a whole number, at most 18446744073709551615",
            ),
            (["--least", "0"], "--least: found 0, expected a whole number, at least 1"),
            (["--share", "x"], "--share: found x, expected a number"),
            (["--part", "2"], "--part: found 2, expected a share between 0 and 1"),
            (["--flag", "maybe"], "--flag: found maybe, expected true or false"),
            (["--kind", "fst"], "--kind: found fst, expected fast, slow; did you mean fast?"),
        ] {
            let words = ["program"].into_iter().chain(words).map(OsString::from);
            let error = plain(Args::try_parse_from(with_dashes(words)).expect_err("refused"), "program --help");
            let text = error.to_string();
            assert!(text.starts_with(&format!("error: {expected}")) && text.contains("program --help"), "{text}");
            assert_eq!(error.exit_code(), 2);
        }
        let missing = Args::try_parse_from(["program", "--row"]).expect_err("no value");
        assert!(refused_value(&missing, "program --help").is_none());
        let refused = refused(&missing, "program --help");
        assert!(refused.found.contains("a value is required for '--row <K>'"), "{refused}");
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
