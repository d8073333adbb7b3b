//! What a log line is made of: sums over the steps since the line before. They are saved with every checkpoint, so that the
//! first line of a resumed run covers the same steps as in an undisturbed one.

use base::exact;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Sums over steps, of all ranks where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogSums {
    /// Steps, skipped ones among them.
    pub steps: u64,
    /// Losses of the steps with a finite one.
    #[serde(with = "exact")]
    pub loss: f64,
    /// Steps with a finite loss.
    pub finite_steps: u64,
    /// Supervised tokens.
    #[serde(with = "exact")]
    pub supervised_tokens: f64,
    /// Tokens, image features included.
    #[serde(with = "exact")]
    pub tokens: f64,
    /// Rows.
    #[serde(with = "exact")]
    pub samples: f64,
    /// Seconds, without evaluations.
    #[serde(with = "exact")]
    pub seconds: f64,
    /// Seconds that rank 0 waited for data.
    #[serde(with = "exact")]
    pub data_wait_seconds: f64,
    /// Bytes that rank 0 sent.
    pub bytes_sent: u64,
    /// Seconds during which rank 0 exchanged with other ranks.
    #[serde(with = "exact")]
    pub communication_seconds: f64,
    /// Seconds that rank 0 waited for these exchanges.
    #[serde(with = "exact")]
    pub communication_wait_seconds: f64,
    /// Loss, supervised tokens and rows by source, where there are several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, SourceLogSums>,
}

/// Sums over the rows of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceLogSums {
    /// Losses of supervised tokens.
    #[serde(with = "exact")]
    pub loss: f64,
    /// Supervised tokens.
    #[serde(with = "exact")]
    pub supervised_tokens: f64,
    /// Rows.
    #[serde(with = "exact")]
    pub samples: f64,
}
