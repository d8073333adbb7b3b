//! DeepSpeed's ZeRO-2 JSON file: settings are honoured, or refused with the reason.

mod keys;
mod scheduler;

use crate::collective::launch;
use crate::recipe::Given;
use base::json::Distinct;
use base::{Error, Result};
use cli::inputs;
use serde_json::Value;
use std::path::Path;

/// Adds the settings of a file (or of JSON text, as the Trainer takes it) to `given`, which the user set elsewhere. `auto`
/// leaves an option as it is. `ranks` is the number of ranks of the run.
///
/// # Errors
/// A key that is given twice, is unknown or is not implemented; a value of another type, or one that contradicts an option.
pub fn overlay(source: &str, given: &mut Given, ranks: u64) -> Result<()> {
    let (name, text) = match source.trim_start().starts_with('{') {
        true => ("--deepspeed", source.to_string()),
        false => {
            let expected = "a DeepSpeed configuration (JSON), for --deepspeed";
            (source, std::fs::read_to_string(source).map_err(inputs::unread(Path::new(source), expected))?)
        }
    };
    let Distinct(json) = serde_json::from_str(&text)
        .map_err(|error| Error::invalid(name, error, "JSON with each key once in an object", "correct the file"))?;
    let file = File { name, json };
    keys::check(&file)?;
    file.refuse_what_is_not_done()?;
    for (pointer, option) in OPTIONS {
        if let Some(value) = file.value(pointer) {
            file.set(given, pointer, option, file.typed(pointer, option, value)?)?;
        }
    }
    if file.json.get("gradient_clipping").is_none_or(Value::is_null) && launch::local_rank(0) == 0 {
        tracing::info!("{name}: no gradient_clipping: --max_grad_norm holds (DeepSpeed would not clip)");
    }
    file.overlay_betas(given)?;
    scheduler::overlay(&file, given)?;
    file.overlay_train_batch_size(given, ranks)
}

/// Where a value stands in the file, and the option it sets.
const OPTIONS: [(&str, &str); 8] = [
    ("/gradient_clipping", "max_grad_norm"),
    (MICRO_BATCH, MICRO_BATCH_OPTION),
    (ACCUMULATION, ACCUMULATION_OPTION),
    ("/bf16/enabled", "bf16"),
    ("/bfloat16/enabled", "bf16"),
    ("/optimizer/params/lr", "learning_rate"),
    ("/optimizer/params/eps", "adam_epsilon"),
    ("/optimizer/params/weight_decay", "weight_decay"),
];
const MICRO_BATCH: &str = "/train_micro_batch_size_per_gpu";
const MICRO_BATCH_OPTION: &str = "per_device_train_batch_size";
const ACCUMULATION: &str = "/gradient_accumulation_steps";
const ACCUMULATION_OPTION: &str = "gradient_accumulation_steps";

struct File<'a> {
    name: &'a str,
    json: Value,
}

impl File<'_> {
    /// The value at a JSON pointer, unless it is `auto` or null.
    fn value(&self, pointer: &str) -> Option<&Value> {
        self.json.pointer(pointer).filter(|value| !value.is_null() && value.as_str() != Some("auto"))
    }

    /// File and key, for people.
    fn place(&self, pointer: &str) -> String {
        match pointer.trim_start_matches('/').replace('/', ".") {
            key if key.is_empty() => self.name.to_string(),
            key => format!("{}: {key}", self.name),
        }
    }

    fn invalid(&self, pointer: &str, found: impl ToString, expected: &str, remedy: &str) -> Error {
        Error::invalid(self.place(pointer), found, expected, remedy)
    }

    fn refuse_what_is_not_done(&self) -> Result<()> {
        let stage = self.json.pointer("/zero_optimization/stage").cloned().unwrap_or(Value::from(0));
        if stage.as_f64() != Some(2.0) {
            let why = match stage.as_i64() {
                Some(3) => "2 (ranks hold whole parameters here; stage 3 shards them)",
                Some(0 | 1) => "2 (gradients are sharded as well here, at no cost)",
                _ => "2",
            };
            return Err(self.invalid("/zero_optimization/stage", stage, why, "set the stage to 2"));
        }
        for part in ["offload_optimizer", "offload_param"] {
            let pointer = format!("/zero_optimization/{part}/device");
            if let Some(device) = self.value(&pointer).filter(|device| device.as_str() != Some("none")) {
                let expected = "none (optimizer state lives where the rank computes)";
                return Err(self.invalid(&pointer, device, expected, "remove the offload section"));
            }
        }
        match self.value("/optimizer/type").map(|name| name.as_str().unwrap_or_default().to_ascii_lowercase()) {
            None => Ok(()),
            Some(name) if name == "adamw" || name == "adam" => Ok(()),
            Some(_) => {
                let found = self.json["optimizer"]["type"].clone();
                Err(self.invalid("/optimizer/type", found, "AdamW", "use AdamW or remove the section"))
            }
        }
    }

    /// A value as its option has it: `4.0` where a whole number is meant is 4.
    fn typed(&self, pointer: &str, option: &str, value: &Value) -> Result<Value> {
        let (typed, expected) = match option {
            "bf16" => (value.as_bool().map(Value::from), "true, false or auto"),
            MICRO_BATCH_OPTION | ACCUMULATION_OPTION => {
                (whole_number(value).map(Value::from), "a whole number, at least 1, or auto")
            }
            _ => (value.as_f64().map(|_| value.clone()), "a number or auto"),
        };
        typed.ok_or_else(|| self.invalid(pointer, value, expected, "correct the file"))
    }

    /// Sets an option, unless it was set to something else.
    fn set(&self, given: &mut Given, pointer: &str, option: &str, value: Value) -> Result<()> {
        match given.get(option) {
            Some(other) if !same(other, &value) => {
                let expected = format!("{other} as {} says, or auto", given.place(option));
                Err(self.invalid(pointer, &value, &expected, "make the two agree"))
            }
            Some(_) => Ok(()),
            None => {
                given.insert(option, value, self.place(pointer));
                Ok(())
            }
        }
    }

    fn overlay_betas(&self, given: &mut Given) -> Result<()> {
        let pointer = "/optimizer/params/betas";
        let Some(betas) = self.value(pointer) else { return Ok(()) };
        match betas.as_array().map(Vec::as_slice) {
            Some([beta1, beta2]) if beta1.is_number() && beta2.is_number() => {
                self.set(given, pointer, "adam_beta1", beta1.clone())?;
                self.set(given, pointer, "adam_beta2", beta2.clone())
            }
            _ => Err(self.invalid(pointer, betas, "two numbers or auto", "correct the file")),
        }
    }

    /// `train_batch_size` is micro-batch × accumulation × ranks: checked if all are given, else the missing one is computed.
    ///
    /// # Source
    /// DeepSpeed `runtime/config.py`, `_set_batch_related_parameters` and `_batch_assertion`.
    fn overlay_train_batch_size(&self, given: &mut Given, ranks: u64) -> Result<()> {
        let pointer = "/train_batch_size";
        let Some(written) = self.value(pointer) else { return Ok(()) };
        let Some(total) = whole_number(written) else {
            return Err(self.invalid(pointer, written, "a whole number, at least 1, or auto", "correct the file"));
        };
        let number = |option: &str| given.get(option).and_then(Value::as_u64);
        let (micro_batch, accumulation) = (number(MICRO_BATCH_OPTION), number(ACCUMULATION_OPTION));
        let product = |a: u64, b: u64| a.saturating_mul(b).saturating_mul(ranks).max(1);
        let known = product(micro_batch.unwrap_or(1), accumulation.unwrap_or(1));
        let contradicts = || {
            let options = [(MICRO_BATCH_OPTION, micro_batch), (ACCUMULATION_OPTION, accumulation)];
            let parts = options.iter().filter_map(|(option, value)| value.map(|value| (option, value)));
            let parts: Vec<String> =
                parts.map(|(option, value)| format!("{value} ({})", given.place(option))).collect();
            let factors = parts.into_iter().chain([format!("{ranks} ranks")]).collect::<Vec<_>>().join(" × ");
            let relation = if micro_batch.is_some() && accumulation.is_some() { "" } else { "a multiple of " };
            let expected = format!("{relation}{known} = {factors}, or auto");
            self.invalid(pointer, total, &expected, "write auto: the batch follows from the options")
        };
        match (micro_batch, accumulation) {
            (Some(_), Some(_)) if total == known => Ok(()),
            (Some(_), Some(_)) => Err(contradicts()),
            _ if !total.is_multiple_of(known) => Err(contradicts()),
            (Some(_), None) => self.set(given, pointer, ACCUMULATION_OPTION, Value::from(total / known)),
            (None, _) => {
                self.set(given, pointer, MICRO_BATCH_OPTION, Value::from(total / known))?;
                self.set(given, pointer, ACCUMULATION_OPTION, Value::from(accumulation.unwrap_or(1)))
            }
        }
    }
}

/// A whole number that counts something.
fn whole_number(value: &Value) -> Option<u64> {
    value.as_f64().filter(|number| number.fract() == 0.0 && (1.0..1e15).contains(number)).map(|number| number as u64)
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || (a.is_number() && a.as_f64() == b.as_f64())
}

#[cfg(test)]
mod tests;
