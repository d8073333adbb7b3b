//! One reader → workers → one writer → one publisher, in order, with a bounded number of row groups between them. The
//! publisher waits for the disk, so that the others need not.
//!
//! Which rows go where is a function of their number alone: shard `k` covers rows `k·R … (k+1)·R`, a row group an equal
//! stretch of those, and each holds what was accepted of them. So nothing depends on workers, parts or restarts.

use super::chat_json::{SourceRow, for_each_row};
use super::conversation::RowNames;
use super::ledger::{Cause, Refusal, Rejected, ShardLedger};
use super::plan::Plan;
use super::sample::RowProcessor;
use crate::progress::Progress;
use anyhow::{Result, anyhow, bail};
use common::shard::{EncodedRowGroup, RowGroupEncoder, ShardWriter, Split};
use common::{Error, files};
use crossbeam::channel::{Receiver, Sender, bounded};
use std::collections::HashSet;
use std::fs::File;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Row groups made or waiting beyond the one that each worker makes.
const AHEAD: usize = 2;

/// What one run does.
pub struct Job<'a> {
    /// Rows become samples here.
    pub processor: RowProcessor<'a>,
    /// chat.json.
    pub chat_json: &'a Path,
    /// Where shards go.
    pub output: &'a Path,
    /// Per shard: to be made by this run.
    pub wanted: Vec<bool>,
    /// Threads that decode and encode.
    pub workers: usize,
    /// Stop at the first rejected row.
    pub strict: bool,
}

/// Rows of one row group, in order.
struct Task {
    rows: Vec<NamedRow>,
    reply: Sender<Result<Made>>,
}

struct NamedRow {
    row: SourceRow,
    names: RowNames,
    duplicate: bool,
}

/// What became of a task.
struct Made {
    rows_in: usize,
    /// In the order of [`Split::ALL`].
    row_groups: [Option<EncodedRowGroup>; 2],
    rejected: Vec<Rejected>,
}

/// A task's place in the order of the output.
struct Pending {
    shard: usize,
    made: Receiver<Result<Made>>,
}

impl Job<'_> {
    /// Makes every wanted shard.
    pub fn run(&self, progress: &mut Progress) -> Result<()> {
        let (to_workers, tasks) = bounded::<Task>(AHEAD);
        let (to_writer, pending) = bounded::<Pending>(self.workers + AHEAD);
        std::thread::scope(|scope| {
            // Named, so that `top -H` shows who is busy.
            let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let reader = named("reader").spawn_scoped(scope, move || self.read(&to_workers, &to_writer))?;
            for _ in 0..self.workers {
                let tasks = tasks.clone();
                named("worker").spawn_scoped(scope, move || self.work(&tasks))?;
            }
            drop(tasks);
            let (to_publisher, finished) = bounded::<OpenShard>(0);
            let publish = move || finished.into_iter().try_for_each(|shard| shard.finish(self.output));
            let publisher = named("publisher").spawn_scoped(scope, publish)?;
            // The writer consumes `pending`: when it fails, the reader's next send fails, and the workers run dry.
            let written = self.write(pending, &to_publisher, progress);
            drop(to_publisher);
            let stopped = |who: &str| Err(anyhow!("the {who} stopped unexpectedly"));
            let published = publisher.join().unwrap_or_else(|_| stopped("publisher"));
            let read = reader.join().unwrap_or_else(|_| stopped("reader"));
            // The publisher's reason first: where it stops, the writer only finds nobody there.
            published.and(written).and(read)
        })
    }

    fn read(&self, to_workers: &Sender<Task>, to_writer: &Sender<Pending>) -> Result<()> {
        let plan = self.processor.plan;
        let mut ids = HashSet::new();
        let mut rows = Vec::new();
        let file = File::open(self.chat_json).map_err(Error::io(self.chat_json))?;
        for_each_row(self.chat_json, file, |row| {
            let names = RowNames::of(row.json.get());
            let duplicate = names.id.as_ref().is_some_and(|id| !ids.insert(id_hash(id)));
            let shard = row.number / plan.rows_per_shard;
            let last = row.number + 1 >= plan.rows();
            if self.wanted.get(shard) == Some(&true) {
                let next = row.number + 1;
                rows.push(NamedRow { row, names, duplicate });
                let in_shard = next % plan.rows_per_shard;
                let ends = last || in_shard == 0 || in_shard.is_multiple_of(plan.max_row_group_rows);
                if ends && !send(shard, std::mem::take(&mut rows), to_workers, to_writer) {
                    return ControlFlow::Break(());
                }
            }
            if last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(())
    }

    fn work(&self, tasks: &Receiver<Task>) {
        for task in tasks {
            // A receiver that is gone means that the writer has failed.
            let _ = task.reply.send(self.make(task.rows));
        }
    }

    fn make(&self, rows: Vec<NamedRow>) -> Result<Made> {
        let metadata = &self.processor.plan.metadata;
        let mut encoders = [RowGroupEncoder::new(metadata)?, RowGroupEncoder::new(metadata)?];
        let mut rejected = Vec::new();
        let rows_in = rows.len();
        for NamedRow { row, names, duplicate } in rows {
            let sample = match (&names.id, duplicate) {
                (Some(id), true) => Err(Refusal::new(Cause::DuplicateId, format!("an earlier row has id {id:?}"))),
                (Some(id), false) if !id.is_empty() => attempt(|| self.processor.process(id.clone(), &row))
                    .unwrap_or_else(|panic| Err(Refusal::new(Cause::InternalError, panic))),
                _ => Err(self.no_id(&row)),
            };
            match sample {
                Ok(sample) => {
                    let split = usize::from(self.processor.split(&sample.id) == Split::Validation);
                    // A panic here may have left half a row behind: nothing of this shard is kept.
                    match attempt(|| encoders[split].push(&sample)) {
                        Ok(pushed) => pushed?,
                        Err(panic) => bail!(
                            "row {} (id {:?}): writing it {panic}; finished shards are kept, the same command continues",
                            row.number,
                            sample.id
                        ),
                    }
                }
                Err(Refusal { cause, detail }) => {
                    rejected.push(Rejected { row: row.number, id: names.id, image: names.image, cause, detail });
                }
            }
        }
        let [train, validation] = encoders;
        Ok(Made { rows_in, row_groups: [train.finish()?, validation.finish()?], rejected })
    }

    /// A row without a usable id: the fault that reading it finds, or the missing id.
    fn no_id(&self, row: &SourceRow) -> Refusal {
        let place = (row.line, row.column);
        match super::conversation::read(row.json.get(), place) {
            Err(refusal) if refusal.cause == Cause::BadRow => refusal,
            _ => Refusal::new(Cause::BadRow, format!("chat.json line {}, column {}: no id", row.line, row.column)),
        }
    }

    fn write(
        &self,
        pending: Receiver<Pending>,
        to_publisher: &Sender<OpenShard>,
        progress: &mut Progress,
    ) -> Result<()> {
        let plan = self.processor.plan;
        let mut open: Option<OpenShard> = None;
        for Pending { shard, made } in pending {
            let made = made.recv().map_err(|_| anyhow!("a worker stopped unexpectedly"))??;
            if let Some(first) = made.rejected.first().filter(|_| self.strict) {
                bail!("{first}; repair or remove the row, or run without --strict to collect such rows");
            }
            progress.advance(made.rows_in, made.rejected.len());
            let mut current = match open.take() {
                Some(current) => current,
                None => OpenShard::new(shard),
            };
            current.append(made, plan, self.output)?;
            if current.ledger.rows_in == rows_of_shard(plan, shard) {
                to_publisher.send(current).map_err(|_| anyhow!("the publisher stopped"))?;
            } else {
                open = Some(current);
            }
        }
        match open {
            None => Ok(()),
            Some(unfinished) => bail!(
                "shard {} ended after {} rows, expected {}; chat.json changed during the run: start again in an empty folder",
                unfinished.shard,
                unfinished.ledger.rows_in,
                rows_of_shard(plan, unfinished.shard)
            ),
        }
    }
}

/// What `work` gives, or the message of its panic: a bug that one row brings out must not take the others with it.
fn attempt<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<Result<T, E>, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("panicked: {}; please report this row", text.unwrap_or("without a message"))
    })
}

/// Rows of chat.json that a shard covers.
pub fn rows_of_shard(plan: &Plan, shard: usize) -> usize {
    plan.rows().saturating_sub(shard * plan.rows_per_shard).min(plan.rows_per_shard)
}

/// 128 bits of SHA-256: two ids with the same hash are the same id.
fn id_hash(id: &str) -> u128 {
    let hash = files::sha256(id.as_bytes());
    u128::from_le_bytes(std::array::from_fn(|index| hash[index]))
}

/// False if nobody is there to take it.
fn send(shard: usize, rows: Vec<NamedRow>, to_workers: &Sender<Task>, to_writer: &Sender<Pending>) -> bool {
    let (reply, made) = bounded(1);
    to_writer.send(Pending { shard, made }).is_ok() && to_workers.send(Task { rows, reply }).is_ok()
}

/// A shard whose row groups arrive.
struct OpenShard {
    shard: usize,
    /// In the order of [`Split::ALL`]; opened by the first row group.
    writers: [Option<ShardWriter>; 2],
    ledger: ShardLedger,
}

impl OpenShard {
    fn new(shard: usize) -> Self {
        Self {
            shard,
            writers: [None, None],
            ledger: ShardLedger { rows_in: 0, files: Vec::new(), rejected: Vec::new() },
        }
    }

    fn append(&mut self, made: Made, plan: &Plan, output: &Path) -> Result<()> {
        for ((row_group, writer), split) in made.row_groups.into_iter().zip(&mut self.writers).zip(Split::ALL) {
            let Some(row_group) = row_group else { continue };
            let writer = match writer {
                Some(writer) => writer,
                None => writer.insert(ShardWriter::create(output, split, self.shard, &plan.metadata)?),
            };
            writer.append(row_group)?;
        }
        self.ledger.rows_in += made.rows_in;
        self.ledger.rejected.extend(made.rejected);
        Ok(())
    }

    /// Publishes the files, then the ledger that says so.
    fn finish(mut self, output: &Path) -> Result<()> {
        for writer in self.writers.into_iter().flatten() {
            self.ledger.files.push(writer.finish()?);
        }
        self.ledger.write(output, self.shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(attempt(|| Ok::<_, Refusal>(1)), Ok(Ok(1)));
        let refusal = Refusal::new(Cause::NoTurns, String::new());
        assert_eq!(attempt(|| Err::<i32, _>(refusal.clone())), Ok(Err(refusal)));
        let [none, empty] = [0, 1].map(|len| vec![7; len]);
        let found = attempt(|| Ok::<_, Refusal>(none[empty.len()]));
        let message = found.expect_err("a panic");
        assert!(message.contains("index out of bounds") && message.contains("report"), "{message}");
        assert!(
            attempt(|| -> Result<(), Refusal> { panic!("a plain text") })
                .is_err_and(|text| text.contains("plain text"))
        );
    }
}
