//! `train plan`: what a run will do and need, from configuration files alone.

mod data;
mod disk;
mod machine;
mod memory;
mod model;
mod parameters;
mod text;

pub use data::Data;
pub use disk::Disk;
pub use machine::Machine;
pub use memory::Memory;
pub use parameters::{PartCount, parameters};

use crate::config::Config;
use crate::order::BatchPlan;
use anyhow::Result;
use common::config::LlavaConfig;
use std::path::{Path, PathBuf};

/// Options of `train plan` beside those of `train`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct PlanArgs {
    /// Rows of the data, where the shards are not there yet.
    #[arg(long, value_name = "N")]
    pub rows: Option<usize>,
    /// Tokens of a row with its image expanded, where the shards are not there yet.
    #[arg(long, value_name = "N")]
    pub tokens_per_row: Option<usize>,
    /// CLIP directory (its config.json is enough), where the model directory is not there yet.
    #[arg(long, value_name = "DIR")]
    pub vision_tower: Option<PathBuf>,
    /// Qwen2 directory (its config.json is enough), where the model directory is not there yet.
    #[arg(long, value_name = "DIR")]
    pub language_model: Option<PathBuf>,
}

/// Everything that is known of a run before it starts.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The settings.
    pub config: Config,
    /// The model.
    pub model: LlavaConfig,
    /// Where the model's description comes from.
    pub model_source: String,
    /// The rows.
    pub data: Data,
    /// Rows, batches, steps.
    pub batches: BatchPlan,
    /// Optimizer steps of the run.
    pub max_steps: u64,
    /// Parameters by part.
    pub parts: Vec<PartCount>,
    /// Memory of a rank.
    pub memory: Memory,
    /// Disk.
    pub disk: Disk,
    /// What this machine has.
    pub machine: Machine,
}

impl Plan {
    /// Works everything out. Neither weights nor shards are needed.
    ///
    /// # Errors
    /// No configuration of the model anywhere; settings that contradict it.
    pub fn new(config: &Config, args: &PlanArgs, recipe: Option<&Path>) -> Result<Self> {
        let recipe = model::RecipeTables::read(recipe)?;
        let (model, model_source) = model::describe(config, args, &recipe)?;
        let lora = model::lora(config)?;
        let data = Data::describe(config, args, &recipe, &model)?;
        let batches = BatchPlan {
            rows: data.rows,
            micro_batch_size: config.per_device_train_batch_size,
            accumulation: config.gradient_accumulation_steps,
            world_size: config.nproc,
        };
        let parts = parameters(&model, config.train_type, lora.as_ref());
        let max_steps = batches.max_steps(config.max_steps, config.num_train_epochs);
        let memory = Memory::estimate(config, &model, lora.as_ref(), &data);
        let disk = Disk::estimate(config, &model, &parts, &data, max_steps, batches.steps_per_epoch());
        let machine = Machine::look(&config.output_dir);
        let config = config.clone();
        Ok(Self { config, model, model_source, data, batches, max_steps, parts, memory, disk, machine })
    }

    /// Values of the whole model, LoRA matrices not counted.
    pub fn model_values(&self) -> usize {
        self.parts.iter().filter(|part| !part.is_lora()).map(|part| part.values).sum()
    }

    /// Values that are trained.
    pub fn trained_values(&self) -> usize {
        self.parts.iter().map(|part| part.trained).sum()
    }
}

/// The plan as text, for stdout.
///
/// # Errors
/// As [`Plan::new`].
pub fn run(config: &Config, args: &PlanArgs, recipe: Option<&Path>) -> Result<String> {
    Ok(Plan::new(config, args, recipe)?.to_string())
}
