//! Checkpoints beside the training: every rank writes its part on a thread of its own, and when all have told so, rank 0
//! publishes the whole. A checkpoint that fails is a warning; the run continues and earlier checkpoints stay.

use crate::checkpoint::optimizer;
use crate::checkpoint::{self, Hashes, Manifest, Snapshot, WRITING};
use crate::collective::background::Communicator;
use crate::config::Config;
use crate::run::RunRecord;
use crate::state::TrainerState;
use anyhow::{Result, anyhow};
use base::files;
use base::pulse::Pulse;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Writes checkpoints in the background, one at a time.
pub struct Saver {
    output_dir: PathBuf,
    limit: usize,
    /// The run, on rank 0.
    record: Option<Arc<RunRecord>>,
    writing: Option<Writing>,
    publishing: Option<JoinHandle<()>>,
    /// Whether the threads that write and publish go on.
    pulse: Pulse,
    /// Time that training was paused for checkpoints since [`Self::take_stalled`].
    stalled: Duration,
}

/// A checkpoint whose files are being written.
struct Writing {
    dir: PathBuf,
    /// Where the run stood.
    state: TrainerState,
    started: Instant,
    stalled: Duration,
    thread: JoinHandle<Result<Hashes>>,
}

impl Saver {
    /// For the checkpoints of a run.
    pub fn new(config: &Config, record: Option<Arc<RunRecord>>) -> Self {
        let (output_dir, limit) = (config.output_dir.clone(), config.save_total_limit);
        let (pulse, stalled) = (Pulse::default(), Duration::ZERO);
        Self { output_dir, limit, record, writing: None, publishing: None, pulse, stalled }
    }

    /// Begins a checkpoint; every rank does at the same step. One that is still being written is waited for.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn start(
        &mut self,
        communicator: &mut Communicator,
        snapshot: Snapshot,
        state: TrainerState,
        since: Instant,
    ) -> Result<()> {
        self.conclude(communicator)?;
        let dir = checkpoint::dir_of(&self.output_dir, state.global_step);
        let temporary = checkpoint::hidden(&dir, WRITING);
        let thread = std::thread::Builder::new().name(format!("rank {} saving", communicator.rank()));
        let pulse = self.pulse.clone();
        let thread = thread.spawn(move || pulse.during(|| snapshot.write(&temporary)))?;
        let stalled = since.elapsed();
        self.stalled += stalled;
        self.writing = Some(Writing { dir, state, started: since, stalled, thread });
        Ok(())
    }

    /// Whether this rank has written its part and waits for the others: counted over the ranks once a step.
    pub fn is_written(&self) -> bool {
        self.writing.as_ref().is_some_and(|writing| writing.thread.is_finished())
    }

    /// Time that training was paused since the last call.
    pub fn take_stalled(&mut self) -> Duration {
        std::mem::take(&mut self.stalled)
    }

    /// Ends the checkpoint that is being written, waiting if it is not done: published when every rank has written its part,
    /// removed when one could not.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn conclude(&mut self, communicator: &mut Communicator) -> Result<()> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let Writing { dir, mut state, started, stalled, thread } = writing;
        let global_step = state.global_step;
        let since = Instant::now();
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let publishing = self.publishing.take();
        let join = || {
            publishing.into_iter().for_each(join_publishing);
            thread.join().unwrap_or_else(|_| Err(anyhow!("the thread that writes it panicked")))
        };
        let written = communicator.attend("checkpoint", &self.pulse, join)?;
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        let own_file = optimizer::file_name(rank, world_size);
        let own_hash = written.as_ref().ok().and_then(|hashes| files::from_hex(hashes.get(&own_file)?));
        if let Err(error) = &written {
            tracing::warn!("rank {rank}: {name} could not be written: {error:#}");
        }
        let told = communicator.all_gather_bytes("checkpoint", tell_others(own_hash.as_deref()))?;
        self.stalled += since.elapsed();
        let Some(record) = self.record.clone() else { return Ok(()) };
        let temporary = checkpoint::hidden(&dir, WRITING);
        let hashes: Vec<Option<&[u8]>> = told.iter().map(told_by).collect();
        let failed: Vec<usize> = (0..world_size).filter(|&rank| hashes[rank].is_none()).collect();
        let (Ok(mut files), true) = (written, failed.is_empty()) else {
            give_up(&temporary, &name, &format!("ranks {failed:?} could not write it"));
            return Ok(());
        };
        let shards = hashes.into_iter().flatten().enumerate();
        files.extend(shards.map(|(rank, hash)| (optimizer::file_name(rank, world_size), files::hex(hash))));
        let manifest = Manifest { run_id: record.run_id.clone(), global_step, files };
        let (output_dir, limit) = (self.output_dir.clone(), self.limit);
        let stalled = stalled + since.elapsed();
        let publish = move || {
            // Earlier checkpoints have their names by now, or are given up.
            checkpoint::name_best(&mut state, &output_dir, &record, Some(global_step));
            match checkpoint::publish(&temporary, &dir, &state, manifest, &record) {
                Err(error) => give_up(&temporary, &name, &format!("{error:#}")),
                Ok(kept) => {
                    if let Some(kept) = kept {
                        tracing::info!("{name} of another run is {} from now on", kept.display());
                    }
                    let (stalled, took) = (stalled.as_secs_f64(), started.elapsed().as_secs_f64());
                    tracing::info!("{name} is saved: training was paused for {stalled:.2} of {took:.2} s");
                    let best = state.best_model_checkpoint.map(|name| output_dir.join(name));
                    if let Err(error) = checkpoint::prune(&output_dir, &record, limit, global_step, best.as_deref()) {
                        tracing::warn!("an old checkpoint stays: {error:#}");
                    }
                }
            }
        };
        let pulse = self.pulse.clone();
        let thread = std::thread::Builder::new().name("publishing".to_string());
        self.publishing = Some(thread.spawn(move || pulse.during(publish))?);
        Ok(())
    }

    /// As [`Self::conclude`], and waits until the checkpoint has its name.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn finish(&mut self, communicator: &mut Communicator) -> Result<()> {
        self.conclude(communicator)?;
        let publishing = self.publishing.take();
        communicator.attend("last checkpoint", &self.pulse, || publishing.into_iter().for_each(join_publishing))?;
        Ok(())
    }
}

/// What a rank tells the others of its part of a checkpoint: whether it is written, and the SHA-256 of its optimizer shard.
const TOLD_BYTES: usize = 1 + 32;

fn tell_others(hash: Option<&[u8]>) -> [u8; TOLD_BYTES] {
    let mut told = [0; TOLD_BYTES];
    if let Some(hash) = hash {
        told[0] = 1;
        told[1..].copy_from_slice(hash);
    }
    told
}

fn told_by(told: &[u8; TOLD_BYTES]) -> Option<&[u8]> {
    let [is_written, hash @ ..] = told;
    (*is_written == 1).then_some(hash)
}

fn join_publishing(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::warn!("the thread that publishes checkpoints panicked");
    }
}

fn give_up(temporary: &Path, name: &str, cause: &str) {
    let _ = std::fs::remove_dir_all(temporary);
    tracing::warn!("{name} is not saved: {cause}; earlier checkpoints are untouched, and training continues");
}
