//! The quickstart: the whole job, from nothing, in minutes on a CPU.
//!
//! It makes what the real job downloads (a dataset in the layout of LLaVA-CC3M-Pretrain-595K, a CLIP, a Qwen2), then runs
//! `recipes/quickstart.toml` like any other recipe, whose last stage compares the captions of held-out pictures with the truth.

pub mod backbones;
pub mod dataset;
pub mod shapes;
pub mod tokenizer;
mod verdict;

use crate::fingerprint::{self, Part};
use crate::programs::Programs;
use crate::recipe::Recipe;
use crate::run::run_stages;
use crate::signals::Signals;
use anyhow::{Result, ensure};
use base::{Error, files, json};
use cli::values::{at_least_1, share};
use dataset::DatasetSettings;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use verdict::Verdict;

/// The recipe, `{output}` and `{epochs}` still to be filled in.
const RECIPE: &str = include_str!("../../recipes/quickstart.toml");

/// Pictures and epochs after which [`SHARE`] of the captions are right.
const PICTURES: usize = 5000;
const EPOCHS: usize = 8;
const SHARE: f64 = 0.9;

/// Options of `pipelines quickstart`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder for all files
    #[arg(long, value_name = "DIR", default_value = "quickstart")]
    pub output: PathBuf,
    /// Pictures to train on
    #[arg(long, value_name = "N", default_value_t = PICTURES, value_parser = at_least_1)]
    pub pictures: usize,
    /// Pictures held out, at most 500; their captions do not occur in training
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub held_out: usize,
    /// Passes over the pictures
    #[arg(long, value_name = "N", default_value_t = EPOCHS, value_parser = at_least_1)]
    pub epochs: usize,
    /// Seed of pictures and random weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Fail if a smaller share of the held-out captions is exactly right [default: 0.9; 0 with fewer pictures or epochs than their
    /// defaults]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub require: Option<f64>,
    /// Run all stages again, also unchanged ones
    #[arg(long)]
    pub force: bool,
}

impl Args {
    fn settings(&self) -> DatasetSettings {
        DatasetSettings { training_pictures: self.pictures, held_out_pictures: self.held_out, seed: self.seed }
    }

    /// A short training was asked for: its captions are not a failure.
    fn required(&self) -> f64 {
        let whole = self.epochs >= EPOCHS && self.pictures >= PICTURES;
        self.require.unwrap_or(if whole { SHARE } else { 0.0 })
    }
}

/// What the made files depend on, and their fingerprints.
#[derive(PartialEq, Serialize, Deserialize)]
struct Made {
    program: String,
    settings: DatasetSettings,
    folders: BTreeMap<String, String>,
}

/// Stages before those of the recipe: the data.
const MADE_BEFORE: usize = 1;

/// Folders that [`make`] fills.
const MADE: [&str; 4] = ["training", "held_out", "clip", "qwen2"];

/// Makes the data and the models, runs the recipe, compares. The text is the result for stdout.
///
/// # Errors
/// The first stage that fails, or fewer captions right than required.
pub fn run(args: &Args, programs: &Programs, signals: &Signals) -> Result<String> {
    let started = Instant::now();
    args.settings().check()?;
    std::fs::create_dir_all(&args.output).map_err(Error::io(&args.output))?;
    let text = recipe(args)?;
    let recipe = Recipe::parse(&text, "recipes/quickstart.toml")?;
    tracing::info!("== stage 1 of {}: data", MADE_BEFORE + recipe.stages(programs)?.len());
    make(args, programs)?;
    // Only now: a folder that is not there yet could be the name of a repository.
    let mut stages = recipe.stages(programs)?;
    stages.iter_mut().for_each(|stage| stage.disposable = true);
    let recipe_file = args.output.join("quickstart.toml");
    files::write_atomically(&recipe_file, text.as_bytes())?;
    let timing = run_stages(&stages, MADE_BEFORE, programs, signals, args.force)?;
    let verdict = Verdict::read(&args.output.join("answers.jsonl"))?;
    let text = format!("{timing}\n\n{verdict}\n\nin {:.0} s", started.elapsed().as_secs_f64());
    let required = args.required();
    ensure!(
        verdict.share() >= required,
        "{text}\nexpected a share of at least {required}; train longer (--epochs, --pictures)"
    );
    Ok(format!("{text}\n\n{}", next_steps(&args.output, programs)))
}

/// What to look at next: command lines to be pasted into a shell.
fn next_steps(output: &Path, programs: &Programs) -> String {
    let at = |path: &str| shell_words::quote(&output.join(path).display().to_string()).into_owned();
    let [preprocess, infer, pipelines] =
        ["preprocess", "infer", env!("CARGO_PKG_NAME")].map(|name| programs.shown(name));
    let (shards, llava, run, picture) = (at("shards"), at("llava"), at("run"), at("held_out/images/000000.png"));
    let steps = [
        (
            "a row of the shards: its picture and tokens",
            format!("{preprocess} inspect {shards} --row 0 --model {llava}"),
        ),
        (
            "another caption",
            format!("{infer} generate --model {run} --image {picture} --prompt \"{}\"", dataset::QUESTIONS[0]),
        ),
        ("a web page to ask the model, and an API", format!("{infer} serve --model {run}")),
        ("the curves of the training", format!("{pipelines} report {run} --html {}", at("report.html"))),
        ("the recipe that ran, stage by stage", format!("{pipelines} run {}", at("quickstart.toml"))),
        ("what else this machine can do", format!("{pipelines} doctor")),
    ];
    let lines = steps.map(|(what, command)| format!("  # {what}\n  {command}"));
    format!("what to look at next\n{}\n  # your own pictures: docs/data.md", lines.join("\n"))
}

/// Makes dataset, tokenizer and random models, unless they are there already.
fn make(args: &Args, programs: &Programs) -> Result<()> {
    let settings = args.settings();
    let record = args.output.join("made.json");
    let program = fingerprint::of(&programs.path(env!("CARGO_PKG_NAME")), Part::Whole)?;
    let current = made(&args.output, &settings, &program)?;
    let last: Option<Made> = json::read_if_there(&record).unwrap_or_default();
    if !args.force && last.is_some_and(|last| last == current) {
        tracing::info!("[data] nothing has changed, skipped: {}", args.output.display());
        return Ok(());
    }
    let [training, held_out, clip, qwen2] = MADE.map(|name| args.output.join(name));
    let is_own = record.exists();
    for folder in [&training, &held_out, &clip, &qwen2].into_iter().filter(|folder| folder.exists()) {
        let expected = format!("a new folder, or the quickstart's, beside {}", record.display());
        ensure!(
            is_own,
            Error::invalid(folder.display(), "a folder of something else", expected, "give another --output")
        );
        std::fs::remove_dir_all(folder).map_err(Error::io(folder))?;
    }
    // A quickstart that is ended from here on is known as such.
    let begun = Made { program: String::new(), settings: settings.clone(), folders: BTreeMap::new() };
    json::write(&record, &begun)?;
    tracing::info!(
        "[data] {} pictures to train on and {} held out: {}",
        args.pictures,
        args.held_out,
        training.display()
    );
    dataset::write(&settings, &training, &held_out)?;
    tracing::info!(
        "[data] a tokenizer, a tiny CLIP and a tiny Qwen2 with random weights: {}, {}",
        clip.display(),
        qwen2.display()
    );
    std::fs::create_dir_all(&qwen2).map_err(Error::io(&qwen2))?;
    let vocabulary = tokenizer::write(&dataset::texts(), &qwen2)?;
    backbones::write(vocabulary, args.seed, &clip, &qwen2)?;
    Ok(json::write(&record, &made(&args.output, &settings, &program)?)?)
}

fn made(output: &Path, settings: &DatasetSettings, program: &str) -> Result<Made> {
    let folders = MADE.map(|name| Ok((name.to_string(), fingerprint::of(&output.join(name), Part::Whole)?)));
    let folders = folders.into_iter().collect::<Result<_>>()?;
    Ok(Made { program: program.to_string(), settings: settings.clone(), folders })
}

fn recipe(args: &Args) -> Result<String> {
    let not_text = || Error::usage("--output", args.output.display(), "a path in UTF-8", "give another folder");
    let output = args.output.to_str().ok_or_else(not_text)?;
    let output = output.replace('\\', r"\\").replace('"', "\\\"");
    Ok(RECIPE.replace("{output}", &output).replace("{epochs}", &args.epochs.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn only_a_whole_quickstart_has_to_caption_well() {
        for (line, required) in [
            ("", 0.9),
            ("--epochs 9", 0.9),
            ("--epochs 4", 0.0),
            ("--pictures 64", 0.0),
            ("--epochs 4 --require 0.5", 0.5),
            ("--require 0", 0.0),
        ] {
            let args = Line::parse_from(["quickstart"].into_iter().chain(line.split_whitespace())).args;
            assert_eq!(args.required(), required, "{line}");
        }
    }
}
