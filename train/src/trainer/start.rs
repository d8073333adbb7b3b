//! From settings to a running trainer.

use super::report::Log;
use super::sources::SourceSums;
use super::{Finished, Trainer, is_at_end};
use crate::base_format;
use crate::batch::{self, Steps};
use crate::best::Best;
use crate::checkpoint;
use crate::collective::Collective;
use crate::collective::background::Communicator;
use crate::config::Config;
use crate::layout::Layout;
use crate::learning_rates::LearningRates;
use crate::loader::{self, Loader};
use crate::mixture::{Mixture, Source};
use crate::on_device::{self, DevicePartitions};
use crate::order::{BatchPlan, SourceRows};
use crate::parameters;
use crate::partitions::Partitions;
use crate::plan::{self, MeanRow, Memory, Rows, Setting};
use crate::resume::{self, Beginning, Found};
use crate::run::RunRecord;
use crate::run::folder;
use crate::run::function::changed_settings;
use crate::run::lock::RunLock;
use crate::saving::Saver;
use crate::setup::{self, Trainee};
use crate::sharded::ShardedPartitions;
use crate::signals::StopRequest;
use crate::state::{RunState, TrainerState};
use crate::trainable;
use crate::watch::Watch;
use crate::zero::{Optimizer, OptimizerState};
use anyhow::{Context, Result};
use base::names;
use base::pulse::Pulse;
use burn::tensor::{Device, StreamId};
use kernels::device::computes_in_bf16;
use model::config::LlavaConfig;
use model::lora::LoraConfig;
use model::quantized;
use shards::Split;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use store::adapter;

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
    let roll_call = collective.roll_call();
    let mut communicator = Communicator::start(collective)?;
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let shards = Arc::new(setup::shards(config, Split::Train)?);
    setup::agree(config, &shards.identity(), &mut communicator)?;
    let ranks = setup::device_ranks(config, device, roll_call, &mut communicator)?;
    if rank == 0 {
        let model = LlavaConfig::read(&config.model_name_or_path)?;
        let lora = plan::lora(config, &model)?;
        base_format::of_run(config, &model, lora.as_ref())?;
        setup::check_lengths(config, &model, &shards)?;
        LearningRates::of(config).require_trained(config, &model, lora.as_ref())?;
        if let Some(adapter) = config.init_adapter.as_ref().filter(|_| config.train_type.uses_lora()) {
            adapter::warn_of_another_model(adapter, &config.model_name_or_path, "--model_name_or_path");
        }
    }
    let mut lock = if rank == 0 { Some(take_folder(config)?) } else { None };
    let _lock_of_metrics = if rank == 0 { take_metrics(config)? } else { None };
    let (beginning, found) = resume::begin_together(config, &shards.identity(), &mut communicator)?;
    let (config, kept_batch) = match &found {
        Some(found) => batch::keep(config, world_size, &found.state)?,
        None => (config.clone(), None),
    };
    let config = &config;
    let found_state = found.as_ref().map(|found| &found.state);
    let Steps { plan, max_steps, schedule, base, initial_global_batch_size } =
        Steps::of(config, shards.rows_per_epoch(), world_size, found_state)?;
    let run = RunState {
        world_size,
        global_batch_size: plan.global_batch_size(),
        initial_global_batch_size,
        schedule_base: base,
        ..found_state.map(|state| state.run.clone()).unwrap_or_default()
    };
    let mut state = state(config, found_state, max_steps, run, rank);
    let chosen_before = state.choose_by(Best::of(config)?);
    let since_log = std::mem::take(&mut state.run.since_log);
    // All that can refuse a run comes before anything in its folder is removed or written.
    let evaluation = communicator.attend("validation rows", &Pulse::default(), || {
        Watch::evaluation(config, &LlavaConfig::read(&config.model_name_or_path)?, rank, world_size)
    })??;
    let place = Place::of(device, world_size, ranks.is_some());
    let loaded = communicator.attend("model", &Pulse::default(), || -> Result<_> {
        let (trainee, layout, optimizer) = load(config, found.as_ref(), device, (rank, world_size), place)?;
        let kept_features = setup::kept_features(config, &trainee, &layout, &shards)?;
        Ok((trainee, layout, optimizer, kept_features))
    });
    let (trainee, layout, optimizer, kept_features) = loaded??;
    if rank == 0 {
        describe_memory(config, &trainee, world_size, &shards)?;
        describe_sources(&shards);
    }
    let sources: Vec<String> = shards.sources().iter().map(|source| source.name.clone()).collect();
    let loader = loader(config, &trainee, shards, plan, &state, rank)?;
    // Going on from the folder's own checkpoint of this step, it has one.
    let own = checkpoint::dir_of(&config.output_dir, state.global_step);
    let saved_step = found.as_ref().filter(|found| found.dir == own).map(|found| found.state.global_step);
    lock.iter_mut().for_each(RunLock::keep);
    let record = match beginning {
        Some(beginning) => {
            let is_over = is_at_end(config, &plan, &state);
            Some(Arc::new(begin(config, beginning, found.as_ref(), kept_batch, &mut state, is_over)?))
        }
        None => None,
    };
    if let Some(record) = &record {
        // Checkpoints may have been removed since the state was written.
        checkpoint::name_best(&mut state, &config.output_dir, record, None);
        if let Some(before) = chosen_before.filter(|_| found.is_some()) {
            tracing::info!("{}", describe_choice(&before, &state));
        }
    }
    if rank == 0 {
        describe(&trainee, &layout, &plan, &state, config.init_adapter.as_deref());
        let rates = LearningRates::of(config);
        if rates.of_parts().next().is_some() {
            tracing::info!("learning rates: {rates}");
        }
    }
    let is_finished = record.as_ref().is_some_and(|record| record.finished.is_some());
    let start = || Watch::start(config, &trainee, &state, evaluation, rank, is_finished);
    let watch = communicator.attend("frozen weights", &Pulse::default(), start)?;
    let (accumulate, weight_decay) = (config.accumulate, config.weight_decay);
    let optimizer = Optimizer::new(layout, optimizer, device, communicator, accumulate, weight_decay, ranks);
    let none = BTreeMap::new();
    let trainer = Trainer {
        config,
        trainee,
        optimizer,
        kept_features,
        saver: Saver::new(config, record.clone()),
        record,
        plan,
        schedule,
        state,
        skipped_in_a_row: 0,
        saved_step,
        stop_request: stop_request.clone(),
        // Sums of all ranks go on in those of rank 0.
        sources: SourceSums::new(sources, if rank == 0 { &since_log.sources } else { &none }),
        log: Log::new(since_log.clone()),
    };
    if world_size > 1 {
        return trainer.train(loader, watch);
    }
    // A rank that waits for nobody computes on a thread of the pool itself, which hands work on without a context switch. On a GPU
    // it stays on the stream that loaded the model: memory that loading used once is free for the steps.
    let stream = StreamId::current();
    rayon::scope(|_| stream.executes(|| trainer.train(loader, watch)))
}

/// Where the optimizer's state is.
#[derive(Clone, Copy)]
enum Place {
    Host,
    /// On the device of the only rank.
    Device,
    /// On the devices of ranks that exchange from there.
    Devices,
}

impl Place {
    fn of(device: &Device, world_size: usize, exchange_on_devices: bool) -> Self {
        match () {
            () if exchange_on_devices => Self::Devices,
            () if on_device::applies(device, world_size) => Self::Device,
            () => Self::Host,
        }
    }
}

/// The model, and this rank's part of it: as the checkpoint has them, if there is one.
fn load(
    config: &Config,
    found: Option<&Found>,
    device: &Device,
    (rank, world_size): (usize, usize),
    place: Place,
) -> Result<(Trainee, Arc<Layout>, OptimizerState)> {
    let mut trainee = setup::trainee(config, found.map(|found| found.dir.as_path()), device)?;
    let layout = trainable::layout(&trainee.model, trainee.choice(config), &trainee.config, rank, world_size);
    let in_bf16 = computes_in_bf16(device);
    let state = match (found, place) {
        (None, Place::Device) => OptimizerState::OnDevice(DevicePartitions::fresh(&trainee.model, &layout, in_bf16)),
        (None, Place::Devices) => OptimizerState::Sharded(ShardedPartitions::fresh(&trainee.model, &layout, in_bf16)),
        (found, _) => {
            let mut partitions = Partitions::new(&layout);
            if let Some(found) = found {
                resume::restore(found, &mut trainee.model, &layout, &mut partitions)?;
            }
            if in_bf16 {
                partitions.keep_masters(&trainee.model, &layout)?;
            }
            OptimizerState::Host(partitions)
        }
    };
    if in_bf16 {
        trainee.model = parameters::in_bf16(trainee.model);
    }
    Ok((trainee, Arc::new(layout), state))
}

/// Makes the run's folder this program's own, and puts it in order.
fn take_folder(config: &Config) -> Result<RunLock> {
    folder::refuse_inputs(config)?;
    folder::refuse_data(&config.output_dir)?;
    std::fs::create_dir_all(&config.output_dir).with_context(|| config.output_dir.display().to_string())?;
    let lock = RunLock::take(&config.output_dir)?;
    folder::require_writable_metrics(config)?;
    checkpoint::tidy(&config.output_dir)?;
    Ok(lock)
}

/// Makes a file of metrics outside the run's folder this program's own.
fn take_metrics(config: &Config) -> Result<Option<RunLock>> {
    let elsewhere = config.metrics.as_ref().filter(|metrics| folder::is_elsewhere(metrics, &config.output_dir));
    Ok(elsewhere.map(|metrics| RunLock::take_metrics(metrics)).transpose()?.flatten())
}

/// Rank 0, after all checks: prints how the run begins, and writes `run.json`. Where the run is finished and no step is left
/// (`is_over`), its record and its settings stay as they are.
fn begin(
    config: &Config,
    beginning: Beginning,
    found: Option<&Found>,
    kept_batch: Option<String>,
    state: &mut TrainerState,
    is_over: bool,
) -> Result<RunRecord> {
    let Beginning { record, clears, said, passed_over, .. } = beginning;
    passed_over.iter().for_each(|line| tracing::warn!("{line}"));
    said.iter().for_each(|line| tracing::info!("{line}"));
    if let Some(Found { dir, state }) = found {
        tracing::info!("resuming from {} at step {} ({})", dir.display(), state.global_step, record.title());
        let before = base::json::read_if_there(&dir.join(checkpoint::RUN_CONFIG))?.unwrap_or_default();
        let changed = changed_settings(&before, config, &record.function)?;
        if !changed.is_empty() {
            tracing::info!("settings that differ from the checkpoint's: {}", changed.join(", "));
        }
    }
    kept_batch.iter().for_each(|line| tracing::info!("{line}"));
    let output_dir = &config.output_dir;
    if clears {
        folder::clear(output_dir)?;
    }
    state.run.run_id.clone_from(&record.run_id);
    let is_of_this_step = record.finished.as_ref().is_some_and(|output| output.global_step == state.global_step);
    if is_over && is_of_this_step && found.is_some() && !clears {
        return Ok(record);
    }
    let record = RunRecord { finished: None, ..record };
    record.write(output_dir)?;
    base::json::write(&output_dir.join(checkpoint::RUN_CONFIG), config)?;
    Ok(record)
}

/// That another figure decides from here on about best model and early stopping, and what it finds in the log.
fn describe_choice(before: &Best, state: &TrainerState) -> String {
    let found = match state.best_metric.zip(state.best_global_step) {
        Some((metric, step)) => format!("{metric:.4} at step {step}"),
        None => "no evaluation so far has it".to_string(),
    };
    let saved = match state.run.best_checkpoint_metric.zip(state.best_model_checkpoint.as_ref()) {
        Some((metric, name)) => format!("{name} ({metric:.4})"),
        None => "none".to_string(),
    };
    format!(
        "the best is chosen by {} from now on, not by {}: best evaluation: {found}; best checkpoint: {saved}",
        state.run.best_by.describe(),
        before.describe()
    )
}

/// Where the run stands: at its start, or where the checkpoint was made.
fn state(config: &Config, found: Option<&TrainerState>, max_steps: u64, run: RunState, rank: usize) -> TrainerState {
    TrainerState {
        max_steps,
        num_train_epochs: config.num_train_epochs,
        train_batch_size: config.per_device_train_batch_size,
        logging_steps: config.logging_steps.in_run(max_steps) as usize,
        save_steps: config.save_steps.in_run(max_steps) as usize,
        is_world_process_zero: rank == 0,
        run,
        ..found.cloned().unwrap_or_default()
    }
}

fn loader(
    config: &Config,
    trainee: &Trainee,
    shards: Arc<Mixture>,
    plan: BatchPlan,
    state: &TrainerState,
    rank: usize,
) -> Result<Loader> {
    let source = loader::Source {
        shards,
        config: Arc::new(trainee.config.clone()),
        plan,
        shuffle: config.shuffle,
        seed: config.seed,
        rank,
        max_length: setup::max_length(config, &trainee.config)?,
    };
    Loader::start(source, state.run.cursor, config.dataloader_num_workers, config.dataloader_prefetch_factor)
}

fn describe_memory(config: &Config, trainee: &Trainee, world_size: usize, shards: &Mixture) -> Result<()> {
    let rows = Rows { count: shards.len(), mean: MeanRow::of(shards, &trainee.config)? };
    let in_bf16 = computes_in_bf16(&trainee.model.device());
    let (model, lora) = (&trainee.config, trainee.lora.as_ref());
    let base = base_format::of_run(config, model, lora)?;
    let setting = Setting { config, model, lora, world_size, in_bf16, base: base.as_ref() };
    let memory = Memory::estimate(setting, rows);
    let parts = memory.parts().into_iter().filter(|(_, bytes)| *bytes > 0.0);
    let parts: Vec<String> = parts.map(|(name, bytes)| format!("{name} {}", plan::size(bytes))).collect();
    tracing::info!("memory of each of {world_size} ranks: {}; peak {}", parts.join(", "), plan::size(memory.total()));
    Ok(())
}

/// What an adapter with modules of its own does to the parts that others leave as they are.
fn describe_modules(lora: &LoraConfig) {
    let Some(modules) = &lora.modules else { return };
    if !modules.trained.is_empty() {
        tracing::info!("trained in full beside LoRA: {} tensors (modules_to_save)", modules.trained.len());
    }
    if !modules.lora.iter().chain(&modules.trained).any(|name| name.starts_with(names::PROJECTOR)) {
        tracing::warn!("the projector is not trained: it is not in modules_to_save and gets no LoRA");
    }
    if modules.unties_head {
        tracing::warn!(
            "the model ties its output weights to its embedding; with modules_to_save of one of them they are separate tables              from now on, as in PEFT"
        );
    }
}

/// Of several sources, the rows that an epoch has of each.
fn describe_sources(shards: &Mixture) {
    if shards.sources().len() > 1 {
        let of_source = |(source, rows): (&Source, &SourceRows)| {
            let SourceRows { rows, per_epoch } = rows;
            format!("{per_epoch} of {} ({rows} × {})", source.folder.dir.display(), source.folder.weight)
        };
        let rows: Vec<String> = shards.sources().iter().zip(shards.rows()).map(of_source).collect();
        tracing::info!("rows of an epoch: {}", rows.join(", "));
    }
}

fn describe(trainee: &Trainee, layout: &Layout, plan: &BatchPlan, state: &TrainerState, adapter: Option<&Path>) {
    let trained: usize = layout.blocks.iter().map(|block| block.params.len()).sum();
    tracing::info!(
        "training {} values in {trained} tensors of {} blocks; {} rows, global batch {}, {} steps",
        layout.num_values(),
        layout.blocks.len(),
        plan.rows,
        plan.global_batch_size(),
        state.max_steps
    );
    if computes_in_bf16(&trainee.model.device()) {
        tracing::info!("computing in bf16; master weights, moments and accumulated gradients in f32");
    }
    if let Some(format) = quantized::weights(&trainee.model).first().map(|(_, weight)| weight.format()) {
        tracing::info!("the matrices of the language model's layers are frozen in {format}");
    }
    if let Some(lora) = &trainee.lora {
        let on = match &lora.modules {
            None => lora.target_modules.join(", "),
            Some(modules) => format!("{} layers", modules.lora.len()),
        };
        let whose = match adapter {
            Some(adapter) => {
                format!(" (of {}: other LoRA options than lora_dropout have no effect)", adapter.display())
            }
            None => String::new(),
        };
        let (kind, scale) = (if lora.use_rslora { "rsLoRA" } else { "LoRA" }, lora.scale());
        let kind = if lora.use_dora { format!("DoRA over {kind}") } else { kind.to_string() };
        tracing::info!("{kind} r {}, alpha {} (scale {scale}), on {on}{whose}", lora.r, lora.lora_alpha);
        describe_modules(lora);
    }
    let dropouts = [
        ("vision_config", trainee.config.vision.attention_dropout),
        ("text_config", trainee.config.text.attention_dropout),
    ];
    for (part, dropout) in dropouts.into_iter().filter(|(_, dropout)| *dropout > 0.0) {
        tracing::warn!(
            "config.json: {part}: attention_dropout {dropout} is kept in the file and not applied in training"
        );
    }
}
