//! A writer a shard: row groups are appended, hashed and published by a thread of their shard, so that as many shards are
//! written at once as workers can fill.

use super::ledger::{Rejected, ShardLedger};
use super::plan::Plan;
use anyhow::{Result, anyhow, bail};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use shards::{EncodedRowGroup, ShardWriter, Split};
use std::collections::VecDeque;
use std::path::Path;
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// A bounded number of row groups exist at a time: each keeps its place until it is in its file, or dropped.
pub struct Places {
    taken: Sender<()>,
    left: Receiver<()>,
}

/// The place of one row group.
pub struct Place(Receiver<()>);

impl Places {
    /// So many.
    pub fn new(places: usize) -> Self {
        let (taken, left) = bounded(places);
        Self { taken, left }
    }

    /// Waits for one.
    pub fn take(&self) -> Place {
        // Cannot fail: both ends are here.
        let _ = self.taken.send(());
        Place(self.left.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

/// What became of the rows of one row group.
pub struct Made {
    /// Rows of the dataset.
    pub rows_in: usize,
    /// In the order of [`Split::ALL`].
    pub row_groups: [Option<EncodedRowGroup>; 2],
    /// Rows that are in neither.
    pub rejected: Vec<Rejected>,
    /// Given back when the row groups are written.
    pub place: Place,
}

/// The shards that are being written.
pub struct Writers<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    plan: &'env Plan,
    output: &'env Path,
    /// Shards written or waiting for the disk at once.
    limit: usize,
    open: VecDeque<Writing<'scope>>,
}

struct Writing<'scope> {
    shard: usize,
    /// Closed when the shard has all its rows.
    row_groups: Option<Sender<Made>>,
    thread: ScopedJoinHandle<'scope, Result<()>>,
}

impl<'scope, 'env> Writers<'scope, 'env> {
    /// None yet.
    pub fn new(scope: &'scope Scope<'scope, 'env>, plan: &'env Plan, output: &'env Path, limit: usize) -> Self {
        Self { scope, plan, output, limit, open: VecDeque::new() }
    }

    /// Hands over the next row group; shards come one after the other. Fails for the reason for which a writer has, as soon
    /// as the shards before that one are published.
    pub fn append(&mut self, shard: usize, made: Made) -> Result<()> {
        self.join_finished()?;
        if self.open.back().is_none_or(|writing| writing.shard != shard) {
            self.close_last();
            if self.open.len() >= self.limit {
                self.join_first()?;
            }
            self.start(shard)?;
        }
        let last = self.open.back().and_then(|writing| writing.row_groups.as_ref());
        match last.map(|row_groups| row_groups.send(made)) {
            Some(Ok(())) => Ok(()),
            _ => self.finish().and(Err(anyhow!("the writer of shard {shard} stopped unexpectedly"))),
        }
    }

    /// Waits until every shard is published. The first error in the order of shards.
    pub fn finish(&mut self) -> Result<()> {
        self.close_last();
        while !self.open.is_empty() {
            self.join_first()?;
        }
        Ok(())
    }

    fn start(&mut self, shard: usize) -> Result<()> {
        // Places bound what may wait here.
        let (to_writer, row_groups) = unbounded();
        let (plan, output) = (self.plan, self.output);
        let write = move || write_shard(shard, &row_groups, plan, output);
        let thread = Builder::new().name("writer".to_owned()).spawn_scoped(self.scope, write)?;
        self.open.push_back(Writing { shard, row_groups: Some(to_writer), thread });
        Ok(())
    }

    fn close_last(&mut self) {
        if let Some(last) = self.open.back_mut() {
            last.row_groups = None;
        }
    }

    /// In the order of shards, so that the error is the one that waiting for all would give.
    fn join_finished(&mut self) -> Result<()> {
        while self.open.front().is_some_and(|first| first.thread.is_finished()) {
            self.join_first()?;
        }
        Ok(())
    }

    fn join_first(&mut self) -> Result<()> {
        match self.open.pop_front() {
            None => Ok(()),
            Some(first) => first
                .thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the writer of shard {} stopped unexpectedly", first.shard))),
        }
    }
}

/// Everything about one shard, from its first row group to its ledger. Without all its rows nothing of it is published.
fn write_shard(shard: usize, row_groups: &Receiver<Made>, plan: &Plan, output: &Path) -> Result<()> {
    let mut open = OpenShard::default();
    for Made { rows_in, row_groups, rejected, place } in row_groups {
        open.append(shard, row_groups, plan, output)?;
        open.ledger.rows_in += rows_in;
        open.ledger.rejected.extend(rejected);
        drop(place);
    }
    let (found, expected) = (open.ledger.rows_in, plan.rows_of_shard(shard));
    if found != expected {
        bail!(
            "shard {shard} ended after {found} rows, expected {expected}; if the dataset changed during the run, start again in an empty folder"
        );
    }
    open.publish(output, shard)
}

/// A shard whose row groups arrive.
#[derive(Default)]
struct OpenShard {
    /// In the order of [`Split::ALL`]; opened by the first row group.
    writers: [Option<ShardWriter>; 2],
    ledger: ShardLedger,
}

impl OpenShard {
    fn append(
        &mut self,
        shard: usize,
        row_groups: [Option<EncodedRowGroup>; 2],
        plan: &Plan,
        output: &Path,
    ) -> Result<()> {
        for ((row_group, writer), split) in row_groups.into_iter().zip(&mut self.writers).zip(Split::ALL) {
            let Some(row_group) = row_group else { continue };
            let writer = match writer {
                Some(writer) => writer,
                None => writer.insert(ShardWriter::create(output, split, shard, &plan.metadata)?),
            };
            writer.append(row_group)?;
        }
        Ok(())
    }

    /// The files, then the ledger that says that they are there.
    fn publish(mut self, output: &Path, shard: usize) -> Result<()> {
        for writer in self.writers.into_iter().flatten() {
            self.ledger.files.push(writer.finish()?);
        }
        self.ledger.write(output, shard)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::shards::census::ImageFiles;
    use crate::shards::ledger::LEDGER_DIR;
    use crate::shards::plan::Records;
    use shards::{CodeTable, FORMAT_VERSION, PixelFormat, ShardMetadata};
    use std::time::Duration;

    #[test]
    fn places_come_back_when_they_are_dropped() {
        let places = Places::new(2);
        let (first, second) = (places.take(), places.take());
        std::thread::scope(|scope| {
            let third = scope.spawn(|| places.take());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!third.is_finished(), "two are taken");
            drop(first);
            drop(third.join().expect("a place"));
        });
        drop(second);
        assert!(places.left.is_empty());
    }

    #[test]
    fn a_shard_that_fails_ends_the_run_at_the_next_row_group() {
        let output = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(output.path().join(LEDGER_DIR)).expect("a folder of ledgers");
        let (plan, places) = (one_row_a_shard(), Places::new(10));
        let made = |rows_in| Made { rows_in, row_groups: [None, None], rejected: vec![], place: places.take() };
        std::thread::scope(|scope| {
            // So many may be open that nothing else makes it wait for any.
            let mut writers = Writers::new(scope, &plan, output.path(), 100);
            writers.append(0, made(1)).expect("shard 0");
            writers.append(1, made(0)).expect("shard 1 lacks its row, which nobody has noticed yet");
            wait_for(&writers, 0);
            writers.append(2, made(1)).expect("shard 2: shard 0 is whole");
            assert_eq!(writers.open.front().map(|first| first.shard), Some(1), "shard 0 is no longer waited for");
            wait_for(&writers, 1);
            // The same shard: no new one has to start.
            let error = writers.append(2, made(0)).expect_err("shard 1 is not whole");
            assert!(error.to_string().contains("shard 1 ended after 0 rows, expected 1"), "{error}");
        });
        let ledgers = [0, 1].map(|shard| ShardLedger::read(output.path(), shard).expect("read").is_some());
        assert_eq!(ledgers, [true, false], "shard 0 is published, shard 1 is not");
    }

    /// Until the thread of a shard that has all its rows has ended.
    fn wait_for(writers: &Writers, shard: usize) {
        let writing = writers.open.iter().find(|writing| writing.shard == shard).expect("being written");
        while !writing.thread.is_finished() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Three rows, a shard each.
    pub fn one_row_a_shard() -> Plan {
        let metadata = ShardMetadata {
            format_version: FORMAT_VERSION,
            tokenizer_sha256: String::new(),
            chat_template_sha256: String::new(),
            image_processor_sha256: String::new(),
            pixels: PixelFormat::Predicted,
            image_decoder: String::new(),
            shortest_edge: Some(14),
            resample: Default::default(),
            crop_size: 14,
            image_mean: [0.5; 3],
            image_std: [0.5; 3],
            code_to_f32: CodeTable::new([[0.0; 256]; 3]),
        };
        Plan {
            program: String::new(),
            records: Records { layout: String::new(), sha256: String::new(), bytes: 0, rows: 3 },
            prompts: vec![],
            seed: 0,
            images: vec![],
            image_files: ImageFiles::default(),
            eos_token_ids: vec![],
            chat_date: None,
            metadata,
            image_seq_length: 1,
            rows_per_shard: 1,
            max_row_group_rows: 1,
            system_prompt: String::new(),
            max_length: 1,
            validation_fraction: 0.0,
            limit: None,
        }
    }
}
