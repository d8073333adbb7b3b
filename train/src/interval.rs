//! Intervals of the run: a number of steps, or a fraction of all steps, as the Trainer's `logging_steps`, `eval_steps` and
//! `save_steps`.

use crate::domains::number;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Larger ones are no number of steps.
const MOST_STEPS: f64 = 1e15;

/// Every so many steps, or after every such fraction of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval(f64);

impl Interval {
    /// No interval of its own: that of another option holds.
    pub const NONE: Self = Self(0.0);

    /// Every so many steps.
    pub const fn steps(steps: u32) -> Self {
        Self(steps as f64)
    }

    /// Steps from one time to the next in a run of `max_steps`.
    ///
    /// # Source
    /// transformers `trainer_callback.py`, `TrainerState.compute_steps`.
    pub fn in_run(self, max_steps: u64) -> u64 {
        let steps = if self.0 < 1.0 { (max_steps as f64 * self.0).ceil() } else { self.0 };
        (steps as u64).max(1)
    }

    /// Whether it is [`Self::NONE`].
    pub fn is_none(self) -> bool {
        self.0 == 0.0
    }

    /// Whether it is a fraction of the run.
    pub fn is_fraction(self) -> bool {
        self.0 > 0.0 && self.0 < 1.0
    }

    /// Whether every time of this interval is one of the other, in any run.
    ///
    /// # Source
    /// transformers `training_args.py`, `_validate_args`: fractions are compared in millionths, and never with steps.
    pub fn is_multiple_of(self, other: Self) -> bool {
        let millionths = |interval: Self| (interval.0 * 1e6).round() as u64;
        self.is_fraction() == other.is_fraction() && millionths(self).is_multiple_of(millionths(other))
    }

    fn new(value: f64) -> Result<Self, String> {
        let whole = value.fract() == 0.0 && (0.0..=MOST_STEPS).contains(&value);
        if whole || (0.0..1.0).contains(&value) {
            Ok(Self(value))
        } else {
            let found = number(value);
            let most = if value > MOST_STEPS { ", at most 1e15" } else { "" };
            Err(format!("found {found}, expected a whole number of steps{most}, or a fraction of all steps below 1"))
        }
    }
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "None" | "none" | "null" => Ok(Self::NONE),
            _ => Self::new(text.parse().map_err(|_| format!("found {text:?}, expected a number"))?),
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for Interval {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_fraction() { serializer.serialize_f64(self.0) } else { serializer.serialize_u64(self.0 as u64) }
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(text: &str) -> Interval {
        text.parse().expect("an interval")
    }

    /// `math.ceil(max_steps * num_steps)` where `num_steps < 1`.
    #[test]
    fn fractions_are_of_all_steps_rounded_up() {
        for (text, max_steps, expected) in
            [("10", 3, 10), ("0.1", 24, 3), ("0.5", 7, 4), ("0.001", 24, 1), ("1.0", 9, 1)]
        {
            assert_eq!(interval(text).in_run(max_steps), expected, "{text} of {max_steps}");
        }
    }

    #[test]
    fn what_is_no_interval_is_refused() {
        for text in ["-1", "-0.5", "1.5", "nan", "inf", "1e300", "ten"] {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
        assert!(interval("None").is_none());
    }

    #[test]
    fn multiples_are_those_of_the_trainer() {
        for (a, b, expected) in
            [("6", "3", true), ("6", "4", false), ("0.3", "0.1", true), ("0.5", "0.2", false), ("10", "0.1", false)]
        {
            assert_eq!(interval(a).is_multiple_of(interval(b)), expected, "{a} of {b}");
        }
    }

    #[test]
    fn records_hold_whole_numbers_as_such() {
        let record = |text: &str| serde_json::to_string(&interval(text)).expect("JSON");
        assert_eq!([record("500"), record("0.25")], ["500", "0.25"]);
        assert_eq!(serde_json::from_str::<Interval>("5.0").expect("five"), Interval::steps(5));
    }
}
