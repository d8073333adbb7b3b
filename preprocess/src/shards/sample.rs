//! One row of a dataset → one sample of the shards, or the cause why not. Text first: it is cheap.

use super::ledger::{Cause, Refusal};
use super::plan::Plan;
use base::files;
use base::{Attachment, IGNORE_INDEX};
use chat::dataset::{Conversation, Questions, Record, SourceRow};
use chat::{ChatProcessor, TokenizedSample};
use images::image_files::{ImageFileError, ImageSources};
use images::image_processor::{ImageError, ImageProcessor, jpeg_orientation};
use shards::{Sample, SampleImage, Split};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What workers share.
pub struct RowProcessor<'a> {
    /// The model's tokenizer and chat template.
    pub chat: &'a ChatProcessor,
    /// The model's image processor.
    pub image_processor: &'a ImageProcessor,
    /// The dataset's images.
    pub images: &'a ImageSources,
    /// Questions of rows that have a caption only.
    pub questions: &'a Questions,
    /// The run's options.
    pub plan: &'a Plan,
    /// JPEG files so far that a viewer would turn.
    pub turned: AtomicUsize,
}

impl RowProcessor<'_> {
    /// Makes the sample of a row, and says where it belongs.
    pub fn process(&self, row: &SourceRow) -> Result<(Split, Sample), Refusal> {
        let record = Record::read(row, self.questions)?;
        let (id, group) = (record.id.clone(), record.group.clone());
        let conversation = record.conversation()?;
        let tokens = self.tokenize(&conversation)?;
        let images =
            conversation.images.iter().map(|name| self.image(name, &row.attachments)).collect::<Result<Vec<_>, _>>()?;
        // Names of pictures that come with a row are the row's own: another one may have the same picture.
        let content = images.first().filter(|_| !row.attachments.is_empty()).map(|image: &SampleImage| &image.sha256);
        let split = self.split(content.unwrap_or(&group));
        Ok((split, Sample { id, tokens, images }))
    }

    /// Train or validation: a function of what rows about one picture share (its name, or its content where it comes with the
    /// row), so that they are all on one side. Of several pictures the first one decides.
    fn split(&self, group: &str) -> Split {
        let hash = files::sha256(group.as_bytes());
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
        let (images, turns) = (conversation.images.len(), conversation.turns.len());
        check_supervision(&tokens, images, turns, self.chat.image_token_id, &self.chat.eos_token_ids)?;
        check_length(&tokens, images, self.plan.image_seq_length, self.plan.max_length)?;
        Ok(tokens)
    }

    fn image(&self, name: &str, attachments: &[Attachment]) -> Result<SampleImage, Refusal> {
        let bytes = self.images.read_with(attachments, name).map_err(|error| {
            let cause = match error {
                ImageFileError::Missing(_) => Cause::MissingImage,
                ImageFileError::Unreadable(_) => Cause::UnreadableImage,
                ImageFileError::TooLarge { .. } => Cause::ImageTooLarge,
            };
            Refusal::new(cause, error.to_string())
        })?;
        let refuse = |error: ImageError| {
            let cause = match error {
                ImageError::Unidentified(_) => Cause::NotAnImage,
                ImageError::TooLarge { .. } => Cause::ImageTooLarge,
                ImageError::Damaged(_) => Cause::DamagedImage,
            };
            Refusal::new(cause, format!("{name}: {error}"))
        };
        if jpeg_orientation(&bytes).is_some_and(|orientation| orientation > 1) {
            self.turned.fetch_add(1, Ordering::Relaxed);
        }
        let sha256 = files::sha256_hex(&bytes);
        let (width, height, payload) = if self.plan.metadata.pixels.stores_source() {
            let (width, height) = ImageProcessor::check(&bytes).map_err(refuse)?;
            (width, height, bytes)
        } else {
            let image = self.image_processor.process(&bytes).map_err(refuse)?;
            (image.width, image.height, image.codes)
        };
        Ok(SampleImage { name: name.to_owned(), sha256, width, height, payload })
    }
}

/// Every answer is supervised to its end token, and images are where the images go.
fn check_supervision(
    tokens: &TokenizedSample,
    images: usize,
    turns: usize,
    image_token_id: u32,
    eos_token_ids: &[u32],
) -> Result<(), Refusal> {
    let markers = tokens.input_ids.iter().filter(|&&id| id == image_token_id as i32).count();
    if markers != images {
        let detail = format!("{markers} image token(s), {images} image(s); as many are expected");
        return Err(Refusal::new(Cause::ImageMarkers, detail));
    }
    let labels = &tokens.labels;
    if labels.iter().all(|&label| label == IGNORE_INDEX) {
        return Err(Refusal::new(Cause::NoSupervision, "no supervised token".to_owned()));
    }
    let is_end = |label: i32| eos_token_ids.iter().any(|&eos| label == eos as i32);
    let ends_here =
        |index: usize| labels[index] != IGNORE_INDEX && labels.get(index + 1).is_none_or(|&next| next == IGNORE_INDEX);
    let ends: Vec<i32> = (0..labels.len()).filter(|&index| ends_here(index)).map(|index| labels[index]).collect();
    if ends.len() != turns || !ends.into_iter().all(is_end) {
        let detail = "an answer does not end with the end-of-turn token".to_owned();
        return Err(Refusal::new(Cause::NoSupervision, detail));
    }
    Ok(())
}

/// Nothing is ever cut: a row that is too long is refused, with what a cut would have taken.
fn check_length(
    tokens: &TokenizedSample,
    images: usize,
    image_seq_length: usize,
    max_length: usize,
) -> Result<(), Refusal> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: u32 = 9;
    const EOS: u32 = 2;
    const NONE: i32 = IGNORE_INDEX;

    fn cause(input_ids: &[i32], labels: &[i32], images: usize, turns: usize) -> Option<Cause> {
        let tokens = TokenizedSample { input_ids: input_ids.to_vec(), labels: labels.to_vec() };
        check_supervision(&tokens, images, turns, IMAGE, &[EOS]).err().map(|refusal| refusal.cause)
    }

    #[test]
    fn a_row_whose_labels_could_not_teach_it_is_refused() {
        assert_eq!(cause(&[9, 5, 7, 2], &[NONE, NONE, 7, 2], 1, 1), None);
        assert_eq!(cause(&[5, 7, 2, 5, 8, 2], &[NONE, 7, 2, NONE, 8, 2], 0, 2), None);
        for (what, input_ids, labels, images, turns, expected) in [
            ("no label", &[9, 5, 7, 2][..], &[NONE; 4][..], 1, 1, Cause::NoSupervision),
            ("cut before its end", &[9, 5, 7], &[NONE, NONE, 7], 1, 1, Cause::NoSupervision),
            ("an earlier answer without end", &[5, 7, 5, 8, 2], &[NONE, 7, NONE, 8, 2], 0, 2, Cause::NoSupervision),
            ("an answer is missing", &[5, 7, 2], &[NONE, 7, 2], 0, 2, Cause::NoSupervision),
            ("image token cut", &[5, 7, 2], &[NONE, 7, 2], 1, 1, Cause::ImageMarkers),
            ("more image tokens than images", &[9, 9, 7, 2], &[NONE, NONE, 7, 2], 1, 1, Cause::ImageMarkers),
        ] {
            assert_eq!(cause(input_ids, labels, images, turns), Some(expected), "{what}");
        }
    }

    #[test]
    fn the_limit_counts_images_as_features_and_nothing_is_cut() {
        let tokens = TokenizedSample { input_ids: vec![9, 5, 7, 2], labels: vec![NONE, NONE, 7, 2] };
        assert!(check_length(&tokens, 1, 576, 579).is_ok(), "3 of text, 576 of the image");
        for (max_length, lost) in [(578, "answers would be cut"), (577, "question and image would be cut")] {
            let refusal = check_length(&tokens, 1, 576, max_length).expect_err("refused");
            assert_eq!(refusal.cause, Cause::TooLong);
            assert!(refusal.detail.contains(lost), "{}", refusal.detail);
        }
    }
}
