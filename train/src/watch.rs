//! What accompanies the training loop and is no part of a step: log lines, event files, progress, evaluation.

use crate::captions::SampleCaption;
use crate::checkpoint::{self, TrainerState};
use crate::collective::background::Communicator;
use crate::config::{Config, ReportTo, Strategy};
use crate::evaluate::{Evaluated, Evaluation};
use crate::metrics::{EvalMetrics, LogEntry, MetricsFile, StepMetrics};
use crate::progress::{Progress, Shown};
use crate::setup::Trainee;
use crate::tensorboard::EventFile;
use crate::trainability::Trainability;
use anyhow::{Context, Result};
use common::files;
use serde::Serialize;
use std::path::Path;

/// One rank's companion of the loop. Only rank 0 writes and shows anything.
pub struct Watch<'a> {
    config: &'a Config,
    metrics: Option<MetricsFile>,
    events: Option<EventFile>,
    progress: Option<Progress>,
    evaluation: Option<Evaluation>,
    trainability: Option<Trainability>,
}

impl<'a> Watch<'a> {
    /// Opens what the settings ask for, and writes the manifest of what is trained.
    ///
    /// # Errors
    /// Files that cannot be written; no validation rows where an evaluation is asked for.
    pub fn start(
        config: &'a Config,
        trainee: &Trainee,
        state: &TrainerState,
        rank: usize,
        world_size: usize,
    ) -> Result<Self> {
        let evaluation = match config.eval_strategy {
            Strategy::No => None,
            Strategy::Steps | Strategy::Epoch => Some(Evaluation::open(config, trainee, rank, world_size)?),
        };
        let mut watch = Self { config, metrics: None, events: None, progress: None, evaluation, trainability: None };
        if rank == 0 {
            let path = config.metrics.clone().unwrap_or_else(|| config.output_dir.join("metrics.jsonl"));
            watch.metrics = Some(MetricsFile::open(&path, state.global_step)?);
            if config.report_to == ReportTo::Tensorboard {
                watch.events = Some(EventFile::create(&config.output_dir, state.global_step)?);
            }
            let trainability = Trainability::of(&trainee.model, trainee.choice(config), &trainee.config);
            trainability.write(&config.output_dir)?;
            trainability.warning().iter().for_each(|warning| crate::tell!("warning: {warning}"));
            watch.trainability = Some(trainability);
            watch.progress = Some(Progress::new(state.global_step, state.max_steps));
        }
        Ok(watch)
    }

    /// A step is done.
    pub fn step(&mut self, shown: &Shown) {
        if let Some(progress) = &mut self.progress {
            progress.step(shown);
        }
    }

    /// A line of the log is due.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn log(&mut self, state: &mut TrainerState, metrics: StepMetrics) -> Result<()> {
        self.append(metrics.step, &metrics);
        if let Some(events) = &mut self.events {
            let values = [
                ("train/loss", metrics.loss),
                ("train/grad_norm", metrics.grad_norm),
                ("train/learning_rate", metrics.learning_rate),
                ("train/epoch", metrics.epoch),
                ("train/tokens_per_second", metrics.tokens_per_second),
                ("train/samples_per_second", metrics.samples_per_second),
                ("train/data_wait_seconds", metrics.data_wait_seconds),
                ("train/peak_rss_mb", metrics.peak_rss_mb),
            ];
            events.scalars(metrics.step, &values)?;
        }
        state.log_history.push(LogEntry::Steps(metrics));
        Ok(())
    }

    /// Whether it is time to evaluate.
    pub fn evaluates_at(&self, state: &TrainerState) -> bool {
        match self.config.eval_strategy {
            Strategy::No => false,
            Strategy::Steps => state.global_step.is_multiple_of(self.config.eval_interval().in_run(state.max_steps)),
            Strategy::Epoch => state.cursor.position == 0,
        }
    }

    /// Evaluates. Returns whether the run has gone on without a better loss for long enough.
    ///
    /// # Errors
    /// Rows that cannot be read, files that cannot be written, a rank that failed.
    pub fn evaluate(
        &mut self,
        trainee: &Trainee,
        state: &mut TrainerState,
        communicator: &mut Communicator,
    ) -> Result<bool> {
        let Some(evaluation) = &self.evaluation else { return Ok(false) };
        let Evaluated { metrics, captions } =
            evaluation.run(trainee, state.global_step, state.epoch, communicator).context("evaluation")?;
        self.report(&metrics, &captions)?;
        if state.best_metric.is_none_or(|best| metrics.eval_loss < best) && metrics.eval_loss.is_finite() {
            state.best_metric = Some(metrics.eval_loss);
            state.best_global_step = Some(state.global_step);
            state.evaluations_without_improvement = 0;
        } else {
            state.evaluations_without_improvement += 1;
        }
        state.log_history.push(LogEntry::Evaluation(metrics));
        let patience = self.config.early_stopping_patience;
        let enough = patience > 0 && state.evaluations_without_improvement >= patience;
        if enough {
            self.say(&format!(
                "stopping early at step {}: no lower evaluation loss in {patience} evaluations",
                state.global_step
            ));
        }
        Ok(enough)
    }

    /// A line of the metrics. A disk that is full for a while loses none and stops nothing.
    fn append(&mut self, step: u64, metrics: &impl Serialize) {
        if let Some(Err(error)) = self.metrics.as_mut().map(|file| file.append(metrics)) {
            self.say(&format!("warning: step {step}: {error:#}; the line is kept for the next time"));
        }
    }

    /// Writes lines that could not be written before.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn flush(&mut self) -> Result<()> {
        self.metrics.as_mut().map_or(Ok(()), MetricsFile::flush)
    }

    fn report(&mut self, metrics: &EvalMetrics, captions: &[SampleCaption]) -> Result<()> {
        self.say(&format!(
            "step {}  eval_loss {:.4} over {} rows in {:.1} s",
            metrics.step, metrics.eval_loss, metrics.eval_samples, metrics.eval_runtime
        ));
        if let Some(progress) = &mut self.progress {
            progress.pause();
        }
        self.append(metrics.step, metrics);
        if !captions.is_empty() {
            let lines = captions.iter().map(|caption| Ok(serde_json::to_string(caption)? + "\n"));
            let path = self.config.output_dir.join(format!("captions-{}.jsonl", metrics.step));
            files::write_atomically(&path, lines.collect::<Result<String>>()?.as_bytes())?;
        }
        if let Some(events) = &mut self.events {
            let values = [
                ("eval/loss", metrics.eval_loss),
                ("eval/runtime", metrics.eval_runtime),
                ("eval/samples_per_second", metrics.eval_samples_per_second),
            ];
            events.scalars(metrics.step, &values)?;
            if !captions.is_empty() {
                events.text(metrics.step, "eval/captions", &markdown(captions))?;
            }
        }
        Ok(())
    }

    /// The run is over: what was to stay frozen must be what it was.
    ///
    /// # Errors
    /// It has changed; lines of the metrics that could not be written.
    pub fn finish(&mut self, trainee: &Trainee) -> Result<()> {
        self.flush()?;
        match &self.trainability {
            Some(trainability) => trainability.check_frozen(&trainee.model),
            None => Ok(()),
        }
    }

    /// A line for people, on rank 0.
    pub fn say(&self, line: &str) {
        if let Some(progress) = &self.progress {
            progress.say(line);
        }
    }
}

/// Before a checkpoint is written: if this step was evaluated, and better than every checkpoint so far, the new one is the
/// best.
pub fn note_best_checkpoint(state: &mut TrainerState, output_dir: &Path) {
    let of_this_step = state.log_history.iter().rev().find_map(|entry| match entry {
        LogEntry::Evaluation(metrics) if metrics.step == state.global_step => Some(metrics.eval_loss),
        _ => None,
    });
    let Some(loss) = of_this_step.filter(|loss| loss.is_finite()) else { return };
    if state.best_checkpoint_metric.is_none_or(|best| loss < best) {
        state.best_checkpoint_metric = Some(loss);
        state.best_model_checkpoint = Some(checkpoint::dir_of(output_dir, state.global_step).display().to_string());
    }
}

fn markdown(captions: &[SampleCaption]) -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let row = |caption: &SampleCaption| {
        let reference = caption.references.first().map_or("", String::as_str);
        format!("| {} | {} | {} |\n", cell(&caption.id), cell(&caption.caption), cell(reference))
    };
    format!("| id | caption | reference |\n|---|---|---|\n{}", captions.iter().map(row).collect::<String>())
}
