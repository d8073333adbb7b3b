//! DeepSpeed's learning-rate schedules.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeepspeedKind {
    /// From a lowest rate up to the highest, then constant.
    WarmupLR,
    /// From a lowest rate up to the highest, then down to 0 in a line.
    WarmupDecayLR,
    /// From a fraction of the rate up to it, then half a cosine down to another fraction.
    WarmupCosineLR,
}

/// How the rate rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WarmupType {
    /// With the logarithm of the step.
    Log,
    /// In a line.
    Linear,
}

/// The `scheduler` section of a DeepSpeed file. The highest rate is `learning_rate`, the steps of warm-up are `warmup_steps`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepspeedSchedule {
    /// Which schedule.
    pub kind: DeepspeedKind,
    /// How the rate rises.
    pub warmup_type: WarmupType,
    /// Rate at the start (`WarmupLR`, `WarmupDecayLR`).
    pub warmup_min_lr: f64,
    /// Fraction of the rate at the start (`WarmupCosineLR`).
    pub warmup_min_ratio: f64,
    /// Fraction of the rate at the end (`WarmupCosineLR`).
    pub cos_min_ratio: f64,
    /// Steps of the run, if the file says so.
    pub total_num_steps: Option<u64>,
}

impl DeepspeedSchedule {
    /// Learning rate of the update after `finished_steps` updates.
    ///
    /// # Source
    /// DeepSpeed 0.19 `runtime/lr_schedules.py` at `last_batch_iteration = finished_steps`, in the order of its operations.
    ///
    /// # Differs
    /// DeepSpeed's engine steps the schedule after the optimizer and begins one step before the first, so that it uses the
    /// first rate twice and logs the rates that are given here.
    pub fn learning_rate(&self, highest: f64, warmup_steps: u64, max_steps: u64, finished_steps: f64) -> f64 {
        let warmup = warmup_steps.max(2) as f64;
        let (step, total) = (finished_steps, max_steps as f64);
        let risen = match self.warmup_type {
            WarmupType::Log => (1.0 / warmup.ln()) * (step + 1.0).ln(),
            WarmupType::Linear => step / warmup,
        };
        match self.kind {
            DeepspeedKind::WarmupCosineLR if step < warmup => {
                highest * (self.warmup_min_ratio + risen * (1.0 - self.warmup_min_ratio))
            }
            DeepspeedKind::WarmupCosineLR => {
                let progress = ((step - warmup + 1.0) / (total - warmup).max(1.0)).min(1.0);
                let cosine = (1.0 + (PI * progress).cos()) / 2.0;
                highest * (self.cos_min_ratio + (1.0 - self.cos_min_ratio) * cosine).max(0.0)
            }
            kind => {
                let gamma = match kind {
                    _ if step < warmup => risen,
                    DeepspeedKind::WarmupDecayLR => ((total - step) / (total - warmup).max(1.0)).max(0.0),
                    _ => 1.0,
                };
                self.warmup_min_lr + (highest - self.warmup_min_lr) * gamma
            }
        }
    }
}
