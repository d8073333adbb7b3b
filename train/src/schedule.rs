//! Learning rate of every step, as transformers' schedules compute it.

use crate::config::{Config, ScheduleType};
use common::exact;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Where a run's steps began to have another number of rows than at its start: from there to its end, the schedule goes on by
/// the fraction done.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduleBase {
    /// Finished optimizer updates then.
    pub global_step: u64,
    /// The schedule's step then: the updates that the run would have made with the batch it was started with.
    #[serde(with = "exact")]
    pub position: f64,
    /// Updates of the whole run.
    pub last_step: u64,
    /// Steps of the schedule.
    pub schedule_steps: u64,
}

impl ScheduleBase {
    /// The schedule's step after `finished_steps` updates of the run.
    pub fn position(&self, finished_steps: u64) -> f64 {
        let steps = self.last_step.saturating_sub(self.global_step).max(1) as f64;
        let done = finished_steps.saturating_sub(self.global_step) as f64;
        self.position + done * (self.schedule_steps as f64 - self.position).max(0.0) / steps
    }
}

/// A schedule with its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    kind: ScheduleType,
    learning_rate: f64,
    warmup_steps: u64,
    max_steps: u64,
    num_cycles: usize,
    power: f64,
    lr_end: f64,
    base: Option<ScheduleBase>,
}

impl Schedule {
    /// The schedule of a run of `max_steps` optimizer steps.
    pub fn new(config: &Config, max_steps: u64) -> Self {
        Self {
            kind: config.lr_scheduler_type,
            learning_rate: config.learning_rate,
            warmup_steps: config.resolved_warmup_steps(max_steps),
            max_steps,
            num_cycles: config.lr_num_cycles,
            power: config.lr_power,
            lr_end: config.lr_end,
            base: None,
        }
    }

    /// The same schedule for a run whose steps have another length from `base` on.
    pub fn on_from(self, base: Option<ScheduleBase>) -> Self {
        Self { base, ..self }
    }

    /// Learning rate of the update after `finished_steps` updates (the first update has 0 finished ones).
    ///
    /// # Source
    /// transformers `optimization.py`; the order of operations is kept, so that the values are equal to the last bit.
    pub fn learning_rate(&self, finished_steps: u64) -> f64 {
        let position = self.base.map_or(finished_steps as f64, |base| base.position(finished_steps));
        self.learning_rate * self.factor(position)
    }

    fn factor(&self, step: f64) -> f64 {
        let (warmup, max) = (self.warmup_steps as f64, self.max_steps as f64);
        if self.kind != ScheduleType::Constant && step < warmup {
            return step / warmup.max(1.0);
        }
        let progress = (step - warmup) / (max - warmup).max(1.0);
        match self.kind {
            ScheduleType::Constant | ScheduleType::ConstantWithWarmup => 1.0,
            ScheduleType::Linear => ((max - step) / (max - warmup).max(1.0)).max(0.0),
            ScheduleType::Cosine => (0.5 * (1.0 + (PI * 0.5 * 2.0 * progress).cos())).max(0.0),
            ScheduleType::CosineWithRestarts if progress >= 1.0 => 0.0,
            ScheduleType::CosineWithRestarts => {
                (0.5 * (1.0 + (PI * ((self.num_cycles as f64 * progress) % 1.0)).cos())).max(0.0)
            }
            ScheduleType::Polynomial => self.polynomial(step, warmup, max),
            ScheduleType::InverseSqrt => {
                let timescale = if warmup > 0.0 { warmup } else { 10_000.0 };
                1.0 / ((step + (timescale - warmup)) / timescale).sqrt()
            }
        }
    }

    fn polynomial(&self, step: f64, warmup: f64, max: f64) -> f64 {
        if step > max {
            return self.lr_end / self.learning_rate;
        }
        let remaining = 1.0 - (step - warmup) / (max - warmup);
        ((self.learning_rate - self.lr_end) * remaining.powf(self.power) + self.lr_end) / self.learning_rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleType) -> Schedule {
        let (learning_rate, lr_end) = (2e-3, 1e-7);
        Schedule { kind, learning_rate, warmup_steps: 2, max_steps: 8, num_cycles: 2, power: 2.0, lr_end, base: None }
    }

    #[test]
    fn steps_of_another_length_go_on_by_the_fraction_done() {
        let rate = |step, schedule: &Schedule| schedule.learning_rate(step);
        let whole = schedule(ScheduleType::Cosine);
        let base = |last_step| ScheduleBase { global_step: 4, position: 4.0, last_step, schedule_steps: 8 };
        // Twice the rows: two steps for the last four. Half the rows: eight steps.
        let (longer, shorter) = (whole.clone().on_from(Some(base(6))), whole.clone().on_from(Some(base(12))));
        for (found, expected) in [
            (rate(4, &longer), rate(4, &whole)),
            (rate(5, &longer), rate(6, &whole)),
            (rate(6, &longer), rate(8, &whole)),
            (rate(4, &shorter), rate(4, &whole)),
            (rate(6, &shorter), rate(5, &whole)),
            (rate(12, &shorter), rate(8, &whole)),
            (rate(3, &whole.clone().on_from(None)), rate(3, &whole)),
        ] {
            assert_eq!(found, expected);
        }
    }

    /// Values printed by transformers 5.24's `get_scheduler` with the same numbers.
    #[test]
    fn equals_transformers() {
        let linear = [0.0, 0.001, 0.002, 0.0016666666666666668, 0.0013333333333333333, 0.001, 0.0006666666666666666];
        let found: Vec<f64> = (0..7).map(|step| schedule(ScheduleType::Linear).learning_rate(step)).collect();
        assert_eq!(found, linear);
        for (kind, step, expected) in EXPECTED {
            let found = schedule(kind).learning_rate(step);
            assert!((found - expected).abs() <= 1e-15, "{kind:?} at {step}: {found} where {expected} is expected");
        }
    }

    const EXPECTED: [(ScheduleType, u64, f64); 11] = [
        (ScheduleType::Constant, 0, 0.002),
        (ScheduleType::ConstantWithWarmup, 1, 0.001),
        (ScheduleType::ConstantWithWarmup, 5, 0.002),
        (ScheduleType::Cosine, 3, 0.001866025403784439),
        (ScheduleType::Cosine, 7, 0.0001339745962155613),
        (ScheduleType::CosineWithRestarts, 4, 0.0005000000000000002),
        (ScheduleType::CosineWithRestarts, 8, 0.0),
        (ScheduleType::Polynomial, 5, 0.000500075),
        (ScheduleType::Polynomial, 9, 1e-7),
        (ScheduleType::InverseSqrt, 3, 0.0016329931618554523),
        (ScheduleType::InverseSqrt, 7, 0.0010690449676496977),
    ];
}
