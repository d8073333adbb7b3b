//! Files of an earlier run in a folder.

use super::RunRecord;
use crate::checkpoint::{self, Manifest, RUN_CONFIG, TRAINER_STATE};
use crate::config::Config;
use crate::metrics;
use crate::trainability::TRAINABLE_FILE;
use anyhow::{Context, Result, bail};
use base::{Error, json, names};
use chat::dataset::chat_file;
use cli::outputs;
use rustix::fs::{StatVfs, StatVfsMountFlags};
use serde_json::{Map, Value};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

/// Metrics of a run whose settings name no other file.
pub const METRICS: &str = "metrics.jsonl";
/// Sample captions of a step: `captions-<step>.jsonl`.
pub const CAPTIONS: &str = "captions-";
/// Scored answers of a step: `answers-<step>.jsonl`.
pub const ANSWERS: &str = "answers-";
/// Event files begin so.
pub const EVENTS: &str = "events.out.tfevents.";

/// Where a run's metrics go.
pub fn metrics_file(config: &Config) -> PathBuf {
    config.metrics.clone().unwrap_or_else(|| config.output_dir.join(METRICS))
}

/// The content of a run's folder before a program begins to write there.
#[derive(Debug)]
pub struct Remains {
    /// `run.json`.
    pub record: Option<RunRecord>,
    /// Checkpoints of any run, oldest first.
    pub checkpoints: Vec<PathBuf>,
    /// Weights of a final output.
    pub weights: Option<PathBuf>,
    /// Metrics with at least a line, in the folder.
    pub metrics: Option<PathBuf>,
    /// A state or settings that a run of any version leaves.
    is_of_a_run: bool,
}

impl Remains {
    /// Looks into the folder.
    ///
    /// # Errors
    /// A folder or a record that cannot be read.
    pub fn of(config: &Config) -> Result<Self> {
        let dir = &config.output_dir;
        let names = entries(dir)?;
        let is_weights = |name: &&String| {
            names::is_adapter_file(name)
                || names::is_model_file(name) && !names::PROCESSOR_FILES.contains(&name.as_str())
        };
        let metrics = metrics_file(config);
        outputs::require_replaceable(&metrics, |head| metrics::is_line(outputs::first_line(head)), None, "--metrics")?;
        let has_lines = std::fs::metadata(&metrics).is_ok_and(|about| about.len() > 0);
        let record = RunRecord::read(dir)?;
        let leavings = [TRAINER_STATE, RUN_CONFIG, METRICS];
        Ok(Self {
            is_of_a_run: record.is_some() || names.iter().any(|name| leavings.contains(&name.as_str())),
            record,
            checkpoints: checkpoint::list(dir),
            // Weights say more than the configuration beside them.
            weights: names
                .iter()
                .filter(is_weights)
                .max_by_key(|name| !name.ends_with(".json"))
                .map(|name| dir.join(name)),
            metrics: (has_lines && !is_elsewhere(&metrics, dir)).then_some(metrics),
        })
    }

    /// What a new run would replace; `None` in a folder in which no run has come to a result.
    pub fn used_by(&self) -> Option<String> {
        let record = self.record.as_ref();
        let whose = |what: &str| record.map_or(what.to_string(), |record| format!("{what} ({})", record.title()));
        let newest = self.checkpoints.last();
        let path = newest.or(self.weights.as_ref()).or(self.metrics.as_ref())?;
        Some(whose(&path.display().to_string()))
    }

    /// Refuses a folder of model files that no run has made: they may be the only copy.
    ///
    /// # Errors
    /// Such a folder.
    pub fn require_of_a_run(&self) -> Result<()> {
        match &self.weights {
            Some(weights) if !self.is_of_a_run && self.checkpoints.is_empty() => bail!(
                "{}: found a model or adapter that is no output of train; overwrite_output_dir does not replace it; give \
                 another --output_dir",
                weights.display()
            ),
            _ => Ok(()),
        }
    }
}

/// Whether a file of metrics is outside the run's folder, so that another run may have written it.
pub fn is_elsewhere(metrics: &Path, output_dir: &Path) -> bool {
    let folder = metrics.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (folder.canonicalize(), output_dir.canonicalize()) {
        (Ok(folder), Ok(output_dir)) => !folder.starts_with(output_dir),
        _ => true,
    }
}

/// Refuses metrics outside the run's folder that the run has not written: its lines would replace another run's. `settings` are
/// the run's earlier settings: files in its folder, or in the checkpoint that it resumes from.
///
/// # Errors
/// Such a file; settings that cannot be read.
pub fn require_own_metrics(config: &Config, settings: &[PathBuf]) -> Result<()> {
    let path = metrics_file(config);
    let has_lines = std::fs::metadata(&path).is_ok_and(|about| about.is_file() && about.len() > 0);
    if !has_lines || !is_elsewhere(&path, &config.output_dir) {
        return Ok(());
    }
    for settings in settings {
        let before: Option<Map<String, Value>> = json::read_if_there(settings)?;
        let before = before.as_ref().and_then(|before| before.get("metrics")).and_then(Value::as_str).map(Path::new);
        if before.is_some_and(|before| is_same_file(before, &path)) {
            return Ok(());
        }
    }
    bail!(
        "--metrics {}: found the metrics of another run, which this one would replace, expected a new file, or that of the run in \
         {}; give another --metrics, or remove the file",
        path.display(),
        config.output_dir.display()
    )
}

/// Whether a path that was given before, maybe in another working directory, is a file's.
fn is_same_file(before: &Path, path: &Path) -> bool {
    let same = before.canonicalize().ok().zip(path.canonicalize().ok()).is_some_and(|(before, path)| before == path);
    same || before.is_relative() && std::path::absolute(path).is_ok_and(|path| path.ends_with(before))
}

/// Removes what an earlier run has put into a folder, except for its checkpoints: metrics, captions, event files, the final
/// output, the record.
///
/// # Errors
/// What the operating system refuses.
pub fn clear(dir: &Path) -> Result<()> {
    let is_of_run = |name: &str| {
        let files = [TRAINER_STATE, RUN_CONFIG, METRICS, TRAINABLE_FILE, super::RUN_RECORD];
        let is_captions = [CAPTIONS, ANSWERS].iter().any(|start| name.starts_with(start)) && name.ends_with(".jsonl");
        let is_output = names::is_model_file(name) || names::is_adapter_file(name);
        files.contains(&name) || is_captions || is_output || name.starts_with(EVENTS)
    };
    for name in entries(dir)?.iter().filter(|name| is_of_run(name)) {
        let path = dir.join(name);
        if path.is_file() {
            std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Checkpoints of `dir` that belong to the run, and checkpoints of other runs. One without a readable manifest may be the run's.
pub fn checkpoints_of(record: &RunRecord, checkpoints: &[PathBuf]) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let is_own = |dir: &PathBuf| Manifest::read(dir).map_or(true, |manifest| manifest.is_of(record));
    checkpoints.iter().cloned().partition(is_own)
}

/// Endings of pictures, tables and archives: no run writes such files.
const DATA: [&str; 14] =
    ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "csv", "tsv", "parquet", "arrow", "zip", "tar"];

/// Refuses a folder of pictures, a dataset's and shards, in which no run has been: checkpoints would lie among them, and be
/// taken for a part of them.
///
/// # Errors
/// The first such file.
pub fn refuse_data(dir: &Path) -> Result<()> {
    if dir.is_file() {
        bail!("--output_dir {}: found a file, expected a folder; give another --output_dir", dir.display());
    }
    let names = entries(dir)?;
    let is_of_a_run = |name: &String| {
        [super::RUN_RECORD, RUN_CONFIG, TRAINER_STATE].contains(&name.as_str()) || name.starts_with(checkpoint::PREFIX)
    };
    let is_data = |name: &&String| {
        let ending = Path::new(name).extension().unwrap_or_default().to_string_lossy().to_lowercase();
        dir.join(name) == chat_file(dir) || DATA.contains(&ending.as_str())
    };
    match names.iter().find(is_data) {
        Some(name) if !names.iter().any(is_of_a_run) => bail!(
            "--output_dir {}: found {name}, expected a new folder, an empty one or that of a run; give another --output_dir",
            dir.display()
        ),
        _ => Ok(()),
    }
}

/// Refuses an output on a file system that cannot be written, which has no room whatever is removed from it.
///
/// # Errors
/// Such a file system.
pub fn require_writable_disk(dir: &Path) -> Result<()> {
    let absolute = std::path::absolute(dir).with_context(|| dir.display().to_string())?;
    let there = absolute.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
    let is_read_only = |about: StatVfs| about.f_flag.contains(StatVfsMountFlags::RDONLY);
    if rustix::fs::statvfs(there).is_ok_and(is_read_only) {
        bail!(
            "the job cannot start: --output_dir {}: {} is on a read-only file system; give an --output_dir elsewhere",
            dir.display(),
            there.display()
        );
    }
    Ok(())
}

/// Refuses `--metrics` that cannot be written from the start; later on, training continues without.
///
/// # Errors
/// What the operating system refuses.
pub fn require_writable_metrics(config: &Config) -> Result<()> {
    let Some(path) = &config.metrics else { return Ok(()) };
    // Folders are refused with other files; pipes wait for their reader.
    let is_new = match std::fs::metadata(path) {
        Ok(about) if !about.is_file() => return Ok(()),
        about => about.is_err(),
    };
    outputs::require_folder_of(path, "--metrics")?;
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(Error::io(path)).context("--metrics, the file of the log, cannot be written")?;
    if is_new {
        std::fs::remove_file(path).map_err(Error::io(path))?;
    }
    Ok(())
}

fn entries(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<std::io::Result<Vec<_>>>().with_context(|| dir.display().to_string())?;
    names.sort();
    Ok(names)
}

/// Refuses a run's output where its input is, and in a checkpoint.
///
/// # Errors
/// Which folder it is.
pub fn refuse_inputs(config: &Config) -> Result<()> {
    let Ok(output) = config.output_dir.canonicalize() else { return Ok(()) };
    if output.join(checkpoint::MANIFEST).exists() {
        bail!("--output_dir {}: a checkpoint's folder; give the run's own, or another", config.output_dir.display());
    }
    match inputs(config).find(|(_, input)| input.canonicalize().is_ok_and(|input| input == output)) {
        Some((name, _)) => {
            bail!(
                "--output_dir {}: the same folder as --{name}; give another --output_dir",
                config.output_dir.display()
            )
        }
        None => Ok(()),
    }
}

/// Refuses to replace a run in whose folder an input of the new one is: its checkpoint would be renamed, or removed, while
/// it is the base of what is trained.
///
/// # Errors
/// The first such input.
pub fn require_inputs_elsewhere(config: &Config) -> Result<()> {
    let Ok(output) = config.output_dir.canonicalize() else { return Ok(()) };
    match inputs(config).find(|(_, input)| input.canonicalize().is_ok_and(|input| input.starts_with(&output))) {
        Some((name, input)) => bail!(
            "--{name} {}: found a folder in --output_dir {}, whose run is to be replaced, expected one elsewhere; give another \
             --output_dir, or move the folder",
            input.display(),
            config.output_dir.display()
        ),
        None => Ok(()),
    }
}

/// Folders that a run reads, by their options.
fn inputs(config: &Config) -> impl Iterator<Item = (&'static str, &PathBuf)> {
    let data = config.data_path.folders().iter().map(|folder| ("data_path", &folder.dir));
    let model = std::iter::once(("model_name_or_path", &config.model_name_or_path));
    model.chain(data).chain(config.init_adapter.iter().map(|dir| ("init_adapter", dir)))
}
