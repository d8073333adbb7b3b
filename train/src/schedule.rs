//! Learning rate of every step, as transformers' and DeepSpeed's schedules compute it.

mod deepspeed;
mod kwargs;

pub use deepspeed::{DeepspeedKind, DeepspeedSchedule, WarmupType};
pub use kwargs::{Curve, SchedulerKwargs};

use crate::config::{Config, ScheduleType};
use crate::learning_rates::LearningRates;
use base::{Error, Result, exact};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use std::path::Path;

/// Where a run's steps began to have another number of rows than at its start: from there to its end, the schedule continues by
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
    deepspeed: Option<DeepspeedSchedule>,
    rates: LearningRates,
    warmup_steps: u64,
    max_steps: u64,
    num_cycles: usize,
    power: f64,
    lr_end: f64,
    kwargs: SchedulerKwargs,
    base: Option<ScheduleBase>,
}

impl Schedule {
    /// The schedule of a run of `max_steps` optimizer steps.
    ///
    /// # Errors
    /// A DeepSpeed file that was written for a run of another number of steps.
    pub fn new(config: &Config, max_steps: u64) -> Result<Self> {
        let of_file = config.deepspeed_scheduler.as_ref().and_then(|schedule| schedule.total_num_steps);
        if let Some(steps) = of_file.filter(|&steps| steps != max_steps) {
            let file = config.deepspeed.as_deref().unwrap_or(Path::new("deepspeed")).display();
            let place = format!("{file}: scheduler.params.total_num_steps");
            let expected = format!("{max_steps}, the steps of this run, or auto");
            return Err(Error::invalid(place, steps, expected, "write auto"));
        }
        let kwargs = config.lr_scheduler_kwargs;
        Ok(Self {
            kind: config.lr_scheduler_type,
            deepspeed: config.deepspeed_scheduler.clone(),
            rates: LearningRates::of(config),
            warmup_steps: config.resolved_warmup_steps(max_steps),
            max_steps,
            num_cycles: config.lr_num_cycles,
            power: kwargs.power.unwrap_or(config.lr_power),
            lr_end: kwargs.lr_end.unwrap_or(config.lr_end),
            kwargs,
            base: None,
        })
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
        self.learning_rates(finished_steps).learning_rate
    }

    /// The rates of all parts of that update: each is its highest one times the same factor.
    pub fn learning_rates(&self, finished_steps: u64) -> LearningRates {
        let position = self.base.map_or(finished_steps as f64, |base| base.position(finished_steps));
        match &self.deepspeed {
            Some(schedule) => {
                self.rates.map(|highest| schedule.learning_rate(highest, self.warmup_steps, self.max_steps, position))
            }
            None => {
                let factor = self.factor(position);
                self.rates.map(|highest| highest * factor)
            }
        }
    }

    fn factor(&self, step: f64) -> f64 {
        let (warmup, max) = (self.warmup_steps as f64, self.max_steps as f64);
        match self.kind {
            ScheduleType::CosineWarmupWithMinLr => return self.cosine_from_warmup_rate(step, warmup, max),
            ScheduleType::WarmupStableDecay => return self.warmup_stable_decay(step, warmup, max),
            ScheduleType::Constant => return 1.0,
            _ if step < warmup => return step / warmup.max(1.0),
            _ => {}
        }
        let progress = (step - warmup) / (max - warmup).max(1.0);
        match self.kind {
            ScheduleType::Linear => ((max - step) / (max - warmup).max(1.0)).max(0.0),
            ScheduleType::Cosine => self.cosine(progress).max(0.0),
            ScheduleType::CosineWithMinLr => self.above_minimum(self.cosine(progress)),
            ScheduleType::CosineWithRestarts if progress >= 1.0 => 0.0,
            ScheduleType::CosineWithRestarts => {
                let cycles = self.kwargs.num_cycles.unwrap_or(self.num_cycles as f64);
                (0.5 * (1.0 + (PI * ((cycles * progress) % 1.0)).cos())).max(0.0)
            }
            ScheduleType::Polynomial => self.polynomial(step, warmup, max),
            ScheduleType::InverseSqrt => {
                let default = if warmup > 0.0 { warmup } else { 10_000.0 };
                let timescale = self.kwargs.timescale.unwrap_or(default);
                1.0 / ((step + (timescale - warmup)) / timescale).sqrt()
            }
            _ => 1.0,
        }
    }

    fn cosine(&self, progress: f64) -> f64 {
        0.5 * (1.0 + (PI * self.kwargs.num_cycles.unwrap_or(0.5) * 2.0 * progress).cos())
    }

    fn above_minimum(&self, factor: f64) -> f64 {
        let of_rate = self.kwargs.min_lr.map(|min_lr| min_lr / self.rates.learning_rate);
        let minimum = of_rate.or(self.kwargs.min_lr_rate).unwrap_or(0.0);
        (factor * (1.0 - minimum) + minimum).max(0.0)
    }

    fn cosine_from_warmup_rate(&self, step: f64, warmup: f64, max: f64) -> f64 {
        if step < warmup {
            return match self.kwargs.warmup_lr_rate {
                None => (step + 1.0) / warmup.max(1.0),
                Some(rate) => rate + (1.0 - rate) * step / (warmup - 1.0).max(1.0),
            };
        }
        self.above_minimum(self.cosine((step - warmup + 1.0) / (max - warmup).max(1.0)))
    }

    fn warmup_stable_decay(&self, step: f64, warmup: f64, max: f64) -> f64 {
        let decay = self.kwargs.num_decay_steps.unwrap_or(0.0);
        let stable = self.kwargs.num_stable_steps.unwrap_or(max - warmup - decay);
        let minimum = self.kwargs.min_lr_ratio.unwrap_or(0.0);
        let above_minimum = |factor: f64| (factor * (1.0 - minimum) + minimum).max(0.0);
        if step < warmup {
            let progress = step / warmup.max(1.0);
            return above_minimum(match self.kwargs.warmup_type.unwrap_or(Curve::Linear) {
                Curve::Linear => progress,
                Curve::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
                Curve::OneMinusSqrt => 1.0 - (1.0 - progress).sqrt(),
            });
        }
        if step < warmup + stable {
            return 1.0;
        }
        if step >= warmup + stable + decay {
            return minimum;
        }
        let progress = (step - warmup - stable) / decay.max(1.0);
        above_minimum(match self.kwargs.decay_type.unwrap_or(Curve::Cosine) {
            Curve::Linear => 1.0 - progress,
            Curve::Cosine => self.cosine(progress),
            Curve::OneMinusSqrt => 1.0 - progress.sqrt(),
        })
    }

    fn polynomial(&self, step: f64, warmup: f64, max: f64) -> f64 {
        let highest = self.rates.learning_rate;
        if step > max {
            return self.lr_end / highest;
        }
        let remaining = 1.0 - (step - warmup) / (max - warmup);
        ((highest - self.lr_end) * remaining.powf(self.power) + self.lr_end) / highest
    }
}

#[cfg(test)]
mod tests;
