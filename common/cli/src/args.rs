//! Command lines written for the Hugging Face `Trainer` work unchanged: `--under_score` equals `--under-score`.

use clap::Parser;
use std::ffi::{OsStr, OsString};

/// Parses the command line of a program whose `--version` prints `long_version`. Ends the program where clap does: wrong
/// usage, `--help`, `--version`.
pub fn parse<C: Parser>(args: impl IntoIterator<Item = OsString>, long_version: &'static str) -> C {
    let matches = C::command().long_version(long_version).get_matches_from(with_dashes(args));
    C::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
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
    fn names_get_dashes_and_values_stay() {
        let given =
            ["train", "a_b.toml", "--max_steps", "-1e-4", "--run_name=a_b", "-1", "--x_y", "-z", "--", "--a_b", "-1"];
        let expected =
            ["train", "a_b.toml", "--max-steps=-1e-4", "--run-name=a_b", "-1", "--x-y", "-z", "--", "--a_b", "-1"];
        assert_eq!(with_dashes(given.map(OsString::from)), expected.map(OsString::from));
    }
}
