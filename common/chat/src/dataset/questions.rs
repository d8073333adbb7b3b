//! Questions for rows that have a caption only.

use super::layouts::Asked;
use crate::IMAGE_TOKEN;
use base::splitmix;

/// The question where none is given.
pub const DEFAULT_QUESTION: &str = "Describe the picture.";

/// The questions of a run. Each row draws one, by its number and the seed alone.
#[derive(Clone, Debug)]
pub struct Questions {
    texts: Vec<String>,
    seed: u64,
}

impl Default for Questions {
    fn default() -> Self {
        Self::new(Vec::new(), 0)
    }
}

impl Questions {
    /// Those of the command line; none stands for the default one.
    pub fn new(texts: Vec<String>, seed: u64) -> Self {
        Self { texts: if texts.is_empty() { vec![DEFAULT_QUESTION.to_owned()] } else { texts }, seed }
    }

    /// The texts.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The question of a row, with markers as in LLaVA's data.
    pub(super) fn ask(&self, row: usize, images: usize) -> Asked {
        let drawn = splitmix(self.seed ^ splitmix(row as u64)) % self.texts.len() as u64;
        let text = &self.texts[drawn as usize];
        Asked { question: with_markers(text, images), images }
    }
}

/// A question with its markers, else with a marker and a line's end for each image before it.
pub(super) fn with_markers(text: &str, images: usize) -> String {
    let markers = if text.contains(IMAGE_TOKEN) { 0 } else { images };
    format!("{}{text}", format!("{IMAGE_TOKEN}\n").repeat(markers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_draw_all_questions_about_equally_often_and_always_the_same_one() {
        let texts: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let drawn = |seed: u64| -> Vec<String> {
            let questions = Questions::new(texts.clone(), seed);
            (0..4000).map(|row| questions.ask(row, 0).question).collect()
        };
        let first = drawn(1);
        assert_eq!(first, drawn(1));
        assert_ne!(first, drawn(2));
        for text in &texts {
            let times = first.iter().filter(|question| *question == text).count();
            assert!((900..1100).contains(&times), "{text}: {times} of 4000");
        }
        assert_eq!(Questions::default().ask(3, 2).question, format!("<image>\n<image>\n{DEFAULT_QUESTION}"));
        assert_eq!(Questions::new(vec!["See <image>.".into()], 0).ask(0, 1).question, "See <image>.");
    }
}
