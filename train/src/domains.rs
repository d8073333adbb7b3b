//! The ranges of options: one table, checked for values of any origin (flag, recipe, DeepSpeed file).

use crate::config::Config;
use base::{Error, Result};
use serde_json::Value;
use std::fmt;

/// An interval of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Domain {
    low: f64,
    has_low: bool,
    high: f64,
    has_high: bool,
}

/// Weights, moments and what scales them are f32: larger numbers are infinite there.
const LARGEST: f64 = f32::MAX as f64;
/// As messages name it, where a value is larger.
const SHOWN_LARGEST: &str = "3.4e38";
/// Smaller ones are 0, or as slow as subnormal numbers, in f32.
const SMALLEST: f64 = f32::MIN_POSITIVE as f64;
/// Rows, ranks, threads: products of three of them stay countable.
const MOST: f64 = 1e6;
/// Thirty years.
const LONGEST_SECONDS: f64 = 1e9;

const fn at_least(low: f64) -> Domain {
    Domain { low, has_low: true, high: LARGEST, has_high: true }
}

const fn between(low: f64, high: f64) -> Domain {
    Domain { low, has_low: true, high, has_high: true }
}

const fn from_0_to_below_1() -> Domain {
    Domain { low: 0.0, has_low: true, high: 1.0, has_high: false }
}

const fn above_0() -> Domain {
    Domain { low: 0.0, has_low: false, high: LARGEST, has_high: true }
}

const DOMAINS: [(&str, Domain); 32] = [
    ("learning_rate", at_least(0.0)),
    ("mm_projector_lr", at_least(0.0)),
    ("vision_tower_lr", at_least(0.0)),
    ("weight_decay", at_least(0.0)),
    // At 1 the bias correction divides by 0.
    ("adam_beta1", from_0_to_below_1()),
    ("adam_beta2", from_0_to_below_1()),
    ("adam_epsilon", between(SMALLEST, LARGEST)),
    ("max_grad_norm", at_least(0.0)),
    ("warmup_steps", at_least(0.0)),
    ("warmup_ratio", between(0.0, 1.0)),
    ("lr_num_cycles", between(1.0, MOST)),
    ("lr_power", above_0()),
    ("lr_end", at_least(0.0)),
    ("num_train_epochs", above_0()),
    ("lora_r", between(1.0, MOST)),
    ("lora_alpha", above_0()),
    // At 1 the kept values are scaled by 1/0.
    ("lora_dropout", from_0_to_below_1()),
    ("per_device_train_batch_size", between(1.0, MOST)),
    ("per_device_eval_batch_size", between(1.0, MOST)),
    ("gradient_accumulation_steps", between(1.0, MOST)),
    ("nproc", between(1.0, MOST)),
    ("ranks_per_host", between(1.0, MOST)),
    ("dataloader_num_workers", between(0.0, 1e4)),
    ("dataloader_prefetch_factor", between(1.0, 1e4)),
    ("logging_steps", Domain { low: 0.0, has_low: false, high: LARGEST, has_high: true }),
    ("save_steps", Domain { low: 0.0, has_low: false, high: LARGEST, has_high: true }),
    ("eval_steps", at_least(0.0)),
    ("eval_captions", between(0.0, MOST)),
    ("eval_metric_samples", between(0.0, 1e9)),
    ("eval_max_new_tokens", between(1.0, MOST)),
    ("early_stopping_patience", between(0.0, 1e9)),
    ("collective_timeout_seconds", between(1.0, LONGEST_SECONDS)),
];

/// Options that need not have a value. (A given one that is no number is refused where it is read.)
const OPTIONAL: [&str; 3] = ["mm_projector_lr", "vision_tower_lr", "ranks_per_host"];

/// As people write it: without hundreds of digits.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value != 0.0 && !(1e-9..1e15).contains(&size) { format!("{value:e}") } else { value.to_string() }
}

/// Refuses the first option whose value is outside its domain.
///
/// # Errors
/// Option, value and domain.
pub fn check(config: &Config) -> Result<()> {
    let settings = serde_json::to_value(config).unwrap_or_default();
    for (name, domain) in DOMAINS {
        if OPTIONAL.contains(&name) && settings.get(name).is_none_or(Value::is_null) {
            continue;
        }
        // JSON has no NaN and no infinity: they are null there.
        let value = settings.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
        if !domain.holds(value) {
            let found = if value.is_nan() { "NaN or infinity".to_string() } else { number(value) };
            let limit = match value > domain.high && domain.high == LARGEST {
                true => format!(" and at most {SHOWN_LARGEST}"),
                false => String::new(),
            };
            return Err(Error::invalid(name, found, format!("{domain}{limit}"), format!("correct {name}")));
        }
    }
    Ok(())
}

impl Domain {
    fn holds(self, value: f64) -> bool {
        let above = if self.has_low { value >= self.low } else { value > self.low };
        let below = if self.has_high { value <= self.high } else { value < self.high };
        above && below
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let low = if self.has_low { "at least" } else { "above" };
        match self.low {
            SMALLEST => write!(f, "a number {low} {SMALLEST:e}")?,
            number => write!(f, "a number {low} {number}")?,
        }
        if self.high == LARGEST {
            return Ok(());
        }
        write!(f, " and {} {}", if self.has_high { "at most" } else { "below" }, number(self.high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number among the options is in the table, or here with the reason.
    #[test]
    fn no_number_is_without_a_domain() {
        let free = ["max_steps", "seed", "model_max_length", "save_total_limit"];
        let settings = serde_json::to_value(crate::config::tests::defaults()).expect("JSON");
        let settings = settings.as_object().expect("a table");
        for (name, _) in settings.iter().filter(|(_, value)| value.is_number()) {
            let known = DOMAINS.iter().any(|(known, _)| known == name) || free.contains(&name.as_str());
            assert!(known, "{name} has no domain");
        }
        assert!(DOMAINS.iter().all(|(name, _)| settings.contains_key(*name)));
        check(&crate::config::tests::defaults()).expect("the defaults are in their domains");
    }

    #[test]
    fn domains_say_what_they_hold() {
        assert_eq!(from_0_to_below_1().to_string(), "a number at least 0 and below 1");
        assert_eq!(above_0().to_string(), "a number above 0");
        assert_eq!([0.0, -1e-5, 1e308, -1e-60, 1e6].map(number), ["0", "-0.00001", "1e308", "-1e-60", "1000000"]);
        assert_eq!(between(1.0, 5.0).to_string(), "a number at least 1 and at most 5");
        assert!(!at_least(0.0).holds(f64::INFINITY) && !at_least(0.0).holds(f64::NAN));
    }
}
