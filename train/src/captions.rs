//! Sample captions of an evaluation: greedy captions of the first validation rows.

use anyhow::{Result, anyhow};
use base::IGNORE_INDEX;
use base::pulse;
use burn::tensor::Tensor;
use chat::ChatProcessor;
use kernels::kv_cache::KvCache;
use model::Llava;
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use serde::Serialize;
use shards::{Row, ShardSet};

/// Longest caption, tokens.
const MAX_NEW_TOKENS: usize = 64;

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
    pub fn read(shards: &ShardSet, count: usize, chat: ChatProcessor, config: &LlavaConfig) -> Result<Self> {
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
        let answers = greedy(model, config, &self.batch, &self.chat.eos_token_ids)?;
        let captioned = answers.iter().zip(&self.references).map(|(ids, (id, image, reference))| {
            let caption = self.chat.decode(ids, true)?.trim().to_string();
            Ok(SampleCaption { id: id.clone(), image: image.clone(), caption, references: vec![reference.clone()] })
        });
        captioned.collect()
    }
}

/// A row up to its first answer.
fn prompt(mut row: Row, image_token_index: u32) -> Row {
    let end = row.labels.iter().position(|&label| label != IGNORE_INDEX).unwrap_or(row.labels.len());
    let pixels_per_image = row.pixel_values.len() / row.images.len().max(1);
    row.input_ids.truncate(end);
    row.labels = vec![IGNORE_INDEX; end];
    let images = row.input_ids.iter().filter(|&&id| id as u32 == image_token_index).count();
    row.images.truncate(images);
    row.pixel_values.truncate(images * pixels_per_image);
    row
}

fn first_answer(row: &Row) -> Vec<u32> {
    let supervised = row.labels.iter().skip_while(|&&label| label == IGNORE_INDEX);
    supervised.take_while(|&&label| label != IGNORE_INDEX).map(|&label| label as u32).collect()
}

/// The most likely answer to each prompt of a batch, token by token, up to an end token (left out) or the longest length.
///
/// # Errors
/// A device that cannot give its values.
pub fn greedy(model: &Llava, config: &LlavaConfig, batch: &PackedBatch, eos: &[u32]) -> Result<Vec<Vec<u32>>> {
    let context = config.text.max_position_embeddings;
    let device = model.device();
    let room = |&len: &usize| MAX_NEW_TOKENS.min(context.saturating_sub(len));
    let limits: Vec<usize> = batch.seq_lens.iter().map(room).collect();
    let cache = |(len, limit)| config.text.kv_cache(len + limit, &device);
    let mut caches: Vec<KvCache> = batch.seq_lens.iter().copied().zip(limits.iter().copied()).map(cache).collect();
    let mut answers: Vec<Vec<u32>> = vec![Vec::new(); caches.len()];
    let mut logits = model.prefill(batch, &mut caches.iter_mut().collect::<Vec<_>>(), config);
    let mut active: Vec<usize> = (0..caches.len()).collect();
    while !active.is_empty() {
        pulse::mark();
        let tokens = most_likely(logits)?;
        let mut next = Vec::new();
        for (&sequence, &token) in active.iter().zip(&tokens) {
            if !eos.contains(&token) && answers[sequence].len() < limits[sequence] {
                answers[sequence].push(token);
                if answers[sequence].len() < limits[sequence] {
                    next.push(sequence);
                }
            }
        }
        active = next;
        if active.is_empty() {
            break;
        }
        let last: Vec<u32> = active.iter().filter_map(|&sequence| answers[sequence].last().copied()).collect();
        let mut in_use: Vec<&mut KvCache> =
            caches.iter_mut().enumerate().filter(|(index, _)| active.contains(index)).map(|(_, cache)| cache).collect();
        logits = model.decode(&last, &mut in_use, config);
    }
    Ok(answers)
}

/// The largest of each row of logits `[rows, V]`; the first of equal ones.
fn most_likely(logits: Tensor<2>) -> Result<Vec<u32>> {
    let [_, vocabulary] = logits.dims();
    let values: Vec<f32> =
        logits.into_data().convert::<f32>().try_into_vec().map_err(|error| anyhow!("reading logits: {error:?}"))?;
    let best = |row: &[f32]| {
        let better =
            |best: (usize, f32), (index, &value): (usize, &f32)| if value > best.1 { (index, value) } else { best };
        row.iter().enumerate().fold((0, f32::NEG_INFINITY), better).0 as u32
    };
    Ok(values.chunks_exact(vocabulary).map(best).collect())
}
