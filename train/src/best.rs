//! Which evaluation is the best: transformers' `metric_for_best_model` and `greater_is_better`.

use crate::config::Config;
use crate::metrics::EvalMetrics;
use base::{Error, Result};
use cli::options::is_nothing;
use serde::{Deserialize, Serialize};

/// What the Trainer puts before the name of every figure of an evaluation.
pub const PREFIX: &str = "eval_";
const LOSS: &str = "eval_loss";

/// The figure that best model and early stopping go by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Best {
    /// As `metrics.jsonl` has it.
    pub name: String,
    /// Whether a larger value is better.
    pub greater: bool,
}

impl Default for Best {
    fn default() -> Self {
        Self { name: LOSS.to_string(), greater: false }
    }
}

impl Best {
    /// What the settings say: the loss unless another one is named, with or without `eval_`; greater is better unless the name
    /// ends with "loss".
    ///
    /// # Errors
    /// A figure that the evaluations of this run do not have.
    pub fn of(config: &Config) -> Result<Self> {
        let given = config.metric_for_best_model.as_deref().filter(|name| !is_nothing(name));
        let given = given.unwrap_or(LOSS);
        let name = if given.starts_with(PREFIX) { given.to_string() } else { format!("{PREFIX}{given}") };
        let figures = config.eval_metric.map_or(&[][..], |metric| metric.figure_names());
        let known: Vec<String> = figures.iter().map(|figure| format!("{PREFIX}{figure}")).collect();
        if name != LOSS && !known.contains(&name) {
            let place = "metric_for_best_model";
            let (expected, remedy) = match known.is_empty() {
                true => (LOSS.to_string(), "give --eval_metric, which adds figures, or leave it out"),
                false => (format!("{LOSS}, {}", known.join(", ")), "name one of them"),
            };
            return Err(Error::invalid(place, format!("{given:?}"), expected, remedy));
        }
        let greater = config.greater_is_better.unwrap_or(!name.ends_with("loss"));
        Ok(Self { name, greater })
    }

    /// The figure of an evaluation; `None` in one of a run that did not compute it.
    pub fn value(&self, metrics: &EvalMetrics) -> Option<f64> {
        match self.name.strip_prefix(PREFIX) {
            Some("loss") => Some(metrics.eval_loss),
            figure => metrics.scores.get(figure?),
        }
    }

    /// For people: `eval_f1 (greater is better)`.
    pub fn describe(&self) -> String {
        format!("{} ({} is better)", self.name, if self.greater { "greater" } else { "lower" })
    }

    /// The lower, the better; the value comes back from it in the same way.
    pub fn cost(&self, value: f64) -> f64 {
        if self.greater { -value } else { value }
    }

    /// Whether a value is better than the best so far. One that is not finite never is.
    pub fn is_better(&self, value: f64, than: Option<f64>) -> bool {
        value.is_finite() && than.is_none_or(|than| self.cost(value) < self.cost(than))
    }
}
