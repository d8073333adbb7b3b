//! Figures of an evaluation besides the loss, as `metrics.jsonl` and `trainer_state.json` have them: `eval_accuracy`, ….

use crate::best::PREFIX;
use base::exact;
use clap::ValueEnum;
use metrics::Metric;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Names, without `eval_`, and values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores(pub Vec<(&'static str, f64)>);

#[derive(Serialize, Deserialize)]
struct Exact(#[serde(with = "exact")] f64);

impl Scores {
    /// A figure by its name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }

    /// The figures in a line of the log.
    ///
    /// # Errors
    /// Malformed JSON; a figure that is no number.
    pub fn of_line(line: &str) -> serde_json::Result<Self> {
        let values: BTreeMap<String, &RawValue> = serde_json::from_str(line)?;
        let mut names: Vec<&'static str> = Vec::new();
        for name in Metric::value_variants().iter().flat_map(|metric| metric.figure_names()) {
            if !names.contains(name) && values.contains_key(&format!("{PREFIX}{name}")) {
                names.push(name);
            }
        }
        let value = |name: &'static str| -> serde_json::Result<_> {
            let Exact(value) = serde_json::from_str(values[&format!("{PREFIX}{name}")].get())?;
            Ok((name, value))
        };
        names.into_iter().map(value).collect::<serde_json::Result<_>>().map(Self)
    }
}

impl Serialize for Scores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (format!("{PREFIX}{name}"), Exact(*value))))
    }
}
