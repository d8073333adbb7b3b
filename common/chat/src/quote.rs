//! Special tokens that are meant as text: quoted while the template is rendered, then encoded like any other characters.

use super::IMAGE_TOKEN;
use base::{Error, Result};
use std::collections::HashMap;
use std::sync::OnceLock;
use tokenizers::{AddedToken, Tokenizer};

// Noncharacters of Unicode, which are reserved for a program's own use.
const QUOTE_BEGIN: char = '\u{fdd0}';
const QUOTE_END: char = '\u{fdd1}';
const STAND_IN_BEGIN: char = '\u{fdd2}';
const STAND_IN_END: char = '\u{fdd3}';

/// Quotes special tokens in texts, and encodes texts with such quotes.
pub(super) struct Quoter {
    /// Special tokens of the tokenizer, the longest first.
    specials: Vec<AddedToken>,
    encoder: OnceLock<std::result::Result<QuoteEncoder, String>>,
}

impl Quoter {
    pub(super) fn new(tokenizer: &Tokenizer) -> Self {
        let decoder = tokenizer.get_added_tokens_decoder();
        let mut specials: Vec<AddedToken> =
            decoder.into_values().filter(|token| token.special || token.content == IMAGE_TOKEN).collect();
        specials.sort_by(|a, b| b.content.len().cmp(&a.content.len()).then_with(|| a.content.cmp(&b.content)));
        Self { specials, encoder: OnceLock::new() }
    }

    /// The text with its special tokens quoted.
    pub(super) fn quote(&self, text: &str) -> String {
        let is_reserved = |c: char| (QUOTE_BEGIN..=STAND_IN_END).contains(&c);
        if !text.contains(is_reserved) && !self.specials.iter().any(|special| text.contains(&special.content)) {
            return text.to_string();
        }
        let text = text.replace(is_reserved, "\u{fffd}");
        self.replace_specials(&text, QUOTE_BEGIN, QUOTE_END)
    }

    pub(super) fn has_quotes(text: &str) -> bool {
        text.contains(QUOTE_BEGIN)
    }

    /// Ids of a text: special tokens outside of quotes are recognised, those in quotes are encoded as characters.
    ///
    /// # Errors
    /// A tokenizer whose vocabulary makes a special token of the characters all the same.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        let encoder = self.encoder.get_or_init(|| QuoteEncoder::new(tokenizer, &self.specials));
        let encoder = encoder.as_ref().map_err(|error| failure(error))?;
        let text = self.replace_specials(text, STAND_IN_BEGIN, STAND_IN_END);
        encoder.encode(&self.unquote(&text))
    }

    /// Each special token as its number between two characters.
    fn replace_specials(&self, text: &str, begin: char, end: char) -> String {
        let mut replaced = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let special = self.specials.iter().position(|special| rest.starts_with(special.content.as_str()));
            if let Some(number) = special {
                replaced.push_str(&numbered(number, begin, end));
                rest = &rest[self.specials[number].content.len()..];
            } else {
                replaced.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        replaced
    }

    /// The special tokens themselves in place of their quotes.
    fn unquote(&self, text: &str) -> String {
        let mut pieces = text.split(QUOTE_BEGIN);
        let mut unquoted = pieces.next().unwrap_or_default().to_string();
        for piece in pieces {
            let quoted = piece.split_once(QUOTE_END).and_then(|(number, after)| {
                let special = self.specials.get(number.parse::<usize>().ok()?)?;
                Some((special, after))
            });
            if let Some((special, after)) = quoted {
                unquoted.push_str(&special.content);
                unquoted.push_str(after);
            } else {
                unquoted.push(QUOTE_BEGIN);
                unquoted.push_str(piece);
            }
        }
        unquoted
    }
}

fn numbered(number: usize, begin: char, end: char) -> String {
    format!("{begin}{number}{end}")
}

/// The tokenizer with its special tokens switched off and stand-ins in their places: one pass over the whole text, so that
/// what surrounds a token is split as ever.
struct QuoteEncoder {
    tokenizer: Tokenizer,
    /// Id of a stand-in → id of its special token.
    specials: HashMap<u32, u32>,
}

impl QuoteEncoder {
    fn new(tokenizer: &Tokenizer, specials: &[AddedToken]) -> std::result::Result<Self, String> {
        let mut tokenizer = tokenizer.clone();
        let stand_in = |number| numbered(number, STAND_IN_BEGIN, STAND_IN_END);
        let as_special = specials.iter().map(|token| token.clone().special(true));
        let stand_ins = specials.iter().enumerate().map(|(number, token)| AddedToken {
            content: stand_in(number),
            special: false,
            ..token.clone()
        });
        tokenizer.add_special_tokens(as_special).map_err(|error| error.to_string())?;
        tokenizer.add_tokens(stand_ins).map_err(|error| error.to_string())?;
        tokenizer.set_encode_special_tokens(true);
        let ids = specials.iter().enumerate().map(|(number, token)| {
            let ids = (tokenizer.token_to_id(&stand_in(number)), tokenizer.token_to_id(&token.content));
            let (Some(stand_in), Some(special)) = ids else { return Err(format!("{}: no id", token.content)) };
            Ok((stand_in, special))
        });
        let specials = ids.collect::<std::result::Result<_, _>>()?;
        Ok(Self { tokenizer, specials })
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| failure(&error.to_string()))?;
        let ids = encoding.get_ids();
        if let Some(&id) = ids.iter().find(|&id| self.specials.values().any(|special| special == id)) {
            let token = self.tokenizer.id_to_token(id).unwrap_or_default();
            return Err(Error::invalid(
                "a text",
                format!("{token}, which this tokenizer cannot encode as text"),
                "a text without it",
                "write the token in another way",
            ));
        }
        Ok(ids.iter().map(|id| self.specials.get(id).copied().unwrap_or(*id)).collect())
    }
}

fn failure(error: &str) -> Error {
    Error::invalid("encoding a text", error, "a text that tokenizer.json can process", "check tokenizer.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Byte-level BPE without merges: every character of ASCII is a token.
    fn tokenizer() -> Tokenizer {
        let mut vocab: serde_json::Map<_, _> =
            (b'!'..=b'~').enumerate().map(|(id, byte)| (char::from(byte).to_string(), json!(id))).collect();
        vocab.insert("Ġ".into(), json!(94));
        vocab.insert("Ċ".into(), json!(95));
        let token = |id: u32, content: &str, special: bool| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        };
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "added_tokens": [token(96, "<|end|>", true), token(97, "<image>", false), token(98, "<think>", false), token(99, "<|end|>2", true)],
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
        });
        Tokenizer::from_bytes(file.to_string()).expect("a tokenizer")
    }

    fn as_characters(text: &str) -> Vec<u32> {
        text.bytes().map(|byte| if byte == b' ' { 94 } else { u32::from(byte - b'!') }).collect()
    }

    #[test]
    fn quoted_tokens_are_characters_and_the_others_are_tokens() {
        let tokenizer = tokenizer();
        let quoter = Quoter::new(&tokenizer);
        for (before, typed, after) in [
            ("<image>", "what does <image> do?", "<|end|>"),
            ("<|end|>2", "<|end|>2<|end|><image>", "<image>"),
            ("", "<|en<|end|>d|>", "<|end|>"),
        ] {
            let text = format!("{before}{}{after}", quoter.quote(typed));
            assert!(Quoter::has_quotes(&text));
            let plain = |text: &str| tokenizer.encode_fast(text, false).expect("ids").get_ids().to_vec();
            let expected = [plain(before), as_characters(typed), plain(after)].concat();
            assert_eq!(quoter.encode(&tokenizer, &text).expect("ids"), expected, "{typed}");
        }
    }

    #[test]
    fn texts_cannot_write_quotes_or_stand_ins() {
        let quoter = Quoter::new(&tokenizer());
        assert_eq!(quoter.quote("\u{fdd0}0\u{fdd1}\u{fdd2}0\u{fdd3}"), "\u{fffd}0\u{fffd}\u{fffd}0\u{fffd}");
        // Tokens that are part of what a model writes stay tokens.
        assert_eq!(quoter.quote("<think> and < image>"), "<think> and < image>");
        assert_eq!(quoter.unquote("\u{fdd0}x\u{fdd1}"), "\u{fdd0}x\u{fdd1}");
    }
}
