//! The Trainer's `lr_scheduler_kwargs`.

use super::ScheduleType;
use base::json::Distinct;
use base::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::str::FromStr;

/// The form of a rise or fall of `warmup_stable_decay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Curve {
    /// A line.
    Linear,
    /// A cosine.
    Cosine,
    /// `1 − √`.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// Arguments of the schedules, by transformers' names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SchedulerKwargs {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_cycles: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_end: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timescale: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_lr_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_lr_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_decay_steps: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_stable_steps: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_lr_ratio: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_type: Option<Curve>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_type: Option<Curve>,
}

/// Arguments of a schedule.
fn arguments(kind: ScheduleType) -> &'static [&'static str] {
    match kind {
        ScheduleType::Cosine | ScheduleType::CosineWithRestarts => &["num_cycles"],
        ScheduleType::Polynomial => &["lr_end", "power"],
        ScheduleType::InverseSqrt => &["timescale"],
        ScheduleType::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
        ScheduleType::CosineWarmupWithMinLr => &["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"],
        ScheduleType::WarmupStableDecay => {
            &["num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"]
        }
        _ => &[],
    }
}

/// Where an error is.
const PLACE: &str = "lr_scheduler_kwargs";

impl SchedulerKwargs {
    /// Refuses arguments that the schedule does not take, that are out of their domains, or that it misses.
    ///
    /// # Errors
    /// The argument.
    pub fn check(&self, kind: ScheduleType, learning_rate: f64) -> Result<()> {
        let invalid =
            |found: String, expected: &str| Err(Error::invalid(PLACE, found, expected, format!("correct {PLACE}")));
        let name = serde_json::to_value(kind).unwrap_or_default();
        let given = self.as_map();
        if let Some(argument) = given.keys().find(|argument| !arguments(kind).contains(&argument.as_str())) {
            let known = match arguments(kind) {
                [] => "none".to_string(),
                known => known.join(", "),
            };
            return invalid(argument.clone(), &format!("an argument of {name}, which has {known}"));
        }
        for (argument, value) in given.iter().filter_map(|(argument, value)| Some((argument, value.as_f64()?))) {
            let high =
                if matches!(argument.as_str(), "min_lr_rate" | "warmup_lr_rate" | "min_lr_ratio") { 1.0 } else { 1e15 };
            let low =
                if matches!(argument.as_str(), "num_cycles" | "power" | "timescale") { f64::MIN_POSITIVE } else { 0.0 };
            if !(low..=high).contains(&value) {
                let low = if low > 0.0 { "above 0" } else { "at least 0" };
                let high = if high == 1.0 { " and at most 1" } else { "" };
                return invalid(format!("{argument} {value}"), &format!("a number {low}{high}"));
            }
        }
        let has_minimum = matches!(kind, ScheduleType::CosineWithMinLr | ScheduleType::CosineWarmupWithMinLr);
        match (self.min_lr, self.min_lr_rate) {
            (None, None) if has_minimum => invalid(format!("no lowest rate for {name}"), "min_lr or min_lr_rate"),
            (Some(_), Some(_)) => invalid("min_lr and min_lr_rate".to_string(), "one of the two"),
            (Some(min_lr), _) if min_lr > learning_rate => {
                invalid(format!("min_lr {min_lr}"), &format!("at most learning_rate, {learning_rate}"))
            }
            _ if kind == ScheduleType::WarmupStableDecay && self.num_decay_steps.is_none() => {
                invalid("no num_decay_steps".to_string(), "its steps, for warmup_stable_decay")
            }
            _ => Ok(()),
        }
    }

    fn as_map(self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        }
    }
}

impl fmt::Display for SchedulerKwargs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Value::Object(self.as_map()))
    }
}

impl FromStr for SchedulerKwargs {
    type Err = String;

    /// Reads JSON as the Trainer does: numbers may be texts.
    fn from_str(text: &str) -> Result<Self, String> {
        if matches!(text.trim(), "" | "None" | "none" | "null") {
            return Ok(Self::default());
        }
        let map: Map<String, Value> = serde_json::from_str(text)
            .and_then(|Distinct(map)| serde_json::from_value(map))
            .map_err(|error| format!("found {text:?}: {error}; expected JSON such as {{\"num_cycles\": 2}}"))?;
        let number = |text: &str| text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number);
        let plain = map.into_iter().map(|(name, value)| match &value {
            Value::String(text) => (name, number(text).unwrap_or(value)),
            _ => (name, value),
        });
        serde_json::from_value(Value::Object(plain.collect())).map_err(|error| error.to_string())
    }
}
