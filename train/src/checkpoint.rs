//! Checkpoints: complete model or adapter directories with everything that a run needs to resume.
//!
//! A checkpoint is written under a temporary name, its manifest last, and appears by rename: a folder called
//! `checkpoint-<step>` is whole.

pub mod optimizer;

use crate::config::Config;
use crate::layout::Layout;
use crate::run::RunRecord;
use crate::setup::Trainee;
use crate::state::TrainerState;
use crate::zero::Optimizer;
use crate::zero::OptimizerState;
use anyhow::{Context, Result};
use base::{Error, files, json, names};
use model::config::WeightDtype;
use model::quantized;
use optimizer::Masters;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use store::adapter;
use store::checkpoint::{TensorFiles, copy_processor_files, model_tensors, replace_rounded, write_tensors};

/// Weights larger than this are written in parts, bytes.
pub const MAX_PART_BYTES: usize = 5_000_000_000;
/// Names of a checkpoint's folders start so.
pub const PREFIX: &str = "checkpoint-";
/// Hashes of all other files; written last.
pub const MANIFEST: &str = "manifest.json";
/// transformers' name of the run's state.
pub const TRAINER_STATE: &str = "trainer_state.json";
/// The settings of the run.
pub const RUN_CONFIG: &str = "train_config.json";

/// What one rank writes of a checkpoint: handles, not copies. Values that training changes before they are written are
/// copied then, and only those.
pub struct Snapshot {
    /// The settings.
    pub config: Config,
    /// Weights; `None` where this rank has none to write.
    pub trainee: Option<Trainee>,
    /// Whose moments are where.
    pub layout: Arc<Layout>,
    /// This rank's moments, and masters where the model's values are rounded.
    pub optimizer: OptimizerState,
    /// The run, on rank 0.
    pub record: Option<Arc<RunRecord>>,
}

impl Snapshot {
    /// Of this moment; the whole model must have its new values.
    pub fn take(config: &Config, record: Option<&Arc<RunRecord>>, trainee: &Trainee, optimizer: &Optimizer) -> Self {
        let (layout, optimizer) = (optimizer.layout(), optimizer.state());
        let needs_weights = layout.rank == 0 || !optimizer.has_masters() && is_rounded(trainee);
        Self {
            config: config.clone(),
            trainee: needs_weights.then(|| trainee.clone()),
            layout: Arc::clone(layout),
            optimizer,
            record: record.cloned(),
        }
    }

    /// Writes this rank's files into `dir` and gives their hashes. What is written is freed at once. The run's state is not among
    /// them: [`publish`] writes it.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn write(self, dir: &Path) -> Result<Hashes> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let Self { config, trainee, layout, optimizer: kept, record } = self;
        let path = dir.join(optimizer::file_name(layout.rank, layout.world_size));
        let masters = match (kept.has_masters(), &trainee) {
            (true, _) => Masters::OfOptimizer,
            (false, Some(trainee)) if is_rounded(trainee) => Masters::OfModel(&trainee.model),
            _ => Masters::InModelDirectory,
        };
        optimizer::save(&masters, &layout, kept, &path)?;
        let mut hashes = Hashes::new();
        add_hash(&mut hashes, &path)?;
        if let (0, Some(trainee)) = (layout.rank, trainee) {
            save_weights(&config, trainee, dir)?;
            json::write(&dir.join(RUN_CONFIG), &config)?;
            record.map_or(Ok(()), |record| record.write(dir))?;
            files_of_all_ranks(dir)?.iter().try_for_each(|path| add_hash(&mut hashes, path))?;
        }
        Ok(hashes)
    }
}

/// Whether the model directory holds the weights with fewer bits than training does.
fn is_rounded(trainee: &Trainee) -> bool {
    trainee.lora.is_none() && trainee.config.dtype != WeightDtype::F32
}

/// Writes the complete model (or adapter) directory.
///
/// # Errors
/// What the operating system refuses.
pub fn save_weights(config: &Config, trainee: Trainee, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let Trainee { config: llava_config, model, lora } = trainee;
    match &lora {
        Some(lora) => {
            let base = std::path::absolute(&config.model_name_or_path)?;
            adapter::save_adapter(&model, lora, &base.display().to_string(), dir)?;
        }
        None => {
            llava_config.write(dir)?;
            // What is held in few bits is frozen, and written as the base's files have it.
            let rounded = quantized::weights(&model);
            let base = (!rounded.is_empty()).then(|| TensorFiles::open(&config.model_name_or_path)).transpose()?;
            // Only the tensors' own handles stay, and each of them until it is written.
            let mut tensors = model_tensors(&model, llava_config.dtype);
            drop(model);
            if let Some(base) = &base {
                replace_rounded(&mut tensors, rounded, base, llava_config.dtype)?;
            }
            write_tensors(tensors, dir, MAX_PART_BYTES)?;
            copy_processor_files(&config.model_name_or_path, dir)?;
        }
    }
    Ok(())
}

/// Files that belong to no single rank and are not hidden: another rank's optimizer shard has a temporary name until it is whole.
fn files_of_all_ranks(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let entries = entries.collect::<std::io::Result<Vec<_>>>().with_context(|| dir.display().to_string())?;
    let shared = |name: &str| !name.starts_with(optimizer::PREFIX) && !name.starts_with('.');
    let shared = entries.into_iter().filter(|entry| shared(&entry.file_name().to_string_lossy()));
    Ok(shared.map(|entry| entry.path()).collect())
}

/// File name → SHA-256 of a folder's files.
pub type Hashes = BTreeMap<String, String>;

/// `manifest.json`: whose checkpoint it is, and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The run that wrote it.
    pub run_id: String,
    /// Finished optimizer updates.
    pub global_step: u64,
    /// All other files.
    pub files: Hashes,
}

impl Manifest {
    /// Reads a checkpoint's manifest.
    ///
    /// # Errors
    /// None, or an unreadable one; one of a version that gave runs no id.
    pub fn read(dir: &Path) -> base::Result<Self> {
        let path = dir.join(MANIFEST);
        if !path.exists() {
            let found = format!("no {MANIFEST}");
            let expected = "the folder of a whole checkpoint, as train writes it (runs/name/checkpoint-500)";
            let remedy = "give one, or --resume_from_checkpoint true for the newest in --output_dir";
            return Err(Error::invalid(dir.display(), found, expected, remedy));
        }
        let manifest: serde_json::Value = json::read(&path)?;
        if manifest.get("run_id").is_none() {
            let remedy = "checkpoints of older versions cannot be resumed: begin a new run in another --output_dir";
            return Err(Error::invalid(path.display(), "no run_id", "a checkpoint of this version of train", remedy));
        }
        serde_json::from_value(manifest).map_err(|error| {
            Error::invalid(
                path.display(),
                error,
                "a checkpoint's manifest",
                "an older checkpoint is used if there is one",
            )
        })
    }

    /// Whether the checkpoint is the run's.
    pub fn is_of(&self, record: &RunRecord) -> bool {
        record.owns(&self.run_id, self.global_step)
    }
}

fn add_hash(hashes: &mut Hashes, path: &Path) -> Result<()> {
    if let Some(name) = path.file_name() {
        hashes.insert(name.to_string_lossy().into_owned(), files::sha256_of_file(path)?);
    }
    Ok(())
}

/// Gives a complete folder the run's state, its manifest and its name. A checkpoint of the run that had the name before is gone
/// only after that; one of another run gets another name, which is returned.
///
/// # Errors
/// What the operating system refuses.
pub fn publish(
    temporary: &Path,
    dir: &Path,
    state: &TrainerState,
    mut manifest: Manifest,
    record: &RunRecord,
) -> Result<Option<PathBuf>> {
    let path = temporary.join(TRAINER_STATE);
    json::write(&path, state)?;
    add_hash(&mut manifest.files, &path)?;
    json::write(&temporary.join(MANIFEST), &manifest)?;
    let replaced = hidden(dir, REPLACED);
    let kept = of_another_run(dir, record).map(|run| kept_as(dir, &run));
    if let Some(kept) = &kept {
        files::rename(dir, kept)?;
    } else if dir.exists() {
        let _ = std::fs::remove_dir_all(&replaced);
        files::rename(dir, &replaced)?;
    }
    files::publish(temporary, dir)?;
    let _ = std::fs::remove_dir_all(&replaced);
    Ok(kept)
}

/// The run whose checkpoint a folder is, if this run or one that it goes on from has not written it. A damaged manifest may be
/// the run's.
fn of_another_run(dir: &Path, record: &RunRecord) -> Option<String> {
    if !dir.exists() {
        return None;
    }
    let manifest: Option<serde_json::Value> = json::read_if_there(&dir.join(MANIFEST)).ok()?;
    let run = manifest.as_ref().and_then(|manifest| manifest.get("run_id")?.as_str());
    let is_own = |run: &str| record.run_id == run || record.lineage.iter().any(|ancestor| ancestor.run_id == run);
    match run {
        Some(run) if is_own(run) => None,
        // The id becomes a part of a file name.
        Some(run) if names::is_plain(run) => Some(run.to_string()),
        _ => Some("unknown".to_string()),
    }
}

/// `run/checkpoint-5` → `run/checkpoint-5.of-<run>`, with a number where that is taken.
fn kept_as(dir: &Path, run: &str) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let numbered = |number: u64| match number {
        1 => dir.with_file_name(format!("{name}.of-{run}")),
        _ => dir.with_file_name(format!("{name}.of-{run}-{number}")),
    };
    (1..).map(numbered).find(|path| !path.exists()).unwrap_or_else(|| numbered(1))
}

/// Endings of the hidden folders beside a checkpoint: one that is being written, one that another takes the place of.
pub const WRITING: &str = "writing";
const REPLACED: &str = "replaced";

/// `run/checkpoint-5` → `run/.checkpoint-5.<ending>`.
pub fn hidden(dir: &Path, ending: &str) -> PathBuf {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    dir.with_file_name(format!(".{name}.{ending}"))
}

/// Puts a run's folder in order after a kill: half-written checkpoints go, a whole one that was to be replaced comes back.
///
/// # Errors
/// What the operating system refuses.
pub fn tidy(output_dir: &Path) -> Result<()> {
    for path in std::fs::read_dir(output_dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(name) = name.strip_prefix('.').filter(|name| name.starts_with(PREFIX)) else { continue };
        let context = || path.display().to_string();
        match name.rsplit_once('.') {
            Some((name, REPLACED)) if !output_dir.join(name).exists() => {
                files::rename(&path, &output_dir.join(name))?;
            }
            Some((_, WRITING | REPLACED)) => std::fs::remove_dir_all(&path).with_context(context)?,
            _ => {}
        }
    }
    Ok(())
}

/// The folder of a step's checkpoint.
pub fn dir_of(output_dir: &Path, step: u64) -> PathBuf {
    output_dir.join(format!("{PREFIX}{step}"))
}

/// Copies a checkpoint's model (or adapter) files, and nothing else of it.
///
/// # Errors
/// What the operating system refuses.
pub fn copy_weights(checkpoint: &Path, dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(checkpoint).with_context(|| checkpoint.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| names::is_model_file(name) || names::is_adapter_file(name)) {
            files::copy_atomically(&entry.path(), &dir.join(&name))?;
        }
    }
    Ok(())
}

/// The step of a checkpoint's folder by its name.
pub fn step_of(dir: &Path) -> Option<u64> {
    dir.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()
}

/// All checkpoints of a run, oldest first.
pub fn list(output_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(output_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(|path| step_of(path).is_some()).collect();
    found.sort_by_key(|path| step_of(path));
    found
}

/// The run's own checkpoints, oldest first: whole ones, of no other run in the same folder.
pub fn list_own(output_dir: &Path, record: &RunRecord) -> Vec<PathBuf> {
    let mut found = list(output_dir);
    found.retain(|dir| Manifest::read(dir).is_ok_and(|manifest| manifest.is_of(record)));
    found
}

/// The run's own checkpoint with the lowest of `costs` (step and cost of every evaluation), and that cost. Which one it
/// is follows from the files that exist: a checkpoint that could not be written or was removed is not it.
pub fn best(
    output_dir: &Path,
    record: &RunRecord,
    costs: impl IntoIterator<Item = (u64, f64)>,
) -> Option<(PathBuf, f64)> {
    let own = list_own(output_dir, record);
    let (step, cost) = best_step(own.iter().filter_map(|dir| step_of(dir)), costs)?;
    Some((dir_of(output_dir, step), cost))
}

/// The first of `steps` with the lowest cost, and that cost.
fn best_step(steps: impl IntoIterator<Item = u64>, costs: impl IntoIterator<Item = (u64, f64)>) -> Option<(u64, f64)> {
    let costs: BTreeMap<u64, f64> = costs.into_iter().filter(|(_, cost)| cost.is_finite()).collect();
    let evaluated = steps.into_iter().filter_map(|step| Some((step, *costs.get(&step)?)));
    evaluated.min_by(|(_, a), (_, b)| a.total_cmp(b))
}

/// Names the best checkpoint in a state: of the run's own that exist, and of `published`, the step of one that is about to. No
/// checkpoint that was removed, given up or could not be written is named.
pub fn name_best(state: &mut TrainerState, output_dir: &Path, record: &RunRecord, published: Option<u64>) {
    let own = list_own(output_dir, record);
    let mut steps: Vec<u64> = own.iter().filter_map(|dir| step_of(dir)).chain(published).collect();
    steps.sort_unstable();
    let best = best_step(steps, state.costs());
    // Relative to `output_dir`: the folder may be moved.
    state.best_model_checkpoint = best.map(|(step, _)| format!("{PREFIX}{step}"));
    state.run.best_checkpoint_metric = best.map(|(_, cost)| state.run.best_by.cost(cost));
}

/// Removes the run's oldest checkpoints until `limit` are left (0: all stay). `newest` is whole and stays, as does the best one.
/// Those of later steps do not count: they were given up, or are damaged, and must not push out good ones. Those of other runs
/// are not touched.
///
/// # Errors
/// What the operating system refuses.
pub fn prune(output_dir: &Path, record: &RunRecord, limit: usize, newest: u64, best: Option<&Path>) -> Result<()> {
    let mut found = list_own(output_dir, record);
    found.retain(|dir| step_of(dir).is_some_and(|step| step <= newest));
    let surplus = if limit == 0 { 0 } else { found.len().saturating_sub(limit) };
    for dir in found[..surplus].iter().filter(|dir| best != Some(dir)) {
        // Out of sight first: a kill in between must not leave a half-deleted one under the name of a whole one.
        let hidden = hidden(dir, WRITING);
        files::rename(dir, &hidden)?;
        std::fs::remove_dir_all(&hidden).with_context(|| hidden.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::function::Function;

    /// A folder with checkpoints that consist of a manifest.
    fn run_with(steps: &[u64], record: &RunRecord) -> tempfile::TempDir {
        let run = tempfile::tempdir().expect("a temporary folder");
        steps.iter().for_each(|&step| add(run.path(), step, record));
        run
    }

    fn add(run: &Path, step: u64, record: &RunRecord) {
        let manifest = Manifest { run_id: record.run_id.clone(), global_step: step, files: Hashes::new() };
        std::fs::create_dir(dir_of(run, step)).expect("a folder");
        json::write(&dir_of(run, step).join(MANIFEST), &manifest).expect("written");
    }

    fn record() -> RunRecord {
        RunRecord::new(Function::default(), 4)
    }

    fn steps(run: &Path) -> Vec<u64> {
        list(run).iter().filter_map(|dir| step_of(dir)).collect()
    }

    #[test]
    fn the_limit_never_takes_the_newest_or_the_best_and_later_ones_do_not_count() {
        for (found, limit, newest, best, left) in [
            (&[2, 4, 10][..], 2, 10, None, &[4, 10][..]),
            (&[2, 4, 10], 0, 10, None, &[2, 4, 10]),
            (&[2, 4, 10], 1, 10, Some(2), &[2, 10]),
            (&[3, 4, 6, 9], 2, 4, None, &[3, 4, 6, 9]),
            (&[2, 3, 4, 6, 9], 1, 4, None, &[4, 6, 9]),
        ] {
            let record = record();
            let run = run_with(found, &record);
            let best = best.map(|step| dir_of(run.path(), step));
            prune(run.path(), &record, limit, newest, best.as_deref()).expect("pruned");
            assert_eq!(steps(run.path()), left, "{found:?}, limit {limit}");
        }
    }

    #[test]
    fn checkpoints_of_other_runs_are_neither_removed_nor_the_best() {
        let (older, run) = (record(), record());
        let dir = run_with(&[1, 3, 5, 7], &older);
        let go_on = older.continued(3, dir_of(dir.path(), 3));
        [2, 4].iter().for_each(|&step| add(dir.path(), step, &go_on));
        [6, 8].iter().for_each(|&step| add(dir.path(), step, &run));
        std::fs::create_dir(dir_of(dir.path(), 9)).expect("one without a manifest");
        let losses = [(1, 0.9), (2, 0.8), (3, 0.7), (4, f64::NAN), (5, 0.1), (6, 0.6), (7, 0.2), (8, 0.6), (9, 0.0)];
        for (record, expected) in [(&older, 5), (&go_on, 3), (&run, 6)] {
            let (best, _) = best(dir.path(), record, losses).expect("one");
            assert_eq!(step_of(&best), Some(expected), "{}", record.title());
        }
        prune(dir.path(), &run, 1, 8, None).expect("pruned");
        assert_eq!(steps(dir.path()), [1, 2, 3, 4, 5, 7, 8, 9]);
        // What a run goes on from is its own, up to that step.
        prune(dir.path(), &go_on, 1, 4, None).expect("pruned");
        assert_eq!(steps(dir.path()), [4, 5, 7, 8, 9]);
    }

    #[test]
    fn another_runs_checkpoint_of_the_same_step_keeps_its_content_under_another_name() {
        let (older, run) = (record(), record());
        let go_on = older.continued(3, PathBuf::from("checkpoint-3"));
        let of_older = format!("checkpoint-5.of-{}", older.run_id);
        for (saves, owner, expected) in [
            (&run, Some(&older), Some(of_older.as_str())),
            (&run, Some(&run), None),
            (&older, Some(&older), None),
            // Given up when the run went on from step 3.
            (&go_on, Some(&older), None),
            (&run, None, Some("checkpoint-5.of-unknown")),
        ] {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let (place, temporary) = (dir_of(dir.path(), 5), dir.path().join("new"));
            match owner {
                Some(owner) => add(dir.path(), 5, owner),
                None => std::fs::create_dir(&place).expect("a folder"),
            }
            std::fs::write(place.join("weights"), "old").expect("written");
            std::fs::create_dir(&temporary).expect("a folder");
            let manifest = Manifest { run_id: saves.run_id.clone(), global_step: 5, files: Hashes::new() };
            let kept = publish(&temporary, &place, &TrainerState::default(), manifest, saves).expect("published");
            assert_eq!(kept, expected.map(|name| dir.path().join(name)));
            assert!(Manifest::read(&place).expect("published").is_of(saves) && !place.join("weights").exists());
            assert!(kept.is_none_or(|kept| kept.join("weights").exists()));
            assert_eq!(steps(dir.path()), [5]);
        }
    }

    #[test]
    fn a_manifest_of_an_older_version_says_so() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join(MANIFEST), r#"{"model.safetensors": "00"}"#).expect("written");
        let error = Manifest::read(dir.path()).expect_err("refused").to_string();
        assert!(error.contains("no run_id") && error.contains("--output_dir"), "{error}");
    }

    #[test]
    fn after_a_kill_halves_go_and_replaced_ones_come_back() {
        let run = run_with(&[2], &record());
        for name in [".checkpoint-4.writing", ".checkpoint-2.replaced", ".checkpoint-3.replaced"] {
            std::fs::create_dir(run.path().join(name)).expect("a folder");
        }
        tidy(run.path()).expect("tidied");
        assert_eq!(steps(run.path()), [2, 3]);
        assert_eq!(std::fs::read_dir(run.path()).expect("readable").count(), 2);
    }

    #[test]
    fn another_ranks_shard_is_no_file_of_all_ranks_finished_or_not() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let shards = ["optimizer-00001-of-00002.safetensors", ".optimizer-00002-of-00002.safetensors.tmp"];
        for name in shards.iter().chain(&["model.safetensors", TRAINER_STATE]) {
            std::fs::write(dir.path().join(name), "").expect("written");
        }
        let mut found: Vec<_> = files_of_all_ranks(dir.path()).expect("readable");
        found.sort();
        assert_eq!(found, ["model.safetensors", TRAINER_STATE].map(|name| dir.path().join(name)));
    }
}
