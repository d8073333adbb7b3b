//! What `--version` prints: version, commit, features and the code that the processor runs. `-V` prints the version alone.

/// Digits of a commit that are shown.
const SHOWN: usize = 12;

/// The first digits of a commit.
pub type Commit = [u8; SHOWN];

/// The text of `--version` behind the program's name. Called once in a program, so what it leaks is one text.
pub fn text(version: &str, commit: Option<String>, features: &[(&str, bool)], cpu: &str) -> &'static str {
    let commit =
        commit.unwrap_or_else(|| "unknown (built outside a git checkout; LLAVA_COMMIT of the build names it)".into());
    let on: Vec<&str> = features.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name).collect();
    let on = if on.is_empty() { "none".to_string() } else { on.join(", ") };
    Box::leak(format!("{version}\ncommit    {commit}\nfeatures  {on}\nCPU       {cpu}").into_boxed_str())
}

/// The text of `--version` of the program that it stands in: its features, then its CPU path.
#[macro_export]
macro_rules! long_version {
    ([$($feature:literal),*], $cpu:expr) => {
        $crate::version::text(
            env!("CARGO_PKG_VERSION"),
            $crate::commit!(),
            &[$(($feature, cfg!(feature = $feature))),*],
            &$cpu,
        )
    };
}

/// The commit that the last line of git's log of HEAD names: `<old> <new> <who> <when>\t<what>`.
pub const fn last_of_log(log: &[u8]) -> Option<Commit> {
    let mut end = log.len();
    while end > 0 && log[end - 1] == b'\n' {
        end -= 1;
    }
    let mut start = end;
    while start > 0 && log[start - 1] != b'\n' {
        start -= 1;
    }
    while start < end && log[start] != b' ' {
        start += 1;
    }
    if start == end {
        return None;
    }
    hexadecimal(log.split_at(start + 1).1)
}

/// The first digits of a hexadecimal text; `None` of another text.
pub const fn hexadecimal(text: &[u8]) -> Option<Commit> {
    let mut digits = [0; SHOWN];
    let mut at = 0;
    while at < SHOWN {
        if at == text.len() || !text[at].is_ascii_hexdigit() {
            return None;
        }
        digits[at] = text[at];
        at += 1;
    }
    Some(digits)
}

/// A commit as text.
pub fn text_of(commit: Option<Commit>) -> Option<String> {
    commit.map(|digits| digits.map(char::from).iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_the_log_names_the_commit() {
        let line = |old: char, new: char| {
            let (old, new) = (old.to_string().repeat(40), new.to_string().repeat(40));
            format!("{old} {new} A Name <a@b.c> 1700000000 +0000\tcommit: words\n")
        };
        let log = line('0', 'a') + &line('a', 'b');
        assert_eq!(text_of(last_of_log(log.as_bytes())), Some("b".repeat(SHOWN)));
        assert_eq!(text_of(last_of_log(line('0', 'c').trim_end().as_bytes())), Some("c".repeat(SHOWN)));
        for log in ["", "\n\n", "0000", "0000 ", "0000 abc", "0000 not a commit at all"] {
            assert_eq!(last_of_log(log.as_bytes()), None, "{log:?}");
        }
        assert_eq!(hexadecimal(b"$Format:%H$"), None, "an archive that git did not make");
    }

    #[test]
    fn features_that_are_off_are_not_named() {
        let text = text("1.0", Some("abc".into()), &[("cuda", true), ("ndarray", false)], "AVX2");
        assert_eq!(text, "1.0\ncommit    abc\nfeatures  cuda\nCPU       AVX2");
    }
}
