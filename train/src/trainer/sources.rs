//! Loss and counts by source of the data, where there are several.

use crate::collective;
use crate::collective::background::Communicator;
use crate::loader::MicroBatch;
use crate::log_sums::SourceLogSums;
use crate::metrics::SourceMetrics;
use anyhow::{Result, anyhow};
use burn::tensor::Tensor;
use model::batch::PackedBatch;
use std::collections::BTreeMap;

/// What a rank has found for each source since the last logged step, or in an evaluation.
pub(crate) struct SourceSums {
    names: Vec<String>,
    /// Of each micro-batch of the step: source and supervised tokens of every row, and the tokens' losses.
    of_step: Vec<(Vec<(usize, usize)>, Tensor<1>)>,
    since_log: Vec<SourceLogSums>,
}

impl SourceSums {
    /// Of sources with these names, beginning with the sums of a checkpoint (on one rank); of a single source nothing is kept,
    /// because all numbers are its.
    pub(crate) fn new(mut names: Vec<String>, saved: &BTreeMap<String, SourceLogSums>) -> Self {
        if names.len() == 1 {
            names.clear();
        }
        let since_log = names.iter().map(|name| saved.get(name).copied().unwrap_or_default()).collect();
        Self { names, of_step: Vec::new(), since_log }
    }

    /// Adds a micro-batch of this step; `losses` are those of its supervised tokens, in order. They stay on the device until the
    /// step's end.
    pub(crate) fn add(&mut self, micro_batch: &MicroBatch, batch: &PackedBatch, losses: Tensor<1>) {
        if !self.names.is_empty() {
            let rows = micro_batch.sources.iter().copied().zip(batch.supervised_per_row()).collect();
            self.of_step.push((rows, losses));
        }
    }

    /// A step is over; it does not count if it was skipped.
    ///
    /// # Errors
    /// A device that cannot give its values.
    pub(crate) fn end_step(&mut self, was_skipped: bool) -> Result<()> {
        for (rows, losses) in std::mem::take(&mut self.of_step) {
            if was_skipped {
                continue;
            }
            let losses = losses.into_data().convert::<f32>().try_into_vec::<f32>();
            let losses = losses.map_err(|error| anyhow!("losses of rows: {error:?}"))?;
            let mut rest = &losses[..];
            for (source, tokens) in rows {
                let (of_row, after) = rest.split_at(tokens.min(rest.len()));
                rest = after;
                let sums = &mut self.since_log[source];
                sums.loss += of_row.iter().map(|&loss| f64::from(loss)).sum::<f64>();
                sums.supervised_tokens += tokens as f64;
                sums.samples += 1.0;
            }
        }
        Ok(())
    }

    /// The numbers of a log line, of all ranks; sources without a supervised token since the last line are not in it.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub(crate) fn take(
        &mut self,
        communicator: &mut Communicator,
    ) -> collective::Result<BTreeMap<String, SourceMetrics>> {
        let sums = self.of_all_ranks(communicator)?.into_iter();
        self.since_log.fill(SourceLogSums::default());
        let found = sums.filter(|(_, sums)| sums.supervised_tokens > 0.0);
        let metrics = |SourceLogSums { loss, supervised_tokens, samples }| SourceMetrics {
            loss: loss / supervised_tokens,
            supervised_tokens: supervised_tokens as u64,
            samples: samples as u64,
        };
        Ok(found.map(|(name, sums)| (name, metrics(sums))).collect())
    }

    /// The sums since the last logged step, of all ranks.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub(super) fn of_all_ranks(
        &self,
        communicator: &mut Communicator,
    ) -> collective::Result<BTreeMap<String, SourceLogSums>> {
        let mut found = BTreeMap::new();
        for (name, sums) in self.names.iter().zip(&self.since_log) {
            let sums = [sums.loss, sums.supervised_tokens, sums.samples];
            let [loss, supervised_tokens, samples] = communicator.all_reduce("source sums", sums)?;
            found.insert(name.clone(), SourceLogSums { loss, supervised_tokens, samples });
        }
        Ok(found)
    }
}
