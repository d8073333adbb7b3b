//! One row of chat.json → one sample of the shards, or the cause why not. Text first: it is cheap.

use super::chat_json::SourceRow;
use super::conversation::{self, Conversation};
use super::images::ImageSources;
use super::ledger::{Cause, Refusal};
use super::plan::Plan;
use common::IGNORE_INDEX;
use common::chat::{ChatProcessor, TokenizedSample};
use common::files;
use common::image_processor::{ImageError, ImageProcessor};
use common::shard::{Sample, SampleImage, Split};

/// What workers share.
pub struct RowProcessor<'a> {
    /// The model's tokenizer and chat template.
    pub chat: &'a ChatProcessor,
    /// The model's image processor.
    pub image_processor: &'a ImageProcessor,
    /// The dataset's images.
    pub images: &'a ImageSources,
    /// The run's options.
    pub plan: &'a Plan,
}

impl RowProcessor<'_> {
    /// Makes the sample of a row whose id is `id`.
    pub fn process(&self, id: String, row: &SourceRow) -> Result<Sample, Refusal> {
        let conversation = conversation::read(row.json.get(), (row.line, row.column))?;
        let tokens = self.tokenize(&conversation)?;
        let images = conversation.images.iter().map(|name| self.image(name)).collect::<Result<_, _>>()?;
        Ok(Sample { id, tokens, images })
    }

    /// Train or validation: a function of the id alone.
    pub fn split(&self, id: &str) -> Split {
        let hash = files::sha256(id.as_bytes());
        let hash = u64::from_le_bytes(std::array::from_fn(|index| hash[index]));
        // 2⁶⁴ as f64 is exact; the fraction is below 1.
        let held_out = (hash as f64) < self.plan.validation_fraction * 2f64.powi(64);
        if held_out { Split::Validation } else { Split::Train }
    }

    fn tokenize(&self, conversation: &Conversation) -> Result<TokenizedSample, Refusal> {
        let system = conversation.system.as_deref().unwrap_or(&self.plan.system_prompt);
        let tokens = self
            .chat
            .encode_sample(system, &conversation.turns)
            .map_err(|error| Refusal::new(Cause::BadText, error.to_string()))?;
        self.check_supervision(&tokens, conversation)?;
        self.check_length(&tokens, conversation.images.len())?;
        Ok(tokens)
    }

    /// Every answer is supervised to its end token, and images are where the images go.
    fn check_supervision(&self, tokens: &TokenizedSample, conversation: &Conversation) -> Result<(), Refusal> {
        let image_token = self.chat.image_token_id as i32;
        let markers = tokens.input_ids.iter().filter(|&&id| id == image_token).count();
        if markers != conversation.images.len() {
            let detail =
                format!("{markers} image token(s), {} image(s); as many are expected", conversation.images.len());
            return Err(Refusal::new(Cause::ImageMarkers, detail));
        }
        let labels = &tokens.labels;
        if labels.iter().all(|&label| label == IGNORE_INDEX) {
            return Err(Refusal::new(Cause::NoSupervision, "no supervised token".to_owned()));
        }
        let is_end = |label: i32| self.chat.eos_token_ids.iter().any(|&eos| label == eos as i32);
        let ends_here = |index: usize| {
            labels[index] != IGNORE_INDEX && labels.get(index + 1).is_none_or(|&next| next == IGNORE_INDEX)
        };
        let ends: Vec<i32> = (0..labels.len()).filter(|&index| ends_here(index)).map(|index| labels[index]).collect();
        if ends.len() != conversation.turns.len() || !ends.into_iter().all(is_end) {
            let detail = "an answer does not end with the end-of-turn token".to_owned();
            return Err(Refusal::new(Cause::NoSupervision, detail));
        }
        Ok(())
    }

    /// Nothing is ever cut: a row that is too long is refused, with what a cut would have taken.
    fn check_length(&self, tokens: &TokenizedSample, images: usize) -> Result<(), Refusal> {
        let Plan { max_length, image_seq_length, .. } = *self.plan;
        let text = tokens.input_ids.len() - images;
        let length = text + images * image_seq_length;
        if length <= max_length {
            return Ok(());
        }
        let prompt = tokens.labels.iter().take_while(|&&label| label == IGNORE_INDEX).count();
        let prompt = prompt + images * image_seq_length.saturating_sub(1);
        let lost = if prompt < max_length { "answers would be cut" } else { "question and image would be cut" };
        let detail = format!(
            "{length} tokens ({text} of text, {images} × {image_seq_length} of images), --max-length {max_length}: {lost}"
        );
        Err(Refusal::new(Cause::TooLong, detail))
    }

    fn image(&self, name: &str) -> Result<SampleImage, Refusal> {
        let bytes = self.images.read(name)?;
        let processed = self.image_processor.process(&bytes).map_err(|error| {
            let cause = match error {
                ImageError::Unidentified(_) => Cause::NotAnImage,
                ImageError::TooLarge { .. } => Cause::ImageTooLarge,
                ImageError::Damaged(_) => Cause::DamagedImage,
            };
            Refusal::new(cause, format!("{name}: {error}"))
        })?;
        let sha256 = files::sha256_hex(&bytes);
        let payload = if self.plan.metadata.pixels.stores_source() { bytes } else { processed.codes };
        Ok(SampleImage { name: name.to_owned(), sha256, width: processed.width, height: processed.height, payload })
    }
}
