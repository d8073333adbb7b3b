//! The options of a program as data: `PROGRAM options [SUBCOMMAND]` prints them as JSON, and recipes are read with them.

use base::{Error, Result, nearest};
use clap::{ArgAction, Command};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an option's value is, where that is more than a text, a number or a choice. Each program has a table of them beside
/// its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Names a folder with a model or an adapter in it, which may be the folder of a run.
    Model,
    /// As [`Self::Model`], or names a repository on Hugging Face.
    ModelOrRepository,
    /// Names a folder of shards.
    Shards,
    /// Names folders of shards, with weights: [`crate::weighted`].
    WeightedShards,
    /// Names a file or folder, all of which is read.
    Path,
    /// Names a JSON file, or is its text; see [`names_a_file`].
    FileOrText,
    /// Names what is written.
    Output,
    /// Several words with commas between.
    Words,
}

/// Whether the value of an option of [`Kind::FileOrText`] names a file: it is not the JSON itself, and not `None` or empty,
/// as the Trainer's command lines and scripts with an unset variable write "no file".
pub fn names_a_file(value: &str) -> bool {
    !is_nothing(value) && !value.trim_start().starts_with('{')
}

/// `None`, or an empty text.
pub fn is_nothing(value: &str) -> bool {
    value.is_empty() || value == "None"
}

/// Environment variable of a program whose flags are the values of a recipe, which may be shared between runs: one without
/// effect is said and not refused.
pub const FROM_RECIPE: &str = "LLAVA_OPTIONS_FROM_RECIPE";

/// How an option takes several values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum List {
    /// In one word, with commas between.
    Commas,
    /// The option once for each: values may hold commas.
    Repeated,
}

/// An option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionSpec {
    /// Its name, with underscores.
    pub name: String,
    /// Whether and how it takes several values.
    pub list: Option<List>,
    /// What its value is.
    pub kind: Option<Kind>,
}

/// The options of a (sub)command, each under all of its names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// As it is called: `preprocess shards`.
    pub command: String,
    /// By name, aliases among them.
    pub options: BTreeMap<String, OptionSpec>,
}

impl Options {
    /// Those of a clap command; `kinds` is the program's table for it.
    pub fn of(name: &str, command: &Command, kinds: &[(&str, Kind)]) -> Self {
        let mut options = BTreeMap::new();
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long().map(with_underscores) else { continue };
            let kind = kinds.iter().find(|(name, _)| *name == long).map(|(_, kind)| *kind);
            let list = match arg.get_action() {
                _ if matches!(kind, Some(Kind::Words | Kind::WeightedShards))
                    || arg.get_value_delimiter() == Some(',') =>
                {
                    Some(List::Commas)
                }
                ArgAction::Append => Some(List::Repeated),
                _ => None,
            };
            let spec = OptionSpec { name: long, list, kind };
            for alias in arg.get_visible_aliases().unwrap_or_default() {
                options.insert(with_underscores(alias), spec.clone());
            }
            options.insert(spec.name.clone(), spec);
        }
        Self { command: name.to_string(), options }
    }

    /// Adds names that the program translates into options of its own, or answers otherwise.
    pub fn with_names<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Self {
        for name in names {
            let spec = OptionSpec { name: name.to_string(), list: None, kind: None };
            self.options.entry(name.to_string()).or_insert(spec);
        }
        self
    }

    /// As `PROGRAM options` prints them.
    ///
    /// # Errors
    /// None in practice: names are text.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(|error| Error::invalid("options", error, "names", "report this"))
    }

    /// The option of a name.
    ///
    /// # Errors
    /// No such option: names the nearest one. `place` is where it stands.
    pub fn find(&self, name: &str, place: &str) -> Result<&OptionSpec> {
        self.options.get(name).ok_or_else(|| {
            let command = &self.command;
            let remedy = match nearest(name, self.options.keys().map(String::as_str)) {
                Some(nearest) => format!("did you mean {nearest}? {command} --help lists all"),
                None => format!("{command} --help lists all options"),
            };
            Error::invalid(place, format!("unknown key {name}"), format!("an option of {command}"), remedy)
        })
    }

    /// The options of a kind.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &OptionSpec> {
        self.options
            .iter()
            .filter(move |(name, spec)| **name == spec.name && spec.kind == Some(kind))
            .map(|(_, spec)| spec)
    }
}

/// The options of a program's subcommand as JSON.
///
/// # Errors
/// No such subcommand.
pub fn json(program: &Command, subcommand: &str, kinds: &[(&str, Kind)]) -> Result<String> {
    let name = format!("{} {subcommand}", program.get_name());
    let Some(command) = program.find_subcommand(subcommand) else {
        let names: Vec<&str> = program.get_subcommands().map(Command::get_name).collect();
        return Err(Error::usage("SUBCOMMAND", subcommand, names.join(" or "), "correct it"));
    };
    Options::of(&name, command, kinds).to_json()
}

fn with_underscores(name: &str) -> String {
    name.replace('-', "_")
}

/// Names in a table of kinds that are no options of the command: for the programs' tests, which expect none.
pub fn without_option<'a>(command: &Command, kinds: &'a [(&'a str, Kind)]) -> Vec<&'a str> {
    let options = Options::of("", command, kinds).options;
    kinds.iter().map(|(name, _)| *name).filter(|name| !options.contains_key(*name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn command() -> Command {
        let option = |name: &'static str| Arg::new(name).long(name).action(ArgAction::Set);
        Command::new("x")
            .arg(Arg::new("recipe"))
            .arg(option("data-path"))
            .arg(option("targets").value_delimiter(','))
            .arg(option("stop").action(ArgAction::Append))
            .arg(option("report-to"))
            .arg(option("eval-strategy").visible_alias("evaluation-strategy"))
    }

    #[test]
    fn options_are_those_of_the_command_and_come_back_from_json() {
        let kinds = [("data_path", Kind::Shards), ("report_to", Kind::Words), ("gone", Kind::Path)];
        let options = Options::of("x y", &command(), &kinds).with_names(["optim", "stop"]);
        let list = |name: &str| options.find(name, "r.toml").expect("known").list;
        assert_eq!(list("targets"), Some(List::Commas));
        assert_eq!(list("report_to"), Some(List::Commas));
        assert_eq!(list("stop"), Some(List::Repeated));
        assert_eq!((list("data_path"), list("optim")), (None, None));
        assert_eq!(options.find("evaluation_strategy", "").expect("an alias").name, "eval_strategy");
        assert_eq!(options.of_kind(Kind::Shards).map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["data_path"]);
        assert_eq!(without_option(&command(), &kinds), ["gone"]);
        let json = serde_json::to_string(&options).expect("JSON");
        assert_eq!(serde_json::from_str::<Options>(&json).expect("the same"), options);
        let error = options.find("data_pth", "r.toml: [train]").expect_err("unknown").to_string();
        assert!(error.contains("r.toml: [train]") && error.contains("did you mean data_path? x y --help"), "{error}");
    }

    #[test]
    fn a_text_and_nothing_are_no_files() {
        assert!(names_a_file("ds.json"));
        assert!(["", "None", " {\"zero_optimization\": {}}"].iter().all(|value| !names_a_file(value)));
    }
}
