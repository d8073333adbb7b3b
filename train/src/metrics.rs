//! `metrics.jsonl`: a line per logged step.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

/// One line. Rates and times are those of the steps since the line before, loss and waiting too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Finished optimizer updates.
    pub step: u64,
    /// Passes over the data, with fraction.
    pub epoch: f64,
    /// Mean of the steps' losses.
    pub loss: f64,
    /// Global gradient norm of the last step, before clipping.
    pub grad_norm: f64,
    /// Learning rate that the last step used.
    pub learning_rate: f64,
    /// Supervised tokens, all ranks.
    pub supervised_tokens: u64,
    /// Tokens (image features included, all ranks) per second.
    pub tokens_per_second: f64,
    /// Rows per second, all ranks.
    pub samples_per_second: f64,
    /// Seconds that rank 0 waited for data.
    pub data_wait_seconds: f64,
    /// Seconds per step.
    pub step_seconds: f64,
    /// Largest resident memory of rank 0's process so far, MB.
    pub peak_rss_mb: f64,
    /// Bytes that rank 0 sent to other ranks in the last step.
    pub bytes_sent: u64,
    /// Steps skipped so far because a loss or gradient was not finite.
    pub skipped_steps: u64,
}

/// Appends lines.
pub struct MetricsFile(File);

impl MetricsFile {
    /// Opens the file; on resuming, lines after `step` (of a run that got further than its last checkpoint) are dropped.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let kept: String = match std::fs::read_to_string(path) {
            Ok(text) => {
                text.lines().filter(|line| line_step(line) <= Some(step)).map(|line| format!("{line}\n")).collect()
            }
            Err(_) => String::new(),
        };
        common::files::write_atomically(path, if step == 0 { b"" } else { kept.as_bytes() })?;
        let file = OpenOptions::new().append(true).open(path).with_context(|| path.display().to_string())?;
        Ok(Self(file))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<()> {
        let line = serde_json::to_string(metrics)? + "\n";
        self.0.write_all(line.as_bytes()).context("metrics file")
    }
}

fn line_step(line: &str) -> Option<u64> {
    serde_json::from_str::<StepMetrics>(line).ok().map(|metrics| metrics.step)
}

/// Largest resident memory of this process so far, MB; 0 where the system does not say.
pub fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1024.0
}
