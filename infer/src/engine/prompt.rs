//! A conversation and its pictures as the model's input.

use super::Processors;
use anyhow::{Result, bail, ensure};
use base::{IGNORE_INDEX, Row};
use chat::{IMAGE_TOKEN, Message, Role};
use images::image_processor::{ImageError, ProcessedImage};
use model::batch::PackedBatch;
use std::path::Path;

/// A file with a picture, for errors.
pub const PICTURE: &str = "a picture file";

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text, in which special tokens are text.
    Text(String),
    /// A picture.
    Image,
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

    /// Renders, tokenizes and expands a conversation: a batch of one row without labels.
    ///
    /// # Errors
    /// `<image>` markers that are not as many as the pictures; a template that refuses the conversation; ids that the model
    /// does not have.
    pub fn prompt(&self, messages: &[Message], images: &[ProcessedImage]) -> Result<PackedBatch> {
        let mut pixel_values = vec![0.0; images.iter().map(|image| image.codes.len()).sum()];
        let mut rest = pixel_values.as_mut_slice();
        for image in images {
            let (place, after) = rest.split_at_mut(image.codes.len());
            self.images.normalize_into(&image.codes, place);
            rest = after;
        }
        self.expand(&self.chat.encode_prompt(messages)?, pixel_values)
    }

    /// The prompt of one question about pictures, under a system prompt (empty for none).
    ///
    /// # Errors
    /// As [`Self::prompt`].
    pub fn ask(&self, images: &[ProcessedImage], question: &str, system: &str) -> Result<PackedBatch> {
        self.prompt(&single_question(system, question, images.len()), images)
    }

    /// A batch of one row without labels, each `<image>` of `ids` repeated as often as a picture has features.
    ///
    /// # Errors
    /// `<image>` tokens that are not as many as the pictures in `pixel_values` `[N, 3, S, S]`; an id without a row in the
    /// embedding.
    pub fn expand(&self, ids: &[u32], pixel_values: Vec<f32>) -> Result<PackedBatch> {
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
        let row = Row {
            id: "the prompt".into(),
            images: vec![String::new(); images],
            input_ids: ids.iter().map(|&id| id as i32).collect(),
            labels: vec![IGNORE_INDEX; ids.len()],
            pixel_values,
        };
        Ok(PackedBatch::pack(vec![row], image_token, self.config.image_seq_length())?)
    }

    /// The prompt of a row of shards: what precedes its first supervised token.
    ///
    /// # Errors
    /// As [`Self::expand`].
    pub fn prompt_of_row(&self, row: &Row) -> Result<PackedBatch> {
        let begin = row.labels.iter().position(|&label| label != IGNORE_INDEX).unwrap_or(row.labels.len());
        let ids: Vec<u32> = row.input_ids[..begin].iter().map(|&id| id as u32).collect();
        self.expand(&ids, row.pixel_values.clone())
    }

    /// Reads and processes a picture file.
    ///
    /// # Errors
    /// A file that cannot be read or is no usable picture, by name.
    pub fn read_image(&self, path: &Path) -> Result<ProcessedImage> {
        let bytes = std::fs::read(path).map_err(cli::inputs::unread(path, PICTURE))?;
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
