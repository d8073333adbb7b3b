//! Checkpoints: complete model or adapter directories with everything that a run needs to go on.
//!
//! A checkpoint is written under a temporary name, its manifest last, and appears by rename: a folder called
//! `checkpoint-<step>` is whole.

use crate::collective::{Collective, all_reduce};
use crate::config::Config;
use crate::layout::Layout;
use crate::metrics::StepMetrics;
use crate::order::Cursor;
use crate::setup::Trainee;
use crate::zero::{self, Partitions};
use anyhow::{Context, Result};
use common::checkpoint::{TensorSource, copy_processor_files, save_model, write_file};
use common::config::WeightDtype;
use common::{adapter, files, json};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Weights larger than this are written in parts, bytes.
pub const MAX_PART_BYTES: usize = 5_000_000_000;
/// Names of a checkpoint's folders start so.
pub const PREFIX: &str = "checkpoint-";
/// Hashes of all other files; written last.
pub const MANIFEST: &str = "manifest.json";
/// transformers' name of the run's state.
pub const TRAINER_STATE: &str = "trainer_state.json";
/// The settings of the run.
pub const RUN_CONFIG: &str = "train_config.json";

/// Where a run stands: transformers' `TrainerState` fields, and ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Passes over the data, with fraction.
    pub epoch: f64,
    /// Finished optimizer updates (skipped steps are not counted).
    pub global_step: u64,
    /// Updates of the whole run.
    pub max_steps: u64,
    /// Passes that the run was started for.
    pub num_train_epochs: f64,
    /// Rows of a micro-batch.
    pub train_batch_size: usize,
    /// Steps between log lines.
    pub logging_steps: usize,
    /// Steps between checkpoints.
    pub save_steps: usize,
    /// Log lines so far.
    pub log_history: Vec<StepMetrics>,
    /// Lowest evaluation loss.
    pub best_metric: Option<f64>,
    /// Checkpoint with it.
    pub best_model_checkpoint: Option<String>,
    /// Always true: rank 0 writes this file.
    pub is_world_process_zero: bool,
    /// Tokens trained on, all ranks.
    pub num_input_tokens_seen: u64,
    /// Next row.
    pub cursor: Cursor,
    /// Identifies the shards.
    pub data_fingerprint: String,
    /// Ranks that wrote the checkpoint.
    pub world_size: usize,
    /// Steps skipped because a loss or gradient was not finite.
    pub skipped_steps: u64,
}

/// Writes `output_dir/checkpoint-<step>`: every rank its optimizer shard, rank 0 the rest.
///
/// # Errors
/// What the operating system refuses; a rank that failed.
pub fn save(
    config: &Config,
    trainee: &Trainee,
    layout: &Layout,
    partitions: &Partitions,
    state: &TrainerState,
    collective: &mut dyn Collective,
) -> Result<PathBuf> {
    let name = format!("{PREFIX}{}", state.global_step);
    let (dir, temporary) = (config.output_dir.join(&name), config.output_dir.join(format!(".{name}.writing")));
    if layout.rank == 0 {
        let _ = std::fs::remove_dir_all(&temporary);
        std::fs::create_dir_all(&temporary).with_context(|| temporary.display().to_string())?;
    }
    all_reduce(collective, "checkpoint folder", &mut [0.0])?;
    let file = format!("optimizer-{:05}-of-{:05}.safetensors", layout.rank, layout.world_size);
    save_optimizer(trainee, layout, partitions, &temporary.join(file))?;
    all_reduce(collective, "optimizer shards", &mut [0.0])?;
    if layout.rank == 0 {
        save_weights(config, trainee, &temporary)?;
        json::write(&temporary.join(TRAINER_STATE), state)?;
        json::write(&temporary.join(RUN_CONFIG), config)?;
        write_manifest(&temporary)?;
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
        files::publish(&temporary, &dir)?;
        prune(&config.output_dir, config.save_total_limit)?;
    }
    all_reduce(collective, "checkpoint", &mut [0.0])?;
    Ok(dir)
}

/// Writes the complete model (or adapter) directory.
///
/// # Errors
/// What the operating system refuses.
pub fn save_weights(config: &Config, trainee: &Trainee, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    match &trainee.lora {
        Some(lora) => {
            let base = std::path::absolute(&config.model_name_or_path)?;
            adapter::save_adapter(&trainee.model, lora, &base.display().to_string(), dir)?;
        }
        None => {
            save_model(&trainee.model, &trainee.config, dir, MAX_PART_BYTES)?;
            copy_processor_files(&config.model_name_or_path, dir)?;
        }
    }
    Ok(())
}

/// Prefixes of the tensors in an optimizer shard; what follows is the parameter's name and the first value's index.
pub const EXP_AVG: &str = "exp_avg";
/// See [`EXP_AVG`].
pub const EXP_AVG_SQ: &str = "exp_avg_sq";
/// The f32 values, where the model directory holds them rounded.
pub const MASTER: &str = "master";

/// Name of a stretch of a parameter in an optimizer shard.
pub fn stretch_name(kind: &str, param: &str, first: usize) -> String {
    format!("{kind}/{param}/{first}")
}

fn save_optimizer(trainee: &Trainee, layout: &Layout, partitions: &Partitions, path: &Path) -> Result<()> {
    let mut tensors = Vec::new();
    let rounded = trainee.lora.is_none() && trainee.config.dtype != WeightDtype::F32;
    for (index, block) in layout.blocks.iter().enumerate() {
        let masters = if rounded { Some(zero::values(&trainee.model, layout, index)?) } else { None };
        for param in &block.params {
            for (range, start) in block.owned_ranges(param, layout.rank) {
                let part = start..start + range.len();
                let mut push = |kind: &str, values: &[f32]| {
                    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                    tensors.push(TensorSource {
                        name: stretch_name(kind, &param.name, range.start),
                        dtype: WeightDtype::F32,
                        shape: vec![values.len()],
                        bytes: Box::new(move || Ok(bytes)),
                    });
                };
                push(EXP_AVG, &partitions.exp_avg[index][part.clone()]);
                push(EXP_AVG_SQ, &partitions.exp_avg_sq[index][part]);
                if let Some(masters) = &masters {
                    push(MASTER, &masters[param.offset..][range.clone()]);
                }
            }
        }
    }
    Ok(write_file(tensors, path)?)
}

/// File name → SHA-256 of a folder's files.
pub type Manifest = BTreeMap<String, String>;

fn write_manifest(dir: &Path) -> Result<()> {
    let mut manifest = Manifest::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        manifest.insert(entry.file_name().to_string_lossy().into_owned(), files::sha256_of_file(&entry.path())?);
    }
    json::write(&dir.join(MANIFEST), &manifest)?;
    Ok(files::sync_dir(dir)?)
}

/// The step of a checkpoint's folder by its name.
pub fn step_of(dir: &Path) -> Option<u64> {
    dir.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}

/// All checkpoints of a run, oldest first.
pub fn list(output_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(output_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(|path| step_of(path).is_some()).collect();
    found.sort_by_key(|path| step_of(path));
    found
}

/// Removes the oldest checkpoints; the newest is whole by now, so the last good one stays.
fn prune(output_dir: &Path, limit: usize) -> Result<()> {
    let found = list(output_dir);
    let surplus = if limit == 0 { 0 } else { found.len().saturating_sub(limit) };
    for dir in &found[..surplus] {
        std::fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    Ok(())
}
