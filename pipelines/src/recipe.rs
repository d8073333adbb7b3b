//! Recipes: one flat TOML file per experiment, one table per stage.
//!
//! Every key is an option of the stage's program in its `under_score` spelling, so `preprocess model --help`,
//! `preprocess shards --help`, `train --help` and `infer caption --help` are the list of keys, and a recipe's stage can be
//! repeated by hand from the command line that the runner prints.

use crate::fingerprint::Part;
use crate::programs::Programs;
use crate::stage::{Anew, Stage};
use anyhow::{Context, Result, bail, ensure};
use base::Error;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::hub;
use toml::{Table, Value};

/// A recipe file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Its purpose, one line.
    pub purpose: String,
    /// Options of `preprocess model`; left out when the model directory is there already.
    pub model: Option<Table>,
    /// Where the dataset is and where its shards go; left out when the shards are there already.
    pub data: Option<Data>,
    /// Further options of `preprocess shards`.
    #[serde(default)]
    pub preprocess: Table,
    /// Options of `train`: one table, or an array of tables (`[[train]]`) that run one after the other.
    pub train: Option<OneOrMore>,
    /// Options of `infer caption`.
    pub infer: Option<Table>,
}

/// The dataset.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Folder with chat.json and the pictures.
    pub dir: String,
    /// Folder for the shards.
    pub shards: String,
    /// Model directory whose tokenizer and image processor are used; `[model]`'s output unless given.
    pub model: Option<String>,
}

/// `[train]` or `[[train]]`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMore {
    /// `[train]`
    One(Table),
    /// `[[train]]`
    More(Vec<Table>),
}

/// What the runner has to know of a program's options: which are read, which is written.
struct Kind {
    program: &'static str,
    subcommand: Option<&'static str>,
    /// Options that name files or folders that are read.
    reads: &'static [&'static str],
    /// Those of them that may be names on Hugging Face instead.
    hub: &'static [&'static str],
    /// Options that are lists, and how a list is written.
    lists: &'static [(&'static str, List)],
    /// The option that names the output.
    writes: &'static str,
    /// The part of the output that shows whether it is finished and there.
    witness: Witness,
    /// How what is there is replaced, and the option that goes on with it: given by the runner, as the stage stands.
    anew: Anew,
    goes_on: Option<&'static str>,
}

enum Witness {
    /// The whole output.
    Whole,
    /// A file of it.
    File(&'static str),
    /// The files of a model or adapter in it.
    Model,
}

/// How an option takes several values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    /// In one word, with commas between.
    Commas,
    /// The option once for each: values may hold commas.
    Repeated,
}

/// A folder of shards is known by this file: it holds the hashes of all others.
const SHARD_INDEX: &str = shards::INDEX_FILE;
/// Options that name a folder of shards.
const SHARD_FOLDERS: [&str; 2] = ["data_path", "shards"];
/// Options that name a folder of a model or an adapter, which may be the folder of a run.
const MODEL_FOLDERS: [&str; 6] =
    ["vision_tower", "language_model", "model", "adapter", "model_name_or_path", "init_adapter"];
const MODEL: Kind = Kind {
    program: "preprocess",
    subcommand: Some("model"),
    reads: &["vision_tower", "language_model"],
    hub: &["vision_tower", "language_model"],
    lists: &[("vision_feature_layer", List::Commas)],
    writes: "output",
    witness: Witness::Model,
    anew: Anew::OwnWay,
    goes_on: None,
};
const SHARDS: Kind = Kind {
    program: "preprocess",
    subcommand: Some("shards"),
    reads: &["model", "data"],
    hub: &[],
    lists: &[],
    writes: "output",
    // Training may put a cache of vision features beside the shards.
    witness: Witness::File(SHARD_INDEX),
    anew: Anew::OwnWay,
    goes_on: None,
};
const TRAIN: Kind = Kind {
    program: "train",
    subcommand: None,
    reads: &["model_name_or_path", "data_path", "deepspeed", "init_adapter"],
    hub: &["model_name_or_path"],
    lists: &[("lora_target_modules", List::Commas), ("report_to", List::Commas)],
    writes: "output_dir",
    witness: Witness::Model,
    anew: Anew::Option("overwrite_output_dir"),
    goes_on: Some("resume_from_checkpoint"),
};
const CAPTION: Kind = Kind {
    program: "infer",
    subcommand: Some("caption"),
    reads: &["model", "adapter", "images", "data", "shards", "references"],
    hub: &["model"],
    lists: &[("stop", List::Repeated)],
    writes: "output",
    witness: Witness::Whole,
    anew: Anew::Removed,
    goes_on: None,
};

impl Recipe {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// An unreadable file, malformed TOML (with line and column), an unknown table.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses a recipe; `place` names it in errors.
    ///
    /// # Errors
    /// Malformed TOML, an unknown table.
    pub fn parse(text: &str, place: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| anyhow::anyhow!("{place}: {}", error.to_string().trim_end()))
    }

    /// The stages in their order. Every key is checked against its program's options, before anything runs.
    ///
    /// # Errors
    /// A key that the program does not know, a value that no option can have, a missing output.
    pub fn stages(&self, programs: &Programs) -> Result<Vec<Stage>> {
        let mut stages = Vec::new();
        if let Some(model) = &self.model {
            stages.push(stage("model", "[model]", &MODEL, model, programs, &stages)?);
        }
        if let Some(data) = &self.data {
            stages.push(stage("shards", "[preprocess]", &SHARDS, &self.shard_options(data)?, programs, &stages)?);
        } else {
            ensure!(self.preprocess.is_empty(), "[preprocess] without [data]: expected [data] with dir and shards");
        }
        match &self.train {
            Some(OneOrMore::One(train)) => {
                stages.push(stage("train", "[train]", &TRAIN, train, programs, &stages)?);
            }
            Some(OneOrMore::More(tables)) => {
                for (index, train) in tables.iter().enumerate() {
                    let name = format!("train {} of {}", index + 1, tables.len());
                    stages.push(stage(&name, "[[train]]", &TRAIN, train, programs, &stages)?);
                }
            }
            None => {}
        }
        if let Some(infer) = &self.infer {
            stages.push(stage("infer", "[infer]", &CAPTION, infer, programs, &stages)?);
        }
        ensure!(!stages.is_empty(), "the recipe has no stages; expected [model], [data], [train] or [infer]");
        Ok(stages)
    }

    fn shard_options(&self, data: &Data) -> Result<Table> {
        let assembled = self.model.as_ref().and_then(|model| model.get(MODEL.writes)).and_then(Value::as_str);
        let model = data.model.as_deref().or(assembled);
        let model = model.context("[data]: no model directory; give [model] an output, or [data] a model")?;
        let mut options = self.preprocess.clone();
        for (key, value) in [("model", model), ("data", &data.dir), ("output", &data.shards)] {
            ensure!(!options.contains_key(key), "[preprocess] {key}: it comes from [data]; leave it out");
            options.insert(key.to_string(), Value::String(value.to_string()));
        }
        Ok(options)
    }
}

fn stage(
    name: &str,
    table: &str,
    kind: &Kind,
    options: &Table,
    programs: &Programs,
    earlier: &[Stage],
) -> Result<Stage> {
    let known = programs.options(kind.program, kind.subcommand)?;
    let mut args: Vec<String> = kind.subcommand.into_iter().map(String::from).collect();
    let (mut may_replace, mut goes_on) = (false, kind.goes_on);
    for (key, value) in options {
        let command = [kind.program].into_iter().chain(kind.subcommand).collect::<Vec<_>>().join(" ");
        if !known.contains(key) {
            let nearest = nearest(key, known.iter().map(String::as_str));
            bail!("{table} {key}: not an option of {command}; did you mean {nearest}? ({command} --help lists all)");
        }
        let word = plain(value).ok();
        match word.as_deref().and_then(flag) {
            Some(flag) if matches!(kind.anew, Anew::Option(name) if name == key) => may_replace = flag,
            // Whether it goes on is decided by how the stage stands; only a certain checkpoint is an option like any other.
            Some(_) if kind.goes_on == Some(key.as_str()) => {}
            _ => {
                if kind.goes_on == Some(key.as_str()) {
                    goes_on = None;
                }
                args.extend(words(kind, key, value).with_context(|| format!("{table} {key}"))?);
            }
        }
    }
    let output = path_option(options, kind.writes).with_context(|| format!("{table}: no {}", kind.writes))?;
    // A model on Hugging Face is no file of this machine yet: its program takes it from the cache, or downloads it. The
    // name stands in the command line. What an earlier stage writes is a folder, whatever its name looks like.
    let is_on_hub = |key: &str, path: &Path| {
        kind.hub.contains(&key) && hub::is_repository(path) && earlier.iter().all(|stage| stage.output != path)
    };
    let inputs = kind.reads.iter().filter_map(|&key| Some((key, path_option(options, key)?)));
    // DeepSpeed's settings may be written out in place of a file's name.
    let is_text = |path: &Path| path.as_os_str().as_encoded_bytes().starts_with(b"{");
    let inputs = inputs.filter(|(key, path)| !is_on_hub(key, path) && !is_text(path));
    let inputs = inputs.map(|(key, path)| input(key, path)).collect();
    let witness = match kind.witness {
        Witness::Whole => (output.clone(), Part::Whole),
        Witness::File(name) => (output.join(name), Part::Whole),
        Witness::Model => (output.clone(), Part::Model),
    };
    Ok(Stage {
        name: name.to_string(),
        program: kind.program.to_string(),
        args,
        inputs,
        output,
        witness,
        anew: kind.anew,
        goes_on,
        may_replace,
        disposable: false,
    })
}

/// What of a file or folder that an option names shows whether it has changed.
fn input(key: &str, path: PathBuf) -> (PathBuf, Part) {
    match key {
        _ if SHARD_FOLDERS.contains(&key) => (path.join(SHARD_INDEX), Part::Whole),
        _ if MODEL_FOLDERS.contains(&key) => (path, Part::Model),
        _ => (path, Part::Whole),
    }
}

/// `true` or `false`, as the programs read it.
fn flag(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "y" | "t" => Some(true),
        "false" | "0" | "no" | "n" | "f" => Some(false),
        _ => None,
    }
}

fn path_option(options: &Table, key: &str) -> Option<PathBuf> {
    options.get(key).and_then(Value::as_str).map(PathBuf::from)
}

/// An option and its value as the command line takes them.
fn words(kind: &Kind, key: &str, value: &Value) -> Result<Vec<String>> {
    let list = kind.lists.iter().find(|(name, _)| *name == key).map(|(_, list)| *list);
    let texts = match (value, list) {
        (Value::Array(items), Some(List::Repeated)) => items.iter().map(plain).collect::<Result<Vec<_>>>()?,
        (Value::Array(items), Some(List::Commas)) => {
            vec![items.iter().map(plain).collect::<Result<Vec<_>>>()?.join(",")]
        }
        (Value::Array(_), None) => bail!("found a list, expected one value"),
        (value, _) => vec![plain(value)?],
    };
    Ok(texts.into_iter().flat_map(|text| option(key, text)).collect())
}

/// A value that begins like an option is tied to its own.
fn option(key: &str, text: String) -> Vec<String> {
    if text.starts_with('-') { vec![format!("--{key}={text}")] } else { vec![format!("--{key}"), text] }
}

/// A value as the command line takes it; a table as JSON.
fn plain(value: &Value) -> Result<String> {
    Ok(match value {
        Value::String(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        Value::Table(table) => serde_json::to_string(table)?,
        Value::Array(_) | Value::Datetime(_) => bail!("found {value}, expected text, a number, true or false"),
    })
}

/// The candidate that shares most pairs of neighbouring letters.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> &'a str {
    let pairs = |word: &str| {
        let mut counts = BTreeMap::new();
        word.as_bytes().windows(2).for_each(|pair| *counts.entry([pair[0], pair[1]]).or_insert(0usize) += 1);
        counts
    };
    let wanted = pairs(name);
    let likeness = |candidate: &&str| {
        let found = pairs(candidate);
        let common: usize = wanted.iter().map(|(pair, &count)| count.min(found.get(pair).copied().unwrap_or(0))).sum();
        // Dice's coefficient in thousandths.
        2000 * common / (name.len() + candidate.len()).max(1)
    };
    candidates.max_by_key(likeness).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_tables_are_refused_with_their_line() {
        let error = Recipe::parse("purpose = \"x\"\n[trian]\n", "r.toml").expect_err("refused").to_string();
        assert!(error.contains("r.toml") && error.contains("trian") && error.contains("line 2"), "{error}");
    }

    #[test]
    fn both_forms_of_train_are_read() {
        let one = Recipe::parse("purpose = \"x\"\n[train]\nseed = 1\n", "").expect("valid");
        assert!(matches!(one.train, Some(OneOrMore::One(_))));
        let more = Recipe::parse("purpose = \"x\"\n[[train]]\nseed = 1\n[[train]]\nseed = 2\n", "").expect("valid");
        assert!(matches!(more.train, Some(OneOrMore::More(tables)) if tables.len() == 2));
    }

    #[test]
    fn values_become_words() {
        for (kind, text, expected) in [
            (&TRAIN, "learning_rate = 1e-3", &["--learning_rate", "0.001"][..]),
            (&TRAIN, "lora_target_modules = [\"q\", \"v\"]", &["--lora_target_modules", "q,v"]),
            (&TRAIN, "bf16 = true", &["--bf16", "true"]),
            (&TRAIN, "max_steps = -1", &["--max_steps=-1"]),
            (&TRAIN, "lr_scheduler_kwargs = { num_cycles = 2 }", &["--lr_scheduler_kwargs", "{\"num_cycles\":2}"]),
            (&CAPTION, "stop = [\"a, b\", \"e\"]", &["--stop", "a, b", "--stop", "e"]),
            (&CAPTION, "stop = \"a\"", &["--stop", "a"]),
            (&CAPTION, "stop = []", &[]),
            (&CAPTION, "prompt = \"--what?\"", &["--prompt=--what?"]),
        ] {
            let table: Table = text.parse().expect("valid");
            let (key, value) = table.iter().next().expect("a key");
            assert_eq!(words(kind, key, value).expect("words"), expected, "{text}");
        }
        for text in ["prompt = [\"a\", \"b\"]", "limit = [1]", "stop = [[\"a\"]]", "seed = 1979-05-27"] {
            let table: Table = text.parse().expect("valid");
            let (key, value) = table.iter().next().expect("a key");
            assert!(words(&CAPTION, key, value).is_err(), "{text}");
        }
    }

    #[test]
    fn typos_find_their_option() {
        assert_eq!(nearest("learning_rat", ["seed", "learning_rate", "lora_r"].into_iter()), "learning_rate");
    }
}
