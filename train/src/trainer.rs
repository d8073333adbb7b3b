//! The training loop.

use crate::adamw::AdamW;
use crate::backward::{Pass, forward_backward};
use crate::checkpoint::{self, Snapshot, TrainerState};
use crate::collective::Collective;
use crate::collective::background::{Communicator, Traffic};
use crate::config::{Config, LossNormalization, Strategy};
use crate::layout::Layout;
use crate::loader::{Loader, MicroBatch, Source};
use crate::metrics::{StepMetrics, peak_rss_mb};
use crate::order::{BatchPlan, Cursor, mix};
use crate::parameters;
use crate::progress::Shown;
use crate::resume;
use crate::saving::Saver;
use crate::schedule::Schedule;
use crate::setup::{self, Trainee};
use crate::signals::StopRequest;
use crate::trainable;
use crate::watch::{self, Watch};
use crate::zero::{Memory, Partitions};
use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use common::model::dropout::LoraDropout;
use common::shard::Split;
use common::vision_cache::VisionFeatureCache;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Steps in a row without a finite gradient that end a run.
const MAX_SKIPPED_IN_A_ROW: u64 = 5;

/// One rank's run.
pub struct Trainer<'a> {
    config: &'a Config,
    communicator: Communicator,
    trainee: Trainee,
    layout: Arc<Layout>,
    partitions: Partitions,
    kept_features: Option<VisionFeatureCache>,
    saver: Saver,
    plan: BatchPlan,
    schedule: Schedule,
    state: TrainerState,
    skipped_in_a_row: u64,
    stop_request: StopRequest,
}

/// How a run ended.
#[derive(Debug)]
pub struct Finished {
    /// Where it stands.
    pub state: TrainerState,
    /// The checkpoint that it was saved in, if it was asked to stop before its end.
    pub stopped_in: Option<PathBuf>,
}

/// Sums over the ranks of what one step found.
#[derive(Clone, Copy, Debug, Default)]
struct StepSums {
    loss: f64,
    squared_norm: f64,
    supervised_tokens: f64,
    tokens: f64,
    samples: f64,
    micro_batches: f64,
    /// Sum of the micro-batches' mean losses.
    mean_loss: f64,
    /// Ranks that have written their part of the checkpoint.
    written: f64,
    /// Ranks that were asked to stop after this step.
    stop_requests: f64,
}

/// What a step has to say for itself.
struct StepReport {
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
    sums: StepSums,
    traffic: Traffic,
}

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
    let max_steps = plan.max_steps(config.max_steps, config.num_train_epochs);
    let found = resume::find_together(config, &mut communicator)?;
    let mut trainee = setup::trainee(config, found.as_ref().map(|found| found.dir.as_path()), device)?;
    let layout = trainable::layout(&trainee.model, config.train_type, &trainee.config, rank, world_size);
    let layout = Arc::new(layout);
    let mut partitions = Partitions::new(&layout, config.accumulate);
    let mut state = TrainerState {
        max_steps,
        num_train_epochs: config.num_train_epochs,
        train_batch_size: config.per_device_train_batch_size,
        logging_steps: config.logging_steps,
        save_steps: config.save_steps,
        is_world_process_zero: rank == 0,
        data_fingerprint: shards.fingerprint(),
        world_size,
        ..TrainerState::default()
    };
    if let Some(found) = &found {
        resume::check(found, &state.data_fingerprint)?;
        resume::restore(found, &mut trainee.model, &layout, &mut partitions)?;
        state = TrainerState { max_steps, world_size, is_world_process_zero: rank == 0, ..found.state.clone() };
        if rank == 0 {
            found.skipped.iter().for_each(|reason| eprintln!("warning: checkpoint passed over: {reason}"));
            eprintln!("resuming from {} at step {}", found.dir.display(), state.global_step);
        }
    }
    let max_length = match config.model_max_length {
        0 => trainee.config.text.max_position_embeddings,
        limit => limit,
    };
    let kept_features = setup::kept_features(config, &trainee, &layout, &shards)?;
    let source = Source {
        shards,
        config: Arc::new(trainee.config.clone()),
        plan,
        shuffle: config.shuffle,
        seed: config.seed,
        rank,
        max_length,
    };
    let (workers, prefetch) = (config.dataloader_num_workers, config.dataloader_prefetch_factor);
    let loader = Loader::start(source, state.cursor, workers, prefetch)?;
    if rank == 0 {
        describe(&trainee, &layout, &plan, &state);
        describe_memory(config, &trainee, &layout);
        if let Some(kept) = &kept_features {
            let gigabytes = kept.full_bytes() as f64 / 1e9;
            eprintln!("vision features are kept in {} ({gigabytes:.1} GB when full)", kept.path().display());
        }
    }
    let (schedule, saver) = (Schedule::new(config, max_steps), Saver::new(config));
    let watch = Watch::start(config, &trainee, &state, rank, world_size)?;
    let trainer = Trainer {
        config,
        communicator,
        trainee,
        layout,
        partitions,
        kept_features,
        saver,
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

fn describe_memory(config: &Config, trainee: &Trainee, layout: &Layout) {
    let values = parameters::count(&trainee.model);
    let memory = Memory::of(layout, values, config.accumulate, config.gradient_accumulation_steps);
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    eprintln!(
        "memory of each of {} ranks: parameters {:.0} MB, gradients {:.0} MB, moments {:.0} MB, blocks on their way {:.0} MB, \
         together {:.0} MB; activations come on top",
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
    eprintln!(
        "training {} values in {trained} tensors of {} blocks; {} rows, global batch {}, {} steps",
        layout.num_values(),
        layout.blocks.len(),
        plan.rows,
        plan.global_batch_size(),
        state.max_steps
    );
    if let Some(lora) = &trainee.lora {
        eprintln!("LoRA r {}, alpha {}, on {}", lora.r, lora.lora_alpha, lora.target_modules.join(", "));
    }
}

impl Trainer<'_> {
    /// The loop: next batch → forward and backward → reduce and clip → update → log → evaluate → save.
    fn train(mut self, mut loader: Loader, mut watch: Watch<'_>) -> Result<Finished> {
        let mut log = Log { since: Instant::now(), waited: Duration::ZERO, steps: Vec::new() };
        while self.state.global_step < self.state.max_steps {
            let (_, next) = self.plan.next(self.state.cursor);
            let (sums, ids) = self.forward_backward(&mut loader)?;
            let sums = self.reduce(sums)?;
            let report = self.clip_and_update(sums, &ids)?;
            self.advance(next, &report);
            watch.step(&self.shown(&report));
            log.add(report, loader.waited);
            self.log(&mut log, &mut watch)?;
            let enough = self.evaluate_if_due(&mut log, &mut watch)?;
            let saved = self.save_if_due(&sums)?;
            if sums.stop_requests > 0.0 && self.state.global_step < self.state.max_steps {
                return self.stop(saved, watch);
            }
            if enough {
                break;
            }
        }
        self.finish(watch)
    }

    /// All micro-batches, one after another; each block's gradient is on its way to its owner while the block before it is
    /// computed. Also gives the ids of the rows.
    fn forward_backward(&mut self, loader: &mut Loader) -> Result<(StepSums, Vec<String>)> {
        let (mut sums, mut ids) = (StepSums::default(), Vec::new());
        for micro_step in 0..self.plan.accumulation {
            let micro_batch = loader.next_micro_batch()?;
            let mut reduced = vec![false; self.layout.blocks.len()];
            let is_last = micro_step + 1 == self.plan.accumulation;
            if let Some(batch) = &micro_batch.batch {
                ids.extend_from_slice(&batch.ids);
                self.micro_step(&micro_batch, is_last, &mut sums, &mut reduced)?;
            }
            // A batch without images gives the projector and the tower nothing, no batch gives no block anything, but the
            // other ranks wait for this one's part of every block.
            self.settle()?;
            for block in (0..reduced.len()).rev().filter(|&block| !reduced[block]) {
                self.partitions.reduce_nothing(&self.layout, &mut self.communicator, block, is_last)?;
            }
        }
        sums.squared_norm = self.partitions.squared_norm(&mut self.communicator)?;
        sums.written = self.saver.is_written();
        Ok((sums, ids))
    }

    fn micro_step(
        &mut self,
        micro_batch: &MicroBatch,
        is_last: bool,
        sums: &mut StepSums,
        reduced: &mut [bool],
    ) -> Result<()> {
        let Some(batch) = &micro_batch.batch else { return Ok(()) };
        let supervised = batch.supervised().1.len();
        let loss_scale = match self.config.loss_normalization {
            LossNormalization::GlobalTokens => 1.0,
            LossNormalization::MicroBatchMean => 1.0 / supervised.max(1) as f32,
        };
        let dropout = self.dropout(micro_batch);
        let mut pass = Pass {
            model: &mut self.trainee.model,
            config: &self.trainee.config,
            layout: &self.layout,
            recompute: self.config.gradient_checkpointing,
            kept_features: self.kept_features.as_ref().map(|kept| (kept, &micro_batch.rows[..])),
            dropout,
            loss_scale,
        };
        // Both ends of the pass use what exchanges with other ranks, never at the same time.
        let exchanges = RefCell::new((&mut self.partitions, &mut self.communicator));
        let layout = &*self.layout;
        let loss = forward_backward(
            &mut pass,
            batch,
            |model, block| {
                let (partitions, communicator) = &mut *exchanges.borrow_mut();
                partitions.settle(model, layout, communicator, layout.blocks_through(block))
            },
            |block, gradient| {
                reduced[block] = true;
                let (partitions, communicator) = &mut *exchanges.borrow_mut();
                partitions.reduce(layout, communicator, block, gradient, is_last)
            },
        )?;
        sums.loss += loss;
        sums.mean_loss += loss / supervised.max(1) as f64;
        sums.supervised_tokens += supervised as f64;
        sums.tokens += batch.input_ids.len() as f64;
        sums.samples += batch.seq_lens.len() as f64;
        sums.micro_batches += 1.0;
        Ok(())
    }

    /// Waits until the whole model has its new values.
    fn settle(&mut self) -> Result<()> {
        let blocks = self.layout.blocks.len();
        self.partitions.settle(&mut self.trainee.model, &self.layout, &mut self.communicator, blocks)
    }

    fn dropout(&self, micro_batch: &MicroBatch) -> Option<LoraDropout> {
        let lora = self.trainee.lora.as_ref().filter(|lora| lora.lora_dropout > 0.0)?;
        let seed = mix(self.config.seed ^ 0x6472_6F70);
        Some(LoraDropout { probability: lora.lora_dropout, seed, row_keys: micro_batch.row_keys.clone() })
    }

    /// One small all-reduce carries everything that the ranks must agree on.
    fn reduce(&mut self, sums: StepSums) -> Result<StepSums> {
        let values = [
            sums.loss,
            sums.squared_norm,
            sums.supervised_tokens,
            sums.tokens,
            sums.samples,
            sums.micro_batches,
            sums.mean_loss,
            sums.written,
            f64::from(u8::from(self.stop_request.is_set())),
        ];
        let values = self.communicator.all_reduce("step sums", values)?;
        let [loss, squared_norm, supervised_tokens, tokens, samples, micro_batches, ..] = values;
        let [.., mean_loss, written, stop_requests] = values;
        let counts = StepSums { supervised_tokens, tokens, samples, micro_batches, written, stop_requests, ..sums };
        Ok(StepSums { loss, squared_norm, mean_loss, ..counts })
    }

    /// Clips by the global norm and updates; a step whose loss or gradient is not finite is skipped.
    fn clip_and_update(&mut self, sums: StepSums, ids: &[String]) -> Result<StepReport> {
        let (loss, denominator) = match self.config.loss_normalization {
            LossNormalization::GlobalTokens => (sums.loss / sums.supervised_tokens, sums.supervised_tokens),
            LossNormalization::MicroBatchMean => (sums.mean_loss / sums.micro_batches, sums.micro_batches),
        };
        let grad_norm = sums.squared_norm.sqrt() / denominator;
        let learning_rate = self.schedule.learning_rate(self.state.global_step);
        let traffic = self.communicator.take_traffic();
        let report = StepReport { loss, grad_norm, learning_rate, sums, traffic };
        if !loss.is_finite() || !grad_norm.is_finite() {
            self.partitions.discard_gradient();
            self.skip(loss, grad_norm, ids)?;
            return Ok(report);
        }
        self.skipped_in_a_row = 0;
        let max_grad_norm = self.config.max_grad_norm;
        let clip = if max_grad_norm > 0.0 { (max_grad_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        let adamw = AdamW {
            learning_rate,
            beta1: self.config.adam_beta1,
            beta2: self.config.adam_beta2,
            epsilon: self.config.adam_epsilon,
            step: self.state.global_step + 1,
            gradient_scale: (clip / denominator) as f32,
        };
        self.partitions.begin_update(&mut self.trainee.model, &self.layout, adamw, self.config.weight_decay);
        Ok(report)
    }

    fn skip(&mut self, loss: f64, grad_norm: f64, ids: &[String]) -> Result<()> {
        self.state.skipped_steps += 1;
        self.skipped_in_a_row += 1;
        let step = self.state.global_step + 1;
        eprintln!("warning: step {step} skipped: loss {loss}, gradient norm {grad_norm}; rows {}", ids.join(", "));
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW {
            bail!(
                "{MAX_SKIPPED_IN_A_ROW} steps in a row without a finite gradient (rows of the last: {}); lower \
                 --learning_rate or look at these rows",
                ids.join(", ")
            );
        }
        Ok(())
    }

    fn advance(&mut self, next: Cursor, report: &StepReport) {
        self.state.cursor = next;
        if self.skipped_in_a_row == 0 {
            self.state.global_step += 1;
        }
        self.state.epoch = next.epoch as f64 + next.position as f64 / self.plan.rows as f64;
        self.state.num_input_tokens_seen += report.sums.tokens as u64;
    }

    fn shown(&self, report: &StepReport) -> Shown {
        Shown {
            step: self.state.global_step,
            epoch: self.state.epoch,
            loss: report.loss,
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            tokens: report.sums.tokens,
        }
    }

    fn log(&mut self, log: &mut Log, watch: &mut Watch<'_>) -> Result<()> {
        let due = self.state.global_step.is_multiple_of(self.config.logging_steps as u64);
        let last = self.state.global_step == self.state.max_steps;
        if self.skipped_in_a_row > 0 || log.steps.is_empty() || !(due || last) {
            return Ok(());
        }
        let metrics = log.take(&self.state, self.saver.take_stalled());
        watch.log(&mut self.state, metrics)
    }

    /// Whether early stopping has had enough.
    fn evaluate_if_due(&mut self, log: &mut Log, watch: &mut Watch<'_>) -> Result<bool> {
        if self.skipped_in_a_row > 0 || !watch.evaluates_at(&self.state) {
            return Ok(false);
        }
        let begin = Instant::now();
        self.settle()?;
        let enough = watch.evaluate(&self.trainee, &mut self.state, &mut self.communicator)?;
        // The time is not the next steps'.
        log.since += begin.elapsed();
        Ok(enough)
    }

    /// Begins a checkpoint when it is time, and publishes the one before when all ranks have written their part. Says
    /// whether one was begun.
    fn save_if_due(&mut self, sums: &StepSums) -> Result<bool> {
        if sums.written == self.layout.world_size as f64 {
            self.saver.conclude(&mut self.communicator)?;
        }
        let due = match self.config.save_strategy {
            Strategy::No => false,
            Strategy::Steps => self.state.global_step.is_multiple_of(self.config.save_steps as u64),
            Strategy::Epoch => self.state.cursor.position == 0,
        };
        let saves = due && self.skipped_in_a_row == 0;
        if saves {
            self.save()?;
        }
        Ok(saves)
    }

    fn save(&mut self) -> Result<()> {
        let since = Instant::now();
        self.settle()?;
        watch::note_best_checkpoint(&mut self.state, &self.config.output_dir);
        let Self { config, trainee, layout, partitions, state, .. } = self;
        let snapshot = Snapshot::take(config, trainee, layout, partitions, state);
        self.saver.start(&mut self.communicator, snapshot, since)
    }

    /// Ends as asked: with a checkpoint of this step.
    fn stop(mut self, saved: bool, mut watch: Watch<'_>) -> Result<Finished> {
        if !saved {
            self.save()?;
        }
        self.saver.conclude(&mut self.communicator)?;
        self.saver.finish_publishing();
        watch.flush()?;
        let dir = checkpoint::dir_of(&self.config.output_dir, self.state.global_step);
        self.communicator.all_reduce("last checkpoint", [0.0])?;
        self.communicator.finish()?;
        if self.layout.rank == 0 && !dir.exists() {
            bail!("stopped as asked at step {}, but the checkpoint could not be written", self.state.global_step);
        }
        Ok(Finished { state: self.state, stopped_in: Some(dir) })
    }

    /// The final model or adapter into `output_dir` itself: the last one, or the best one if that is asked for.
    fn finish(mut self, mut watch: Watch<'_>) -> Result<Finished> {
        self.saver.conclude(&mut self.communicator)?;
        self.saver.finish_publishing();
        self.settle()?;
        watch.finish(&self.trainee)?;
        if self.layout.rank == 0 {
            let output_dir = &self.config.output_dir;
            let best = self.state.best_model_checkpoint.as_ref().filter(|_| self.config.load_best_model_at_end);
            match best.map(Path::new).filter(|best| best.exists()) {
                Some(best) => {
                    watch.say(&format!("the model with the lowest evaluation loss is that of {}", best.display()));
                    checkpoint::copy_weights(best, output_dir)
                }
                None => checkpoint::save_weights(self.config, self.trainee, output_dir),
            }
            .context("the final model is not saved; checkpoints are as they were")?;
            common::json::write(&output_dir.join(checkpoint::TRAINER_STATE), &self.state)?;
        }
        self.communicator.all_reduce("final model", [0.0])?;
        self.communicator.finish()?;
        Ok(Finished { state: self.state, stopped_in: None })
    }
}

/// What has been seen since the last line.
struct Log {
    since: Instant,
    waited: Duration,
    steps: Vec<(StepReport, Duration)>,
}

impl Log {
    fn add(&mut self, report: StepReport, waited: Duration) {
        self.steps.push((report, waited));
    }

    fn take(&mut self, state: &TrainerState, stalled: Duration) -> StepMetrics {
        let steps = std::mem::take(&mut self.steps);
        let seconds = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        let sum = |value: fn(&StepReport) -> f64| steps.iter().map(|(report, _)| value(report)).sum::<f64>();
        let finite: Vec<f64> = steps.iter().map(|(report, _)| report.loss).filter(|loss| loss.is_finite()).collect();
        let waited = steps.last().map_or(self.waited, |(_, waited)| *waited);
        let last = steps.last().map(|(report, _)| report);
        let count = steps.len().max(1) as f64;
        StepMetrics {
            step: state.global_step,
            epoch: state.epoch,
            loss: finite.iter().sum::<f64>() / finite.len().max(1) as f64,
            grad_norm: last.map_or(0.0, |report| report.grad_norm),
            learning_rate: last.map_or(0.0, |report| report.learning_rate),
            supervised_tokens: sum(|report| report.sums.supervised_tokens) as u64,
            tokens_per_second: sum(|report| report.sums.tokens) / seconds,
            samples_per_second: sum(|report| report.sums.samples) / seconds,
            data_wait_seconds: (waited - std::mem::replace(&mut self.waited, waited)).as_secs_f64(),
            step_seconds: seconds / count,
            peak_rss_mb: peak_rss_mb(),
            bytes_sent: (sum(|report| report.traffic.bytes_sent as f64) / count) as u64,
            communication_seconds: sum(|report| report.traffic.busy.as_secs_f64()) / count,
            communication_wait_seconds: sum(|report| report.traffic.waited.as_secs_f64()) / count,
            checkpoint_stall_seconds: stalled.as_secs_f64(),
            skipped_steps: state.skipped_steps,
        }
    }
}
