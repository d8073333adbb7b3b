//! Numbers of things in messages.

/// `1 file`, `2 files`: a number with its noun, whose plural ends in s.
pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_is_singular() {
        assert_eq!([0, 1, 2].map(|count| super::counted(count, "file")), ["0 files", "1 file", "2 files"]);
    }
}
