//! Where a run stands: `trainer_state.json`, which transformers' `TrainerState.load_from_json` reads too.

use crate::best::Best;
use crate::log_sums::LogSums;
use crate::metrics::LogEntry;
use crate::order::Cursor;
use crate::schedule::ScheduleBase;
use base::exact;
use serde::{Deserialize, Serialize};

/// transformers' `TrainerState` fields. Ours are where its callbacks keep theirs: it refuses names that it does not know.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Passes over the data, with fraction.
    #[serde(with = "exact")]
    pub epoch: f64,
    /// Finished optimizer updates (skipped steps are not counted).
    pub global_step: u64,
    /// Updates of the whole run.
    pub max_steps: u64,
    /// Passes that the run was started for.
    #[serde(with = "exact")]
    pub num_train_epochs: f64,
    /// Rows of a micro-batch.
    pub train_batch_size: usize,
    /// Steps between log lines.
    pub logging_steps: usize,
    /// Steps between checkpoints.
    pub save_steps: usize,
    /// Log lines so far.
    pub log_history: Vec<LogEntry>,
    /// Best value of an evaluation, by [`RunState::best_by`].
    #[serde(with = "exact::option")]
    pub best_metric: Option<f64>,
    /// Step with it.
    pub best_global_step: Option<u64>,
    /// The checkpoint with the best evaluation, relative to `output_dir`.
    pub best_model_checkpoint: Option<String>,
    /// Always true: rank 0 writes this file.
    pub is_world_process_zero: bool,
    /// Tokens trained on, all ranks.
    pub num_input_tokens_seen: u64,
    /// What transformers has no field for.
    #[serde(rename = "stateful_callbacks", with = "as_callback")]
    pub run: RunState,
}

/// What a run needs beyond transformers' fields to go on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// The run (`run.json`).
    pub run_id: String,
    /// Next row.
    pub cursor: Cursor,
    /// Ranks that wrote the checkpoint.
    pub world_size: usize,
    /// Rows of a step.
    pub global_batch_size: usize,
    /// Rows of a step when the run started: what its epochs and its schedule are counted in.
    pub initial_global_batch_size: usize,
    /// Since when a step has another number of rows than at the start.
    pub schedule_base: Option<ScheduleBase>,
    /// Steps skipped because a loss or gradient was not finite.
    pub skipped_steps: u64,
    /// What the best evaluation is chosen by.
    #[serde(default)]
    pub best_by: Best,
    /// Evaluations since the best one.
    pub evaluations_without_improvement: usize,
    /// Value of `best_model_checkpoint`: worse than `best_metric` if that step has no checkpoint.
    #[serde(with = "exact::option")]
    pub best_checkpoint_metric: Option<f64>,
    /// Sums over the steps since the last log line, which the next one covers.
    #[serde(default)]
    pub since_log: LogSums,
}

impl TrainerState {
    /// Whether this step has been evaluated.
    pub fn is_evaluated(&self) -> bool {
        self.log_history.iter().filter_map(LogEntry::evaluation).any(|metrics| metrics.step == self.global_step)
    }

    /// Step and value of every evaluation that has what the best is chosen by.
    pub fn values(&self) -> impl Iterator<Item = (u64, f64)> {
        let evaluations = self.log_history.iter().filter_map(LogEntry::evaluation);
        evaluations.filter_map(|metrics| Some((metrics.step, self.run.best_by.value(metrics)?)))
    }

    /// Step and cost of these: the lower, the better.
    pub fn costs(&self) -> impl Iterator<Item = (u64, f64)> {
        self.values().map(|(step, value)| (step, self.run.best_by.cost(value)))
    }

    /// Notes the value of an evaluation of a step: the best so far, or one more without improvement.
    pub fn note(&mut self, step: u64, value: f64) {
        if self.run.best_by.is_better(value, self.best_metric) {
            (self.best_metric, self.best_global_step) = (Some(value), Some(step));
            self.run.evaluations_without_improvement = 0;
        } else {
            self.run.evaluations_without_improvement += 1;
        }
    }

    /// Sets the metric that selects the best checkpoint and recomputes the best evaluation from the log. Returns the previous
    /// metric if it differs. Only existing checkpoints can be selected: [`crate::checkpoint::name_best`].
    pub fn choose_by(&mut self, best_by: Best) -> Option<Best> {
        if self.run.best_by == best_by {
            return None;
        }
        let before = std::mem::replace(&mut self.run.best_by, best_by);
        (self.best_metric, self.best_global_step, self.best_model_checkpoint) = (None, None, None);
        (self.run.best_checkpoint_metric, self.run.evaluations_without_improvement) = (None, 0);
        let values: Vec<(u64, f64)> = self.values().collect();
        values.into_iter().for_each(|(step, value)| self.note(step, value));
        Some(before)
    }
}

/// `{"train": {"args": {}, "attributes": {…}}}`, as transformers stores a callback's state.
mod as_callback {
    use super::RunState;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Callbacks<T> {
        train: Callback<T>,
    }

    #[derive(Serialize, Deserialize)]
    struct Callback<T> {
        args: Args,
        attributes: T,
    }

    #[derive(Serialize, Deserialize)]
    struct Args {}

    pub(super) fn serialize<S: Serializer>(run: &RunState, serializer: S) -> Result<S::Ok, S::Error> {
        Callbacks { train: Callback { args: Args {}, attributes: run } }.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RunState, D::Error> {
        Callbacks::deserialize(deserializer).map(|callbacks| callbacks.train.attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::EvalMetrics;
    use crate::scores::Scores;

    fn evaluation(step: u64, eval_loss: f64) -> LogEntry {
        LogEntry::Evaluation(EvalMetrics {
            step,
            epoch: 1.0 / 3.0,
            eval_loss,
            eval_supervised_tokens: 7,
            eval_samples: 2,
            eval_runtime: 0.1 + 0.2,
            eval_samples_per_second: f64::INFINITY,
            eval_sources: Default::default(),
            scores: Scores(vec![("accuracy", 0.1 + 0.2), ("f1", 1.0 / eval_loss)]),
        })
    }

    #[test]
    fn a_state_with_values_that_are_not_finite_comes_back_as_it_was() {
        let state = TrainerState {
            epoch: 0.1 + 0.7,
            log_history: vec![evaluation(2, 6.0), evaluation(4, f64::NEG_INFINITY), evaluation(6, 0.3 - 1e-17)],
            best_metric: Some(5.934_612_345_678_901),
            best_global_step: Some(2),
            run: RunState { run_id: "a".into(), best_checkpoint_metric: Some(0.1), ..RunState::default() },
            ..TrainerState::default()
        };
        let read: TrainerState =
            serde_json::from_slice(&serde_json::to_vec_pretty(&state).expect("JSON")).expect("read");
        assert_eq!(read, state);
        let text = serde_json::to_string(&TrainerState { log_history: vec![evaluation(2, f64::NAN)], ..state });
        let read: TrainerState = serde_json::from_str(&text.expect("JSON")).expect("read");
        assert!(read.values().all(|(step, loss)| step == 2 && loss.is_nan()), "{read:?}");
    }

    #[test]
    fn the_best_is_counted_again_by_another_figure() {
        // F1 is 1 ÷ loss here: 0.5, 2, -1, 0.25.
        let log_history = [(2, 2.0), (4, 0.5), (6, -1.0), (8, 4.0)].map(|(step, loss)| evaluation(step, loss));
        let mut state = TrainerState { log_history: log_history.into(), ..TrainerState::default() };
        for (name, greater, expected) in [
            ("eval_f1", true, (Some(2.0), Some(4), 2)),
            ("eval_loss", false, (Some(-1.0), Some(6), 1)),
            ("eval_f1", false, (Some(-1.0), Some(6), 1)),
            // The first of equal ones is the best, and figures that no line has give none.
            ("eval_accuracy", true, (Some(0.1 + 0.2), Some(2), 3)),
            ("eval_cider_d", true, (None, None, 0)),
        ] {
            state.choose_by(Best { name: name.to_string(), greater });
            let found = (state.best_metric, state.best_global_step, state.run.evaluations_without_improvement);
            assert_eq!(found, expected, "{name}");
        }
    }
}
