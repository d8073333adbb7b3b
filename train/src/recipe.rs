//! Recipe file, DeepSpeed file and command line become one [`Config`]: flags over recipe over DeepSpeed over defaults.

use crate::collective::launch;
use crate::config::{self, Config};
use crate::preconditions::Need;
use crate::{deepspeed, preconditions, trainer_options};
use base::{Error, Result};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use cli::inputs;
use cli::options::{self, Options};
use cli::recipe::{self, Lines, OneOrMore};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use store::adapter;
use toml::Table;

/// Options that a user gave, and where: errors name the place.
#[derive(Clone, Debug, Default)]
pub struct Given {
    values: Map<String, Value>,
    places: BTreeMap<String, String>,
}

impl Given {
    /// An option's value.
    pub fn get(&self, option: &str) -> Option<&Value> {
        self.values.get(option)
    }

    /// Where an option was given.
    pub fn place(&self, option: &str) -> String {
        self.places.get(option).cloned().unwrap_or_else(|| format!("--{option}"))
    }

    /// Sets an option that was not given before.
    pub fn insert(&mut self, option: &str, value: Value, place: String) {
        if !self.values.contains_key(option) {
            self.values.insert(option.to_string(), value);
            self.places.insert(option.to_string(), place);
        }
    }

    /// Takes an option as not given.
    fn remove(&mut self, option: &str) {
        self.values.remove(option);
        self.places.remove(option);
    }

    /// An error that names an option names the place where it was given, too.
    fn placed(&self, error: Error) -> Error {
        error.placed(|option| self.places.get(option).cloned().unwrap_or_else(|| option.to_string()))
    }
}

/// Merges the settings. `defaults_and_flags` is what clap parsed; `matches` says which of it the user typed.
///
/// # Errors
/// Unreadable files, unknown keys (naming the nearest known one), values of a wrong type, contradictions with the DeepSpeed
/// file, several ranks in each process of a launcher, and whatever [`Config::validate`] refuses.
pub fn resolve(defaults_and_flags: Config, matches: &ArgMatches, recipe: Option<&Path>) -> Result<Config> {
    let config = merge(defaults_and_flags, matches, recipe)?;
    config.validate()?;
    let launched = launch::launched_processes();
    if launched > 1 && config.nproc > 1 {
        let expected = format!("1 inside a launch of {launched} processes, each of which is one rank");
        return Err(Error::invalid("--nproc", config.nproc, expected, "leave --nproc out"));
    }
    Ok(config)
}

/// As [`resolve`], without requiring that paths are given.
///
/// # Errors
/// As [`resolve`], except for missing paths.
pub fn merge(defaults_and_flags: Config, matches: &ArgMatches, recipe: Option<&Path>) -> Result<Config> {
    let mut stages = merge_stages(&defaults_and_flags, matches, recipe)?;
    match stages.pop() {
        Some(config) if stages.is_empty() => Ok(config),
        _ => Err(Error::invalid(
            recipe.map_or(String::new(), |path| path.display().to_string()),
            format!("{} [[train]] stages", stages.len() + 1),
            "one [train] table",
            "let pipelines run do them one after the other (--dry-run prints each one's command line)",
        )),
    }
}

/// As [`merge`], for every stage of a recipe that has `[[train]]` several times: for `train plan`. Flags are for all of them.
///
/// # Errors
/// As [`merge`].
pub fn merge_stages(defaults_and_flags: &Config, matches: &ArgMatches, recipe: Option<&Path>) -> Result<Vec<Config>> {
    let known = as_map(defaults_and_flags)?;
    let flags = typed_flags(&known, matches, |name| format!("--{name}"));
    // Values of a recipe that another program hands on as flags are still the recipe's.
    let from_recipe = std::env::var_os(options::FROM_RECIPE).is_some();
    let Some(path) = recipe else { return Ok(vec![merge_table(&known, flags, Given::default(), from_recipe)?]) };
    let tables = read_recipe(path)?;
    let is_shared = from_recipe || tables.len() > 1;
    tables.into_iter().map(|table| merge_table(&known, flags.clone(), table, is_shared)).collect()
}

/// The options that stand on a command line; `place` says where one stands.
fn typed_flags(known: &Map<String, Value>, matches: &ArgMatches, place: impl Fn(&str) -> String) -> Given {
    let typed = |name: &str| {
        // A setting without an option of its own is unknown to the parser.
        matches.try_contains_id(name).is_ok() && matches.value_source(name) == Some(ValueSource::CommandLine)
    };
    let mut flags = Given::default();
    for (name, value) in known.iter().filter(|(name, _)| typed(name)) {
        flags.insert(name, value.clone(), place(name));
    }
    flags
}

/// Flags over a recipe's table over a DeepSpeed file over defaults. `is_shared`: the flags are not for this stage alone.
fn merge_table(defaults: &Map<String, Value>, mut given: Given, table: Given, is_shared: bool) -> Result<Config> {
    // A recipe's ranks are for a start without a launcher, which decides otherwise.
    let is_decided = |name: &str| name == "nproc" && launch::launched_processes() > 1;
    for (name, value) in table.values.into_iter().filter(|(name, _)| !is_decided(name)) {
        given.insert(&name, value, table.places[&name].clone());
    }
    if given.get("deepspeed").and_then(Value::as_str).is_some_and(options::is_nothing) {
        given.remove("deepspeed");
    }
    if let Some(source) = given.get("deepspeed").and_then(Value::as_str).map(str::to_string) {
        let nproc = given.get("nproc").or(defaults.get("nproc")).and_then(Value::as_u64).unwrap_or(1);
        deepspeed::overlay(&source, &mut given, nproc.max(launch::launched_processes() as u64))?;
    }
    require_one_spelling(&given)?;
    let mut settings = defaults.clone();
    if given.get("deepspeed").is_none() {
        settings.insert("deepspeed".to_string(), Value::Null);
    }
    for (name, value) in &given.values {
        let whole = defaults.get(name).is_some_and(|default| default.is_u64() || default.is_i64());
        let value = if whole { as_whole_number(value) } else { value.clone() };
        if value.is_null() {
            let remedy = "correct it";
            return Err(Error::invalid(given.place(name), "NaN or infinity", "a finite number", remedy));
        }
        settings.insert(name.clone(), value);
    }
    let mut config: Config = match serde_json::from_value(Value::Object(settings)) {
        Ok(config) => config,
        Err(error) => return Err(wrong_type(defaults, &given, error)),
    };
    // The settings of an adapter to go on from stay. One that cannot be read yet, or never, is told where it is loaded.
    let own = config.init_adapter.as_deref().filter(|_| given.get("lora_dropout").is_none());
    if let Some(Ok(dropout)) = own.map(adapter::dropout) {
        config.lora_dropout = dropout;
    }
    config.check_settings().map_err(|error| given.placed(error))?;
    preconditions::check(&config, &given, is_shared, |answer, line| match answer {
        _ if launch::local_rank(0) != 0 => {}
        preconditions::Answer::Refused => tracing::warn!("{line}"),
        preconditions::Answer::Noted => tracing::info!("{line}"),
    })?;
    if preconditions::idle(&config, &given).iter().any(|idle| idle.need == Need::TrainedTower) {
        config.vision_tower_lr = None;
    }
    Ok(config)
}

/// `4.0` is 4.
fn as_whole_number(value: &Value) -> Value {
    match value.as_f64() {
        Some(number) if value.is_f64() && number.fract() == 0.0 && number.abs() < 1e15 => Value::from(number as i64),
        _ => value.clone(),
    }
}

/// Arguments of the schedule are given in one way.
fn require_one_spelling(given: &Given) -> Result<()> {
    let of_kwargs = given.get("lr_scheduler_kwargs").and_then(Value::as_object);
    for (option, argument) in [("lr_num_cycles", "num_cycles"), ("lr_power", "power"), ("lr_end", "lr_end")] {
        if given.get(option).is_some() && of_kwargs.is_some_and(|kwargs| kwargs.contains_key(argument)) {
            let found = format!("{argument}, and {option} at {}", given.place(option));
            let place = given.place("lr_scheduler_kwargs");
            return Err(Error::invalid(place, found, "one of the two", "remove one"));
        }
    }
    Ok(())
}

/// The first given option whose value is of another type than the option.
fn wrong_type(defaults: &Map<String, Value>, given: &Given, error: serde_json::Error) -> Error {
    let alone = |(name, value): (&String, &Value)| {
        let mut settings = defaults.clone();
        settings.insert(name.clone(), value.clone());
        let error = serde_json::from_value::<Config>(Value::Object(settings)).err()?;
        Some((given.place(name), error))
    };
    let (place, error) = given.values.iter().find_map(alone).unwrap_or(("settings".to_string(), error));
    Error::invalid(place, error, "a value of the option's type", "see train --help")
}

fn as_map(config: &Config) -> Result<Map<String, Value>> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => Ok(map),
        other => Err(Error::invalid("settings", format!("{other:?}"), "a table", "report this")),
    }
}

/// The command that lists the options.
pub const HELP: &str = "train --help";

/// The table of a recipe that is read.
const TABLE: &str = "train";

/// What a recipe has for `train`; its other tables are other programs' options.
#[derive(Deserialize)]
struct Recipe {
    train: Option<OneOrMore>,
}

/// The recipe's `[train]` table, or all its `[[train]]` ones.
fn read_recipe(path: &Path) -> Result<Vec<Given>> {
    let expected = "a recipe: a TOML file with a [train] table";
    let text = std::fs::read_to_string(path).map_err(inputs::unread(path, expected))?;
    let place = path.display().to_string();
    let mut recipe: Recipe = recipe::parse(&text, &place)?;
    let lines = Lines::of(&text);
    let tables = recipe.train.as_mut().map(OneOrMore::tables_mut).unwrap_or_default();
    tables.iter_mut().enumerate().for_each(|(index, table)| lines.put_in_order(TABLE, index, table));
    if tables.is_empty() {
        let names: Table = recipe::parse(&text, &place)?;
        let remedy = match base::nearest(TABLE, names.keys().map(String::as_str)) {
            Some(near) => format!("did you mean [{TABLE}] by [{near}]?"),
            None => format!("add [{TABLE}] to the recipe"),
        };
        return Err(Error::invalid(place, "no [train] table", "a [train] table of options", remedy));
    }
    let command = Config::augment_args(Command::new("train"));
    let options = config::options();
    let of_table = |(index, table)| {
        let before = |key: &str| format!("{place}: {}[{TABLE}]", lines.before(TABLE, index, key));
        options_of(table, &command, &options, before)
    };
    tables.iter().enumerate().map(of_table).collect()
}

/// A table's options, read as the command line is: each is parsed on its own, so that an error names its place. `before` is the place
/// of the table, with the line of a key.
fn options_of(table: &Table, command: &Command, options: &Options, before: impl Fn(&str) -> String) -> Result<Given> {
    let mut given = Given::default();
    for (key, value) in table {
        let before = before(key);
        let option = options.find(key, &before)?;
        let place = format!("{before} {key}");
        let words = recipe::words(option, key, value, &place)?;
        let translated = trainer_options::translate(words.into_iter().map(OsString::from), &[], &[]);
        let translated = translated.map_err(|error| error.placed(|_| place.clone()))?;
        translated.notes.iter().for_each(|note| tracing::info!("{note}"));
        let words = std::iter::once(OsString::from("train")).chain(translated.words);
        let parsed = command.clone().try_get_matches_from(cli::args::with_dashes(words));
        let matches = parsed.map_err(|error| unusable(&place, &error))?;
        let config = Config::from_arg_matches(&matches).map_err(|error| unusable(&place, &error))?;
        let found = typed_flags(&as_map(&config)?, &matches, |_| place.clone());
        for (name, value) in found.values {
            if given.get(&name).is_some_and(|other| *other != value) {
                let found = format!("{}, and another {name} at {}", plain(&value), given.place(&name));
                return Err(Error::invalid(place, found, "one value of an option", "remove one of the two"));
            }
            given.insert(&name, value, place.clone());
        }
    }
    Ok(given)
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_string)
}

/// clap's refusal of a value, with the place of the value.
fn unusable(place: &str, error: &clap::Error) -> Error {
    Error::Invalid(cli::args::refused(error, HELP)).placed(|_| place.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str], recipe: Option<&str>) -> Result<Config> {
        let words = std::iter::once("train").chain(args.iter().copied()).map(std::ffi::OsString::from);
        let command = Config::augment_args(Command::new("train"));
        let matches = command.get_matches_from(cli::args::with_dashes(words));
        let config = Config::from_arg_matches(&matches).expect("arguments match the struct");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = recipe.map(|text| {
            let path = folder.path().join("recipe.toml");
            std::fs::write(&path, text).expect("the recipe is written");
            path
        });
        resolve(config, &matches, path.as_deref())
    }

    const PATHS: [&str; 6] = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o"];

    #[test]
    fn flags_win_over_the_recipe_and_the_recipe_over_defaults() {
        let args = [&PATHS[..], &["--bf16", "True", "--learning_rate", "0.5"]].concat();
        let config = parse(&args, Some("[train]\nlearning_rate = 1\nseed = 7\nlora_target_modules = \"q_proj\"\n"))
            .expect("valid settings");
        assert_eq!((config.learning_rate, config.seed, config.bf16), (0.5, 7, true));
        assert_eq!((config.adam_beta2, config.lora_target_modules), (0.999, vec!["q_proj".to_string()]));
    }

    /// Bits say both what the base is rounded to and what not.
    #[test]
    fn bits_of_a_flag_win_over_the_recipe() {
        for (bits, recipe, expected) in [
            ("16", "load_in_8bit = true", (false, false)),
            ("8", "bits = 4", (true, false)),
            ("4", "load_in_8bit = true", (false, true)),
        ] {
            let words = PATHS.iter().copied().chain(["--bits", bits]).map(OsString::from);
            let words = trainer_options::translate(words, &[], &[]).expect("translated").words;
            let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
            let config = parse(&words, Some(&format!("[train]\n{recipe}\n"))).expect("valid settings");
            assert_eq!((config.load_in_8bit, config.load_in_4bit), expected, "{bits} over {recipe}");
        }
    }

    #[test]
    fn unknown_recipe_keys_name_the_nearest_option() {
        let error = parse(&PATHS, Some("[train]\nlearning_rat = 1\n")).expect_err("a typo is refused").to_string();
        assert!(error.contains("did you mean learning_rate?"), "{error}");
    }

    #[test]
    fn impossible_settings_are_refused() {
        for (args, named) in [
            (&["--fp16", "true"][..], "bf16"),
            (&["--adam_beta2", "1.5"], "adam_beta2"),
            (&["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps"),
            (&["--adam_beta1", "1.0"], "at least 0 and below 1"),
            (&["--adam_beta2", "nan"], "a finite number"),
            (&["--lora_dropout", "1"], "at least 0 and below 1"),
            (&["--lora_dropout", "-0.1"], "at least 0 and below 1"),
            (&["--learning_rate", "inf"], "a finite number"),
            (&["--learning_rate", "-1e-4"], "at least 0"),
            (&["--mm_projector_lr", "-1e-5"], "mm_projector_lr: found -0.00001, expected a number at least 0"),
            (&["--vision_tower_lr", "nan", "--train_type", "none"], "vision_tower_lr: found NaN"),
            (&["--vision_tower_lr", "1e-5"], "found 0.00001, which has no effect: the vision tower is not trained"),
            (&["--vision_tower_lr", "0"], "the vision tower is not trained"),
            (&["--vision_tower_lr", "1e-5", "--train_type", "freeze_vision"], "leave --vision_tower_lr out"),
            (
                &["--mm_projector_lr", "1e308"],
                "mm_projector_lr: found 1e308, expected a number at least 0 and at most 3.4e38",
            ),
            (&["--num_train_epochs", "1e39"], "found 1e39, expected a number above 0 and at most 3.4e38"),
            (
                &["--rank_pattern", "{\"q_proj\": 4}", "--train_type", "none"],
                "--rank_pattern: found {\"q_proj\":4}, which has no effect",
            ),
            (&["--bnb_4bit_use_double_quant", "false"], "found false, which has no effect: the base is not in 4 bits"),
            (
                &["--load_best_model_at_end", "--eval_strategy", "steps", "--save_strategy", "no"],
                "found save_strategy no, eval_strategy steps",
            ),
            (&["--adam_epsilon", "0"], "at least"),
            (&["--adam_epsilon", "1e-60"], "at least"),
            (&["--weight_decay", "-0.1"], "at least 0"),
            (&["--max_grad_norm", "-1"], "at least 0"),
            (&["--warmup_ratio", "1.5"], "at most 1"),
            (&["--lora_r", "0"], "at least 1"),
            (&["--lora_alpha", "0"], "above 0"),
            (&["--num_train_epochs", "-1"], "above 0"),
            (&["--num_train_epochs", "0.0"], "num_train_epochs: found 0, expected a number above 0"),
            (&["--logging_steps", "0"], "above 0"),
            (&["--lr_scheduler_type", "reduce_lr_on_plateau"], "function of the step"),
            (&["--lr_scheduler_type", "polynomial", "--lr_end", "1"], "below learning_rate"),
            (&["--lr_scheduler_type", "cosine_with_min_lr"], "min_lr"),
            (&["--lr_scheduler_kwargs", "{\"num_cycles\": 2}"], "num_cycles"),
            (&["--lr_power", "2", "--lr_scheduler_kwargs", "{\"power\": 3}"], "one of the two"),
            (&["--load_best_model_at_end"], "eval_strategy"),
            (&["--init_adapter", "a", "--train_type", "none"], "use_lora"),
            (
                &["--lora_r", "16", "--train_type", "projector"],
                "--lora_r: found 16, which has no effect: train_type trains no adapter",
            ),
            (
                &["--lora_alpha", "16", "--init_adapter", "a"],
                "--lora_alpha: found 16.0, which has no effect: init_adapter",
            ),
            (
                &["--metric_for_best_model", "loss"],
                "--metric_for_best_model: found loss, which has no effect: eval_strategy is no",
            ),
            (&["--greater_is_better", "false"], "leave --greater_is_better out"),
            (&["--eval_metric_samples", "5", "--eval_strategy", "steps"], "eval_metric asks for them"),
            (&["--lr_power", "2"], "lr_scheduler_type is not polynomial"),
        ] {
            let error = parse(&[&PATHS[..], args].concat(), None).expect_err("refused").to_string();
            assert!(error.contains(named), "{args:?}: {error}");
        }
        assert!(parse(&[], None).expect_err("paths are required").to_string().contains("model_name_or_path"));
    }

    /// A recipe is shared between train types: its values are said, and flags are refused also beside one.
    #[test]
    fn values_without_effect_may_stand_in_a_recipe() {
        let recipe = "[train]\nlora_r = 16\nlora_target_modules = [\"q_proj\"]\nmetric_for_best_model = \"loss\"\n\
                      vision_tower_lr = 1e-5\n";
        let projector = [&PATHS[..], &["--train_type", "projector"]].concat();
        let config = parse(&projector, Some(recipe)).expect("valid settings");
        assert_eq!((config.lora_r, config.vision_tower_lr), (16, None));
        let error = parse(&[&projector[..], &["--lora_dropout", "0.1"]].concat(), Some(recipe)).expect_err("refused");
        assert!(error.to_string().starts_with("--lora_dropout"), "{error}");
    }

    /// The same domains hold in a recipe and in a DeepSpeed file, and the error says where the value stands.
    #[test]
    fn values_are_blamed_where_they_stand() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ds = folder.path().join("ds.json");
        let write = |json: &str| std::fs::write(&ds, json).expect("written");
        for (line, named) in [
            ("adam_beta1 = 1.0", "recipe.toml: line 2: [train] adam_beta1: found 1"),
            ("lora_dropout = 1", "recipe.toml: line 2: [train] lora_dropout: found 1"),
            ("learning_rate = nan", "recipe.toml: line 2: [train] learning_rate: found NaN"),
            (
                "num_train_epochs = 0",
                "recipe.toml: line 2: [train] num_train_epochs: found 0, expected a number above 0",
            ),
            ("seed = 1.5", "recipe.toml: line 2: [train] seed"),
            ("lora_r = \"eight\"", "recipe.toml: line 2: [train] lora_r: found eight"),
            ("train_type = \"lora\"", "recipe.toml: line 2: [train] train_type: found lora, expected use_lora,"),
            ("save_steps = 1.5", "recipe.toml: line 2: [train] save_steps"),
            ("report_to = [\"wandb\"]", "recipe.toml: line 2: [train] report_to"),
            ("optim = \"sgd\"", "recipe.toml: line 2: [train] optim: found sgd"),
            ("label_smoothing_factor = 0.1", "recipe.toml: line 2: [train] label_smoothing_factor"),
            ("deepspeed_scheduler = 1", "unknown key"),
            (
                "bits = 16\nload_in_8bit = true",
                "recipe.toml: line 3: [train] load_in_8bit: found true, and another load_in_8bit at ",
            ),
            ("per_gpu_train_batch_size = 4\nper_device_train_batch_size = 8", "one value of an option"),
        ] {
            let error = parse(&PATHS, Some(&format!("[train]\n{line}\n"))).expect_err(line).to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
        for (json, named) in [
            (
                r#""optimizer": {"type": "AdamW", "params": {"betas": [1.0, 0.9]}}"#,
                "ds.json: optimizer.params.betas: found 1",
            ),
            (r#""optimizer": {"type": "AdamW", "params": {"eps": 0}}"#, "ds.json: optimizer.params.eps: found 0"),
            (r#""optimizer": {"type": "AdamW", "params": {"lr": -1}}"#, "ds.json: optimizer.params.lr: found -1"),
            (r#""gradient_clipping": -1"#, "ds.json: gradient_clipping: found -1"),
            (
                r#""scheduler": {"type": "WarmupDecayLR", "params": {"warmup_max_lr": "auto", "total_num_steps": "auto"}}"#,
                "one rate for all parts",
            ),
        ] {
            write(&format!(r#"{{"zero_optimization": {{"stage": 2}}, {json}}}"#));
            let args =
                [&PATHS[..], &["--mm_projector_lr", "2e-5", "--deepspeed", ds.to_str().expect("UTF-8")]].concat();
            let error = parse(&args, None).expect_err(json).to_string();
            assert!(error.contains(named), "{json}: {error}");
        }
    }

    #[test]
    fn a_recipe_may_write_what_the_trainer_writes() {
        let recipe = "[train]\nsave_total_limit = -1\nlogging_steps = 0.1\nseed = 7.0\nreport_to = [\"tensorboard\"]\n\
            ddp_timeout = 1800\noptim = \"adamw_torch\"\nper_gpu_train_batch_size = 4\nlr_scheduler_type = \"cosine_with_min_lr\"\n\
            lr_scheduler_kwargs = { min_lr = 1e-6 }\nlabel_smoothing_factor = 0.0\nfsdp = \"\"\n";
        let config = parse(&PATHS, Some(recipe)).expect("valid settings");
        assert_eq!((config.save_total_limit, config.seed, config.collective_timeout_seconds), (0, 7, 1800));
        assert_eq!((config.per_device_train_batch_size, config.report_to), (4, crate::config::ReportTo::Tensorboard));
        assert_eq!((config.logging_steps.in_run(30), config.lr_scheduler_kwargs.min_lr), (3, Some(1e-6)));
    }

    /// A flag without a file wins over the recipe's file, as every flag does.
    #[test]
    fn deepspeed_may_be_none() {
        let flag = |value| [&PATHS[..], &["--deepspeed", value]].concat();
        let recipe = |value| format!("[train]\ndeepspeed = \"{value}\"\n");
        for (args, recipe) in [
            (flag("None"), None),
            (flag(""), None),
            (PATHS.to_vec(), Some(recipe("None"))),
            (PATHS.to_vec(), Some(recipe(""))),
            (flag("None"), Some(recipe("missing.json"))),
        ] {
            let config = parse(&args, recipe.as_deref()).expect("valid settings");
            assert_eq!(config.deepspeed, None, "{args:?}, {recipe:?}");
        }
    }
}
