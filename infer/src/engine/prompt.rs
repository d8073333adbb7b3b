//! A conversation and its pictures as the model's input.

use super::Processors;
use anyhow::{Result, bail, ensure};
use base::IGNORE_INDEX;
use chat::{IMAGE_TOKEN, Message, Role};
use images::image_processor::{ImageError, ProcessedImage};
use model::batch::PackedBatch;
use std::path::Path;

/// Input of one sequence. T tokens, N pictures of P features each.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// `[T]`, each `<image>` repeated P times.
    pub input_ids: Vec<u32>,
    /// `[N · P]` places of the pictures' features.
    pub image_positions: Vec<usize>,
    /// f32 `[N, 3, S, S]`.
    pub pixel_values: Vec<f32>,
    /// N.
    pub num_images: usize,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text, in which special tokens are text.
    Text(String),
    /// A picture.
    Image,
}

impl Prompt {
    /// As a batch of one row without labels.
    pub fn batch(&self) -> PackedBatch {
        let tokens = self.input_ids.len();
        PackedBatch {
            input_ids: self.input_ids.clone(),
            labels: vec![IGNORE_INDEX; tokens],
            seq_lens: vec![tokens],
            image_positions: self.image_positions.clone(),
            pixel_values: self.pixel_values.clone(),
            num_images: self.num_images,
            ids: vec![String::new()],
        }
    }
}

impl Processors {
    /// A message of these parts in their order, each on a line of its own.
    pub fn message(&self, role: Role, parts: &[Part]) -> Message {
        let texts = parts.iter().map(|part| match part {
            Part::Text(text) => self.chat.quote(text),
            Part::Image => IMAGE_TOKEN.to_string(),
        });
        Message { role, content: texts.collect::<Vec<_>>().join("\n") }
    }

    /// The question of a command line: `<image>` says where a picture stands, other special tokens are text.
    pub fn typed_question(&self, text: &str) -> String {
        let pieces: Vec<String> = text.split(IMAGE_TOKEN).map(|piece| self.chat.quote(piece)).collect();
        pieces.join(IMAGE_TOKEN)
    }

    /// Renders, tokenizes and expands a conversation.
    ///
    /// # Errors
    /// `<image>` markers that are not as many as the pictures; a template that refuses the conversation; ids that the model
    /// does not have.
    pub fn prompt(&self, messages: &[Message], images: &[ProcessedImage]) -> Result<Prompt> {
        let mut pixel_values = vec![0.0; images.iter().map(|image| image.codes.len()).sum()];
        let mut rest = pixel_values.as_mut_slice();
        for image in images {
            let (place, after) = rest.split_at_mut(image.codes.len());
            self.images.normalize_into(&image.codes, place);
            rest = after;
        }
        self.expand(&self.chat.encode_prompt(messages)?, pixel_values)
    }

    /// Repeats each `<image>` of `ids` as often as a picture has features.
    ///
    /// # Errors
    /// `<image>` tokens that are not as many as the pictures in `pixel_values` `[N, 3, S, S]`; an id without a row in the
    /// embedding.
    pub fn expand(&self, ids: &[u32], pixel_values: Vec<f32>) -> Result<Prompt> {
        let image_token = self.config.image_token_index;
        let images = pixel_values.len() / (3 * self.images.crop_size * self.images.crop_size);
        let markers = ids.iter().filter(|&&id| id == image_token).count();
        ensure!(
            markers == images,
            "the prompt has {markers} {IMAGE_TOKEN} markers and {images} pictures; give one marker a picture, or none at all"
        );
        let rows = self.config.text.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            bail!(
                "the prompt has token id {id}, the model has {rows} (vocab_size); take the model's own tokenizer files"
            );
        }
        let features = self.config.image_seq_length();
        let mut input_ids = Vec::with_capacity(ids.len() + images * features);
        let mut image_positions = Vec::with_capacity(images * features);
        for &id in ids {
            let repeats = if id == image_token { features } else { 1 };
            if id == image_token {
                image_positions.extend(input_ids.len()..input_ids.len() + repeats);
            }
            input_ids.extend(std::iter::repeat_n(id, repeats));
        }
        Ok(Prompt { input_ids, image_positions, pixel_values, num_images: images })
    }

    /// Reads and processes a picture file.
    ///
    /// # Errors
    /// A file that cannot be read or is no usable picture, by name.
    pub fn read_image(&self, path: &Path) -> Result<ProcessedImage> {
        let bytes = std::fs::read(path).map_err(base::Error::io(path))?;
        self.process_image(&path.display().to_string(), &bytes)
    }

    /// Processes a picture's bytes; `place` is where they come from.
    ///
    /// # Errors
    /// No usable picture, by place.
    pub fn process_image(&self, place: &str, bytes: &[u8]) -> Result<ProcessedImage> {
        self.images.process(bytes).map_err(|error| {
            let expected = "a JPEG, PNG, GIF, WebP, BMP or TIFF picture";
            let found = match error {
                ImageError::Unidentified(what) => what,
                ImageError::TooLarge { .. } => error.to_string(),
                ImageError::Damaged(cause) => format!("a damaged picture: {cause}"),
            };
            base::Error::invalid(place, found, expected, "convert or replace the file").into()
        })
    }
}

/// A system prompt (empty for none) and one question; the pictures stand before it unless it says where.
pub fn single_question(system: &str, question: &str, images: usize) -> Vec<Message> {
    let content = with_markers(question, images);
    vec![Message { role: Role::System, content: system.to_string() }, Message { role: Role::User, content }]
}

fn with_markers(question: &str, images: usize) -> String {
    if question.contains(IMAGE_TOKEN) {
        return question.to_string();
    }
    format!("{}{question}", format!("{IMAGE_TOKEN}\n").repeat(images))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_stand_before_the_question_unless_it_says_where() {
        assert_eq!(with_markers("What?", 0), "What?");
        assert_eq!(with_markers("What?", 2), "<image>\n<image>\nWhat?");
        assert_eq!(with_markers("What?\n<image>", 1), "What?\n<image>");
        assert_eq!(single_question("", "What?", 1)[0].content, "", "no system prompt, not the default one");
        assert_eq!(single_question("Be brief.", "What?", 1)[0].content, "Be brief.");
    }
}
