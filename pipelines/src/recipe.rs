//! Recipes: one flat TOML file per experiment, one table per stage.
//!
//! Every key is an option of the stage's program in its `under_score` spelling, so `preprocess model --help`,
//! `preprocess shards --help`, `train --help`, `infer caption --help` and `infer eval --help` are the list of keys, and a
//! recipe's stage can be repeated by hand from the command line that the runner prints.

use crate::fingerprint::Part;
use crate::programs::Programs;
use crate::stage::{Anew, Stage};
use anyhow::{Context, Result, anyhow, ensure};
use base::Error;
use cli::inputs::unread;
use cli::options::{self, Kind};
use cli::recipe::{self, Lines, OneOrMore};
use cli::values::boolean;
use cli::weighted::WeightedFolders;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use store::hub;
use toml::{Table, Value};

/// A recipe file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Its purpose, one line.
    pub purpose: Option<String>,
    /// Options of `preprocess model`; left out when the model directory is there already.
    pub model: Option<Table>,
    /// Where the dataset is and where its shards go, or several of them (`[[data]]`), each a stage of its own; left out when
    /// the shards are there already. The tables are [`Data`].
    pub data: Option<OneOrMore>,
    /// Further options of `preprocess shards`, for every dataset.
    #[serde(default)]
    pub preprocess: Table,
    /// Options of `train`: one table, or an array of tables (`[[train]]`) that run one after the other.
    pub train: Option<OneOrMore>,
    /// Options of `infer caption`.
    pub infer: Option<Table>,
    /// Options of `infer eval`.
    pub eval: Option<Table>,
    /// On which lines the options stand.
    #[serde(skip)]
    lines: Lines,
}

/// A dataset.
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

/// What the runner does with a program; what it reads and writes, the program's own options say.
struct Runner {
    program: &'static str,
    subcommand: Option<&'static str>,
    /// The part of the output that shows whether it is finished and there.
    witness: Witness,
    /// How an existing output is replaced, and the option that continues it; set by the runner from the stage's state.
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

/// A folder of shards is known by this file: it holds the hashes of all others.
const SHARD_INDEX: &str = shards::INDEX_FILE;
const MODEL: Runner = Runner {
    program: "preprocess",
    subcommand: Some("model"),
    witness: Witness::Model,
    anew: Anew::OwnWay,
    goes_on: None,
};
const SHARDS: Runner = Runner {
    program: "preprocess",
    subcommand: Some("shards"),
    // Training may put a cache of vision features beside the shards.
    witness: Witness::File(SHARD_INDEX),
    anew: Anew::OwnWay,
    goes_on: None,
};
const TRAIN: Runner = Runner {
    program: "train",
    subcommand: None,
    witness: Witness::Model,
    anew: Anew::Option("overwrite_output_dir"),
    goes_on: Some("resume_from_checkpoint"),
};
const CAPTION: Runner = Runner {
    program: "infer",
    subcommand: Some("caption"),
    witness: Witness::Whole,
    anew: Anew::Option("overwrite"),
    goes_on: None,
};

const EVAL: Runner = Runner { subcommand: Some("eval"), ..CAPTION };

impl Recipe {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// An unreadable file, malformed TOML (with line and column), an unknown table.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(unread(path, "a recipe (RECIPE.toml)"))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Parses a recipe; `place` names it in errors.
    ///
    /// # Errors
    /// Malformed TOML, an unknown table.
    pub fn parse(text: &str, place: &str) -> Result<Self> {
        let mut recipe = Self { lines: Lines::of(text), ..recipe::parse(text, place)? };
        let Self { model, data, preprocess, train, infer, eval, lines, .. } = &mut recipe;
        let single = [
            ("model", model.as_mut()),
            ("preprocess", Some(preprocess)),
            ("infer", infer.as_mut()),
            ("eval", eval.as_mut()),
        ];
        let several = [("data", data.as_mut()), ("train", train.as_mut())];
        for (name, table) in single.into_iter().filter_map(|(name, table)| Some((name, table?))) {
            lines.put_in_order(name, 0, table);
        }
        for (name, tables) in several.into_iter().filter_map(|(name, tables)| Some((name, tables?))) {
            tables
                .tables_mut()
                .iter_mut()
                .enumerate()
                .for_each(|(index, table)| lines.put_in_order(name, index, table));
        }
        Ok(recipe)
    }

    /// The stages in their order. Every key is checked against its program's options, before anything runs.
    ///
    /// # Errors
    /// A key that the program does not know, a value that no option can have, a missing output. The program's own checks of the values
    /// are [`Stage::require_options`].
    pub fn stages(&self, programs: &Programs) -> Result<Vec<Stage>> {
        let mut stages = Vec::new();
        if let Some(model) = &self.model {
            stages.push(stage("model", &self.place("model", 0, "[model]"), &MODEL, model, programs, &stages)?);
        }
        let datasets = self.data.as_ref().map(OneOrMore::tables).unwrap_or_default();
        ensure!(
            !datasets.is_empty() || self.preprocess.is_empty(),
            "[preprocess] without [data]: expected [data] with dir and shards"
        );
        for (index, table) in datasets.iter().enumerate() {
            let (name, place) = numbered("shards", "data", index, datasets.len());
            let data: Data = table.clone().try_into().map_err(|error: toml::de::Error| {
                let remedy = "correct the recipe";
                Error::invalid(&place, error.message(), "dir, shards and, where it is another, model", remedy)
            })?;
            let (of_data, of_preprocess) =
                (self.place("data", index, &place), self.place("preprocess", 0, "[preprocess]"));
            let of_key = |option: &str| match OF_DATA.iter().find(|(name, _)| *name == option) {
                Some((_, key)) => (of_data.of_key)(key),
                None => (of_preprocess.of_key)(option),
            };
            let of_shards = Place { table: of_preprocess.table.clone(), of_key: Box::new(of_key) };
            stages.push(stage(&name, &of_shards, &SHARDS, &self.shard_options(&data)?, programs, &stages)?);
        }
        let tables = self.train.as_ref().map(OneOrMore::tables).unwrap_or_default();
        for (index, train) in tables.iter().enumerate() {
            let (name, place) = numbered("train", "train", index, tables.len());
            stages.push(stage(&name, &self.place("train", index, &place), &TRAIN, train, programs, &stages)?);
        }
        if let Some(infer) = &self.infer {
            stages.push(stage("infer", &self.place("infer", 0, "[infer]"), &CAPTION, infer, programs, &stages)?);
        }
        if let Some(eval) = &self.eval {
            stages.push(stage("eval", &self.place("eval", 0, "[eval]"), &EVAL, eval, programs, &stages)?);
        }
        ensure!(!stages.is_empty(), "the recipe has no stages; expected [model], [data], [train], [infer] or [eval]");
        Ok(stages)
    }

    fn shard_options(&self, data: &Data) -> Result<Table> {
        let assembled = self.model.as_ref().and_then(|model| model.get("output")).and_then(Value::as_str);
        let model = data.model.as_deref().or(assembled);
        let model = model.context("[data]: no model directory; give [model] an output, or [data] a model")?;
        let mut options = self.preprocess.clone();
        for ((key, _), value) in OF_DATA.iter().zip([model, &data.dir, &data.shards]) {
            ensure!(!options.contains_key(*key), "[preprocess] {key}: it comes from [data]; leave it out");
            options.insert(key.to_string(), Value::String(value.to_string()));
        }
        Ok(options)
    }

    /// Where the options of a table stand, or of the one with this index among several; `shown` is how messages write it.
    fn place<'a>(&'a self, table: &'a str, index: usize, shown: &'a str) -> Place<'a> {
        let of_key = move |key: &str| (format!("{}{shown}", self.lines.before(table, index, key)), key.to_string());
        Place { table: shown.to_string(), of_key: Box::new(of_key) }
    }
}

/// Options of `preprocess shards` that are keys of `[data]`.
const OF_DATA: [(&str, &str); 3] = [("model", "model"), ("data", "dir"), ("output", "shards")];

/// Where a stage's options stand in the recipe.
struct Place<'a> {
    /// `[train]`
    table: String,
    of_key: OfKey<'a>,
}

/// Of an option: the line and the table, `line 3: [train]`, and the key.
type OfKey<'a> = Box<dyn Fn(&str) -> (String, String) + 'a>;

/// The name of a stage and of its table, of which there may be several.
fn numbered(stage: &str, table: &str, index: usize, count: usize) -> (String, String) {
    match count {
        1 => (stage.to_string(), format!("[{table}]")),
        count => (format!("{stage} {} of {count}", index + 1), format!("[[{table}]]")),
    }
}

fn stage(
    name: &str,
    place: &Place<'_>,
    runner: &Runner,
    given: &Table,
    programs: &Programs,
    earlier: &[Stage],
) -> Result<Stage> {
    let known = programs.options(runner.program, runner.subcommand)?;
    let mut args: Vec<String> = runner.subcommand.into_iter().map(String::from).collect();
    let (mut may_replace, mut goes_on) = (false, runner.goes_on);
    let (mut inputs, mut output, mut places) = (Vec::new(), None, BTreeMap::new());
    for (key, value) in given {
        let (table, shown) = (place.of_key)(key);
        let option = known.find(key, &table)?;
        let place = format!("{table} {shown}");
        places.insert(option.name.clone(), place.clone());
        let flag = flag(value);
        match flag {
            Some(flag) if matches!(runner.anew, Anew::Option(name) if name == option.name) => {
                may_replace = flag;
                continue;
            }
            // Whether it goes on is decided by how the stage stands; only a certain checkpoint is an option like any other.
            Some(_) if runner.goes_on == Some(option.name.as_str()) => continue,
            None if runner.goes_on == Some(option.name.as_str()) => goes_on = None,
            _ => {}
        }
        let words = recipe::words(option, key, value, &place)?;
        if let (Some(Kind::WeightedShards), Some(text)) = (option.kind, words.last()) {
            inputs.extend(shard_inputs(text).map_err(|error| anyhow!("{place}: {error}"))?);
        }
        args.extend(words);
        match (option.kind, value.as_str()) {
            (Some(Kind::Output), Some(path)) => output = Some(PathBuf::from(path)),
            (Some(kind), Some(text)) => inputs.extend(input(kind, text, earlier)),
            _ => {}
        }
    }
    let missing = || known.of_kind(Kind::Output).map(|option| option.name.as_str()).collect::<Vec<_>>().join(" or ");
    let output = output.with_context(|| format!("{}: no {}", place.table, missing()))?;
    // One would replace the other's, in every run again.
    if let Some(other) = earlier.iter().find(|other| plain(&other.output).eq(plain(&output))) {
        let here = known.of_kind(Kind::Output).find_map(|option| places.get(&option.name)).unwrap_or(&place.table);
        let found = format!("the output of another stage, {}: {}", other.name, output.display());
        return Err(Error::usage(here, found, "one of its own", "give each stage another output").into());
    }
    let witness = match runner.witness {
        Witness::Whole => (output.clone(), Part::Whole),
        Witness::File(name) => (output.join(name), Part::Whole),
        Witness::Model => (output.clone(), Part::Model),
    };
    Ok(Stage {
        name: name.to_string(),
        program: runner.program.to_string(),
        args,
        places,
        table: place.table.clone(),
        inputs,
        output,
        witness,
        anew: runner.anew,
        goes_on,
        may_replace,
        disposable: false,
    })
}

/// A path without `.` in it.
fn plain(path: &Path) -> impl Iterator<Item = Component<'_>> {
    path.components().filter(|part| *part != Component::CurDir)
}

/// What of the file or folder that an option's value names shows whether it has changed; `None` if it names none.
fn input(kind: Kind, text: &str, earlier: &[Stage]) -> Option<(PathBuf, Part)> {
    let path = PathBuf::from(text);
    match kind {
        // A model on Hugging Face is no file of this machine yet: its program takes it from the cache, or downloads it. The
        // name stands in the command line. What an earlier stage writes is a folder, whatever its name looks like.
        Kind::ModelOrRepository if hub::is_repository(&path) && earlier.iter().all(|stage| stage.output != path) => {
            None
        }
        Kind::ModelOrRepository | Kind::Model => Some((path, Part::Model)),
        Kind::Shards => Some((path.join(SHARD_INDEX), Part::Whole)),
        Kind::Path => Some((path, Part::Whole)),
        Kind::FileOrText => options::names_a_file(text).then_some((path, Part::Whole)),
        Kind::Output | Kind::Words | Kind::WeightedShards => None,
    }
}

/// What shows whether the folders of shards that an option names have changed.
fn shard_inputs(text: &str) -> Result<Vec<(PathBuf, Part)>, String> {
    let folders: WeightedFolders = text.parse()?;
    Ok(folders.folders().iter().map(|folder| (folder.dir.join(SHARD_INDEX), Part::Whole)).collect())
}

/// `true` or `false`, as the programs read it.
fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Boolean(flag) => Some(*flag),
        Value::Integer(number) => boolean(&number.to_string()).ok(),
        Value::String(text) => boolean(text).ok(),
        _ => None,
    }
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
    fn tables_keep_their_order() {
        let text = "[[train]]\n[[train]]\ndata_path = { sb = 1, sa = 2 }\n[eval]\nx = { b = 1, a = 2 }\n";
        let recipe = Recipe::parse(text, "r.toml").expect("valid");
        let tables = recipe.train.as_ref().map(OneOrMore::tables).unwrap_or_default();
        assert_eq!(tables[1]["data_path"].as_str(), Some(r#"{"sb":1,"sa":2}"#));
        assert_eq!(recipe.eval.expect("a table")["x"].as_str(), Some(r#"{"b":1,"a":2}"#));
    }

    #[test]
    fn options_have_their_places() {
        let text = "[preprocess]\nseed = 1\n[[train]]\nseed = 1\n[[train]]\nbf16 = true\nseed = 2\n";
        let recipe = Recipe::parse(text, "r.toml").expect("valid");
        let place = recipe.place("train", 1, "[[train]]");
        assert_eq!((place.of_key)("seed"), ("line 7: [[train]]".to_string(), "seed".to_string()));
        assert_eq!((place.of_key)("fp16"), ("[[train]]".to_string(), "fp16".to_string()));
    }

    #[test]
    fn what_an_option_names_is_an_input_where_it_is_a_file() {
        let inputs = |kind, text| input(kind, text, &[]);
        assert_eq!(inputs(Kind::Shards, "s"), Some((PathBuf::from("s").join(SHARD_INDEX), Part::Whole)));
        let index = |dir: &str| (PathBuf::from(dir).join(SHARD_INDEX), Part::Whole);
        assert_eq!(shard_inputs("a:1,b:0.3"), Ok(vec![index("a"), index("b")]));
        assert_eq!(shard_inputs("{\"a\": 2}"), Ok(vec![index("a")]));
        assert!(shard_inputs("a:0").is_err());
        assert_eq!(inputs(Kind::Model, "runs/a"), Some(("runs/a".into(), Part::Model)));
        assert_eq!(inputs(Kind::FileOrText, "ds.json"), Some(("ds.json".into(), Part::Whole)));
        for text in ["None", "", "{\"zero_optimization\": {\"stage\": 2}}"] {
            assert_eq!(inputs(Kind::FileOrText, text), None, "{text}");
        }
        assert_eq!(inputs(Kind::ModelOrRepository, "llava-hf/llava-interleave-qwen-0.5b-hf"), None);
    }
}
