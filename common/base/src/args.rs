//! Command lines written for the Hugging Face `Trainer` work unchanged: `--under_score` equals `--under-score`.

use std::ffi::OsString;

/// Turns the underscores of every long option's name into dashes; values stay as they are, and so does everything behind
/// `--`, which is no option.
pub fn with_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut only_values = false;
    let word = |arg: OsString| {
        only_values |= arg == "--";
        if only_values { arg } else { dashed(arg) }
    };
    args.into_iter().map(word).collect()
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
        let given = ["train", "a_b.toml", "--max_steps", "-1", "--run_name=a_b", "--", "--not_an_option"];
        let expected = ["train", "a_b.toml", "--max-steps", "-1", "--run-name=a_b", "--", "--not_an_option"];
        assert_eq!(with_dashes(given.map(OsString::from)), expected.map(OsString::from));
    }
}
