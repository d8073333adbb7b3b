//! The numbers of a step, and of the steps of a log line.

use super::sums::StepSums;
use crate::collective::background::Traffic;
use crate::learning_rates::LearningRates;
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
    /// When the last line was written; pauses are added.
    pub(super) since: Instant,
    waited: Duration,
    steps: Vec<(StepReport, Duration)>,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), waited: Duration::ZERO, steps: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub(super) fn add(&mut self, report: StepReport, waited: Duration) {
        self.steps.push((report, waited));
    }

    /// The numbers of a line, which covers the steps since the last one; without those of sources.
    pub(super) fn take(&mut self, state: &TrainerState, stalled: Duration) -> StepMetrics {
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
            learning_rate: last.map_or(0.0, |report| report.learning_rates.learning_rate),
            mm_projector_lr: last.and_then(|report| report.learning_rates.mm_projector_lr),
            vision_tower_lr: last.and_then(|report| report.learning_rates.vision_tower_lr),
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
            skipped_steps: state.run.skipped_steps,
            sources: BTreeMap::new(),
        }
    }
}
