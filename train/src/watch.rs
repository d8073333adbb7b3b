//! Outputs of the training loop outside of a step: log lines, event files, progress, evaluation.

use crate::captions::SampleCaption;
use crate::collective::background::Communicator;
use crate::collective::launch::launched_processes;
use crate::config::{Config, ReportTo, Strategy};
use crate::evaluate::{Evaluated, Evaluation};
use crate::metrics::{EvalMetrics, LogEntry, MetricsFile, StepMetrics};
use crate::progress::{Shown, StepProgress};
use crate::run::folder::{ANSWERS, CAPTIONS, metrics_file};
use crate::setup::Trainee;
use crate::state::TrainerState;
use crate::tensorboard::EventFile;
use crate::trainability::Trainability;
use crate::vision_cache::VisionFeatureCache;
use anyhow::{Context, Result};
use base::files;
use model::config::LlavaConfig;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// One rank's companion of the loop. Only rank 0 writes and shows anything.
pub struct Watch<'a> {
    config: &'a Config,
    metrics: Option<MetricsFile>,
    events: Option<EventFile>,
    progress: Option<StepProgress>,
    evaluation: Option<Evaluation>,
    trainability: Option<Trainability>,
    /// What could not be written the last time: a disk that is full for a while stops nothing.
    unwritten: BTreeSet<Output>,
}

/// A file beside the checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Output {
    /// The log.
    Metrics,
    /// The event files of TensorBoard.
    Events,
    /// What an evaluation's sample captions are written to.
    SampleCaptions,
    /// What its scored answers are written to.
    Answers,
    /// The manifest of trained tensors.
    Trainable,
    /// The features of the frozen tower.
    Features,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Metrics => "the metrics file",
            Self::Events => "the event file",
            Self::SampleCaptions => "the file of sample captions",
            Self::Answers => "the file of scored answers",
            Self::Trainable => "the list of trained tensors",
            Self::Features => "the file of vision features",
        })
    }
}

impl<'a> Watch<'a> {
    /// The evaluation that the settings ask for. It reads rows and writes nothing: to be opened before a run begins.
    ///
    /// # Errors
    /// As [`Evaluation::open`].
    pub fn evaluation(
        config: &Config,
        model: &LlavaConfig,
        rank: usize,
        world_size: usize,
    ) -> Result<Option<Evaluation>> {
        match config.eval_strategy {
            Strategy::No => Ok(None),
            Strategy::Steps | Strategy::Epoch => Evaluation::open(config, model, rank, world_size).map(Some),
        }
    }

    /// Opens the outputs that the settings ask for, and writes the manifest of trained tensors; nothing of a run that is
    /// finished.
    pub fn start(
        config: &'a Config,
        trainee: &Trainee,
        state: &TrainerState,
        evaluation: Option<Evaluation>,
        rank: usize,
        is_finished: bool,
    ) -> Self {
        let mut watch = Self {
            config,
            metrics: None,
            events: None,
            progress: None,
            evaluation,
            trainability: None,
            unwritten: BTreeSet::new(),
        };
        if rank == 0 {
            watch.progress = Some(StepProgress::new(state.global_step, state.max_steps));
        }
        if rank == 0 && !is_finished {
            watch.metrics = Some(MetricsFile::open(&metrics_file(config), state.global_step));
            if config.report_to == ReportTo::Tensorboard {
                watch.events = Some(EventFile::new(&config.output_dir, state.global_step));
            }
            let trainability = Trainability::of(&trainee.model, trainee.choice(config), &trainee.config);
            watch.tolerate(Output::Trainable, trainability.write(&config.output_dir).map_err(Into::into));
            trainability.warning().iter().for_each(|warning| tracing::warn!("{warning}"));
            watch.trainability = Some(trainability);
            watch.flush();
        }
        watch
    }

    /// A step is done.
    pub fn step(&mut self, shown: &Shown) {
        if let Some(progress) = &mut self.progress {
            progress.step(shown);
        }
    }

    /// A line of the log is due.
    pub fn log(&mut self, state: &mut TrainerState, metrics: StepMetrics) {
        self.append(&metrics);
        if let Some(events) = &mut self.events {
            let mut values = vec![
                ("train/loss", metrics.loss),
                ("train/grad_norm", metrics.grad_norm),
                ("train/learning_rate", metrics.learning_rate),
                ("train/epoch", metrics.epoch),
                ("train/tokens_per_second", metrics.tokens_per_second),
                ("train/samples_per_second", metrics.samples_per_second),
                ("train/data_wait_seconds", metrics.data_wait_seconds),
                ("train/peak_rss_mb", metrics.peak_rss_mb),
            ];
            let of_parts = [
                ("train/mm_projector_lr", metrics.mm_projector_lr),
                ("train/vision_tower_lr", metrics.vision_tower_lr),
            ];
            values.extend(of_parts.into_iter().filter_map(|(name, rate)| Some((name, rate?))));
            let of_sources: Vec<(String, f64)> =
                metrics.sources.iter().map(|(name, source)| (format!("train/loss/{name}"), source.loss)).collect();
            values.extend(of_sources.iter().map(|(name, loss)| (name.as_str(), *loss)));
            let written = events.scalars(metrics.step, &values);
            self.tolerate(Output::Events, written);
        }
        state.log_history.push(LogEntry::Steps(metrics));
    }

    /// Whether it is time to evaluate, where transformers' Trainer does: `ends` says that no step follows. A step is evaluated
    /// once: after one that was skipped, the model is unchanged.
    pub fn evaluates_at(&self, state: &TrainerState, ends: bool) -> bool {
        let steps = self.config.eval_interval().in_run(state.max_steps);
        let due = self.config.eval_strategy.is_due(state.global_step, steps, state.run.cursor, ends);
        due && !state.is_evaluated()
    }

    /// Evaluates, and counts evaluations without a better value.
    ///
    /// # Errors
    /// Rows that cannot be read, a rank that failed.
    pub fn evaluate(
        &mut self,
        trainee: &Trainee,
        state: &mut TrainerState,
        communicator: &mut Communicator,
    ) -> Result<()> {
        let Some(evaluation) = &self.evaluation else { return Ok(()) };
        let Evaluated { metrics, captions, answers } =
            evaluation.run(trainee, state.global_step, state.epoch, communicator).context("evaluation")?;
        self.report(&metrics, &captions);
        self.write_lines(Output::Answers, ANSWERS, metrics.step, &answers);
        if let Some(value) = state.run.best_by.value(&metrics) {
            state.note(state.global_step, value);
        }
        state.log_history.push(LogEntry::Evaluation(metrics));
        let patience = self.config.early_stopping_patience;
        if patience > 0 && state.run.evaluations_without_improvement >= patience {
            self.say(&format!(
                "stopping early at step {}: no better {} in {patience} evaluations",
                state.global_step, state.run.best_by.name
            ));
        }
        Ok(())
    }

    fn append(&mut self, metrics: &impl Serialize) {
        if let Some(file) = &mut self.metrics {
            let written = file.append(metrics);
            self.tolerate(Output::Metrics, written);
        }
    }

    /// Writes lines and events that could not be written before.
    pub fn flush(&mut self) {
        if let Some(written) = self.metrics.as_mut().map(MetricsFile::flush) {
            self.tolerate(Output::Metrics, written);
        }
        if let Some(written) = self.events.as_mut().map(EventFile::flush) {
            self.tolerate(Output::Events, written);
        }
    }

    /// A run of days does not end because something beside the model cannot be written: a warning when it begins, a line when
    /// it is over.
    fn tolerate(&mut self, what: Output, written: Result<()>) {
        match written {
            Ok(()) if self.unwritten.remove(&what) => self.say(&format!("{what} can be written again")),
            Err(error) if self.unwritten.insert(what) => {
                self.warn(&format!("{what} cannot be written: {error:#}; training continues"));
            }
            _ => {}
        }
    }

    /// Says once that the file of vision features cannot be read or written, if so.
    pub fn features(&mut self, kept: Option<&VisionFeatureCache>) {
        // Ranks that are threads share the file; processes may be on other machines.
        let speaks = self.progress.is_some() || launched_processes() > 1;
        if let Some(trouble) = kept.and_then(VisionFeatureCache::trouble).filter(|_| speaks)
            && self.unwritten.insert(Output::Features)
        {
            tracing::warn!(
                "{} is of no use: {trouble}; features are computed, and training continues",
                Output::Features
            );
        }
    }

    fn report(&mut self, metrics: &EvalMetrics, captions: &[SampleCaption]) {
        let scores = metrics.scores.0.iter().map(|(name, value)| format!("  eval_{name} {value:.4}"));
        self.say(&format!(
            "step {}  eval_loss {:.4}{} over {} rows in {:.1} s",
            metrics.step,
            metrics.eval_loss,
            scores.collect::<String>(),
            metrics.eval_samples,
            metrics.eval_runtime
        ));
        if let Some(progress) = &mut self.progress {
            progress.pause();
        }
        self.append(metrics);
        self.write_lines(Output::SampleCaptions, CAPTIONS, metrics.step, captions);
        if let Some(events) = &mut self.events {
            let tags: Vec<(String, f64)> =
                metrics.scores.0.iter().map(|(name, value)| (format!("eval/{name}"), *value)).collect();
            let mut values = vec![
                ("eval/loss", metrics.eval_loss),
                ("eval/runtime", metrics.eval_runtime),
                ("eval/samples_per_second", metrics.eval_samples_per_second),
            ];
            values.extend(tags.iter().map(|(tag, value)| (tag.as_str(), *value)));
            let of_sources: Vec<(String, f64)> =
                metrics.eval_sources.iter().map(|(name, source)| (format!("eval/loss/{name}"), source.loss)).collect();
            values.extend(of_sources.iter().map(|(name, loss)| (name.as_str(), *loss)));
            let mut written = events.scalars(metrics.step, &values);
            if !captions.is_empty() {
                written = events.text(metrics.step, "eval/captions", &markdown(captions));
            }
            self.tolerate(Output::Events, written);
        }
    }

    /// Writes a file of an evaluation, if it has lines.
    fn write_lines(&mut self, what: Output, name: &str, step: u64, lines: &[impl Serialize]) {
        if lines.is_empty() {
            return;
        }
        let path = self.config.output_dir.join(format!("{name}{step}.jsonl"));
        let lines = lines.iter().map(|line| Ok(serde_json::to_string(line)? + "\n")).collect::<Result<String>>();
        self.tolerate(what, lines.and_then(|lines| Ok(files::write_atomically(&path, lines.as_bytes())?)));
    }

    /// The end of the run: frozen tensors must be unchanged.
    ///
    /// # Errors
    /// It has changed.
    pub fn finish(&mut self, trainee: &Trainee) -> Result<()> {
        self.flush();
        match &self.trainability {
            Some(trainability) => trainability.check_frozen(&trainee.model),
            None => Ok(()),
        }
    }

    /// A warning, on rank 0.
    pub fn warn(&self, line: &str) {
        if self.progress.is_some() {
            tracing::warn!("{line}");
        }
    }

    /// A line for people, on rank 0.
    pub fn say(&self, line: &str) {
        if self.progress.is_some() {
            tracing::info!("{line}");
        }
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
