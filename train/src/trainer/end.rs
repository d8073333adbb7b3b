//! How a run saves, and how it ends.

use super::report::StepSums;
use super::{Finished, Trainer};
use crate::checkpoint::{self, Snapshot};
use crate::config::Strategy;
use crate::watch::{self, Watch};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Instant;

impl Trainer<'_> {
    /// Begins a checkpoint when it is time, and publishes the one before when all ranks have written their part. Says
    /// whether one was begun.
    pub(super) fn save_if_due(&mut self, sums: &StepSums) -> Result<bool> {
        if sums.written == self.layout.world_size as f64 {
            self.saver.conclude(&mut self.communicator)?;
        }
        let due = match self.config.save_strategy {
            Strategy::No => false,
            Strategy::Steps => {
                self.state.global_step.is_multiple_of(self.config.save_steps.in_run(self.state.max_steps))
            }
            Strategy::Epoch => self.state.cursor.position == 0,
        };
        let saves = due && self.skipped_in_a_row == 0;
        if saves {
            self.save()?;
        }
        Ok(saves)
    }

    fn save(&mut self) -> Result<()> {
        let since = Instant::now();
        self.settle()?;
        watch::note_best_checkpoint(&mut self.state, &self.config.output_dir);
        let Self { config, trainee, layout, partitions, state, .. } = self;
        let snapshot = Snapshot::take(config, trainee, layout, partitions, state);
        self.saver.start(&mut self.communicator, snapshot, since)
    }

    /// Ends as asked: with a checkpoint of this step.
    pub(super) fn stop(mut self, saved: bool, mut watch: Watch<'_>) -> Result<Finished> {
        if !saved {
            self.save()?;
        }
        self.saver.conclude(&mut self.communicator)?;
        self.saver.finish_publishing();
        watch.flush()?;
        let dir = checkpoint::dir_of(&self.config.output_dir, self.state.global_step);
        self.communicator.all_reduce("last checkpoint", [0.0])?;
        self.communicator.finish()?;
        if self.layout.rank == 0 && !dir.exists() {
            bail!("stopped as asked at step {}, but the checkpoint could not be written", self.state.global_step);
        }
        Ok(Finished { state: self.state, stopped_in: Some(dir) })
    }

    /// The final model or adapter into `output_dir` itself: the last one, or the best one if that is asked for.
    pub(super) fn finish(mut self, mut watch: Watch<'_>) -> Result<Finished> {
        self.saver.conclude(&mut self.communicator)?;
        self.saver.finish_publishing();
        self.settle()?;
        watch.finish(&self.trainee)?;
        if self.layout.rank == 0 {
            let output_dir = &self.config.output_dir;
            let best = self.state.best_model_checkpoint.as_ref().filter(|_| self.config.load_best_model_at_end);
            match best.map(Path::new).filter(|best| best.exists()) {
                Some(best) => {
                    watch.say(&format!("the model with the lowest evaluation loss is that of {}", best.display()));
                    checkpoint::copy_weights(best, output_dir)
                }
                None => checkpoint::save_weights(self.config, self.trainee, output_dir),
            }
            .context("the final model is not saved; checkpoints are as they were")?;
            common::json::write(&output_dir.join(checkpoint::TRAINER_STATE), &self.state)?;
        }
        self.communicator.all_reduce("final model", [0.0])?;
        self.communicator.finish()?;
        Ok(Finished { state: self.state, stopped_in: None })
    }
}
