//! Disk: a checkpoint, all that are kept, the final model, the shards.

use super::data::Data;
use super::parameters::PartCount;
use crate::config::{Config, Strategy};
use crate::setup;
use crate::vision_cache::VisionFeatureCache;
use model::config::{LlavaConfig, WeightDtype};

/// Tokenizer, processors, states, manifest: a few megabytes whatever the model.
const SMALL_FILES: u64 = 8_000_000;
const F32: u64 = 4;

/// Bytes on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Weights or adapter of a checkpoint.
    pub weights: u64,
    /// Optimizer state of a checkpoint, all ranks.
    pub optimizer: u64,
    /// Checkpoints at the same time at most, the one being written included.
    pub checkpoints: u64,
    /// Shards.
    pub shards: u64,
    /// Features of the vision tower that are kept beside them, when all are there.
    pub vision_features: u64,
}

impl Disk {
    /// What the settings lead to.
    pub fn estimate(
        config: &Config,
        model: &LlavaConfig,
        parts: &[PartCount],
        data: &Data,
        max_steps: u64,
        steps_per_epoch: u64,
    ) -> Self {
        let sum = |of: fn(&PartCount) -> usize| parts.iter().map(of).sum::<usize>() as u64;
        let (all, trained) = (sum(|part| part.values), sum(|part| part.trained));
        let is_lora = config.train_type.uses_lora();
        let rounded = !is_lora && model.dtype != WeightDtype::F32;
        let weights = if is_lora {
            // Every tensor of an adapter stands under both of PEFT's spellings; those that get no gradient are written too.
            2 * F32 * (trained + sum(|part| part.unreachable))
        } else {
            all * model.dtype.size() as u64
        };
        // Two moments, and the exact values where the weights are rounded.
        let optimizer = trained * F32 * if rounded { 3 } else { 2 };
        let written = match config.save_strategy {
            Strategy::No => 0,
            // The last step is saved, too.
            Strategy::Steps => max_steps.div_ceil(config.save_steps.in_run(max_steps)),
            Strategy::Epoch => max_steps.div_ceil(steps_per_epoch.max(1)),
        };
        let kept = match config.save_total_limit as u64 {
            0 => written,
            // The oldest goes only when the newest is whole, and the best one stays.
            limit => written.min(limit + 1 + u64::from(config.load_best_model_at_end)),
        };
        let images = (data.all_rows as f64 * data.row.images).round() as usize;
        let vision_features = setup::cached_as(config.cache_vision_features)
            .map_or(0, |format| VisionFeatureCache::bytes_of(images, model, format));
        Self { weights, optimizer, checkpoints: kept, shards: data.shard_bytes, vision_features }
    }

    /// One checkpoint.
    pub fn checkpoint(&self) -> u64 {
        self.weights + self.optimizer + SMALL_FILES
    }

    /// Everything in the run's folder at its fullest.
    pub fn run(&self) -> u64 {
        self.checkpoints * self.checkpoint() + self.weights + SMALL_FILES
    }
}
