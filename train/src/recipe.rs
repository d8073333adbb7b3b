//! Recipe file, DeepSpeed file and command line become one [`Config`]: flags over recipe over DeepSpeed over defaults.

use crate::config::Config;
use crate::deepspeed;
use clap::ArgMatches;
use clap::parser::ValueSource;
use common::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Merges the settings. `defaults_and_flags` is what clap parsed; `matches` says which of it the user typed.
///
/// # Errors
/// Unreadable files, unknown keys (naming the nearest known one), values of a wrong type, contradictions with the DeepSpeed
/// file, and whatever [`Config::validate`] refuses.
pub fn resolve(defaults_and_flags: Config, matches: &ArgMatches, recipe: Option<&Path>) -> Result<Config> {
    let config = merge(defaults_and_flags, matches, recipe)?;
    config.validate()?;
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
    let Some(path) = recipe else { return Ok(vec![merge_table(known, matches, Map::new(), "command line")?]) };
    let place = path.display().to_string();
    let tables = read_recipe(path, &known)?.into_iter();
    tables.map(|table| merge_table(known.clone(), matches, table, &place)).collect()
}

/// Flags over a recipe's table over a DeepSpeed file over defaults.
fn merge_table(
    mut settings: Map<String, Value>,
    matches: &ArgMatches,
    table: Map<String, Value>,
    place: &str,
) -> Result<Config> {
    let typed = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
    let mut given: Map<String, Value> =
        settings.iter().filter(|(name, _)| typed(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    for (name, value) in table {
        given.entry(name).or_insert(value);
    }
    let deepspeed_file = given.get("deepspeed").and_then(Value::as_str).map(str::to_string);
    if let Some(file) = deepspeed_file {
        deepspeed::overlay(Path::new(&file), &mut given)?;
    }
    settings.extend(given);
    serde_json::from_value(Value::Object(settings))
        .map_err(|error| Error::invalid(place, error, "a value of the option's type", "see train --help"))
}

fn as_map(config: &Config) -> Result<Map<String, Value>> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => Ok(map),
        other => Err(Error::invalid("settings", format!("{other:?}"), "a table", "report this")),
    }
}

/// The recipe's `[train]` table, or all its `[[train]]` ones; `known` holds every option.
fn read_recipe(path: &Path, known: &Map<String, Value>) -> Result<Vec<Map<String, Value>>> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let place = path.display().to_string();
    let recipe: toml::Table =
        text.parse().map_err(|error| Error::invalid(&place, error, "TOML", "correct the recipe"))?;
    let stages = match recipe.get("train") {
        Some(toml::Value::Table(table)) => vec![table],
        Some(toml::Value::Array(stages)) => stages.iter().filter_map(toml::Value::as_table).collect(),
        _ => Vec::new(),
    };
    if stages.is_empty() {
        let expected = "a [train] table of options";
        return Err(Error::invalid(place, "no [train] table", expected, "add [train] to the recipe"));
    }
    stages.into_iter().map(|table| options_of(table, known, &place)).collect()
}

/// A table's options by their names in [`Config`].
fn options_of(table: &toml::Table, known: &Map<String, Value>, place: &str) -> Result<Map<String, Value>> {
    let mut settings = Map::new();
    for (key, value) in table {
        let name = if key == "evaluation_strategy" { "eval_strategy" } else { key };
        if !known.contains_key(name) {
            let nearest = nearest(name, known.keys().map(String::as_str));
            let remedy = format!("did you mean {nearest}? train --help lists all");
            return Err(Error::invalid(format!("{place}: [train]"), format!("unknown key {key}"), "an option", remedy));
        }
        let value = serde_json::to_value(value)
            .map_err(|error| Error::invalid(format!("{place}: {key}"), error, "a plain value", "correct the recipe"))?;
        settings.insert(name.to_string(), as_given_on_command_line(name, value));
    }
    Ok(settings)
}

/// `lora_target_modules = "q_proj,v_proj"` is as good as a list, and `resume_from_checkpoint = true` as good as `"true"`.
fn as_given_on_command_line(name: &str, value: Value) -> Value {
    match (name, value) {
        ("lora_target_modules", Value::String(text)) => text.split(',').map(|part| Value::from(part.trim())).collect(),
        ("resume_from_checkpoint", Value::Bool(flag)) => Value::from(flag.to_string()),
        (_, value) => value,
    }
}

/// The candidate with the smallest edit distance.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> &'a str {
    candidates.min_by_key(|candidate| edit_distance(name, candidate)).unwrap_or("")
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a_char) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &b_char) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(a_char != b_char);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args, Command, FromArgMatches};

    fn parse(args: &[&str], recipe: Option<&str>) -> Result<Config> {
        let words = std::iter::once("train").chain(args.iter().copied()).map(std::ffi::OsString::from);
        let matches = Config::augment_args(Command::new("train")).get_matches_from(common::args::with_dashes(words));
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
            (&["--load_best_model_at_end"], "eval_strategy"),
            (&["--init_adapter", "a", "--train_type", "none"], "use_lora"),
        ] {
            let error = parse(&[&PATHS[..], args].concat(), None).expect_err("refused").to_string();
            assert!(error.contains(named), "{args:?}: {error}");
        }
        assert!(parse(&[], None).expect_err("paths are required").to_string().contains("model_name_or_path"));
    }
}
