//! The training loop.

mod end;
mod report;
mod start;

pub use start::run;

use crate::adamw::AdamW;
use crate::backward::{Pass, forward_backward};
use crate::collective::background::Communicator;
use crate::config::{Config, LossNormalization};
use crate::layout::Layout;
use crate::loader::{Loader, MicroBatch};
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
use crate::zero::Partitions;
use anyhow::{Result, bail};
use base::mix;
use model::dropout::LoraDropout;
use report::{Log, StepReport, StepSums};
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

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
    /// The run, on rank 0.
    record: Option<Arc<RunRecord>>,
    plan: BatchPlan,
    schedule: Schedule,
    state: TrainerState,
    skipped_in_a_row: u64,
    /// The last step for which a checkpoint was begun.
    saved_step: Option<u64>,
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

impl Trainer<'_> {
    /// The loop: next batch → forward and backward → reduce and clip → update → log → evaluate → save.
    fn train(mut self, mut loader: Loader, mut watch: Watch<'_>) -> Result<Finished> {
        let mut log = Log::new();
        if self.is_at_end() {
            watch.say(&format!("nothing left to train: step {} of {}", self.state.global_step, self.state.max_steps));
        }
        while !self.is_at_end() {
            let (_, next) = self.plan.next(self.state.run.cursor);
            let (sums, ids) = self.forward_backward(&mut loader)?;
            let sums = self.reduce(sums)?;
            let report = self.clip_and_update(sums, &ids)?;
            self.advance(next, &report);
            watch.step(&self.shown(&report));
            log.add(report, loader.waited);
            self.log(&mut log, &mut watch);
            watch.features(self.kept_features.as_ref());
            self.evaluate_if_due(&mut log, &mut watch)?;
            self.save_if_due(&sums)?;
            if sums.stop_requests > 0.0 && !self.is_at_end() {
                return self.stop(watch);
            }
        }
        self.finish(watch)
    }

    /// Whether no step follows: the last one is made, no row is left, or early stopping has had enough.
    fn is_at_end(&self) -> bool {
        let (state, patience) = (&self.state, self.config.early_stopping_patience);
        let enough = patience > 0 && state.run.evaluations_without_improvement >= patience;
        enough || state.global_step >= state.max_steps || self.plan.is_at_end(state.run.cursor)
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
            learning_rate: report.learning_rate,
            tokens: report.sums.tokens,
        }
    }

    fn log(&mut self, log: &mut Log, watch: &mut Watch<'_>) {
        let interval = self.config.logging_steps.in_run(self.state.max_steps);
        let first = self.config.logging_first_step && self.state.global_step == 1;
        let due = first || self.state.global_step.is_multiple_of(interval);
        if self.skipped_in_a_row > 0 || log.is_empty() || !(due || self.is_at_end()) {
            return;
        }
        let metrics = log.take(&self.state, self.saver.take_stalled());
        watch.log(&mut self.state, metrics);
    }

    fn evaluate_if_due(&mut self, log: &mut Log, watch: &mut Watch<'_>) -> Result<()> {
        if !watch.evaluates_at(&self.state, self.is_at_end()) {
            return Ok(());
        }
        let begin = Instant::now();
        self.settle()?;
        watch.evaluate(&self.trainee, &mut self.state, &mut self.communicator)?;
        // The time is not the next steps'.
        log.since += begin.elapsed();
        Ok(())
    }
}
