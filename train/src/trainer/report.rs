//! The numbers of a step, and of the steps of a log line.

use super::sums::StepSums;
use crate::collective::background::Traffic;
use crate::learning_rates::LearningRates;
use crate::log_sums::LogSums;
use crate::metrics::StepMetrics;
use crate::state::TrainerState;
use kernels::memory::peak_rss_mb;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a step has to say for itself.
pub(super) struct StepReport {
    pub(super) loss: f64,
    pub(super) grad_norm: f64,
    pub(super) learning_rates: LearningRates,
    pub(super) sums: StepSums,
    pub(super) traffic: Traffic,
}

/// Sums since the last logged step.
pub(super) struct Log {
    /// When the last line was written, or the run was resumed; pauses are added.
    pub(super) since: Instant,
    sums: LogSums,
    /// What the loader has waited in all.
    waited: Duration,
    last: Option<StepReport>,
}

impl Log {
    /// Begins with the sums of a checkpoint.
    pub(super) fn new(sums: LogSums) -> Self {
        Self { since: Instant::now(), sums, waited: Duration::ZERO, last: None }
    }

    /// Whether no step was made since the last line, or since the run was resumed.
    pub(super) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    pub(super) fn add(&mut self, report: StepReport, waited: Duration) {
        let StepReport { loss, sums: of_step, ref traffic, .. } = report;
        let sums = &mut self.sums;
        sums.steps += 1;
        if loss.is_finite() {
            sums.loss += loss;
            sums.finite_steps += 1;
        }
        sums.supervised_tokens += of_step.supervised_tokens;
        sums.tokens += of_step.tokens;
        sums.samples += of_step.samples;
        sums.bytes_sent += traffic.bytes_sent;
        sums.communication_seconds += traffic.busy.as_secs_f64();
        sums.communication_wait_seconds += traffic.waited.as_secs_f64();
        sums.data_wait_seconds += waited.saturating_sub(self.waited).as_secs_f64();
        self.waited = waited;
        self.last = Some(report);
    }

    /// The sums so far, for a checkpoint; without those of sources.
    pub(super) fn sums(&self) -> LogSums {
        LogSums { seconds: self.sums.seconds + self.since.elapsed().as_secs_f64(), ..self.sums.clone() }
    }

    /// The numbers of a line, which covers the steps since the last one; without those of sources.
    pub(super) fn take(&mut self, state: &TrainerState, stalled: Duration) -> StepMetrics {
        let sums = self.sums();
        (self.sums, self.since) = (LogSums::default(), Instant::now());
        let last = self.last.take();
        let last = last.as_ref();
        let count = sums.steps.max(1) as f64;
        StepMetrics {
            step: state.global_step,
            epoch: state.epoch,
            loss: sums.loss / sums.finite_steps.max(1) as f64,
            grad_norm: last.map_or(0.0, |report| report.grad_norm),
            learning_rate: last.map_or(0.0, |report| report.learning_rates.learning_rate),
            mm_projector_lr: last.and_then(|report| report.learning_rates.mm_projector_lr),
            vision_tower_lr: last.and_then(|report| report.learning_rates.vision_tower_lr),
            supervised_tokens: sums.supervised_tokens as u64,
            tokens_per_second: sums.tokens / sums.seconds,
            samples_per_second: sums.samples / sums.seconds,
            data_wait_seconds: sums.data_wait_seconds,
            step_seconds: sums.seconds / count,
            peak_rss_mb: peak_rss_mb(),
            bytes_sent: (sums.bytes_sent as f64 / count) as u64,
            communication_seconds: sums.communication_seconds / count,
            communication_wait_seconds: sums.communication_wait_seconds / count,
            checkpoint_stall_seconds: stalled.as_secs_f64(),
            skipped_steps: state.run.skipped_steps,
            sources: BTreeMap::new(),
        }
    }
}
