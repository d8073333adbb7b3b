//! The training loop.

mod end;
mod report;
mod sources;
mod start;
mod sums;

pub use start::run;

use crate::adamw::AdamW;
use crate::backward::{BatchLoss, Pass, forward_backward};
use crate::config::{Config, LossNormalization};
use crate::loader::{Loader, MicroBatch};
use crate::metrics::StepMetrics;
use crate::order::{BatchPlan, Cursor};
use crate::progress::Shown;
use crate::run::RunRecord;
use crate::saving::Saver;
use crate::schedule::Schedule;
use crate::setup::Trainee;
use crate::signals::StopRequest;
use crate::state::TrainerState;
use crate::vision_cache::VisionFeatureCache;
use crate::watch::Watch;
use crate::zero::Optimizer;
use anyhow::{Result, bail};
use base::mix;
use burn::tensor::Tensor;
use model::batch::PackedBatch;
use model::dropout::LoraDropout;
use report::{Log, StepReport};
pub(crate) use sources::SourceSums;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use sums::StepSums;

/// Steps in a row without a finite gradient that end a run.
const MAX_SKIPPED_IN_A_ROW: u64 = 5;

/// One rank's run.
pub struct Trainer<'a> {
    config: &'a Config,
    trainee: Trainee,
    optimizer: Optimizer,
    kept_features: Option<VisionFeatureCache>,
    saver: Saver,
    /// The run, on rank 0.
    record: Option<Arc<RunRecord>>,
    plan: BatchPlan,
    schedule: Schedule,
    state: TrainerState,
    skipped_in_a_row: u64,
    /// The last step for which a checkpoint was begun.
    saved_step: Option<u64>,
    stop_request: StopRequest,
    /// Sums since the last line of the log.
    log: Log,
    /// Loss and counts by source of the data.
    sources: SourceSums,
}

/// How a run ended.
#[derive(Debug)]
pub struct Finished {
    /// Where it stands.
    pub state: TrainerState,
    /// The checkpoint that it was saved in, if it was asked to stop before its end.
    pub stopped_in: Option<PathBuf>,
    /// Whether at least one step was left to train.
    pub has_trained: bool,
}

/// Whether no step follows: the last one is made, no row is left, or early stopping has had enough.
fn is_at_end(config: &Config, plan: &BatchPlan, state: &TrainerState) -> bool {
    let patience = config.early_stopping_patience;
    let enough = patience > 0 && state.run.evaluations_without_improvement >= patience;
    enough || state.global_step >= state.max_steps || plan.is_at_end(state.run.cursor)
}

impl Trainer<'_> {
    /// The loop: next batch → forward and backward → reduce and clip → update → log → evaluate → save.
    fn train(mut self, mut loader: Loader, mut watch: Watch<'_>) -> Result<Finished> {
        let has_trained = !self.is_at_end();
        if !has_trained {
            watch.say(&format!(
                "nothing left to train: step {} of {}; for more steps give a larger --num_train_epochs or --max_steps",
                self.state.global_step, self.state.max_steps
            ));
        }
        while !self.is_at_end() {
            let (_, next) = self.plan.next(self.state.run.cursor);
            let (sums, ids) = self.forward_backward(&mut loader)?;
            let sums = sums.of_all_ranks(self.optimizer.communicator())?;
            let report = self.clip_and_update(sums, &ids)?;
            self.advance(next, &report);
            self.sources.end_step(self.skipped_in_a_row > 0)?;
            watch.step(&self.shown(&report));
            self.log.add(report, loader.waited);
            self.log(&mut watch)?;
            watch.features(self.kept_features.as_ref());
            self.evaluate_if_due(&mut watch)?;
            self.save_if_due(&sums)?;
            if sums.stop_requests > 0.0 && !self.is_at_end() {
                return self.stop(watch);
            }
        }
        self.finish(watch, has_trained)
    }

    fn is_at_end(&self) -> bool {
        is_at_end(self.config, &self.plan, &self.state)
    }

    /// All micro-batches, one after another; each block's gradient is on its way to its owner while the block before it is
    /// computed. Also gives the ids of the rows.
    fn forward_backward(&mut self, loader: &mut Loader) -> Result<(StepSums, Vec<String>)> {
        let (mut sums, mut ids, mut losses) = (StepSums::default(), Vec::new(), Vec::new());
        for micro_step in 0..self.plan.accumulation {
            let micro_batch = loader.next_micro_batch()?;
            self.optimizer.begin_micro_step(micro_step + 1 == self.plan.accumulation);
            if let Some(batch) = &micro_batch.batch {
                ids.extend_from_slice(&batch.ids);
                losses.push((self.micro_step(&micro_batch, batch, &mut sums)?, batch.supervised().1.len()));
            }
            self.optimizer.end_micro_step(&mut self.trainee.model)?;
        }
        let (losses, supervised): (Vec<_>, Vec<_>) = losses.into_iter().unzip();
        let (losses, squared_norm) = self.optimizer.sums(losses)?;
        for (loss, supervised) in losses.into_iter().zip(supervised) {
            sums.loss += loss;
            sums.mean_loss += loss / supervised.max(1) as f64;
        }
        sums.squared_norm = squared_norm;
        sums.written = f64::from(u8::from(self.saver.is_written()));
        sums.stop_requests = f64::from(u8::from(self.stop_request.is_set()));
        Ok((sums, ids))
    }

    /// Gives the loss sum, `[1]`, which is read at the end of the step.
    fn micro_step(&mut self, micro_batch: &MicroBatch, batch: &PackedBatch, sums: &mut StepSums) -> Result<Tensor<1>> {
        let supervised = batch.supervised().1.len();
        let loss_scale = match self.config.loss_normalization {
            LossNormalization::GlobalTokens => 1.0,
            LossNormalization::MicroBatchMean => 1.0 / supervised.max(1) as f32,
        };
        let (dropout, layout) = (self.dropout(micro_batch), Arc::clone(self.optimizer.layout()));
        let mut pass = Pass {
            model: &mut self.trainee.model,
            config: &self.trainee.config,
            layout: &layout,
            recompute: self.config.gradient_checkpointing,
            kept_features: self.kept_features.as_ref().map(|kept| (kept, &micro_batch.rows[..])),
            dropout,
            loss_scale,
            on_device: self.optimizer.is_on_device(),
        };
        let BatchLoss { sum: loss, tokens } = forward_backward(&mut pass, batch, &mut self.optimizer)?;
        self.sources.add(micro_batch, batch, tokens);
        sums.supervised_tokens += supervised as f64;
        sums.tokens += batch.input_ids.len() as f64;
        sums.samples += batch.seq_lens.len() as f64;
        sums.micro_batches += 1.0;
        Ok(loss)
    }

    /// Waits until the whole model has its new values.
    fn wait_for_params(&mut self) -> Result<()> {
        self.optimizer.wait_for_all_params(&mut self.trainee.model)
    }

    fn dropout(&self, micro_batch: &MicroBatch) -> Option<LoraDropout> {
        let lora = self.trainee.lora.as_ref().filter(|lora| lora.lora_dropout > 0.0)?;
        let seed = mix(self.config.seed ^ 0x6472_6F70);
        Some(LoraDropout { probability: lora.lora_dropout, seed, row_keys: micro_batch.row_keys.clone() })
    }

    /// Clips by the global norm and updates; a step whose loss or gradient is not finite is skipped.
    fn clip_and_update(&mut self, sums: StepSums, ids: &[String]) -> Result<StepReport> {
        let (loss, denominator) = match self.config.loss_normalization {
            LossNormalization::GlobalTokens => (sums.loss / sums.supervised_tokens, sums.supervised_tokens),
            LossNormalization::MicroBatchMean => (sums.mean_loss / sums.micro_batches, sums.micro_batches),
        };
        let grad_norm = sums.squared_norm.sqrt() / denominator;
        let learning_rates = self.schedule.learning_rates(self.state.global_step);
        let traffic = self.optimizer.take_traffic();
        let report = StepReport { loss, grad_norm, learning_rates, sums, traffic };
        if !loss.is_finite() || !grad_norm.is_finite() {
            self.optimizer.discard_gradient();
            self.skip(loss, grad_norm, ids)?;
            return Ok(report);
        }
        self.skipped_in_a_row = 0;
        let max_grad_norm = self.config.max_grad_norm;
        let clip = if max_grad_norm > 0.0 { (max_grad_norm / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        let adamw = AdamW {
            learning_rate: learning_rates.learning_rate,
            beta1: self.config.adam_beta1,
            beta2: self.config.adam_beta2,
            epsilon: self.config.adam_epsilon,
            step: self.state.global_step + 1,
            gradient_scale: (clip / denominator) as f32,
        };
        self.optimizer.begin_update(&mut self.trainee.model, adamw, learning_rates);
        Ok(report)
    }

    fn skip(&mut self, loss: f64, grad_norm: f64, ids: &[String]) -> Result<()> {
        self.state.run.skipped_steps += 1;
        self.skipped_in_a_row += 1;
        let step = self.state.global_step + 1;
        tracing::warn!("step {step} skipped: loss {loss}, gradient norm {grad_norm}; rows {}", ids.join(", "));
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
        self.state.run.cursor = next;
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
            learning_rate: report.learning_rates.learning_rate,
            tokens: report.sums.tokens,
        }
    }

    fn log(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        let interval = self.config.logging_steps.in_run(self.state.max_steps);
        let first = self.config.logging_first_step && self.state.global_step == 1;
        let due = first || self.state.global_step.is_multiple_of(interval);
        if self.skipped_in_a_row > 0 || self.log.is_empty() || !(due || self.is_at_end()) {
            return Ok(());
        }
        let sources = self.sources.take(self.optimizer.communicator())?;
        let metrics = StepMetrics { sources, ..self.log.take(&self.state, self.saver.take_stalled()) };
        watch.log(&mut self.state, metrics);
        Ok(())
    }

    fn evaluate_if_due(&mut self, watch: &mut Watch<'_>) -> Result<()> {
        if !watch.evaluates_at(&self.state, self.is_at_end()) {
            return Ok(());
        }
        let begin = Instant::now();
        self.wait_for_params()?;
        watch.evaluate(&self.trainee, &mut self.state, self.optimizer.communicator())?;
        // The time is not the next steps'.
        self.log.since += begin.elapsed();
        Ok(())
    }
}
