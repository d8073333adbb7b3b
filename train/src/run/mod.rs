//! The identity of a run: `run.json` in its folder has its id and the settings that define the trained function. Checkpoints of another
//! run in the same folder are never resumed, removed or published.

pub mod clock;
pub mod folder;
pub mod function;
pub mod lock;

use crate::collective::guard::host;
use anyhow::{Result, bail};
use base::{files, json};
use function::Function;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
pub use store::adapter::RUN_RECORD;

/// Version of the record and of checkpoints.
const FORMAT: u32 = 1;
/// Digits of a run's id.
const ID_DIGITS: usize = 16;

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Version of this format.
    pub format: u32,
    /// Names the run; random.
    pub run_id: String,
    /// When it was begun, UTC.
    pub created_at: String,
    /// Program and machine that began it.
    pub created_by: String,
    /// What defines the function that is trained: the same for the whole run.
    pub function: Function,
    /// Rows of a step, when the run was begun.
    pub global_batch_size: usize,
    /// Runs that it goes on from, oldest first.
    pub lineage: Vec<Ancestor>,
    /// The checkpoint that it began with, relative to its folder or absolute.
    pub continues_from: Option<PathBuf>,
    /// The final output that is in the folder; absent while the run is not finished.
    pub finished: Option<FinalOutput>,
}

/// A run that another goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// Its id.
    pub run_id: String,
    /// The last step that is shared.
    pub global_step: u64,
}

/// What a finished run has put out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalOutput {
    /// Finished optimizer updates.
    pub global_step: u64,
    /// Step whose weights they are: an earlier one with `load_best_model_at_end`.
    pub weights_of_step: u64,
    /// When, UTC.
    pub finished_at: String,
}

impl RunRecord {
    /// A new run.
    pub fn new(function: Function, global_batch_size: usize) -> Self {
        let (host, process) = (host(), std::process::id());
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        // One process may begin several runs within one tick of the clock.
        static BEGUN: AtomicU64 = AtomicU64::new(0);
        let number = BEGUN.fetch_add(1, Ordering::Relaxed);
        let run_id =
            files::sha256_hex(format!("{host} {process} {nanos} {number}").as_bytes())[..ID_DIGITS].to_string();
        let created_by = format!("train {} on {host}", env!("CARGO_PKG_VERSION"));
        let (lineage, continues_from, finished) = (Vec::new(), None, None);
        let created_at = clock::now();
        let format = FORMAT;
        Self { format, run_id, created_at, created_by, function, global_batch_size, lineage, continues_from, finished }
    }

    /// A new run that goes on from a checkpoint of this one.
    pub fn continued(&self, global_step: u64, checkpoint: PathBuf) -> Self {
        let mut lineage = self.lineage.clone();
        lineage.iter_mut().for_each(|ancestor| ancestor.global_step = ancestor.global_step.min(global_step));
        lineage.push(Ancestor { run_id: self.run_id.clone(), global_step });
        let new = Self::new(self.function.clone(), self.global_batch_size);
        Self { lineage, continues_from: Some(checkpoint), ..new }
    }

    /// Whether a checkpoint is this run's: its own, or of a run that it goes on from, up to where it does.
    pub fn owns(&self, run_id: &str, global_step: u64) -> bool {
        let is_shared = |ancestor: &Ancestor| ancestor.run_id == run_id && global_step <= ancestor.global_step;
        self.run_id == run_id || self.lineage.iter().any(is_shared)
    }

    /// For messages: `run 0123456789abcdef, begun 2026-01-02T03:04:05Z`.
    pub fn title(&self) -> String {
        format!("run {}, begun {}", self.run_id, self.created_at)
    }

    /// Reads the record of a run's folder or of a checkpoint; `None` where there is none.
    ///
    /// # Errors
    /// A record that is unreadable or of another version.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(RUN_RECORD);
        let found: Option<Self> = json::read_if_there(&path)?;
        match found {
            Some(record) if record.format != FORMAT => bail!(
                "{}: format {}, expected {FORMAT}; use the version of train that made it, or another --output_dir",
                path.display(),
                record.format
            ),
            found => Ok(found),
        }
    }

    /// Writes the record of a folder.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn write(&self, dir: &Path) -> Result<()> {
        Ok(json::write(&dir.join(RUN_RECORD), self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_owns_its_checkpoints_and_those_before_the_step_it_goes_on_from() {
        let first = RunRecord::new(Function::default(), 4);
        let second = first.continued(50, PathBuf::from("checkpoint-50"));
        let third = second.continued(20, PathBuf::from("checkpoint-20"));
        let stranger = RunRecord::new(Function::default(), 4);
        for (run, of, step, owned) in [
            (&first, &first, 99, true),
            (&second, &second, 99, true),
            (&second, &first, 50, true),
            (&second, &first, 51, false),
            (&third, &second, 20, true),
            (&third, &second, 21, false),
            (&third, &first, 20, true),
            // The third goes on from before the second left the first.
            (&third, &first, 50, false),
            (&first, &second, 1, false),
            (&stranger, &first, 1, false),
        ] {
            assert_eq!(run.owns(&of.run_id, step), owned, "{} of {} at {step}", of.run_id, run.run_id);
        }
    }

    #[test]
    fn a_record_comes_back_and_another_format_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(RunRecord::read(dir.path()).expect("none"), None);
        let record = RunRecord::new(Function::default(), 4).continued(3, PathBuf::from("/runs/a/checkpoint-3"));
        record.write(dir.path()).expect("written");
        assert_eq!(RunRecord::read(dir.path()).expect("read"), Some(record.clone()));
        RunRecord { format: FORMAT + 1, ..record }.write(dir.path()).expect("written");
        assert!(RunRecord::read(dir.path()).expect_err("refused").to_string().contains("format 2, expected 1"));
    }
}
