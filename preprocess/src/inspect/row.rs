//! One row: its pictures, its tokens, and which tokens are supervised.

use anyhow::Result;
use base::IGNORE_INDEX;
use chat::TextTokenizer;
use html::picture::Picture;
use shards::ShardSet;

/// Width of a picture in the terminal, characters.
const TERMINAL_WIDTH: usize = 56;

/// A row to show.
pub struct Sample {
    /// Its number in the split.
    pub row: usize,
    /// `id` of chat.json.
    pub id: String,
    /// File names and pictures.
    pub pictures: Vec<(String, Picture)>,
    /// Its tokens.
    pub tokens: Vec<Token>,
}

/// A token to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: i32,
    /// Its text, or its id where there is no tokenizer or the token is a part of a character.
    pub text: String,
    /// It has a label.
    pub supervised: bool,
}

impl Sample {
    /// Reads row `row` of the split.
    pub fn read(set: &ShardSet, row: usize, tokenizer: Option<&TextTokenizer>) -> Result<Self> {
        if row >= set.len() {
            let expected = format!("0 to {} (rows of the split)", set.len().saturating_sub(1));
            return Err(base::Error::invalid("--row", row, expected, "choose another").into());
        }
        let found = set.read_row(row)?;
        let about = set.metadata();
        let values = 3 * about.crop_size * about.crop_size;
        let pictures = found.images.iter().zip(found.pixel_values.chunks_exact(values.max(1))).map(|(name, values)| {
            (name.clone(), Picture::of(values, about.crop_size, &about.image_mean, &about.image_std))
        });
        let pictures = pictures.collect();
        let tokens = found
            .input_ids
            .iter()
            .zip(&found.labels)
            .map(|(&id, &label)| Token { id, text: text_of(id, tokenizer), supervised: label != IGNORE_INDEX })
            .collect();
        Ok(Self { row, id: found.id, pictures, tokens })
    }

    /// Supervised tokens.
    pub fn supervised(&self) -> usize {
        self.tokens.iter().filter(|token| token.supervised).count()
    }
}

fn text_of(id: i32, tokenizer: Option<&TextTokenizer>) -> String {
    let text = tokenizer.zip(u32::try_from(id).ok()).and_then(|(tokenizer, id)| tokenizer.decode(&[id], false).ok());
    match text {
        Some(text) if !text.contains(char::REPLACEMENT_CHARACTER) && !text.is_empty() => text,
        _ => format!("[{id}]"),
    }
}

/// The row for a terminal: green is supervised. Without colours, supervised tokens stand between `«` and `»`.
pub fn in_terminal(sample: &Sample, colors: bool) -> String {
    let mut text = format!(
        "row {} (id {:?}): {} tokens, {} of them supervised\n",
        sample.row,
        sample.id,
        sample.tokens.len(),
        sample.supervised()
    );
    for (name, picture) in &sample.pictures {
        text += &format!("{name}\n");
        if colors {
            text += &picture.shrunk(TERMINAL_WIDTH).in_terminal();
        }
    }
    for token in &sample.tokens {
        let shown = &token.text;
        text += &match (colors, token.supervised) {
            (true, true) => format!("\x1b[1;32m{shown}\x1b[0m"),
            (true, false) => format!("\x1b[2m{shown}\x1b[0m"),
            (false, true) => format!("«{shown}»"),
            (false, false) => shown.clone(),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supervised_tokens_are_marked_with_and_without_colours() {
        let token = |text: &str, supervised| Token { id: 1, text: text.into(), supervised };
        let sample =
            Sample { row: 3, id: "x".into(), pictures: vec![], tokens: vec![token("Q", false), token("A", true)] };
        assert!(in_terminal(&sample, false).ends_with("Q«A»"));
        assert!(in_terminal(&sample, true).contains("\x1b[1;32mA\x1b[0m"));
    }
}
