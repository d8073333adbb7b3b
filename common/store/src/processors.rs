//! The processors of a model directory, and whether they fit its config.json: sizes, features of an image, token ids.

use crate::hub::{self, Wanted};
use base::{Error, Result, json, names};
use chat::{ChatProcessor, IMAGE_TOKEN};
use images::image_processor::ImageProcessor;
use model::config::LlavaConfig;
use serde::Deserialize;
use std::path::Path;

/// What `processor_config.json` says of the number of `<image>` tokens.
#[derive(Deserialize)]
struct TokenCount {
    patch_size: Option<usize>,
    /// Absent before transformers 4.49; a tower's class token is counted then.
    num_additional_image_tokens: Option<usize>,
    vision_feature_select_strategy: Option<String>,
}

/// What turns conversations and images into a model's input, with the configuration that says what the model takes.
pub struct Processors {
    /// `config.json`.
    pub config: LlavaConfig,
    /// Tokenizer and chat template.
    pub chat: ChatProcessor,
    /// Images to pixel values.
    pub images: ImageProcessor,
}

impl Processors {
    /// Reads those of a model directory.
    ///
    /// # Errors
    /// An unreadable file; processors that do not fit the model: the first number that differs, with both values and the files
    /// that they are from.
    pub fn read(dir: &Path) -> Result<Self> {
        hub::require_folder(dir, Wanted::Llava)?;
        let (chat, images) = (ChatProcessor::from_dir(dir)?, ImageProcessor::from_dir(dir)?);
        let config = LlavaConfig::read(dir)?;
        check(dir, &config, &chat, &images)?;
        Ok(Self { config, chat, images })
    }

    /// Refuses a tokenizer with more ids than the embedding has rows, for work that may use any of them. Published models have
    /// such tokenizers (a padding token that was added later); what does not meet these ids works with them.
    ///
    /// # Errors
    /// The largest id and the number of rows.
    pub fn require_rows_for_all_ids(&self, dir: &Path) -> Result<()> {
        let (ids, rows) = (self.chat.vocabulary_size(), self.config.text.vocab_size);
        if ids <= rows {
            return Ok(());
        }
        Err(Error::invalid(
            dir.join(names::TOKENIZER_FILE).display(),
            format!("ids up to {}", ids - 1),
            format!("ids below config.json's vocab_size, {rows}"),
            "take the tokenizer that the model was made with, or resize the embedding (resize_token_embeddings of transformers)",
        ))
    }
}

/// Refuses processors that would give the model other pixels, features or ids than it takes.
fn check(dir: &Path, config: &LlavaConfig, chat: &ChatProcessor, images: &ImageProcessor) -> Result<()> {
    let differ = |file: &str, found: String, expected: String| {
        Err(Error::invalid(dir.join(file).display(), found, expected, "take all files from the same model"))
    };
    let (crop, side) = (images.crop_size, config.vision.image_size);
    if crop != side {
        let found = format!("an image processor for pictures of {crop} pixels");
        return differ(names::PREPROCESSOR_CONFIG_FILE, found, format!("config.json's image_size, {side} pixels"));
    }
    let (token, index) = (chat.image_token_id, config.image_token_index);
    if token != index {
        let found = format!("id {token} for {IMAGE_TOKEN}");
        return differ(names::TOKENIZER_FILE, found, format!("config.json's image_token_index, {index}"));
    }
    let rows = config.text.vocab_size;
    if let Some(id) = chat.eos_token_ids.iter().find(|&&id| id as usize >= rows) {
        let found = format!("end-of-text id {id}");
        return differ(names::TOKENIZER_CONFIG_FILE, found, format!("an id below config.json's vocab_size, {rows}"));
    }
    let counted: Option<TokenCount> = json::read_if_there(&dir.join(names::PROCESSOR_CONFIG_FILE))?;
    let class_tokens = config.vision.tokens() - config.vision.patches();
    let (tokens, features) =
        (counted.and_then(|counted| counted.image_tokens(side, class_tokens)), config.image_seq_length());
    match tokens {
        Some(tokens) if tokens != features => {
            let found = format!("patch_size and strategy for {tokens} {IMAGE_TOKEN} tokens an image");
            differ(names::PROCESSOR_CONFIG_FILE, found, format!("config.json's {features} features an image"))
        }
        _ => Ok(()),
    }
}

impl TokenCount {
    /// `<image>` tokens of an image, where the file says enough to count them.
    ///
    /// # Source
    /// transformers `processing_llava.py`, `LlavaProcessor.__call__`.
    fn image_tokens(&self, side: usize, class_tokens: usize) -> Option<usize> {
        let patches = (side / self.patch_size.filter(|&size| size > 0)?).pow(2);
        let dropped = usize::from(self.vision_feature_select_strategy.as_deref()? == "default");
        (patches + self.num_additional_image_tokens.unwrap_or(class_tokens)).checked_sub(dropped)
    }
}
