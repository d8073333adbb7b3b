//! The settings that define the function that a run trains, and their differences.

use crate::config::{Config, LossNormalization};
use anyhow::{Context, Result};
use base::names;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use store::adapter;
use store::fingerprint;
use store::skip_modules::OPTION as SKIP;

/// Options whose values define the function in every run.
const OPTIONS: [&str; 4] = ["train_type", "seed", "shuffle", "loss_normalization"];
/// Options that define it when LoRA matrices are made by the run.
const LORA_OPTIONS: [&str; 4] = ["lora_r", "lora_alpha", "lora_target_modules", "lora_vision"];
/// Options that define it when they are true.
const QUANTIZATION_OPTIONS: [&str; 2] = ["load_in_8bit", "load_in_4bit"];
/// An option that defines it with `load_in_4bit`.
const DOUBLE_QUANT: &str = "bnb_4bit_use_double_quant";
const LORA_DROPOUT: &str = "lora_dropout";
const MODEL: &str = adapter::MODEL_OPTION;
const DATA: &str = "data_path";
const ADAPTER: &str = "init_adapter";
/// The part of a mean that depends on how a batch is split.
const MICRO_BATCH: &str = "per_device_train_batch_size";

/// Options that say where something is, or how a run is begun: not worth a line when they differ.
const INCIDENTAL: [&str; 10] = [
    MODEL,
    DATA,
    ADAPTER,
    "output_dir",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "allow_global_batch_change",
    "force",
    "nproc",
    "gradient_accumulation_steps",
];

/// What must be the same for the whole of a run, by the names of options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Values as JSON writes them; of a model, an adapter and data, fingerprints.
    pub values: BTreeMap<String, String>,
    /// Where model, adapter and data were: may change.
    pub paths: BTreeMap<String, String>,
}

impl Function {
    /// What settings and shards define.
    ///
    /// # Errors
    /// A model or adapter that cannot be read.
    pub fn of(config: &Config, data_fingerprint: &str) -> Result<Self> {
        let settings = as_map(config)?;
        let mut function = Self::default();
        let mut add = |name: &str| {
            let value = settings.get(name).map_or(String::new(), plain);
            function.values.insert(name.to_string(), value);
        };
        OPTIONS.iter().for_each(|name| add(name));
        if config.loss_normalization == LossNormalization::MicroBatchMean {
            add(MICRO_BATCH);
        }
        if config.train_type.uses_lora() {
            add(LORA_DROPOUT);
            // An adapter to go on from has its own rank and targets.
            if config.init_adapter.is_none() {
                LORA_OPTIONS.iter().for_each(|name| add(name));
            }
        }
        // Only where they are set, so that a run of an older version can go on.
        QUANTIZATION_OPTIONS
            .iter()
            .filter(|name| settings.get(**name) == Some(&Value::Bool(true)))
            .for_each(|name| add(name));
        if config.load_in_4bit {
            add(DOUBLE_QUANT);
        }
        if !config.skipped_modules().is_empty() {
            function.values.insert(SKIP.to_string(), config.skipped_modules().join(","));
        }
        if config.train_type.uses_lora() && config.init_adapter.is_none() {
            function.add_later_lora_options(config);
        }
        function.add_fingerprint(DATA, config.data_path.to_string(), data_fingerprint.to_string());
        for (name, path) in [(MODEL, Some(&config.model_name_or_path)), (ADAPTER, config.init_adapter.as_ref())] {
            if let Some(path) = path {
                function.add_fingerprint(
                    name,
                    path.display().to_string(),
                    fingerprint::of_weights(path).with_context(|| format!("--{name}"))?,
                );
            }
        }
        Ok(function)
    }

    /// Options about LoRA that runs of earlier versions do not have: they count where they are not the default.
    fn add_later_lora_options(&mut self, config: &Config) {
        let saved = config.saved_modules();
        for (name, value, is_default) in [
            ("use_rslora", config.use_rslora.to_string(), !config.use_rslora),
            ("use_dora", config.use_dora.to_string(), !config.use_dora),
            ("modules_to_save", saved.join(","), saved == [names::PROJECTOR]),
            ("rank_pattern", config.rank_pattern.to_string(), config.rank_pattern.is_empty()),
            ("alpha_pattern", config.alpha_pattern.to_string(), config.alpha_pattern.is_empty()),
        ] {
            if !is_default {
                self.values.insert(name.to_string(), value);
            }
        }
    }

    fn add_fingerprint(&mut self, name: &str, path: String, fingerprint: String) {
        self.values.insert(name.to_string(), fingerprint);
        self.paths.insert(name.to_string(), path);
    }

    /// Every difference, with both values: `self` has the run's values, `given` the requested ones.
    pub fn differences(&self, given: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.values.keys().chain(given.values.keys()).collect();
        // Of another train type everything about LoRA differs, too.
        let other_type = self.values.get(OPTIONS[0]) != given.values.get(OPTIONS[0]);
        let counts = |name: &str| !other_type || !is_about_lora(name);
        let differs = |name: &&&String| self.values.get(**name) != given.values.get(**name) && counts(name);
        let line = |name: &String| format!("{name} is {} there, {} is given", self.shown(name), given.shown(name));
        names.iter().filter(differs).map(|name| line(name)).collect()
    }

    /// A value for people: a fingerprint with its path.
    fn shown(&self, name: &str) -> String {
        let Some(value) = self.values.get(name) else { return "not set".to_string() };
        match self.paths.get(name) {
            Some(path) => format!("{path} (fingerprint {})", value.get(..12).unwrap_or(value)),
            None => value.clone(),
        }
    }
}

fn is_about_lora(option: &str) -> bool {
    const OTHERS: [&str; 5] = ["use_rslora", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern"];
    option.starts_with("lora_") || OTHERS.contains(&option)
}

/// What may change when a run goes on, and has: `learning_rate 0.001 → 0.0001`. Not what [`Function`] holds, which has to be
/// equal, and not what only says where things are.
///
/// # Errors
/// Settings that JSON cannot hold.
pub fn changed_settings(before: &Map<String, Value>, config: &Config, function: &Function) -> Result<Vec<String>> {
    let now = as_map(config)?;
    // A checkpoint of an older version has the defaults of the options that it did not know.
    let completed = serde_json::from_value::<Config>(Value::Object(before.clone())).ok();
    let before = completed.as_ref().map_or_else(|| Ok(before.clone()), as_map)?;
    let counts = |name: &str| !INCIDENTAL.contains(&name) && !function.values.contains_key(name);
    let changed = now.iter().filter_map(|(name, value)| {
        let old = before.get(name)?;
        (counts(name) && !same(old, value)).then(|| format!("{name} {} → {}", plain(old), plain(value)))
    });
    Ok(changed.collect())
}

/// Equal but for the last digit of a float, which reading may have changed.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-14 * a.abs().max(b.abs()),
        _ => a == b,
    }
}

/// As it is given on the command line.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(","),
        Value::Null => "not set".to_string(),
        other => other.to_string(),
    }
}

fn as_map(config: &Config) -> Result<Map<String, Value>> {
    match serde_json::to_value(config)? {
        Value::Object(map) => Ok(map),
        other => Ok(Map::from_iter([("settings".to_string(), other)])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};
    use std::path::Path;

    fn config(model: &Path, words: &[&str]) -> Config {
        let paths = ["train", "--model_name_or_path", model.to_str().expect("UTF-8"), "--data_path", "d"];
        let words = paths.iter().chain(&["--output_dir", "o"]).chain(words).map(std::ffi::OsString::from);
        let matches = Config::augment_args(Command::new("train")).get_matches_from(cli::args::with_dashes(words));
        Config::from_arg_matches(&matches).expect("options of train")
    }

    fn model(weights: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join(base::names::CONFIG_FILE), "{}").expect("written");
        std::fs::write(dir.path().join(base::names::PICKLED_WEIGHTS_FILE), weights).expect("written");
        dir
    }

    #[test]
    fn what_defines_the_function_differs_with_both_values_and_nothing_else_does() {
        let (base, copy, other) = (model("a"), model("a"), model("b"));
        let of =
            |model: &Path, words: &[&str], data: &str| Function::of(&config(model, words), data).expect("a function");
        let run = of(base.path(), &["--lora_r", "4"], "data");
        let same = ["--lora_r", "4", "--learning_rate", "1", "--num_train_epochs", "9", "--nproc", "7"];
        assert_eq!(run.differences(&of(copy.path(), &same, "data")), Vec::<String>::new());
        let fields = |function: &Function| {
            let lines = run.differences(function);
            lines.iter().map(|line| line.split(' ').next().unwrap_or_default().to_string()).collect::<Vec<_>>()
        };
        for (words, expected) in [
            (&["--lora_r", "16", "--seed", "7"][..], &["lora_r", "seed"][..]),
            (&["--lora_r", "4", "--lora_target_modules", "q_proj"], &["lora_target_modules"]),
            (&["--lora_r", "4", "--lora_dropout", "0.1", "--lora_alpha", "9"], &["lora_alpha", "lora_dropout"]),
            (&["--lora_r", "4", "--lora_vision"], &["lora_vision"]),
            (
                &["--lora_r", "4", "--use_rslora", "--use_dora", "--modules_to_save", "None"],
                &["modules_to_save", "use_dora", "use_rslora"],
            ),
            (&["--lora_r", "9", "--train_type", "none"], &["train_type"]),
            (&["--lora_r", "4", "--shuffle", "false"], &["shuffle"]),
            (&["--lora_r", "4", "--bnb_4bit_use_double_quant", "false"], &[]),
            (&["--lora_r", "4", "--load_in_8bit"], &["load_in_8bit"]),
            (&["--lora_r", "4", "--load_in_4bit"], &["bnb_4bit_use_double_quant", "load_in_4bit"]),
            (
                &["--lora_r", "4", "--loss_normalization", "micro_batch_mean"],
                &["loss_normalization", "per_device_train_batch_size"],
            ),
        ] {
            assert_eq!(fields(&of(base.path(), words, "data")), expected, "{words:?}");
        }
        assert_eq!(fields(&of(other.path(), &["--lora_r", "4"], "others")), ["data_path", "model_name_or_path"]);
        let line = &run.differences(&of(base.path(), &["--lora_r", "16"], "data"))[0];
        assert_eq!(line, "lora_r is 4 there, 16 is given");
        // Without LoRA, its options define nothing.
        let none = of(base.path(), &["--train_type", "none", "--lora_r", "4"], "data");
        assert_eq!(none.differences(&of(base.path(), &["--train_type", "none"], "data")), Vec::<String>::new());
    }

    #[test]
    fn what_may_change_is_listed() {
        let base = model("a");
        let before = config(base.path(), &["--save_steps", "7", "--eval_captions", "2"]);
        let now = ["--learning_rate", "1e-4", "--max_steps", "9", "--nproc", "2", "--seed", "1", "--save_steps", "7"];
        let now = config(base.path(), &now);
        let function = Function::of(&now, "data").expect("a function");
        let before = as_map(&before).expect("a map");
        let text = serde_json::to_string(&before).expect("JSON");
        let before: Map<String, Value> = serde_json::from_str(&text).expect("JSON");
        let changed = changed_settings(&before, &now, &function).expect("settings");
        assert_eq!(changed, ["max_steps -1 → 9", "learning_rate 0.00005 → 0.0001", "eval_captions 2 → 4"]);
    }
}
