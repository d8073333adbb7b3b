//! Output to stdout. A closed or full stdout is an error, never a panic, as `println!` has it.

use crate::{Error, Result};
use std::fmt::Display;
use std::io::Write;

/// Writes a result to `out`, which is stdout, with a line end, and flushes it.
///
/// # Errors
/// A closed pipe, a full disk: the result is not where it was to go.
pub fn print(out: &mut impl Write, result: impl Display) -> Result<()> {
    let text = format!("{result}\n");
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::io("stdout"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_an_error_that_names_stdout() {
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
        let error = print(&mut full, "result").expect_err("nothing fits").to_string();
        assert!(error.starts_with("stdout: No space left"), "{error}");
        // A writer that fails only when it is flushed.
        let mut buffered = std::io::BufWriter::new(full);
        assert!(print(&mut buffered, "result").is_err());
        let mut text = Vec::new();
        print(&mut text, 7).expect("memory takes it");
        assert_eq!(text, b"7\n");
    }
}
