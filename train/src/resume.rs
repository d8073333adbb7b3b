//! Going on from a checkpoint, whatever the number of ranks that wrote it.

use crate::checkpoint::{
    self, EXP_AVG, EXP_AVG_SQ, MANIFEST, MASTER, Manifest, OPTIMIZER, TRAINER_STATE, TrainerState,
};
use crate::collective::background::Communicator;
use crate::config::Config;
use crate::layout::Layout;
use crate::parameters;
use crate::zero::Partitions;
use anyhow::{Result, bail};
use common::checkpoint::TensorFiles;
use common::model::Llava;
use common::{Error, files, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A checkpoint that was found whole, and what was passed over on the way to it.
#[derive(Debug)]
pub struct Found {
    /// Its folder.
    pub dir: PathBuf,
    /// Where the run stood.
    pub state: TrainerState,
    /// Newer checkpoints that are not valid, each with the reason.
    pub skipped: Vec<String>,
}

/// The checkpoint that `resume_from_checkpoint` names; `None` when the run starts anew.
///
/// # Errors
/// A named checkpoint that is not valid; `true` with checkpoints of which none is valid.
pub fn find(config: &Config) -> Result<Option<Found>> {
    let candidates = match config.resume_from_checkpoint.as_deref() {
        None => return Ok(None),
        Some("false" | "False") => return Ok(None),
        Some("true" | "True") => checkpoint::list(&config.output_dir),
        Some(dir) => vec![PathBuf::from(dir)],
    };
    let mut skipped = Vec::new();
    for dir in candidates.into_iter().rev() {
        match validate(&dir) {
            Ok(state) => return Ok(Some(Found { dir, state, skipped })),
            Err(error) => skipped.push(error.to_string()),
        }
    }
    if skipped.is_empty() {
        return Ok(None);
    }
    bail!("no valid checkpoint: {}; remove them to start anew", skipped.join("; "));
}

/// As [`find`], for all ranks at once: rank 0 looks and checks, the others open what it found.
///
/// # Errors
/// As [`find`]; a rank that does not see the folder that rank 0 found.
pub fn find_together(config: &Config, communicator: &mut Communicator) -> Result<Option<Found>> {
    let found = if communicator.rank() == 0 { find(config)? } else { None };
    let step = found.as_ref().map_or(-1.0, |found| found.state.global_step as f64);
    let chosen =
        communicator.all_reduce("checkpoint to resume", [if communicator.rank() == 0 { step } else { 0.0 }])?;
    if communicator.rank() == 0 || chosen[0] < 0.0 {
        return Ok(found);
    }
    let dir = match config.resume_from_checkpoint.as_deref() {
        Some(dir) if !matches!(dir, "true" | "True") => PathBuf::from(dir),
        _ => config.output_dir.join(format!("{}{}", checkpoint::PREFIX, chosen[0])),
    };
    let state = json::read(&dir.join(TRAINER_STATE))?;
    Ok(Some(Found { dir, state, skipped: Vec::new() }))
}

/// Reads a checkpoint's state after checking every file against the manifest.
fn validate(dir: &Path) -> common::Result<TrainerState> {
    let remedy = "the checkpoint is damaged: an older one is used if there is one";
    let manifest: Manifest = json::read(&dir.join(MANIFEST))?;
    for (name, expected) in &manifest {
        let found = files::sha256_of_file(&dir.join(name))?;
        if found != *expected {
            return Err(Error::invalid(dir.join(name).display(), format!("SHA-256 {found}"), expected, remedy));
        }
    }
    json::read(&dir.join(TRAINER_STATE))
}

/// Refuses to go on with other data or another batch size than the checkpoint's.
///
/// # Errors
/// The difference, by name.
pub fn check(found: &Found, data_fingerprint: &str) -> Result<()> {
    if found.state.data_fingerprint != data_fingerprint {
        bail!(
            "{}: trained on other shards than --data_path; give the same shards, or start a new run with another \
             --output_dir",
            found.dir.display()
        );
    }
    Ok(())
}

/// Puts the checkpoint's moments into the partitions, and into the model the f32 values of weights that the checkpoint's
/// model directory holds rounded. (The weights themselves were loaded with the model.)
///
/// # Errors
/// Files that do not fit the model.
pub fn restore(found: &Found, model: &mut Llava, layout: &Layout, partitions: &mut Partitions) -> Result<()> {
    let shards = Stretches::open(&found.dir)?;
    for (index, block) in layout.blocks.iter().enumerate() {
        let (first, second) =
            (Arc::make_mut(&mut partitions.exp_avg[index]), Arc::make_mut(&mut partitions.exp_avg_sq[index]));
        for param in &block.params {
            for (range, start) in block.owned_ranges(param, layout.rank) {
                let part = start..start + range.len();
                let of_first = shards.copy(EXP_AVG, &param.name, range.start, &mut first[part.clone()]);
                let of_second = shards.copy(EXP_AVG_SQ, &param.name, range.start, &mut second[part]);
                if of_first + of_second != 2 * range.len() {
                    bail!("{}: no optimizer state of {}; choose another checkpoint", found.dir.display(), param.name);
                }
            }
        }
    }
    parameters::edit(model, layout, None, |_, slot, values| {
        shards.copy(MASTER, &slot.name, 0, values);
    });
    Ok(())
}

/// Where a stretch is stored: its first value, the file, the tensor.
type Place = (usize, usize, String);

/// The optimizer shards of a checkpoint, indexed by what they hold.
struct Stretches {
    files: Vec<TensorFiles>,
    /// By (kind, parameter).
    index: BTreeMap<(String, String), Vec<Place>>,
}

impl Stretches {
    fn open(dir: &Path) -> Result<Self> {
        let mut stretches = Self { files: Vec::new(), index: BTreeMap::new() };
        for entry in std::fs::read_dir(dir)?.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(OPTIMIZER) {
                continue;
            }
            let file = TensorFiles::open_file(&entry.path())?;
            for name in file.names() {
                let mut parts = name.splitn(3, '/');
                let (Some(kind), Some(param), Some(first)) = (parts.next(), parts.next(), parts.next()) else {
                    continue;
                };
                let Ok(first) = first.parse() else { continue };
                let key = (kind.to_string(), param.to_string());
                let place = (first, stretches.files.len(), name.to_string());
                stretches.index.entry(key).or_default().push(place);
            }
            stretches.files.push(file);
        }
        Ok(stretches)
    }

    /// Copies what is stored of `first..first + values.len()` of a parameter; returns how many values that was.
    fn copy(&self, kind: &str, param: &str, first: usize, values: &mut [f32]) -> usize {
        let places = self.index.get(&(kind.to_string(), param.to_string())).map_or(&[][..], Vec::as_slice);
        let mut copied = 0;
        for (start, file, name) in places {
            let Some(view) = self.files[*file].get(name) else { continue };
            let (from, to) = ((*start).max(first), (start + view.shape[0]).min(first + values.len()));
            if from < to {
                let stored = view.to_f32();
                values[from - first..to - first].copy_from_slice(&stored[from - start..to - start]);
                copied += to - from;
            }
        }
        copied
    }
}
