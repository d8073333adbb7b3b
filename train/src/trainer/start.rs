//! From settings to a trainer at work.

use super::{Finished, Trainer};
use crate::checkpoint::{self, TrainerState};
use crate::collective::Collective;
use crate::collective::background::Communicator;
use crate::config::Config;
use crate::layout::Layout;
use crate::loader::{Loader, Source};
use crate::order::BatchPlan;
use crate::parameters;
use crate::resume::{self, Found};
use crate::saving::Saver;
use crate::schedule::Schedule;
use crate::setup::{self, Trainee};
use crate::signals::StopRequest;
use crate::trainable;
use crate::watch::Watch;
use crate::zero::{Memory, Partitions};
use anyhow::{Context, Result};
use burn::tensor::Device;
use common::config::LlavaConfig;
use common::device::computes_in_bf16;
use common::shard::{ShardSet, Split};
use std::sync::Arc;

/// Runs one rank from start to end.
///
/// # Errors
/// Whatever stops the run; nothing that was saved before is lost.
pub fn run(
    config: &Config,
    collective: Box<dyn Collective>,
    device: &Device,
    stop_request: &StopRequest,
) -> Result<Finished> {
    let mut communicator = Communicator::start(collective)?;
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let shards = Arc::new(setup::shards(config, Split::Train)?);
    setup::agree(config, &shards.fingerprint(), &mut communicator)?;
    if rank == 0 {
        setup::check_lengths(config, &LlavaConfig::read(&config.model_name_or_path)?, &shards)?;
        std::fs::create_dir_all(&config.output_dir).with_context(|| config.output_dir.display().to_string())?;
        checkpoint::tidy(&config.output_dir)?;
        common::json::write(&config.output_dir.join(checkpoint::RUN_CONFIG), config)?;
    }
    let plan = BatchPlan {
        rows: shards.len(),
        micro_batch_size: config.per_device_train_batch_size,
        accumulation: config.gradient_accumulation_steps,
        world_size,
    };
    let found = resume::find_together(config, &mut communicator)?;
    let state = state(config, found.as_ref(), &plan, &shards.fingerprint(), rank)?;
    let schedule = Schedule::new(config, state.max_steps)?;
    let (trainee, layout, partitions) = load(config, found.as_ref(), device, (rank, world_size))?;
    let kept_features = setup::kept_features(config, &trainee, &layout, &shards)?;
    let loader = loader(config, &trainee, shards, plan, &state, rank)?;
    if rank == 0 {
        describe(&trainee, &layout, &plan, &state);
        describe_memory(config, &trainee, &layout);
        if let Some(kept) = &kept_features {
            let gigabytes = kept.full_bytes() as f64 / 1e9;
            crate::tell!("vision features are kept in {} ({gigabytes:.1} GB when full)", kept.path().display());
        }
    }
    let watch = Watch::start(config, &trainee, &state, rank, world_size)?;
    let trainer = Trainer {
        config,
        communicator,
        trainee,
        layout,
        partitions,
        kept_features,
        saver: Saver::new(config),
        plan,
        schedule,
        state,
        skipped_in_a_row: 0,
        stop_request: stop_request.clone(),
    };
    if world_size > 1 {
        return trainer.train(loader, watch);
    }
    // A rank that waits for nobody computes on a thread of the pool itself, which hands work on without a context switch.
    rayon::scope(|_| trainer.train(loader, watch))
}

/// The model, and this rank's part of it: as the checkpoint has them, if there is one.
fn load(
    config: &Config,
    found: Option<&Found>,
    device: &Device,
    (rank, world_size): (usize, usize),
) -> Result<(Trainee, Arc<Layout>, Partitions)> {
    let mut trainee = setup::trainee(config, found.map(|found| found.dir.as_path()), device)?;
    let layout = trainable::layout(&trainee.model, trainee.choice(config), &trainee.config, rank, world_size);
    let mut partitions = Partitions::new(&layout, config.accumulate);
    if let Some(found) = found {
        resume::restore(found, &mut trainee.model, &layout, &mut partitions)?;
    }
    if computes_in_bf16(device) {
        partitions.keep_masters(&trainee.model, &layout)?;
        trainee.model = parameters::in_bf16(trainee.model);
    }
    Ok((trainee, Arc::new(layout), partitions))
}

/// Where the run stands: at its start, or where the checkpoint was made.
fn state(
    config: &Config,
    found: Option<&Found>,
    plan: &BatchPlan,
    data_fingerprint: &str,
    rank: usize,
) -> Result<TrainerState> {
    let max_steps = plan.max_steps(config.max_steps, config.num_train_epochs);
    let (world_size, is_world_process_zero) = (plan.world_size, rank == 0);
    let Some(found) = found else {
        return Ok(TrainerState {
            max_steps,
            num_train_epochs: config.num_train_epochs,
            train_batch_size: config.per_device_train_batch_size,
            logging_steps: config.logging_steps.in_run(max_steps) as usize,
            save_steps: config.save_steps.in_run(max_steps) as usize,
            is_world_process_zero,
            data_fingerprint: data_fingerprint.to_string(),
            world_size,
            ..TrainerState::default()
        });
    };
    resume::check(found, data_fingerprint)?;
    let state = TrainerState { max_steps, world_size, is_world_process_zero, ..found.state.clone() };
    if rank == 0 {
        found.skipped.iter().for_each(|reason| crate::tell!("warning: checkpoint passed over: {reason}"));
        crate::tell!("resuming from {} at step {}", found.dir.display(), state.global_step);
    }
    Ok(state)
}

fn loader(
    config: &Config,
    trainee: &Trainee,
    shards: Arc<ShardSet>,
    plan: BatchPlan,
    state: &TrainerState,
    rank: usize,
) -> Result<Loader> {
    let source = Source {
        shards,
        config: Arc::new(trainee.config.clone()),
        plan,
        shuffle: config.shuffle,
        seed: config.seed,
        rank,
        max_length: setup::max_length(config, &trainee.config)?,
    };
    Loader::start(source, state.cursor, config.dataloader_num_workers, config.dataloader_prefetch_factor)
}

fn describe_memory(config: &Config, trainee: &Trainee, layout: &Layout) {
    let values = parameters::count(&trainee.model);
    let in_bf16 = computes_in_bf16(&trainee.model.device());
    let memory = Memory::of(layout, values, config.accumulate, config.gradient_accumulation_steps);
    let memory = if in_bf16 { memory.in_bf16(layout) } else { memory };
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let masters = if in_bf16 { format!("master weights {:.0} MB, ", megabytes(memory.masters)) } else { String::new() };
    crate::tell!(
        "memory of each of {} ranks: parameters {:.0} MB, {masters}gradients {:.0} MB, moments {:.0} MB, blocks on their way \
         {:.0} MB, together {:.0} MB; activations come on top",
        layout.world_size,
        megabytes(memory.parameters),
        megabytes(memory.gradients),
        megabytes(memory.moments),
        megabytes(memory.buffers),
        megabytes(memory.total())
    );
}

fn describe(trainee: &Trainee, layout: &Layout, plan: &BatchPlan, state: &TrainerState) {
    let trained: usize = layout.blocks.iter().map(|block| block.params.len()).sum();
    crate::tell!(
        "training {} values in {trained} tensors of {} blocks; {} rows, global batch {}, {} steps",
        layout.num_values(),
        layout.blocks.len(),
        plan.rows,
        plan.global_batch_size(),
        state.max_steps
    );
    if computes_in_bf16(&trainee.model.device()) {
        crate::tell!("computing in bf16; master weights, moments and accumulated gradients in f32");
    }
    if let Some(lora) = &trainee.lora {
        let on = match &lora.modules {
            None => lora.target_modules.join(", "),
            Some(modules) => format!("{} layers, as in the adapter that it goes on from", modules.lora.len()),
        };
        crate::tell!("LoRA r {}, alpha {}, on {on}", lora.r, lora.lora_alpha);
    }
    let dropouts = [
        ("vision_config", trainee.config.vision.attention_dropout),
        ("text_config", trainee.config.text.attention_dropout),
    ];
    for (part, dropout) in dropouts.into_iter().filter(|(_, dropout)| *dropout > 0.0) {
        crate::tell!(
            "warning: config.json: {part}: attention_dropout {dropout} is kept in the file and not applied in training"
        );
    }
}
