//! Options that have an effect only together with others. One table, so that none that a user gave is ignored without a word.

use crate::config::{Config, Resume, ScheduleType, Strategy};
use crate::recipe::Given;
use base::{Error, Result};
use cli::options::is_nothing;
use serde_json::Value;
use std::fmt;

/// What has to be there for an option to have an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// An adapter is trained.
    Adapter,
    /// The adapter is a new one.
    NewAdapter,
    /// The vision tower is trained.
    TrainedTower,
    /// The base is rounded to 4 bits.
    FourBits,
    /// Validation rows are evaluated.
    Evaluation,
    /// They are, every so many steps.
    EvaluationBySteps,
    /// Answers are scored.
    Answers,
    /// Checkpoints are written.
    Checkpoints,
    /// They are, every so many steps.
    CheckpointsBySteps,
    /// Loader threads.
    Loaders,
    /// The schedule has half cosines to count.
    Restarts,
    /// The schedule is a polynomial.
    Polynomial,
    /// The schedule has a warm-up.
    WarmUp,
    /// The warm-up is not given in steps.
    NoWarmUpSteps,
    /// The length of the run is not given in steps.
    NoMaxSteps,
    /// The run is resumed.
    Resuming,
    /// The run is not resumed.
    NotResuming,
}

/// What becomes of an option without effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A flag is refused. A recipe's value is a warning: recipes are shared between train types.
    Refused,
    /// A line of the log: command lines of the Trainer have it beside a setting that switches it off.
    Noted,
}
use Answer::{Noted, Refused};

/// Each option with its precondition, and what happens when the precondition is not met.
#[rustfmt::skip]
pub const PRECONDITIONS: &[(&str, Need, Answer)] = &[
    ("lora_r", Need::Adapter, Refused),
    ("lora_alpha", Need::Adapter, Refused),
    ("lora_dropout", Need::Adapter, Refused),
    ("lora_target_modules", Need::Adapter, Refused),
    ("lora_vision", Need::Adapter, Refused),
    ("modules_to_save", Need::Adapter, Refused),
    ("use_rslora", Need::Adapter, Refused),
    ("use_dora", Need::Adapter, Refused),
    ("rank_pattern", Need::Adapter, Refused),
    ("alpha_pattern", Need::Adapter, Refused),
    ("lora_r", Need::NewAdapter, Refused),
    ("lora_alpha", Need::NewAdapter, Refused),
    ("lora_target_modules", Need::NewAdapter, Refused),
    ("lora_vision", Need::NewAdapter, Refused),
    ("modules_to_save", Need::NewAdapter, Refused),
    ("use_rslora", Need::NewAdapter, Refused),
    ("use_dora", Need::NewAdapter, Refused),
    ("rank_pattern", Need::NewAdapter, Refused),
    ("alpha_pattern", Need::NewAdapter, Refused),
    ("vision_tower_lr", Need::TrainedTower, Refused),
    ("bnb_4bit_use_double_quant", Need::FourBits, Refused),
    ("metric_for_best_model", Need::Evaluation, Refused),
    ("greater_is_better", Need::Evaluation, Refused),
    ("eval_metric_samples", Need::Answers, Refused),
    ("eval_max_new_tokens", Need::Answers, Refused),
    ("eval_captions", Need::Evaluation, Noted),
    ("per_device_eval_batch_size", Need::Evaluation, Noted),
    ("eval_steps", Need::EvaluationBySteps, Noted),
    ("save_steps", Need::CheckpointsBySteps, Noted),
    ("save_total_limit", Need::Checkpoints, Noted),
    ("dataloader_prefetch_factor", Need::Loaders, Refused),
    ("lr_num_cycles", Need::Restarts, Refused),
    ("lr_power", Need::Polynomial, Refused),
    ("lr_end", Need::Polynomial, Refused),
    ("warmup_steps", Need::WarmUp, Noted),
    ("warmup_ratio", Need::WarmUp, Noted),
    ("warmup_ratio", Need::NoWarmUpSteps, Noted),
    ("num_train_epochs", Need::NoMaxSteps, Noted),
    ("allow_global_batch_change", Need::Resuming, Noted),
    ("overwrite_output_dir", Need::NotResuming, Noted),
];

/// Options whose false value, or 0, asks for something; of others it asks for what is so anyway.
const FALSE_COUNTS: [&str; 3] = ["greater_is_better", "bnb_4bit_use_double_quant", "vision_tower_lr"];

impl Need {
    /// Whether the settings have it.
    fn is_met(self, config: &Config) -> bool {
        let schedule = config.lr_scheduler_type;
        match self {
            Self::Adapter => config.train_type.uses_lora(),
            // Another train type is what is said then.
            Self::NewAdapter => config.init_adapter.is_none() || !config.train_type.uses_lora(),
            // What an adapter to go on from trains is known when it is read.
            Self::TrainedTower => config.trains_vision() || config.init_adapter.is_some(),
            Self::FourBits => config.load_in_4bit,
            Self::Evaluation => config.eval_strategy != Strategy::No,
            Self::EvaluationBySteps => config.eval_strategy == Strategy::Steps,
            Self::Answers => config.eval_metric.is_some(),
            Self::Checkpoints => config.save_strategy != Strategy::No,
            Self::CheckpointsBySteps => config.save_strategy == Strategy::Steps,
            Self::Loaders => config.dataloader_num_workers > 0,
            Self::Restarts => schedule == ScheduleType::CosineWithRestarts,
            Self::Polynomial => schedule == ScheduleType::Polynomial,
            Self::WarmUp => schedule != ScheduleType::Constant || config.deepspeed_scheduler.is_some(),
            Self::NoWarmUpSteps => config.warmup_steps == 0.0,
            Self::NoMaxSteps => config.max_steps <= 0,
            Self::Resuming => config.resume() != Resume::No,
            Self::NotResuming => config.resume() != Resume::Newest,
        }
    }
}

/// What is not there, and how it would be: two halves of a sentence.
impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adapter => "train_type trains no adapter; use_lora does",
            Self::NewAdapter => "init_adapter has its own settings, which stay; without it a new adapter is trained",
            Self::TrainedTower => {
                "the vision tower is not trained; a train_type that trains it does (train --help lists them)"
            }
            Self::FourBits => "the base is not in 4 bits; load_in_4bit rounds it",
            Self::Evaluation => "eval_strategy is no; steps or epoch evaluate",
            Self::EvaluationBySteps => "eval_strategy is not steps",
            Self::Answers => "no answers are scored; eval_metric asks for them",
            Self::Checkpoints => "save_strategy is no; steps or epoch write checkpoints",
            Self::CheckpointsBySteps => "save_strategy is not steps",
            Self::Loaders => "dataloader_num_workers is 0, so that rows are read by the training thread",
            Self::Restarts => "lr_scheduler_type is not cosine_with_restarts",
            Self::Polynomial => "lr_scheduler_type is not polynomial",
            Self::WarmUp => "lr_scheduler_type constant has no warm-up; constant_with_warmup has one",
            Self::NoWarmUpSteps => "warmup_steps is given, which wins",
            Self::NoMaxSteps => "max_steps is given, which wins",
            Self::Resuming => "no run is resumed; resume_from_checkpoint resumes one",
            Self::NotResuming => "the run in the folder is resumed",
        })
    }
}

/// An option that was given and has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Its name.
    pub option: &'static str,
    /// What it needs.
    pub need: Need,
    /// What becomes of it.
    pub answer: Answer,
}

/// Every option that was given and has no effect with these settings, by the first thing that it lacks.
pub fn idle(config: &Config, given: &Given) -> Vec<Idle> {
    let mut found: Vec<Idle> = Vec::new();
    for &(option, need, answer) in PRECONDITIONS {
        let asks = given.get(option).is_some_and(|value| FALSE_COUNTS.contains(&option) || asks_for_something(value));
        if asks && !need.is_met(config) && !found.iter().any(|idle| idle.option == option) {
            found.push(Idle { option, need, answer });
        }
    }
    found
}

/// Refuses flags without effect, and says the rest. `is_shared`: values are not for this run alone, so that they are said only.
///
/// # Errors
/// The first such flag, with what it needs.
pub fn check(config: &Config, given: &Given, is_shared: bool, mut say: impl FnMut(Answer, String)) -> Result<()> {
    for Idle { option, need, answer } in idle(config, given) {
        let place = given.place(option);
        if answer == Refused && !is_shared && place.starts_with("--") {
            let found = format!("{}, which has no effect: {need}", shown(given.get(option)));
            return Err(Error::invalid(place, found, "options that have one", format!("leave --{option} out")));
        }
        say(answer, format!("{place} has no effect: {need}"));
    }
    Ok(())
}

fn shown(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items.iter().map(|item| shown(Some(item))).collect::<Vec<_>>().join(","),
        Some(value) => value.to_string(),
        None => String::new(),
    }
}

/// Not false, 0, none or empty.
fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !is_nothing(text),
        Value::Array(items) => items.iter().any(asks_for_something),
        Value::Object(map) => !map.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::defaults;
    use std::collections::BTreeMap;

    /// A value of every option in the table, and for every need settings without it.
    fn value(option: &str) -> Value {
        match option {
            "lora_target_modules" => serde_json::json!(["q_proj"]),
            "modules_to_save" => serde_json::json!(["lm_head"]),
            "rank_pattern" | "alpha_pattern" => serde_json::json!({"q_proj": 4}),
            "metric_for_best_model" => "loss".into(),
            "lora_vision" | "use_rslora" | "use_dora" | "allow_global_batch_change" | "overwrite_output_dir" => {
                true.into()
            }
            // False asks for something, too.
            "greater_is_better" | "bnb_4bit_use_double_quant" => false.into(),
            "lora_dropout" | "warmup_ratio" | "lr_end" => 0.25.into(),
            _ => 3.into(),
        }
    }

    /// Settings with and without what is needed.
    fn settings(need: Need) -> (&'static str, &'static str) {
        match need {
            Need::Adapter => ("train_type=use_lora", "train_type=projector"),
            Need::NewAdapter => ("train_type=use_lora", "init_adapter=a"),
            Need::TrainedTower => ("train_type=none", "train_type=projector"),
            Need::FourBits => ("load_in_4bit=true", "load_in_4bit=false"),
            Need::Evaluation => ("eval_strategy=epoch", "eval_strategy=no"),
            Need::EvaluationBySteps => ("eval_strategy=steps", "eval_strategy=epoch"),
            Need::Answers => ("eval_metric=caption", "eval_metric="),
            Need::Checkpoints => ("save_strategy=epoch", "save_strategy=no"),
            Need::CheckpointsBySteps => ("save_strategy=steps", "save_strategy=epoch"),
            Need::Loaders => ("dataloader_num_workers=1", "dataloader_num_workers=0"),
            Need::Restarts => ("lr_scheduler_type=cosine_with_restarts", "lr_scheduler_type=cosine"),
            Need::Polynomial => ("lr_scheduler_type=polynomial", "lr_scheduler_type=linear"),
            Need::WarmUp => ("lr_scheduler_type=cosine", "lr_scheduler_type=constant"),
            Need::NoWarmUpSteps => ("warmup_steps=0", "warmup_steps=5"),
            Need::NoMaxSteps => ("max_steps=-1", "max_steps=9"),
            Need::Resuming => ("resume_from_checkpoint=true", "resume_from_checkpoint="),
            Need::NotResuming => ("resume_from_checkpoint=", "resume_from_checkpoint=true"),
        }
    }

    fn with(settings: &[&str]) -> Config {
        let serde_json::Value::Object(mut map) = serde_json::to_value(defaults()).expect("JSON") else {
            panic!("settings are a table")
        };
        for (key, text) in settings.iter().filter_map(|setting| setting.split_once('=')) {
            let value = match text {
                "" => Value::Null,
                "true" if key == "resume_from_checkpoint" => text.into(),
                _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
            };
            map.insert(key.to_string(), value);
        }
        serde_json::from_value(Value::Object(map)).expect("settings")
    }

    fn given(option: &str, place: &str) -> Given {
        let mut given = Given::default();
        given.insert(option, value(option), place.to_string());
        given
    }

    #[test]
    fn every_row_is_told_where_its_precondition_is_absent_and_not_where_it_is_there() {
        let known = serde_json::to_value(defaults()).expect("JSON");
        // What the other rows of an option need.
        let all: BTreeMap<&str, Vec<&str>> =
            PRECONDITIONS.iter().fold(BTreeMap::new(), |mut all, (option, need, _)| {
                all.entry(*option).or_insert_with(Vec::new).push(settings(*need).0);
                all
            });
        for &(option, need, answer) in PRECONDITIONS {
            assert!(known.get(option).is_some(), "{option} is no option");
            let met = with(&all[option]);
            assert!(idle(&met, &given(option, "")).is_empty(), "{option} with {:?}", all[option]);
            let absent = with(&[&all[option][..], &[settings(need).1]].concat());
            assert_eq!(idle(&absent, &given(option, "")), [Idle { option, need, answer }], "{option}");

            let mut said = Vec::new();
            let flag = given(option, &format!("--{option}"));
            let refused = check(&absent, &flag, false, |_, line| said.push(line));
            assert_eq!(refused.is_err(), answer == Refused, "{option}");
            let words = refused.map_or_else(|error| error.to_string(), |()| said.join("\n"));
            assert!(words.contains(&format!("--{option}")) && words.contains(&need.to_string()), "{option}: {words}");

            for (place, is_shared) in [(format!("r.toml: [train] {option}"), false), (format!("--{option}"), true)] {
                let mut said = Vec::new();
                let recipe = given(option, &place);
                check(&absent, &recipe, is_shared, |answer, line| said.push((answer, line))).expect("said only");
                assert_eq!(said, [(answer, format!("{place} has no effect: {need}"))]);
            }
        }
    }

    #[test]
    fn what_is_not_given_or_asks_for_nothing_is_not_told() {
        let config = with(&["train_type=projector", "eval_strategy=no", "save_strategy=no"]);
        assert!(idle(&config, &Given::default()).is_empty());
        let mut off = Given::default();
        for (option, value) in [
            ("use_dora", false.into()),
            ("lora_dropout", 0.0.into()),
            ("modules_to_save", serde_json::json!(["None"])),
            ("eval_captions", 0.into()),
            ("metric_for_best_model", "None".into()),
            ("save_total_limit", 0.into()),
        ] {
            off.insert(option, value, String::new());
        }
        assert!(idle(&config, &off).is_empty());
    }
}
