//! What ranks must agree on after a step.

use crate::collective;
use crate::collective::background::Communicator;

/// What one step found, on one rank or summed over all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct StepSums {
    /// Sum of the cross entropy over supervised tokens.
    pub(super) loss: f64,
    /// Sum of the micro-batches' mean losses.
    pub(super) mean_loss: f64,
    /// Sum of squares of the gradient, not yet divided; not finite if a gradient is not.
    pub(super) squared_norm: f64,
    pub(super) supervised_tokens: f64,
    pub(super) tokens: f64,
    pub(super) samples: f64,
    pub(super) micro_batches: f64,
    /// Ranks that have written their part of the checkpoint.
    pub(super) written: f64,
    /// Ranks that were asked to stop after this step.
    pub(super) stop_requests: f64,
}

impl StepSums {
    /// Sums over the ranks, by the step's one small all-reduce.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub(super) fn of_all_ranks(mut self, communicator: &mut Communicator) -> collective::Result<Self> {
        let values = self.values_mut().map(|value| *value);
        let sums = communicator.all_reduce("step sums", values)?;
        self.values_mut().into_iter().zip(sums).for_each(|(value, sum)| *value = sum);
        Ok(self)
    }

    /// All fields, in the order in which they travel.
    fn values_mut(&mut self) -> [&mut f64; 9] {
        let Self {
            loss,
            mean_loss,
            squared_norm,
            supervised_tokens,
            tokens,
            samples,
            micro_batches,
            written,
            stop_requests,
        } = self;
        [loss, mean_loss, squared_norm, supervised_tokens, tokens, samples, micro_batches, written, stop_requests]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::threads::run;
    use std::time::Duration;

    #[test]
    fn each_field_is_summed_by_itself() {
        let of_rank = |rank: usize| StepSums {
            loss: 0.5 + rank as f64,
            mean_loss: 2.0,
            squared_norm: if rank == 1 { f64::NAN } else { 1.0 },
            supervised_tokens: 10.0,
            tokens: 100.0,
            samples: 3.0,
            micro_batches: 1.0,
            written: rank as f64,
            stop_requests: 0.0,
        };
        let results = run(3, Duration::from_secs(5), |rank| {
            let mut communicator = Communicator::start(Box::new(rank))?;
            Ok(of_rank(communicator.rank()).of_all_ranks(&mut communicator)?)
        });
        for result in results {
            let sums = result.expect("no rank fails");
            assert!(sums.squared_norm.is_nan());
            let expected = StepSums {
                loss: 4.5,
                mean_loss: 6.0,
                squared_norm: 0.0,
                supervised_tokens: 30.0,
                tokens: 300.0,
                samples: 9.0,
                micro_batches: 3.0,
                written: 3.0,
                stop_requests: 0.0,
            };
            assert_eq!(StepSums { squared_norm: 0.0, ..sums }, expected);
        }
    }
}
