//! Outputs of a run: the numbers of metrics.jsonl, and captions.

use super::pictures;
use anyhow::{Context, Result, ensure};
use base::{Error, json};
use cli::inputs::unread;
use cli::weighted::WeightedFolders;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// File of the metrics in a run's directory.
const METRICS_FILE: &str = "metrics.jsonl";
/// File of the final captions.
const CAPTIONS_FILE: &str = "captions.jsonl";
/// File of a run's settings.
const CONFIG_FILE: &str = "train_config.json";
/// What the loss of a source is called, before the source's name.
pub const LOSS_OF_SOURCE: &str = "loss_";
/// The same for the loss of its evaluation rows.
pub const EVAL_LOSS_OF_SOURCE: &str = "eval_loss_";
/// What a line of training steps has of each source.
const SOURCES: &str = "sources";
/// What a line of an evaluation has of each source.
const EVAL_SOURCES: &str = "eval_sources";
/// Most points of a drawn line.
const MAX_POINTS: usize = 1000;

/// One run.
pub struct Run {
    /// Last part of its path.
    pub name: String,
    /// Lines of metrics.jsonl.
    metrics: Vec<Map<String, Value>>,
    /// Captions by the step that they were made at, in the order of steps; the final ones last.
    pub captions: Vec<CaptionSet>,
    /// Where the pictures of the captions may be.
    pub picture_folders: Vec<PathBuf>,
    /// The shards that it was trained on.
    pub shards: Vec<PathBuf>,
}

/// The captions of one model.
pub struct CaptionSet {
    /// `step 500`, or `final`.
    pub label: String,
    /// In the order of the file.
    pub captions: Vec<Caption>,
}

/// A line of what `infer caption` writes.
#[derive(Clone, Debug, Deserialize)]
pub struct Caption {
    /// `id` of the picture.
    pub id: String,
    /// Its file name.
    #[serde(default)]
    pub image: String,
    /// The caption; absent for a bad picture.
    #[serde(default)]
    pub caption: Option<String>,
    /// The reference.
    #[serde(default)]
    pub references: Vec<String>,
}

impl Run {
    /// The sets of captions, those of the same pictures together: captions of held-out rows while training and those of a folder
    /// afterwards are of different ones.
    pub fn captions_of_same_pictures(&self) -> Vec<Vec<&CaptionSet>> {
        let mut groups: Vec<(HashSet<&str>, Vec<&CaptionSet>)> = Vec::new();
        for set in &self.captions {
            let ids: HashSet<&str> = set.captions.iter().map(|caption| caption.id.as_str()).collect();
            match groups.iter_mut().find(|(known, _)| !known.is_disjoint(&ids)) {
                Some((known, group)) => {
                    known.extend(ids);
                    group.push(set);
                }
                None => groups.push((ids, vec![set])),
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }

    /// Reads a run's directory, or a metrics file alone.
    ///
    /// # Errors
    /// No metrics, or lines that are not JSON objects. A last line that a crash cut off is left out.
    pub fn read(path: &Path) -> Result<Self> {
        let (folder, file) = match path.is_dir() {
            true => (path, path.join(METRICS_FILE)),
            false => (path.parent().unwrap_or(path), path.to_path_buf()),
        };
        if path.is_dir() && !file.exists() {
            let expected = "the output folder of a training, which train writes its log to";
            return Err(Error::invalid(path.display(), format!("no {METRICS_FILE}"), expected, "check the path").into());
        }
        let text =
            std::fs::read_to_string(&file).map_err(unread(&file, "the output folder of a training, or its log"))?;
        let lines: Vec<&str> = text.lines().collect();
        let mut metrics = Vec::with_capacity(lines.len());
        for (index, line) in lines.iter().enumerate() {
            match serde_json::from_str(line) {
                Ok(values) => metrics.push(with_losses_of_sources(values)),
                Err(_) if index + 1 == lines.len() && !text.ends_with('\n') => {}
                Err(error) => return Err(error).with_context(|| format!("{}:{}", file.display(), index + 1)),
            }
        }
        ensure!(
            !metrics.is_empty(),
            "{}: no lines, expected one per logged step; is the run still starting?",
            file.display()
        );
        let named = if path.is_dir() { path } else { folder };
        let name = named.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let json = |path: &Path| json::read_if_there::<Value>(path).ok().flatten().unwrap_or_default();
        let captions = read_captions(folder)?;
        let settings = folder.join(format!("{CAPTIONS_FILE}.settings.json"));
        let data = json(&folder.join(CONFIG_FILE))["data_path"].as_str().and_then(|text| text.parse().ok());
        let data: WeightedFolders = data.unwrap_or_default();
        let shards = data.folders().iter().map(|folder| folder.dir.clone()).collect();
        let picture_folders = pictures::folders_of(&json(&settings)).collect();
        Ok(Self { name, metrics, captions, picture_folders, shards })
    }

    /// Number of logged steps.
    pub fn lines(&self) -> usize {
        self.metrics.len()
    }

    /// (step, value) of a key, where it stands and is a number.
    pub fn series(&self, key: &str) -> Vec<(f64, f64)> {
        let number = |values: &Map<String, Value>, key: &str| values.get(key).and_then(Value::as_f64);
        self.metrics.iter().filter_map(|values| Some((number(values, "step")?, number(values, key)?))).collect()
    }

    /// The keys whose values are numbers, without those that a step is told by.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let keys: BTreeSet<&str> = self
            .metrics
            .iter()
            .flat_map(|line| line.iter())
            .filter(|(_, value)| value.is_number())
            .map(|(key, _)| key.as_str())
            .collect();
        keys.into_iter().filter(|key| *key != "step")
    }

    /// The finite values of a key, averaged in groups of equal size where there are too many to draw.
    pub fn thinned(&self, key: &str) -> Vec<(f64, f64)> {
        let finite: Vec<(f64, f64)> = self.series(key).into_iter().filter(|(_, value)| value.is_finite()).collect();
        let group = finite.len().div_ceil(MAX_POINTS).max(1);
        let mean = |group: &[(f64, f64)]| {
            let count = group.len() as f64;
            let (x, y) = group.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
            (x / count, y / count)
        };
        finite.chunks(group).map(mean).collect()
    }

    /// The sum of a key up to each step.
    pub fn cumulative(&self, key: &str) -> Vec<(f64, f64)> {
        let mut sum = 0.0;
        let summed = self.series(key).into_iter().map(|(step, value)| {
            sum += value;
            (step, sum)
        });
        let summed: Vec<(f64, f64)> = summed.collect();
        let stride = summed.len().div_ceil(MAX_POINTS).max(1);
        let last = summed.last().copied().filter(|_| summed.len() % stride != 1 && stride > 1);
        summed.iter().copied().step_by(stride).chain(last).collect()
    }

    /// Names of the sources of data, in the order in which they appear; none where there is only one.
    pub fn sources(&self) -> Vec<String> {
        let mut names = Vec::new();
        let of_line = |line| [SOURCES, EVAL_SOURCES].into_iter().filter_map(move |key| sources_of(line, key));
        for name in self.metrics.iter().flat_map(of_line).flat_map(Map::keys) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// As [`Self::series`], of a source in training.
    pub fn of_source(&self, source: &str, key: &str) -> Vec<(f64, f64)> {
        let value = |line: &Map<String, Value>| sources_of(line, SOURCES)?.get(source)?.get(key)?.as_f64();
        self.metrics.iter().filter_map(|line| Some((line.get("step")?.as_f64()?, value(line)?))).collect()
    }

    /// Last value of a key.
    pub fn last(&self, key: &str) -> Option<f64> {
        self.series(key).last().map(|&(_, value)| value)
    }

    /// Mean of a key over the lines.
    pub fn mean(&self, key: &str) -> Option<f64> {
        let series = self.series(key);
        (!series.is_empty()).then(|| series.iter().map(|&(_, value)| value).sum::<f64>() / series.len() as f64)
    }
}

/// The loss of each source as a number of the line, `loss_NAME` or `eval_loss_NAME`, as other numbers are.
fn with_losses_of_sources(mut line: Map<String, Value>) -> Map<String, Value> {
    for (key, prefix) in [(SOURCES, LOSS_OF_SOURCE), (EVAL_SOURCES, EVAL_LOSS_OF_SOURCE)] {
        let of_source =
            |(name, source): (&String, &Value)| Some((format!("{prefix}{name}"), source.get("loss")?.clone()));
        let losses: Vec<_> = sources_of(&line, key).into_iter().flatten().filter_map(of_source).collect();
        line.extend(losses);
    }
    line
}

fn sources_of<'a>(line: &'a Map<String, Value>, key: &str) -> Option<&'a Map<String, Value>> {
    line.get(key)?.as_object()
}

/// `captions.jsonl` and `captions-<step>.jsonl` of a folder.
fn read_captions(folder: &Path) -> Result<Vec<CaptionSet>> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(Vec::new()) };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(middle) = name.strip_prefix("captions").and_then(|rest| rest.strip_suffix(".jsonl")) else { continue };
        let step = match middle.strip_prefix('-') {
            Some(step) => step.parse().ok(),
            None => middle.is_empty().then_some(u64::MAX),
        };
        if let Some(step) = step {
            found.push((step, path));
        }
    }
    found.sort();
    found.into_iter().map(|(step, path)| caption_set(step, &path)).collect()
}

fn caption_set(step: u64, path: &Path) -> Result<CaptionSet> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let captions = text
        .lines()
        .enumerate()
        .map(|(index, line)| serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), index + 1)));
    let label = if step == u64::MAX { "final".to_string() } else { format!("step {step}") };
    Ok(CaptionSet { label, captions: captions.collect::<Result<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read_with_its_captions_in_order() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
        write(METRICS_FILE, "{\"step\":1,\"loss\":4.0}\n{\"step\":2,\"loss\":2.0,\"eval_loss\":3.0}\n{\"step\":3,\"lo");
        write("captions.jsonl", "{\"id\":\"a\",\"caption\":\"three\"}\n");
        write("captions-20.jsonl", "{\"id\":\"a\",\"caption\":\"two\"}\n");
        write("captions-3.jsonl", "{\"id\":\"a\",\"caption\":\"one\"}\n");
        let run = Run::read(folder.path()).expect("read");
        assert_eq!(run.series("loss"), [(1.0, 4.0), (2.0, 2.0)]);
        assert_eq!((run.last("eval_loss"), run.mean("loss"), run.mean("nothing")), (Some(3.0), Some(3.0), None));
        let labels: Vec<&str> = run.captions.iter().map(|set| set.label.as_str()).collect();
        assert_eq!(labels, ["step 3", "step 20", "final"]);
    }

    #[test]
    fn long_series_are_thinned_and_sums_keep_their_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let lines: String =
            (1..=2500).map(|step| format!("{{\"step\":{step},\"loss\":1.0,\"supervised_tokens\":10}}\n")).collect();
        std::fs::write(folder.path().join(METRICS_FILE), lines).expect("written");
        let run = Run::read(folder.path()).expect("read");
        assert!(run.thinned("loss").len() <= MAX_POINTS && run.thinned("loss").iter().all(|&(_, loss)| loss == 1.0));
        assert_eq!(run.cumulative("supervised_tokens").last(), Some(&(2500.0, 25_000.0)));
        assert_eq!(run.keys().collect::<Vec<_>>(), ["loss", "supervised_tokens"]);
    }

    #[test]
    fn a_broken_line_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(METRICS_FILE), "{\"step\":1}\nnonsense\n{\"step\":2}\n").expect("written");
        let error = format!("{:#}", Run::read(folder.path()).map(|_| ()).expect_err("refused"));
        assert!(error.contains("metrics.jsonl:2"), "{error}");
    }
}
