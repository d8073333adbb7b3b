//! Command lines written for the Hugging Face `Trainer` work unchanged: `--under_score` equals `--under-score`.

use std::ffi::OsString;

/// Turns the underscores of every long option's name into dashes; values stay as they are.
pub fn with_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    args.into_iter().map(dashed).collect()
}

fn dashed(arg: OsString) -> OsString {
    let Some(text) = arg.to_str().filter(|text| text.starts_with("--") && text.len() > 2) else { return arg };
    match text.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
        None => text.replace('_', "-").into(),
    }
}
