//! The rows: counted in the shards, or given, or those of the data set that this is for.

use super::PlanArgs;
use super::model::RecipeTables;
use crate::config::Config;
use crate::mixture::Mixture;
use crate::order::SourceRows;
use crate::setup;
use anyhow::{Result, bail};
use base::{Error, IGNORE_INDEX};
use cli::weighted::WeightedFolder;
use model::config::LlavaConfig;
use shards::{PixelFormat, ShardIndex, ShardSet, Split};
use std::path::Path;
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
    /// Rows of an epoch.
    pub rows: usize,
    /// Rows of all sources.
    pub all_rows: usize,
    /// Where these numbers come from.
    pub source: String,
    /// The sources, where there are several or one has a weight.
    pub sources: Vec<(WeightedFolder, SourceRows)>,
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
    /// Of the rows of an epoch: some of each source, spread over it.
    ///
    /// # Errors
    /// Shards that cannot be read.
    pub fn of(mixture: &Mixture, model: &LlavaConfig) -> Result<Self> {
        let mut mean = Self { tokens: 0.0, supervised: 0.0, images: 0.0 };
        for (source, rows) in mixture.sources().iter().zip(mixture.rows()) {
            let share = rows.per_epoch as f64 / mixture.rows_per_epoch().max(1) as f64;
            let of_source = Self::sampled(&source.shards, model)?;
            mean.tokens += share * of_source.tokens;
            mean.supervised += share * of_source.supervised;
            mean.images += share * of_source.images;
        }
        Ok(mean)
    }

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
    /// A folder without shards that the recipe does not make either; shards that are there and cannot be read; a pixel format that
    /// does not exist.
    pub fn describe(config: &Config, args: &PlanArgs, recipe: &RecipeTables, model: &LlavaConfig) -> Result<Self> {
        let folders = config.data_path.folders();
        if !folders.is_empty() && folders.iter().all(|folder| folder.dir.join(shards::INDEX_FILE).exists()) {
            return Self::measured(config, args, model);
        }
        let made = |folder: &&WeightedFolder| recipe.shards.contains(&folder.dir);
        let is_there = |folder: &&WeightedFolder| folder.dir.join(shards::INDEX_FILE).exists();
        if args.rows.is_none()
            && let Some(missing) = folders.iter().find(|folder| !made(folder) && !is_there(folder))
        {
            return Err(no_shards(&missing.dir));
        }
        let expected = |folder: &WeightedFolder| (folder.clone(), SourceRows::weighted(CC3M_ROWS, folder.weight));
        let sources = listed(folders.iter().map(expected).collect());
        let (rows, all_rows, source) = match args.rows {
            Some(0) => bail!("--rows 0: expected at least 1"),
            Some(rows) => (rows, rows, "--rows".to_string()),
            None => {
                let sum = |of: fn(&SourceRows) -> usize| sources.iter().map(|(_, rows)| of(rows)).sum();
                let each = if sources.len() > 1 { " for each folder" } else { "" };
                let why = if folders.is_empty() { "no --data_path is given" } else { "there are no shards yet" };
                let source = format!("LLaVA-CC3M-Pretrain-595K's{each}, because {why}; --rows says otherwise");
                match sources.is_empty() {
                    true => (CC3M_ROWS, CC3M_ROWS, source),
                    false => (sum(|rows| rows.per_epoch), sum(|rows| rows.rows), source),
                }
            }
        };
        let sources = if args.rows.is_some() { Vec::new() } else { sources };
        let pixels = match recipe.preprocess.get("pixels").and_then(Value::as_str) {
            None => PixelFormat::Predicted,
            Some(name) => name.parse().map_err(|error| anyhow::anyhow!("[preprocess] pixels: {error}"))?,
        };
        let tokens = args.tokens_per_row.unwrap_or(model.image_seq_length() + CC3M_TEXT_TOKENS);
        Ok(Self {
            rows,
            all_rows,
            source,
            sources,
            row: MeanRow { tokens: tokens as f64, supervised: CC3M_SUPERVISED_TOKENS as f64, images: 1.0 },
            shard_bytes: all_rows as u64 * (pixels.expected_bytes(model.vision.image_size) + TEXT_BYTES),
            pixels,
            is_there: false,
            validation_rows: None,
        })
    }

    fn measured(config: &Config, args: &PlanArgs, model: &LlavaConfig) -> Result<Self> {
        let mixture = Mixture::open(&config.data_path, Split::Train)?;
        setup::check_lengths(config, model, &mixture)?;
        let mut row = MeanRow::of(&mixture, model)?;
        row.tokens = args.tokens_per_row.map_or(row.tokens, |tokens| tokens as f64);
        let folders = config.data_path.folders().iter();
        let indices = folders.map(|folder| Ok(ShardIndex::read(&folder.dir)?)).collect::<Result<Vec<_>>>()?;
        let sources = mixture.sources().iter().zip(mixture.rows());
        Ok(Self {
            rows: args.rows.unwrap_or(mixture.rows_per_epoch()),
            all_rows: args.rows.unwrap_or(mixture.len()),
            source: config.data_path.to_string(),
            sources: listed(sources.map(|(source, rows)| (source.folder.clone(), *rows)).collect()),
            row,
            shard_bytes: indices.iter().flat_map(|index| &index.shards).map(|shard| shard.bytes).sum(),
            pixels: mixture.metadata().map_or(PixelFormat::Predicted, |metadata| metadata.pixels),
            is_there: true,
            validation_rows: Some(indices.iter().map(|index| index.counts.validation).sum()),
        })
    }
}

/// A folder that is named has shards, or the recipe makes them.
fn no_shards(dir: &Path) -> anyhow::Error {
    let found = match dir.exists() {
        true => format!("no {}", shards::INDEX_FILE),
        false => "no such folder".to_string(),
    };
    let remedy = format!(
        "correct --data_path; --rows N plans for shards that are not there yet, and without --data_path the {} rows of \
         LLaVA-CC3M-Pretrain-595K are assumed",
        super::text::count(CC3M_ROWS)
    );
    Error::invalid(dir.display(), found, "a folder of shards, as preprocess shards writes it", remedy).into()
}

/// The sources that are worth a line: all, unless there is a single one of weight 1.
fn listed(sources: Vec<(WeightedFolder, SourceRows)>) -> Vec<(WeightedFolder, SourceRows)> {
    match sources.as_slice() {
        [(folder, _)] if folder.weight == 1.0 => Vec::new(),
        _ => sources,
    }
}
