//! Ids become text piece by piece: only whole UTF-8 characters, never a part of a stop string.

use base::Result;

/// Decodes a growing sequence of ids into pieces that can be shown at once.
///
/// A token can hold a part of a character only, and what a token decodes to can depend on its neighbours; so a short
/// window of ids is decoded anew at each step; the new part is the difference.
pub struct TextStream {
    ids: Vec<u32>,
    /// Ids before this one are out of the window.
    window: usize,
    /// Ids before this one have been turned into text.
    decoded: usize,
    /// Decoded, not yet given out: could be the beginning of a stop string.
    held: String,
    stop_strings: Vec<String>,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first of `stop_strings` (empty strings are ignored).
    pub fn new(stop_strings: Vec<String>) -> Self {
        let stop_strings = stop_strings.into_iter().filter(|text| !text.is_empty()).collect();
        Self { ids: Vec::new(), window: 0, decoded: 0, held: String::new(), stop_strings, stopped: false }
    }

    /// True once a stop string has appeared.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Takes the next id; returns the text that became certain with it.
    pub fn push(&mut self, id: u32, decode: impl Fn(&[u32]) -> Result<String>) -> Result<String> {
        self.ids.push(id);
        if let Some(added) = self.added(&decode, false)? {
            self.held.push_str(&added);
        }
        Ok(self.release(false))
    }

    /// The text that was held back, incomplete characters as U+FFFD.
    pub fn finish(&mut self, decode: impl Fn(&[u32]) -> Result<String>) -> Result<String> {
        if let Some(added) = self.added(&decode, true)? {
            self.held.push_str(&added);
        }
        Ok(self.release(true))
    }

    fn added(&mut self, decode: &impl Fn(&[u32]) -> Result<String>, last: bool) -> Result<Option<String>> {
        let before = decode(&self.ids[self.window..self.decoded])?;
        let after = decode(&self.ids[self.window..])?;
        let incomplete = after.ends_with(char::REPLACEMENT_CHARACTER) && !last;
        let Some(added) = after.strip_prefix(&before).filter(|added| !added.is_empty() && !incomplete) else {
            return Ok(None);
        };
        let added = added.to_string();
        self.window = self.decoded;
        self.decoded = self.ids.len();
        Ok(Some(added))
    }

    fn release(&mut self, last: bool) -> String {
        if self.stopped {
            return String::new();
        }
        if let Some(at) = self.stop_strings.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = if last { 0 } else { self.longest_beginning_of_a_stop_string() };
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Bytes at the end of `held` that could go on to become a stop string.
    fn longest_beginning_of_a_stop_string(&self) -> usize {
        let longest = |stop: &String| {
            (1..stop.len())
                .rev()
                .filter(|&bytes| stop.is_char_boundary(bytes))
                .find(|&bytes| self.held.ends_with(&stop[..bytes]))
        };
        self.stop_strings.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One id a byte.
    fn bytes(ids: &[u32]) -> Result<String> {
        Ok(String::from_utf8_lossy(&ids.iter().map(|&id| id as u8).collect::<Vec<_>>()).into_owned())
    }

    fn pieces(text: &[u8], stop: &[&str]) -> (Vec<String>, bool) {
        let mut stream = TextStream::new(stop.iter().map(ToString::to_string).collect());
        let mut pieces: Vec<String> =
            text.iter().map(|&byte| stream.push(byte.into(), bytes).expect("decoded")).collect();
        pieces.push(stream.finish(bytes).expect("decoded"));
        (pieces.into_iter().filter(|piece| !piece.is_empty()).collect(), stream.stopped())
    }

    #[test]
    fn characters_come_whole() {
        assert_eq!(pieces("aé€😀b".as_bytes(), &[]).0, ["a", "é", "€", "😀", "b"]);
    }

    #[test]
    fn an_incomplete_character_comes_at_the_end() {
        assert_eq!(pieces(&[b'a', 0xE2, 0x82], &[]).0, ["a", "\u{FFFD}"]);
    }

    #[test]
    fn stop_strings_are_cut_and_their_beginnings_held() {
        assert_eq!(
            pieces(b"one STOP two", &["STOP"]),
            (vec!["o", "n", "e", " "].into_iter().map(String::from).collect(), true)
        );
        assert_eq!(pieces(b"ST ST", &["STOP"]).0.concat(), "ST ST");
        assert_eq!(pieces(b"aab", &["ab", ""]).0.concat(), "a");
        assert_eq!(pieces("x€y".as_bytes(), &["€y"]).0.concat(), "x");
        assert!(!pieces(b"ab", &["abc"]).1);
    }
}
