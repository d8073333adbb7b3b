//! The start of a run: new, or from a checkpoint of the same run, written by any number of ranks.

mod restore;

pub use restore::restore;

use crate::checkpoint::{self, MANIFEST, Manifest, RUN_CONFIG, TRAINER_STATE};
use crate::collective::background::Communicator;
use crate::config::{Config, Resume};
use crate::run::folder::{Remains, checkpoints_of, require_inputs_elsewhere, require_own_metrics};
use crate::run::function::Function;
use crate::run::{RUN_RECORD, RunRecord};
use crate::state::TrainerState;
use anyhow::{Context, Result, anyhow, bail};
use base::pulse::Pulse;
use base::{Error, files, json};
use std::path::{Path, PathBuf};

/// A checkpoint to go on from.
#[derive(Debug)]
pub struct Found {
    /// Its folder.
    pub dir: PathBuf,
    /// Where the run stood.
    pub state: TrainerState,
}

/// How a run begins, as rank 0 finds it.
#[derive(Debug)]
pub struct Beginning {
    /// The run.
    pub record: RunRecord,
    /// The checkpoint to resume from; `None` for a new run.
    pub found: Option<Found>,
    /// What an earlier run has left in the folder is to be removed, except for its checkpoints.
    pub clears: bool,
    /// What the user has to know.
    pub said: Vec<String>,
    /// Checkpoints that are not whole.
    pub passed_over: Vec<String>,
}

impl Beginning {
    fn anew(record: RunRecord, clears: bool, said: impl IntoIterator<Item = String>) -> Self {
        Self { record, found: None, clears, said: said.into_iter().collect(), passed_over: Vec::new() }
    }

    /// From the settings and the content of `output_dir`.
    ///
    /// # Errors
    /// A folder or a file of metrics that is used by another run; a run that trains another function; no checkpoint to go on
    /// from; an input in a folder that is to be cleared.
    pub fn of(config: &Config, function: &Function, global_batch_size: usize) -> Result<Self> {
        let remains = Remains::of(config)?;
        let new = || RunRecord::new(function.clone(), global_batch_size);
        let beginning = match config.resume() {
            Resume::No => start(config, &remains, new()),
            Resume::Newest => go_on(config, remains, function, new()),
            Resume::From(dir) => go_on_from(config, &remains, function, &dir),
        }?;
        if beginning.clears {
            require_inputs_elsewhere(config)?;
        }
        // A checkpoint of the folder is of the same run; one of another folder begins a new one, with metrics of its own.
        let found = beginning.found.as_ref().map(|found| found.dir.as_path());
        let of_checkpoint = found.filter(|dir| same_folder(dir.parent(), &config.output_dir));
        let folders = std::iter::once(config.output_dir.as_path()).chain(of_checkpoint);
        require_own_metrics(config, &folders.map(|dir| dir.join(RUN_CONFIG)).collect::<Vec<_>>())?;
        Ok(beginning)
    }
}

/// A new run, in a folder that no other has used.
fn start(config: &Config, remains: &Remains, new: RunRecord) -> Result<Beginning> {
    let Some(used) = remains.used_by() else { return Ok(Beginning::anew(new, false, None)) };
    let dir = config.output_dir.display();
    if !config.overwrite_output_dir {
        bail!(
            "{dir}: already used: found {used}; give another --output_dir, --resume_from_checkpoint true to resume the run \
             there, or --overwrite_output_dir true to replace it"
        );
    }
    remains.require_of_a_run()?;
    let replaced = format!("overwrite_output_dir: {used} and what belongs to it is replaced");
    Ok(Beginning::anew(new, true, [Some(replaced), others(remains.checkpoints.len())].into_iter().flatten()))
}

fn others(count: usize) -> Option<String> {
    (count > 0).then(|| {
        format!(
            "checkpoints of other runs stay in the folder and are not used: {count}; one of a step that this run saves too is \
             renamed checkpoint-STEP.of-RUN"
        )
    })
}

/// `resume_from_checkpoint true`: the newest valid checkpoint of the folder's run.
fn go_on(config: &Config, remains: Remains, function: &Function, new: RunRecord) -> Result<Beginning> {
    let dir = &config.output_dir;
    let Some(record) = remains.record.clone() else {
        return match (remains.used_by(), remains.checkpoints.is_empty()) {
            (None, _) => {
                let line = format!("resume_from_checkpoint: no run in {} yet: starting at step 1", dir.display());
                Ok(Beginning::anew(new, false, [line]))
            }
            (Some(_), false) => adopt(&remains.checkpoints, function, dir),
            (Some(used), true) => bail!(
                "{}: no checkpoint to resume from, but found {used}, which a new run would replace; give another --output_dir, \
                 or --overwrite_output_dir true without --resume_from_checkpoint",
                dir.display()
            ),
        };
    };
    require_same(&record, function, dir)?;
    let (own, foreign) = checkpoints_of(&record, &remains.checkpoints);
    let (found, skipped) = newest_valid(&own);
    let passed_over = warnings(&skipped);
    let mut said: Vec<String> = others(foreign.len()).into_iter().collect();
    if let Some((found, _)) = found {
        return Ok(Beginning { record, found: Some(found), clears: false, said, passed_over });
    }
    if let Some(path) = &record.continues_from {
        let (found, manifest) =
            validate(&dir.join(path)).with_context(|| format!("the run resumes from {}", path.display()))?;
        if manifest.is_of(&record) {
            return Ok(Beginning { record, found: Some(found), clears: false, said, passed_over });
        }
        bail!(
            "{}: the run resumes from another checkpoint of this name; start a new run in another --output_dir",
            path.display()
        );
    }
    if !own.is_empty() {
        return Err(none_valid(&skipped));
    }
    if let Some(weights) = &remains.weights {
        bail!(
            "{}: the output of {}, which has no checkpoint to go on from; give another --output_dir for a new run, or \
             --overwrite_output_dir true without --resume_from_checkpoint to replace it",
            weights.display(),
            record.title()
        );
    }
    said.push(format!("resume_from_checkpoint: no checkpoint of {} yet: starting at step 1", record.title()));
    Ok(Beginning::anew(new, true, said))
}

/// Checkpoints that were copied into a folder without its `run.json`: each has a copy of it.
fn adopt(checkpoints: &[PathBuf], function: &Function, output_dir: &Path) -> Result<Beginning> {
    let (found, skipped) = newest_valid(checkpoints);
    let Some((found, _)) = found else {
        return Err(none_valid(&skipped));
    };
    let record = record_of(&found.dir)?;
    require_same(&record, function, output_dir)?;
    let (_, foreign) = checkpoints_of(&record, checkpoints);
    let (said, passed_over) = (others(foreign.len()).into_iter().collect(), warnings(&skipped));
    Ok(Beginning { record, found: Some(found), clears: false, said, passed_over })
}

/// `resume_from_checkpoint DIR`.
fn go_on_from(config: &Config, remains: &Remains, function: &Function, dir: &Path) -> Result<Beginning> {
    let (found, manifest) = validate(dir)?;
    let of_checkpoint = record_of(dir)?;
    require_same(&of_checkpoint, function, dir)?;
    let (step, output_dir) = (found.state.global_step, &config.output_dir);
    let is_inside = same_folder(dir.parent(), output_dir);
    let continued = || {
        let place =
            if is_inside { PathBuf::from(dir.file_name().unwrap_or_default()) } else { std::path::absolute(dir)? };
        anyhow::Ok(of_checkpoint.continued(step, place))
    };
    let later = |record: &RunRecord| {
        let own = checkpoint::list_own(output_dir, record);
        own.into_iter().rfind(|dir| checkpoint::step_of(dir).is_some_and(|other| other > step))
    };
    let go_on = |record, clears, said: Vec<String>| {
        Ok(Beginning { record, found: Some(found), clears, said, passed_over: Vec::new() })
    };
    match &remains.record {
        Some(record) if manifest.is_of(record) => match later(record) {
            None => go_on(record.clone(), false, Vec::new()),
            // Else these would be resumed next time.
            Some(later) => {
                let line = format!("{} and others after step {step} are given up: they are not used", later.display());
                go_on(continued()?, false, vec![line])
            }
        },
        None if is_inside => go_on(of_checkpoint, false, Vec::new()),
        _ => match remains.used_by() {
            None => go_on(continued()?, false, Vec::new()),
            Some(used) if config.overwrite_output_dir => {
                remains.require_of_a_run()?;
                go_on(
                    continued()?,
                    true,
                    vec![format!("overwrite_output_dir: {used} and what belongs to it is replaced")],
                )
            }
            Some(used) => bail!(
                "{}: used by another run: found {used}; give another --output_dir, or --overwrite_output_dir true to replace it",
                output_dir.display()
            ),
        },
    }
}

fn same_folder(a: Option<&Path>, b: &Path) -> bool {
    let a = a.map(|a| if a.as_os_str().is_empty() { Path::new(".") } else { a });
    matches!((a.map(Path::canonicalize), b.canonicalize()), (Some(Ok(a)), Ok(b)) if a == b)
}

/// A run resumes only with the settings that define its function.
fn require_same(record: &RunRecord, function: &Function, place: &Path) -> Result<()> {
    let differences = record.function.differences(function);
    if differences.is_empty() {
        return Ok(());
    }
    bail!(
        "{}: {} trains another function: {}; give the run's values to resume it, or another --output_dir for a new run \
         (--overwrite_output_dir true without --resume_from_checkpoint replaces the run there)",
        place.display(),
        record.title(),
        differences.join("; ")
    )
}

fn record_of(checkpoint: &Path) -> Result<RunRecord> {
    let record = RunRecord::read(checkpoint)?;
    record.with_context(|| format!("{}: no {RUN_RECORD}; choose another checkpoint", checkpoint.display()))
}

fn warnings(skipped: &[Error]) -> Vec<String> {
    skipped.iter().map(|reason| format!("checkpoint passed over: {reason}")).collect()
}

fn none_valid(skipped: &[Error]) -> anyhow::Error {
    let reasons: Vec<String> = skipped.iter().map(Error::to_string).collect();
    anyhow!("no valid checkpoint: {}; remove them to start anew", reasons.join("; "))
}

/// The last of `candidates` that is whole, and why later ones are not.
fn newest_valid(candidates: &[PathBuf]) -> (Option<(Found, Manifest)>, Vec<Error>) {
    let mut skipped = Vec::new();
    for dir in candidates.iter().rev() {
        match validate(dir) {
            Ok(found) => return (Some(found), skipped),
            Err(error) => skipped.push(error),
        }
    }
    (None, skipped)
}

/// Reads a checkpoint's state after checking every file against the manifest.
fn validate(dir: &Path) -> base::Result<(Found, Manifest)> {
    let remedy = "the checkpoint is damaged: an older one is used if there is one";
    let manifest = Manifest::read(dir)?;
    for (name, expected) in &manifest.files {
        let path = files::in_folder(dir, name, dir.join(MANIFEST).display())?;
        let found = files::sha256_of_file(&path)?;
        if found != *expected {
            return Err(Error::invalid(path.display(), format!("SHA-256 {found}"), expected, remedy));
        }
    }
    let state = json::read(&dir.join(TRAINER_STATE))?;
    Ok((Found { dir: dir.to_path_buf(), state }, manifest))
}

/// Where the checkpoint is, as rank 0 tells the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// There is none: the run starts anew.
    Nowhere,
    /// Where the settings say.
    OfSettings,
    /// Where the run's record says.
    OfRecord,
    /// In `output_dir`, at this step.
    Step(u64),
}

impl Place {
    fn of(found: Option<&Found>, config: &Config) -> Self {
        match (found, config.resume()) {
            (None, _) => Self::Nowhere,
            (Some(_), Resume::From(_)) => Self::OfSettings,
            (Some(found), _) if same_folder(found.dir.parent(), &config.output_dir) => {
                Self::Step(found.state.global_step)
            }
            (Some(_), _) => Self::OfRecord,
        }
    }

    fn to_bytes(self) -> [u8; 9] {
        let (kind, step) = match self {
            Self::Nowhere => (0, 0),
            Self::OfSettings => (1, 0),
            Self::OfRecord => (2, 0),
            Self::Step(step) => (3, step),
        };
        let mut bytes = [kind; 9];
        bytes[1..].copy_from_slice(&step.to_le_bytes());
        bytes
    }

    fn from_bytes([kind, step @ ..]: [u8; 9]) -> Self {
        match kind {
            0 => Self::Nowhere,
            1 => Self::OfSettings,
            2 => Self::OfRecord,
            _ => Self::Step(u64::from_le_bytes(step)),
        }
    }

    /// The checkpoint's folder, if there is one.
    fn dir(self, config: &Config) -> Result<Option<PathBuf>> {
        let output_dir = &config.output_dir;
        Ok(match (self, config.resume()) {
            (Self::OfSettings, Resume::From(dir)) => Some(dir),
            (Self::Nowhere | Self::OfSettings, _) => None,
            (Self::OfRecord, _) => {
                let path = RunRecord::read(output_dir)?.and_then(|record| record.continues_from);
                let path = path.with_context(|| format!("{}: no {RUN_RECORD} of rank 0", output_dir.display()))?;
                Some(output_dir.join(path))
            }
            (Self::Step(step), _) => Some(checkpoint::dir_of(output_dir, step)),
        })
    }
}

/// As [`Beginning::of`], for all ranks at once: rank 0 looks and checks, the others open the checkpoint that it found. Only rank 0 has the
/// beginning; every rank has the checkpoint.
///
/// # Errors
/// As there; a rank that does not see the folder that rank 0 found.
pub fn begin_together(
    config: &Config,
    data_fingerprint: &str,
    communicator: &mut Communicator,
) -> Result<(Option<Beginning>, Option<Found>)> {
    let (rank, global_batch_size) = (communicator.rank(), config.global_batch_size(communicator.world_size()));
    // The others wait while it hashes whole checkpoints.
    let look = || match rank {
        0 => Beginning::of(config, &Function::of(config, data_fingerprint)?, global_batch_size).map(Some),
        _ => Ok(None),
    };
    let mut beginning = communicator.attend("checkpoint to resume", &Pulse::default(), look)??;
    let found = beginning.as_mut().and_then(|beginning| beginning.found.take());
    let place = Place::of(found.as_ref(), config);
    let places = communicator.all_gather_bytes("checkpoint to resume", place.to_bytes())?;
    if beginning.is_some() {
        return Ok((beginning, found));
    }
    let Some(dir) = Place::from_bytes(places[0]).dir(config)? else { return Ok((None, None)) };
    let state = json::read(&dir.join(TRAINER_STATE))?;
    Ok((None, Some(Found { dir, state })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_told_the_place_that_rank_0_found() {
        for place in [Place::Nowhere, Place::OfSettings, Place::OfRecord, Place::Step(0), Place::Step(u64::MAX)] {
            assert_eq!(Place::from_bytes(place.to_bytes()), place);
        }
    }
}
