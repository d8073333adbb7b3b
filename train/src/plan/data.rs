//! The rows: counted in the shards, or given, or those of the data set that this is for.

use super::PlanArgs;
use super::model::RecipeTables;
use crate::config::Config;
use crate::setup;
use anyhow::{Result, bail};
use base::IGNORE_INDEX;
use model::config::LlavaConfig;
use shards::{PixelFormat, ShardIndex, ShardSet, Split};
use toml::Value;

/// Rows of liuhaotian/LLaVA-CC3M-Pretrain-595K.
pub const CC3M_ROWS: usize = 595_375;
/// Tokens of its rows beside the image: system prompt, question, caption; and the supervised ones of them.
const CC3M_TEXT_TOKENS: usize = 40;
const CC3M_SUPERVISED_TOKENS: usize = 15;
/// Rows of shards that are looked at.
const SAMPLED_ROWS: usize = 32;
/// Bytes of a row beside its pixels, compressed.
pub(super) const TEXT_BYTES: u64 = 400;

/// What there is to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// Rows of the training split.
    pub rows: usize,
    /// Where that number comes from.
    pub source: String,
    /// The mean row.
    pub row: MeanRow,
    /// Bytes of the shards, pixel format.
    pub shard_bytes: u64,
    /// How the pixels are stored.
    pub pixels: PixelFormat,
    /// The shards are there.
    pub is_there: bool,
    /// Rows of the validation split, where the shards are there.
    pub validation_rows: Option<usize>,
}

/// A row, on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeanRow {
    /// Tokens, images expanded.
    pub tokens: f64,
    /// Supervised tokens.
    pub supervised: f64,
    /// Images.
    pub images: f64,
}

impl MeanRow {
    /// Of some rows, spread over the whole set.
    ///
    /// # Errors
    /// Shards that cannot be read.
    pub fn sampled(shards: &ShardSet, model: &LlavaConfig) -> Result<Self> {
        let sampled = SAMPLED_ROWS.min(shards.len());
        let (mut tokens, mut supervised, mut images) = (0, 0, 0);
        for sample in 0..sampled {
            let row = shards.read_row(sample * shards.len() / sampled)?;
            tokens += row.input_ids.len() + row.images.len() * (model.image_seq_length() - 1);
            supervised += row.labels.iter().filter(|&&label| label != IGNORE_INDEX).count();
            images += row.images.len();
        }
        let mean = |sum: usize| sum as f64 / sampled.max(1) as f64;
        Ok(Self { tokens: mean(tokens), supervised: mean(supervised), images: mean(images) })
    }
}

impl Data {
    /// Looks at the shards if they are there.
    ///
    /// # Errors
    /// Shards that are there and cannot be read; a pixel format that does not exist.
    pub fn describe(config: &Config, args: &PlanArgs, recipe: &RecipeTables, model: &LlavaConfig) -> Result<Self> {
        let dir = &config.data_path;
        if !dir.as_os_str().is_empty() && dir.join(shards::INDEX_FILE).exists() {
            return Self::measured(config, args, model);
        }
        let (rows, source) = match args.rows {
            Some(0) => bail!("--rows 0: expected at least 1"),
            Some(rows) => (rows, "--rows".to_string()),
            None => {
                (CC3M_ROWS, "LLaVA-CC3M-Pretrain-595K's, because there are no shards yet; --rows says otherwise".into())
            }
        };
        let pixels = match recipe.preprocess.get("pixels").and_then(Value::as_str) {
            None => PixelFormat::Predicted,
            Some(name) => name.parse().map_err(|error| anyhow::anyhow!("[preprocess] pixels: {error}"))?,
        };
        let tokens = args.tokens_per_row.unwrap_or(model.image_seq_length() + CC3M_TEXT_TOKENS);
        Ok(Self {
            rows,
            source,
            row: MeanRow { tokens: tokens as f64, supervised: CC3M_SUPERVISED_TOKENS as f64, images: 1.0 },
            shard_bytes: rows as u64 * (pixels.expected_bytes(model.vision.image_size) + TEXT_BYTES),
            pixels,
            is_there: false,
            validation_rows: None,
        })
    }

    fn measured(config: &Config, args: &PlanArgs, model: &LlavaConfig) -> Result<Self> {
        let index = ShardIndex::read(&config.data_path)?;
        let shards = ShardSet::open(&config.data_path, Split::Train)?;
        setup::check_lengths(config, model, &shards)?;
        let rows = args.rows.unwrap_or(shards.len());
        let mut row = MeanRow::sampled(&shards, model)?;
        row.tokens = args.tokens_per_row.map_or(row.tokens, |tokens| tokens as f64);
        Ok(Self {
            rows,
            source: config.data_path.display().to_string(),
            row,
            shard_bytes: index.shards.iter().map(|shard| shard.bytes).sum(),
            pixels: index.metadata.pixels,
            is_there: true,
            validation_rows: Some(index.counts.validation),
        })
    }
}
