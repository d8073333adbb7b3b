//! `train plan`: what a run will do and need, from configuration files alone.

mod activations;
mod data;
mod disk;
mod fit;
mod gpu;
mod machine;
mod memory;
mod model;
mod operations;
mod parameters;
mod scaling;
mod speed;
mod text;

pub use data::{Data, MeanRow};
pub use disk::Disk;
pub use fit::Misfit;
pub use machine::Machine;
pub use memory::{Memory, Rows, Setting};
pub use model::lora;
pub use parameters::{PartCount, parameters};
pub use scaling::ScalingArgs;
pub use text::size;

use crate::base_format;
use crate::collective::launch;
use crate::config::Config;
use crate::learning_rates::LearningRates;
use crate::order::BatchPlan;
use crate::setup;
use ::model::config::LlavaConfig;
use ::model::lora::LoraConfig;
use ::model::quantized::Rounding;
use anyhow::Result;
use model::RecipeTables;
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
    /// Vision tower's directory (its config.json is enough), where the model directory is not there yet.
    #[arg(long, value_name = "DIR")]
    pub vision_tower: Option<PathBuf>,
    /// Language model's directory (its config.json is enough), where the model directory is not there yet.
    #[arg(long, value_name = "DIR")]
    pub language_model: Option<PathBuf>,
    /// Memory of a GPU, for a plan of a machine that is not this one; default: that of this machine's smallest GPU.
    #[arg(long, value_name = "GB", value_parser = gigabytes)]
    pub gpu_memory: Option<u64>,
    /// The table of more ranks.
    #[command(flatten)]
    pub scaling: ScalingArgs,
}

/// `80` is 80 · 10⁹ bytes.
fn gigabytes(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok((value * 1e9) as u64),
        _ => Err(format!("found {text:?}, expected a number of GB above 0")),
    }
}

/// Everything that is known of a run before it starts.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The settings.
    pub config: Config,
    /// The model.
    pub model: LlavaConfig,
    /// LoRA, with `use_lora`.
    pub lora: Option<LoraConfig>,
    /// How the frozen base is held, where it is in few bits.
    pub base: Option<Rounding>,
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
    /// Memory of each GPU, bytes, where the run computes on GPUs and it is known.
    pub gpu_memory: Option<u64>,
    /// Bytes of checkpoints that a resumed run has already: its own take their place.
    pub of_run: u64,
    /// Ranks on this machine.
    pub ranks_here: usize,
    /// Floating-point operations a second of this machine, where they were measured.
    pub speed: Option<f64>,
}

impl Plan {
    /// Works everything out. Neither weights nor shards are needed. `earlier` stages of the recipe may be what this one
    /// starts from.
    ///
    /// # Errors
    /// No configuration of the model anywhere; settings that contradict it.
    pub fn new(config: &Config, args: &PlanArgs, recipe: &RecipeTables, earlier: &[Plan]) -> Result<Self> {
        let output_of = |dir: &Path| earlier.iter().rfind(|stage| stage.config.output_dir == dir);
        let (model, model_source) = match output_of(&config.model_name_or_path) {
            Some(stage) => {
                (stage.model.clone(), format!("the output of an earlier stage, which has {}", stage.model_source))
            }
            None => model::describe(config, args, recipe)?,
        };
        let lora = match config.init_adapter.as_deref().and_then(output_of) {
            Some(stage) => stage.lora.clone(),
            None => model::lora(config, &model)?,
        };
        LearningRates::of(config).require_trained(config, &model, lora.as_ref())?;
        let base = base_format::of_run(config, &model, lora.as_ref())?;
        let data = Data::describe(config, args, recipe, &model)?;
        let (world_size, ranks_here) = launch::ranks(config.nproc);
        let batches = BatchPlan {
            rows: data.rows,
            micro_batch_size: config.per_device_train_batch_size,
            accumulation: config.gradient_accumulation_steps,
            world_size,
            end: None,
        };
        let parts = parameters(&model, config.train_type, lora.as_ref());
        let max_steps = batches.max_steps(config.max_steps, config.num_train_epochs);
        let in_bf16 = setup::wants_bf16(config)?;
        let memory = Memory::estimate(
            Setting { config, model: &model, lora: lora.as_ref(), world_size, in_bf16, base: base.as_ref() },
            Rows { count: data.all_rows, mean: data.row },
        );
        let disk = Disk::estimate(config, &model, &parts, &data, max_steps, batches.steps_per_epoch());
        let machine = Machine::look(&config.output_dir);
        let device = config.device_kind();
        let is_on_gpu = device.as_ref().is_ok_and(|device| device.is_gpu());
        if let (Some(bytes), false) = (args.gpu_memory, is_on_gpu) {
            let device = device.map_or_else(|_| config.device.clone(), |device| device.to_string());
            let found = format!("{} GB, which has no effect: the run computes on {device}", bytes as f64 / 1e9);
            let remedy = "add --device cuda, or leave --gpu-memory out";
            return Err(base::Error::usage("--gpu-memory", found, "a run on a GPU", remedy).into());
        }
        let gpu_memory = args.gpu_memory.or(machine.gpu_memory).filter(|_| is_on_gpu);
        Ok(Self {
            config: config.clone(),
            model,
            lora,
            base,
            model_source,
            data,
            batches,
            max_steps,
            parts,
            memory,
            disk,
            machine,
            gpu_memory,
            of_run: config.resume_from_checkpoint.as_ref().map_or(0, |_| machine::bytes_of(&config.output_dir)),
            ranks_here,
            speed: None,
        })
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

/// What this machine lacks for a run that is about to start; nothing where that is not known.
pub fn misfits(config: &Config) -> Vec<Misfit> {
    // Settings and files that contradict each other are errors of the run itself, which says more about them.
    let plan = Plan::new(config, &PlanArgs::default(), &RecipeTables::default(), &[]);
    plan.ok().filter(|plan| plan.data.is_there).map(|plan| plan.misfits()).unwrap_or_default()
}

/// The plan of every stage as text, for stdout, and whether all of them fit this machine.
///
/// # Errors
/// As [`Plan::new`].
pub fn run(stages: &[Config], args: &PlanArgs, recipe: Option<&Path>) -> Result<(String, bool)> {
    let recipe = RecipeTables::read(recipe)?;
    let mut plans: Vec<Plan> = Vec::new();
    for config in stages {
        plans.push(Plan::new(config, args, &recipe, &plans)?);
    }
    let speed = speed::measure();
    plans.iter_mut().filter(|plan| !plan.is_on_gpu()).for_each(|plan| plan.speed = Some(speed));
    let fits = plans.iter().all(|plan| plan.misfits().is_empty());
    let mut texts = Vec::new();
    for (index, plan) in plans.iter().enumerate() {
        let mut text = match stages.len() {
            1 => plan.to_string(),
            count => format!("stage {} of {count}: {}\n\n{plan}", index + 1, plan.config.output_dir.display()),
        };
        if args.scaling.scaling {
            text = format!("{text}\n\n{}", plan.scaling(&args.scaling, speed)?);
        }
        texts.push(text);
    }
    Ok((texts.join("\n\n"), fits))
}
