//! Saving, and the end of a run.

use super::sums::StepSums;
use super::{Finished, Trainer};
use crate::checkpoint::{self, Manifest, Snapshot};
use crate::config::Config;
use crate::log_sums::LogSums;
use crate::run::clock;
use crate::run::{FinalOutput, RunRecord};
use crate::setup::Trainee;
use crate::state::TrainerState;
use crate::watch::Watch;
use anyhow::{Context, Result, bail};
use base::names;
use base::pulse::Pulse;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

impl Trainer<'_> {
    /// Begins a checkpoint when it is time, and publishes the one before when all ranks have written their part. A step is
    /// saved once: after one that was skipped, going on from its checkpoint skips that one again.
    pub(super) fn save_if_due(&mut self, sums: &StepSums) -> Result<()> {
        if sums.written == self.optimizer.layout().world_size as f64 {
            self.saver.conclude(self.optimizer.communicator())?;
        }
        let (step, every) = (self.state.global_step, self.config.save_steps.in_run(self.state.max_steps));
        let due = self.config.save_strategy.is_due(step, every, self.state.run.cursor, self.is_at_end());
        if due && self.saved_step != Some(step) {
            self.save()?;
        }
        Ok(())
    }

    fn save(&mut self) -> Result<()> {
        let since = Instant::now();
        self.wait_for_params()?;
        self.saved_step = Some(self.state.global_step);
        let sources = self.sources.of_all_ranks(self.optimizer.communicator())?;
        self.state.run.since_log = LogSums { sources, ..self.log.sums() };
        let Self { config, record, trainee, optimizer, state, .. } = self;
        let snapshot = Snapshot::take(config, record.as_ref(), trainee, optimizer);
        self.saver.start(optimizer.communicator(), snapshot, state.clone(), since)
    }

    /// Ends as asked: with a checkpoint of this step, unless it has one.
    pub(super) fn stop(mut self, mut watch: Watch<'_>) -> Result<Finished> {
        if !self.is_saved()? {
            self.save()?;
        }
        let saved = self.is_saved()?;
        watch.flush();
        let rank = self.optimizer.layout().rank;
        self.optimizer.finish()?;
        let dir = checkpoint::dir_of(&self.config.output_dir, self.state.global_step);
        if rank == 0 && !saved {
            bail!("stopped as requested at step {}, but the checkpoint could not be written", self.state.global_step);
        }
        Ok(Finished { state: self.state, stopped_in: Some(dir), has_trained: true })
    }

    /// Whether this step has a checkpoint of this run under its name; waits for one that is being written. The same on all ranks.
    fn is_saved(&mut self) -> Result<bool> {
        self.saver.finish(self.optimizer.communicator())?;
        let dir = checkpoint::dir_of(&self.config.output_dir, self.state.global_step);
        let is_there = |record: &Arc<RunRecord>| Manifest::read(&dir).is_ok_and(|manifest| manifest.is_of(record));
        let is_saved = self.record.as_ref().is_some_and(is_there);
        let [saved] = self.optimizer.communicator().all_reduce("last checkpoint", [f64::from(u8::from(is_saved))])?;
        Ok(saved > 0.0)
    }

    /// The final model or adapter into `output_dir` itself: the last one, or the best one if that is asked for.
    pub(super) fn finish(mut self, mut watch: Watch<'_>, has_trained: bool) -> Result<Finished> {
        self.saver.finish(self.optimizer.communicator())?;
        self.wait_for_params()?;
        let Self { config, record, trainee, mut optimizer, mut state, .. } = self;
        // The others wait while rank 0 hashes the frozen tensors, and writes.
        let save = || {
            watch.finish(&trainee)?;
            record.map_or(Ok(()), |record| put_out(config, &record, trainee, &mut state, &watch))
        };
        optimizer.communicator().attend("final model", &Pulse::default(), save)??;
        optimizer.finish()?;
        Ok(Finished { state, stopped_in: None, has_trained })
    }
}

/// The output of a run in its folder, and that it is finished. A run that was finished before, and whose output would be the
/// same, is left as it is.
fn put_out(
    config: &Config,
    record: &RunRecord,
    trainee: Trainee,
    state: &mut TrainerState,
    watch: &Watch<'_>,
) -> Result<()> {
    let output_dir = &config.output_dir;
    checkpoint::name_best(state, output_dir, record, None);
    state.run.since_log = LogSums::default();
    let best = best(config, record, state, watch);
    let weights_of_step = best.as_ref().map_or(state.global_step, |(_, step)| *step);
    let is_same =
        |output: &FinalOutput| (output.global_step, output.weights_of_step) == (state.global_step, weights_of_step);
    if record.finished.as_ref().is_some_and(is_same) && has_weights(output_dir) {
        watch.say(&format!("{} is unchanged", output_dir.display()));
        return Ok(());
    }
    let written = match best {
        Some((best, _)) => checkpoint::copy_weights(&best, output_dir),
        None => checkpoint::save_weights(config, trainee, output_dir),
    };
    written.context("the final model is not saved; checkpoints are as they were")?;
    base::json::write(&output_dir.join(checkpoint::TRAINER_STATE), state)?;
    let (global_step, finished_at) = (state.global_step, clock::now());
    let finished = Some(FinalOutput { global_step, weights_of_step, finished_at });
    RunRecord { finished, ..record.clone() }.write(output_dir)
}

fn has_weights(dir: &Path) -> bool {
    let files = [names::WEIGHTS_FILE, names::WEIGHTS_INDEX_FILE, names::ADAPTER_WEIGHTS_FILE];
    files.iter().any(|name| dir.join(name).exists())
}

/// The checkpoint with the best evaluation and its step, if its weights are asked for. Says which one it is, and when
/// there is none or a better evaluation has none.
fn best(config: &Config, record: &RunRecord, state: &TrainerState, watch: &Watch<'_>) -> Option<(PathBuf, u64)> {
    if !config.load_best_model_at_end {
        return None;
    }
    let by = &state.run.best_by;
    let name = &by.name;
    let noted = state.best_metric.zip(state.best_global_step);
    let found = checkpoint::best(&config.output_dir, record, state.costs());
    let found = found.and_then(|(dir, cost)| Some((checkpoint::step_of(&dir)?, dir, by.cost(cost))));
    let Some((step, dir, value)) = found else {
        watch.warn(&format!("load_best_model_at_end: no checkpoint with a finite {name}: the last model is put out"));
        return None;
    };
    let chosen = format!("{} has the best {name} of the checkpoints that there are ({value:.4})", dir.display());
    match noted.filter(|(metric, _)| by.is_better(*metric, Some(value))) {
        Some((metric, best_step)) => watch.warn(&format!(
            "load_best_model_at_end: {chosen}, and its model is put out: the best evaluation ({metric:.4} at step {best_step}) has no \
             checkpoint"
        )),
        None => watch.say(&format!("the model with the best {name} ({value:.4}) is that of {}", dir.display())),
    }
    Some((dir, step))
}
