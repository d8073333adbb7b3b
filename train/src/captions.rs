//! Sample captions of an evaluation: greedy captions of the first validation rows.

use crate::mixture::Mixture;
use anyhow::Result;
use base::IGNORE_INDEX;
use base::pulse;
use chat::ChatProcessor;
use model::Llava;
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use serde::Serialize;
use shards::Row;

/// Longest caption, tokens.
pub const MAX_NEW_TOKENS: usize = 64;

/// A picture, what the model says of it, and what the data say. A line of `captions-<step>.jsonl`, as `infer caption` writes
/// them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleCaption {
    /// `id` of chat.json.
    pub id: String,
    /// File name.
    pub image: String,
    /// The model's answer to the row's first question.
    pub caption: String,
    /// The row's first answer.
    pub references: Vec<String>,
}

/// Prompts of a few rows.
pub struct Samples {
    batch: PackedBatch,
    references: Vec<(String, String, String)>,
    chat: ChatProcessor,
}

impl Samples {
    /// The first `count` rows.
    ///
    /// # Errors
    /// A row that cannot be read.
    pub fn read(shards: &Mixture, count: usize, chat: ChatProcessor, config: &LlavaConfig) -> Result<Self> {
        let (mut prompts, mut references) = (Vec::new(), Vec::new());
        for index in 0..count.min(shards.len()) {
            let row = shards.read_row(index)?;
            let answer = first_answer(&row);
            references.push((
                row.id.clone(),
                row.images.first().cloned().unwrap_or_default(),
                chat.decode(&answer, true)?.trim().to_string(),
            ));
            prompts.push(prompt(row, config.image_token_index));
        }
        let batch = PackedBatch::pack(prompts, config.image_token_index, config.image_seq_length())?;
        Ok(Self { batch, references, chat })
    }

    /// What the model (without autodiff) says.
    ///
    /// # Errors
    /// A device that cannot give its values; tokens that cannot be decoded.
    pub fn caption(&self, model: &Llava, config: &LlavaConfig) -> Result<Vec<SampleCaption>> {
        if self.references.is_empty() {
            return Ok(Vec::new());
        }
        let eos = &self.chat.eos_token_ids;
        let answers = model.greedy_answers(&self.batch, MAX_NEW_TOKENS, eos, config, pulse::mark)?;
        let captioned = answers.iter().zip(&self.references).map(|(ids, (id, image, reference))| {
            let caption = self.chat.decode(ids, true)?.trim().to_string();
            Ok(SampleCaption { id: id.clone(), image: image.clone(), caption, references: vec![reference.clone()] })
        });
        captioned.collect()
    }
}

/// A row up to its first answer.
pub(crate) fn prompt(mut row: Row, image_token_index: u32) -> Row {
    let end = row.labels.iter().position(|&label| label != IGNORE_INDEX).unwrap_or(row.labels.len());
    let pixels_per_image = row.pixel_values.len() / row.images.len().max(1);
    row.input_ids.truncate(end);
    row.labels = vec![IGNORE_INDEX; end];
    let images = row.input_ids.iter().filter(|&&id| id as u32 == image_token_index).count();
    row.images.truncate(images);
    row.pixel_values.truncate(images * pixels_per_image);
    row
}

/// Tokens of a row's first answer.
pub(crate) fn first_answer(row: &Row) -> Vec<u32> {
    let supervised = row.labels.iter().skip_while(|&&label| label == IGNORE_INDEX);
    supervised.take_while(|&&label| label != IGNORE_INDEX).map(|&label| label as u32).collect()
}
