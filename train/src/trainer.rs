//! The training loop.

use crate::adamw::AdamW;
use crate::backward::{Pass, forward_backward};
use crate::checkpoint::{self, TrainerState};
use crate::collective::{Collective, all_reduce};
use crate::config::{Config, LossNormalization, Strategy};
use crate::layout::Layout;
use crate::loader::{Loader, MicroBatch, Source};
use crate::metrics::{MetricsFile, StepMetrics, peak_rss_mb};
use crate::order::{BatchPlan, Cursor, mix};
use crate::resume;
use crate::schedule::Schedule;
use crate::setup::{self, Trainee};
use crate::trainable;
use crate::zero::Partitions;
use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use common::model::dropout::LoraDropout;
use common::shard::Split;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Steps in a row without a finite gradient that end a run.
const MAX_SKIPPED_IN_A_ROW: u64 = 5;

/// One rank's run.
pub struct Trainer<'a> {
    config: &'a Config,
    collective: Box<dyn Collective>,
    trainee: Trainee,
    layout: Layout,
    partitions: Partitions,
    plan: BatchPlan,
    schedule: Schedule,
    state: TrainerState,
    skipped_in_a_row: u64,
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
}

/// What a step has to say for itself.
struct StepReport {
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
    sums: StepSums,
    bytes_sent: u64,
}

/// Runs one rank from start to end.
///
/// # Errors
/// Whatever stops the run; nothing that was saved before is lost.
pub fn run(config: &Config, collective: Box<dyn Collective>, device: &Device) -> Result<TrainerState> {
    let shards = Arc::new(setup::shards(config, Split::Train)?);
    let (rank, world_size) = (collective.rank(), collective.world_size());
    let plan = BatchPlan {
        rows: shards.len(),
        micro_batch_size: config.per_device_train_batch_size,
        accumulation: config.gradient_accumulation_steps,
        world_size,
    };
    let max_steps = plan.max_steps(config.max_steps, config.num_train_epochs);
    let found = resume::find(config)?;
    let mut trainee = setup::trainee(config, device)?;
    let layout = trainable::layout(&trainee.model, config.train_type, &trainee.config, rank, world_size);
    let mut partitions = Partitions::new(&layout);
    let mut state = TrainerState {
        max_steps,
        num_train_epochs: config.num_train_epochs,
        train_batch_size: config.per_device_train_batch_size,
        logging_steps: config.logging_steps,
        save_steps: config.save_steps,
        is_world_process_zero: true,
        data_fingerprint: shards.fingerprint(),
        world_size,
        ..TrainerState::default()
    };
    if let Some(found) = &found {
        resume::check(found, &state.data_fingerprint)?;
        trainee.model = resume::restore(found, trainee.model, &layout, &mut partitions, device)?;
        state = TrainerState { max_steps, world_size, ..found.state.clone() };
        if rank == 0 {
            found.skipped.iter().for_each(|reason| eprintln!("warning: checkpoint passed over: {reason}"));
            eprintln!("resuming from {} at step {}", found.dir.display(), state.global_step);
        }
    }
    let max_length = match config.model_max_length {
        0 => trainee.config.text.max_position_embeddings,
        limit => limit,
    };
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
    }
    let schedule = Schedule::new(config, max_steps);
    let trainer =
        Trainer { config, collective, trainee, layout, partitions, plan, schedule, state, skipped_in_a_row: 0 };
    trainer.train(loader)
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
    /// The loop: next batch → forward and backward → reduce and clip → update → log → save.
    fn train(mut self, mut loader: Loader) -> Result<TrainerState> {
        let path = self.config.metrics.clone().unwrap_or_else(|| self.config.output_dir.join("metrics.jsonl"));
        let is_first = self.layout.rank == 0;
        let metrics = if is_first { Some(MetricsFile::open(&path, self.state.global_step)?) } else { None };
        let mut log = Log { metrics, since: Instant::now(), waited: Duration::ZERO, steps: Vec::new() };
        while self.state.global_step < self.state.max_steps {
            let (micro_batches, next) = self.next_batch(&mut loader)?;
            let sums = self.forward_backward(&micro_batches)?;
            let sums = self.reduce(sums)?;
            let report;
            (self, report) = self.clip_and_update(sums, &micro_batches)?;
            self.advance(next, &report);
            log.add(report, loader.waited);
            self.log(&mut log)?;
            self.save_if_due()?;
        }
        self.finish()
    }

    /// This rank's micro-batches of the next global batch, and the cursor after it.
    fn next_batch(&self, loader: &mut Loader) -> Result<(Vec<MicroBatch>, Cursor)> {
        let (_, next) = self.plan.next(self.state.cursor);
        let micro_batches = (0..self.plan.accumulation).map(|_| loader.next_micro_batch()).collect::<Result<_>>()?;
        Ok((micro_batches, next))
    }

    fn forward_backward(&mut self, micro_batches: &[MicroBatch]) -> Result<StepSums> {
        self.partitions.clear_gradient();
        let mut sums = StepSums::default();
        for micro_batch in micro_batches {
            let Some(batch) = &micro_batch.batch else {
                // Nothing to add, but the other ranks wait for this one's part of every block.
                for block in (0..self.layout.blocks.len()).rev() {
                    let zeros = vec![0.0; self.layout.blocks[block].len];
                    self.partitions.reduce(&self.layout, block, zeros, &mut *self.collective)?;
                }
                continue;
            };
            let supervised = batch.supervised().1.len();
            let loss_scale = match self.config.loss_normalization {
                LossNormalization::GlobalTokens => 1.0,
                LossNormalization::MicroBatchMean => 1.0 / supervised.max(1) as f32,
            };
            let pass = Pass {
                model: &self.trainee.model,
                config: &self.trainee.config,
                layout: &self.layout,
                recompute: self.config.gradient_checkpointing,
                dropout: self.dropout(micro_batch),
                loss_scale,
            };
            let mut reduced = vec![false; self.layout.blocks.len()];
            let (partitions, layout, collective) = (&mut self.partitions, &self.layout, &mut self.collective);
            let loss = forward_backward(&pass, batch, |block, flat| {
                reduced[block] = true;
                partitions.reduce(layout, block, flat, &mut **collective)
            })?;
            for block in (0..reduced.len()).rev().filter(|&block| !reduced[block]) {
                // A batch without images gives the projector and the tower nothing.
                let zeros = vec![0.0; layout.blocks[block].len];
                partitions.reduce(layout, block, zeros, &mut **collective)?;
            }
            sums.loss += loss;
            sums.mean_loss += loss / supervised.max(1) as f64;
            sums.supervised_tokens += supervised as f64;
            sums.tokens += batch.input_ids.len() as f64;
            sums.samples += batch.seq_lens.len() as f64;
            sums.micro_batches += 1.0;
        }
        sums.squared_norm = self.partitions.squared_norm();
        Ok(sums)
    }

    fn dropout(&self, micro_batch: &MicroBatch) -> Option<LoraDropout> {
        let lora = self.trainee.lora.as_ref().filter(|lora| lora.lora_dropout > 0.0)?;
        let seed = mix(self.config.seed ^ 0x6472_6F70);
        Some(LoraDropout { probability: lora.lora_dropout, seed, row_keys: micro_batch.row_keys.clone() })
    }

    /// One small all-reduce carries everything that the ranks must agree on.
    fn reduce(&mut self, sums: StepSums) -> Result<StepSums> {
        let mut values = [
            sums.loss,
            sums.squared_norm,
            sums.supervised_tokens,
            sums.tokens,
            sums.samples,
            sums.micro_batches,
            sums.mean_loss,
        ];
        all_reduce(&mut *self.collective, "step sums", &mut values)?;
        let [loss, squared_norm, supervised_tokens, tokens, samples, micro_batches, mean_loss] = values;
        Ok(StepSums { loss, squared_norm, supervised_tokens, tokens, samples, micro_batches, mean_loss })
    }

    /// Clips by the global norm and updates; a step whose loss or gradient is not finite is skipped.
    fn clip_and_update(mut self, sums: StepSums, micro_batches: &[MicroBatch]) -> Result<(Self, StepReport)> {
        let (loss, denominator) = match self.config.loss_normalization {
            LossNormalization::GlobalTokens => (sums.loss / sums.supervised_tokens, sums.supervised_tokens),
            LossNormalization::MicroBatchMean => (sums.mean_loss / sums.micro_batches, sums.micro_batches),
        };
        let grad_norm = sums.squared_norm.sqrt() / denominator;
        let learning_rate = self.schedule.learning_rate(self.state.global_step);
        if !loss.is_finite() || !grad_norm.is_finite() {
            self.skip(loss, grad_norm, micro_batches)?;
            return Ok((self, StepReport { loss, grad_norm, learning_rate, sums, bytes_sent: 0 }));
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
        // Moved out and back: only the sole handle of a tensor can be changed in place.
        let Trainee { config, model, lora } = self.trainee;
        let (layout, weight_decay) = (&self.layout, self.config.weight_decay);
        let model = self.partitions.update(model, layout, &adamw, weight_decay, &mut *self.collective)?;
        self.trainee = Trainee { config, model, lora };
        let bytes_sent = std::mem::take(&mut self.partitions.bytes_sent);
        Ok((self, StepReport { loss, grad_norm, learning_rate, sums, bytes_sent }))
    }

    fn skip(&mut self, loss: f64, grad_norm: f64, micro_batches: &[MicroBatch]) -> Result<()> {
        self.state.skipped_steps += 1;
        self.skipped_in_a_row += 1;
        let ids: Vec<&str> = micro_batches
            .iter()
            .filter_map(|batch| batch.batch.as_ref())
            .flat_map(|b| &b.ids)
            .map(|id| &**id)
            .collect();
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

    fn log(&mut self, log: &mut Log) -> Result<()> {
        let due = self.state.global_step.is_multiple_of(self.config.logging_steps as u64);
        let last = self.state.global_step == self.state.max_steps;
        if self.skipped_in_a_row > 0 || log.steps.is_empty() || !(due || last) {
            return Ok(());
        }
        let metrics = log.take(&self.state);
        if let Some(file) = &mut log.metrics {
            file.append(&metrics)?;
            let StepMetrics { loss, grad_norm, learning_rate, tokens_per_second, step_seconds, .. } = metrics;
            let remaining = step_seconds * (self.state.max_steps - self.state.global_step) as f64;
            eprintln!(
                "step {}/{}  loss {loss:.4}  grad_norm {grad_norm:.3}  lr {learning_rate:.3e}  {tokens_per_second:.0} tokens/s  \
                 {remaining:.0} s left",
                self.state.global_step, self.state.max_steps
            );
        }
        self.state.log_history.push(metrics);
        Ok(())
    }

    fn save_if_due(&mut self) -> Result<()> {
        let due = match self.config.save_strategy {
            Strategy::No => false,
            Strategy::Steps => self.state.global_step.is_multiple_of(self.config.save_steps as u64),
            Strategy::Epoch => self.state.cursor.position == 0,
        };
        if due && self.skipped_in_a_row == 0 {
            let Self { config, trainee, layout, partitions, state, collective, .. } = self;
            checkpoint::save(config, trainee, layout, partitions, state, &mut **collective)?;
        }
        Ok(())
    }

    /// The final model or adapter into `output_dir` itself.
    fn finish(mut self) -> Result<TrainerState> {
        if self.layout.rank == 0 {
            checkpoint::save_weights(self.config, &self.trainee, &self.config.output_dir)?;
            common::json::write(&self.config.output_dir.join(checkpoint::TRAINER_STATE), &self.state)?;
        }
        all_reduce(&mut *self.collective, "final model", &mut [0.0]).context("final model")?;
        Ok(self.state)
    }
}

/// What has been seen since the last line.
struct Log {
    metrics: Option<MetricsFile>,
    since: Instant,
    waited: Duration,
    steps: Vec<(StepReport, Duration)>,
}

impl Log {
    fn add(&mut self, report: StepReport, waited: Duration) {
        self.steps.push((report, waited));
    }

    fn take(&mut self, state: &TrainerState) -> StepMetrics {
        let steps = std::mem::take(&mut self.steps);
        let seconds = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        let sum = |value: fn(&StepReport) -> f64| steps.iter().map(|(report, _)| value(report)).sum::<f64>();
        let finite: Vec<f64> = steps.iter().map(|(report, _)| report.loss).filter(|loss| loss.is_finite()).collect();
        let waited = steps.last().map_or(self.waited, |(_, waited)| *waited);
        let last = steps.last().map(|(report, _)| report);
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
            step_seconds: seconds / steps.len().max(1) as f64,
            peak_rss_mb: peak_rss_mb(),
            bytes_sent: last.map_or(0, |report| report.bytes_sent),
            skipped_steps: state.skipped_steps,
        }
    }
}
