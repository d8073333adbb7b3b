//! One row: its pictures, its tokens, and which tokens are supervised.

use anyhow::Result;
use base::{Error, IGNORE_INDEX};
use chat::TextTokenizer;
use html::picture::Picture;
use shards::{ShardSet, Split};

/// Width of a picture in the terminal, characters.
const TERMINAL_WIDTH: usize = 56;

/// Most tokens of one character: one for each of its bytes.
const LONGEST_CHARACTER: usize = 4;

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
    /// Its text. The first token of a character in several has the character and the others nothing; its id where there is no
    /// tokenizer, or where the text breaks off within a character.
    pub text: String,
    /// It has a label.
    pub supervised: bool,
}

impl Sample {
    /// Reads row `row` of the split.
    pub fn read(set: &ShardSet, split: Split, row: usize, tokenizer: Option<&TextTokenizer>) -> Result<Self> {
        if row >= set.len() {
            return Err(no_such_row(row, set.len(), split).into());
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
            .zip(texts(&found.input_ids, tokenizer))
            .map(|((&id, &label), text)| Token { id, text, supervised: label != IGNORE_INDEX })
            .collect();
        Ok(Self { row, id: found.id, pictures, tokens })
    }

    /// Supervised tokens.
    pub fn supervised(&self) -> usize {
        self.tokens.iter().filter(|token| token.supervised).count()
    }
}

fn no_such_row(row: usize, rows: usize, split: Split) -> Error {
    let (name, other) = match split {
        Split::Train => ("training", "with"),
        Split::Validation => ("validation", "without"),
    };
    match rows {
        0 => {
            let found = format!("{row}, and the folder has no {name} rows");
            Error::invalid("--row", found, "a split with rows", format!("run {other} --validation"))
        }
        _ => Error::invalid("--row", row, format!("0 to {} ({name} rows)", rows - 1), "choose another"),
    }
}

/// The text of each token.
fn texts(ids: &[i32], tokenizer: Option<&TextTokenizer>) -> Vec<String> {
    let whole = |ids: &[i32]| {
        let ids: Vec<u32> = ids.iter().map(|&id| u32::try_from(id).ok()).collect::<Option<_>>()?;
        let text = tokenizer?.decode(&ids, false).ok()?;
        (!text.contains(char::REPLACEMENT_CHARACTER) && !text.is_empty()).then_some(text)
    };
    let mut texts = Vec::with_capacity(ids.len());
    while let [id, ..] = ids[texts.len()..] {
        let rest = &ids[texts.len()..];
        let found = (1..=rest.len().min(LONGEST_CHARACTER)).find_map(|count| Some((count, whole(&rest[..count])?)));
        let (count, text) = found.unwrap_or_else(|| (1, format!("[{id}]")));
        texts.push(text);
        texts.resize(texts.len() + count - 1, String::new());
    }
    texts
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
    for token in sample.tokens.iter().filter(|token| !token.text.is_empty()) {
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
    fn a_character_of_several_tokens_is_shown_once() {
        let token = |text: &str| Token { id: 1, text: text.into(), supervised: true };
        let sample = Sample {
            row: 0,
            id: "x".into(),
            pictures: vec![],
            tokens: vec![token("红"), token(""), token(""), token("!")],
        };
        assert!(in_terminal(&sample, false).ends_with("«红»«!»"));
        assert_eq!(texts(&[3, 4], None), ["[3]", "[4]"]);
    }

    #[test]
    fn a_row_that_is_not_there_names_those_that_are() {
        let error = |rows, split| no_such_row(7, rows, split).to_string();
        assert_eq!(error(5, Split::Train), "--row: found 7, expected 0 to 4 (training rows); choose another");
        let none = "--row: found 7, and the folder has no validation rows, expected a split with rows; run without --validation";
        assert_eq!(error(0, Split::Validation), none);
    }

    #[test]
    fn supervised_tokens_are_marked_with_and_without_colours() {
        let token = |text: &str, supervised| Token { id: 1, text: text.into(), supervised };
        let sample =
            Sample { row: 3, id: "x".into(), pictures: vec![], tokens: vec![token("Q", false), token("A", true)] };
        assert!(in_terminal(&sample, false).ends_with("Q«A»"));
        assert!(in_terminal(&sample, true).contains("\x1b[1;32mA\x1b[0m"));
    }
}
