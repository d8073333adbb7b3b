//! `metrics.jsonl`: a line per logged step.

use crate::log_file::LogFile;
use crate::scores::Scores;
use anyhow::Result;
use base::exact;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::path::Path;

/// One line. Rates and times are those of the steps since the line before, loss and waiting too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Finished optimizer updates.
    pub step: u64,
    /// Passes over the data, with fraction.
    #[serde(with = "exact")]
    pub epoch: f64,
    /// Mean of the steps' losses.
    #[serde(with = "exact")]
    pub loss: f64,
    /// Global gradient norm of the last step, before clipping.
    #[serde(with = "exact")]
    pub grad_norm: f64,
    /// Learning rate that the last step used.
    #[serde(with = "exact")]
    pub learning_rate: f64,
    /// The same of the projector, where it has a rate of its own.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "exact::option")]
    pub mm_projector_lr: Option<f64>,
    /// The same of the vision tower.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "exact::option")]
    pub vision_tower_lr: Option<f64>,
    /// Supervised tokens, all ranks.
    pub supervised_tokens: u64,
    /// Tokens (image features included, all ranks) per second.
    #[serde(with = "exact")]
    pub tokens_per_second: f64,
    /// Rows per second, all ranks.
    #[serde(with = "exact")]
    pub samples_per_second: f64,
    /// Seconds that rank 0 waited for data.
    #[serde(with = "exact")]
    pub data_wait_seconds: f64,
    /// Seconds per step.
    #[serde(with = "exact")]
    pub step_seconds: f64,
    /// Largest resident memory of rank 0's process so far, MB.
    #[serde(with = "exact")]
    pub peak_rss_mb: f64,
    /// Bytes of gradients and parameters that rank 0 sent to other ranks, per step. The parameters of a step travel during
    /// the forward pass of the next one and are counted there.
    pub bytes_sent: u64,
    /// Seconds per step during which rank 0 exchanged with other ranks, most of them while it computed.
    #[serde(default)]
    #[serde(with = "exact")]
    pub communication_seconds: f64,
    /// Seconds per step that rank 0 waited for these exchanges.
    #[serde(default)]
    #[serde(with = "exact")]
    pub communication_wait_seconds: f64,
    /// Seconds that training was paused for checkpoints.
    #[serde(default)]
    #[serde(with = "exact")]
    pub checkpoint_stall_seconds: f64,
    /// Steps skipped so far because a loss or gradient was not finite.
    pub skipped_steps: u64,
    /// By source of the data, where there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, SourceMetrics>,
}

/// What the steps since the line before, or the rows of an evaluation, have of one source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceMetrics {
    /// Sum of the loss ÷ supervised tokens.
    #[serde(with = "exact")]
    pub loss: f64,
    /// Supervised tokens, all ranks.
    pub supervised_tokens: u64,
    /// Rows, all ranks.
    pub samples: u64,
}

/// What an evaluation found, as a line of its own. Named as transformers names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalMetrics {
    /// Finished optimizer updates.
    pub step: u64,
    /// Passes over the data, with fraction.
    #[serde(with = "exact")]
    pub epoch: f64,
    /// Sum of the loss ÷ supervised tokens, over all validation rows.
    #[serde(with = "exact")]
    pub eval_loss: f64,
    /// Supervised tokens of the validation rows.
    pub eval_supervised_tokens: u64,
    /// Validation rows.
    pub eval_samples: u64,
    /// Seconds of the loss, without answers and sample captions.
    #[serde(with = "exact")]
    pub eval_runtime: f64,
    /// Rows per second, all ranks.
    #[serde(with = "exact")]
    pub eval_samples_per_second: f64,
    /// By source of the data, where there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub eval_sources: BTreeMap<String, SourceMetrics>,
    /// Figures of `eval_metric`; read by [`LogEntry`].
    #[serde(flatten, skip_deserializing)]
    pub scores: Scores,
}

/// A line of the log: transformers' `log_history` mixes both kinds too.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum LogEntry {
    /// Of training steps.
    Steps(StepMetrics),
    /// Of an evaluation.
    Evaluation(EvalMetrics),
}

/// By the key that only evaluations have: serde's own choice would read floats from a buffer, and not exactly.
impl<'de> Deserialize<'de> for LogEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Kind {
            eval_samples: Option<u64>,
        }
        let line = Box::<RawValue>::deserialize(deserializer)?;
        let Kind { eval_samples } = serde_json::from_str(line.get()).map_err(de::Error::custom)?;
        let entry = match eval_samples {
            Some(_) => evaluation(line.get()).map(Self::Evaluation),
            None => serde_json::from_str(line.get()).map(Self::Steps),
        };
        entry.map_err(de::Error::custom)
    }
}

fn evaluation(line: &str) -> serde_json::Result<EvalMetrics> {
    let metrics: EvalMetrics = serde_json::from_str(line)?;
    Ok(EvalMetrics { scores: Scores::of_line(line)?, ..metrics })
}

impl LogEntry {
    /// The evaluation, if it is a line of one.
    pub fn evaluation(&self) -> Option<&EvalMetrics> {
        match self {
            Self::Steps(_) => None,
            Self::Evaluation(metrics) => Some(metrics),
        }
    }

    /// The training loss, if it is a line of training steps.
    pub fn loss(&self) -> Option<f64> {
        match self {
            Self::Steps(metrics) => Some(metrics.loss),
            Self::Evaluation(_) => None,
        }
    }
}

/// Appends lines. What cannot be written (a full disk) is kept and written with the next line.
pub struct MetricsFile(LogFile);

impl MetricsFile {
    /// The file's lines up to `step`, to be continued: later ones (of a run that got further than its last checkpoint) are
    /// dropped.
    pub fn open(path: &Path, step: u64) -> Self {
        let kept: String = match std::fs::read_to_string(path) {
            Ok(text) if step > 0 => text
                .lines()
                .filter(|line| line_step(line).is_some_and(|at| at <= step))
                .map(|line| format!("{line}\n"))
                .collect(),
            _ => String::new(),
        };
        Self(LogFile::new(path.to_path_buf(), kept.into_bytes()))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// What the operating system refuses; the line is tried again with the next one.
    pub fn append(&mut self, metrics: &impl Serialize) -> Result<()> {
        self.0.append((serde_json::to_string(metrics)? + "\n").as_bytes())
    }

    /// Writes lines that could not be written before.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn flush(&mut self) -> Result<()> {
        self.0.flush()
    }
}

/// Whether a line is one of a metrics file.
pub fn is_line(line: &[u8]) -> bool {
    std::str::from_utf8(line).is_ok_and(|line| line_step(line).is_some())
}

fn line_step(line: &str) -> Option<u64> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    line.get("step")?.as_u64()
}
