//! One reader → workers → a writer a shard, with a bounded number of row groups between them. The main thread hands row
//! groups on in order; nothing that takes time happens there.
//!
//! Which rows go where is a function of their number alone: shard `k` covers rows `k·R … (k+1)·R`, a row group an equal
//! stretch of those, and each has the accepted rows of its range. So nothing depends on workers, parts or restarts.

use super::ledger::{Cause, Refusal, Rejected};
use super::sample::RowProcessor;
use super::writers::{Made, Place, Places, Writers};
use anyhow::{Result, anyhow, bail};
use chat::dataset::{Pass, RowNames, Source, SourceRow};
use cli::Progress;
use crossbeam::channel::{Receiver, Sender, bounded};
use shards::{RowGroupEncoder, Split};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Row groups made or waiting beyond the one that each worker makes.
const AHEAD: usize = 2;

/// What one run does.
pub struct Job<'a> {
    /// Rows become samples here.
    pub processor: RowProcessor<'a>,
    /// The dataset.
    pub source: &'a Source,
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
    rows: Vec<SourceRow>,
    place: Place,
    reply: Sender<Result<Made>>,
}

/// A task's place in the order of the output.
struct Pending {
    shard: usize,
    made: Receiver<Result<Made>>,
}

impl Job<'_> {
    /// Makes every wanted shard.
    pub fn run(&self, progress: &mut Progress) -> Result<()> {
        // Made, waiting for a row group before it, or being written.
        let in_flight = 2 * self.workers + AHEAD;
        let places = Places::new(in_flight);
        let (to_workers, tasks) = bounded::<Task>(AHEAD);
        let (in_order, pending) = bounded::<Pending>(in_flight);
        std::thread::scope(|scope| {
            // Named, so that `top -H` shows who is busy.
            let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let reader = named("reader").spawn_scoped(scope, move || self.read(&places, &to_workers, &in_order))?;
            for _ in 0..self.workers {
                let tasks = tasks.clone();
                named("worker").spawn_scoped(scope, move || self.work(&tasks))?;
            }
            drop(tasks);
            let mut writers = Writers::new(scope, self.processor.plan, self.output, in_flight);
            // Consumes `pending`: when it fails, the reader's next send fails, and the workers run dry.
            let handed_on = self.hand_on(pending, &mut writers, progress);
            let read = reader.join().unwrap_or_else(|_| Err(anyhow!("the reader stopped unexpectedly")));
            handed_on.and(read).and(writers.finish())
        })
    }

    fn read(&self, places: &Places, to_workers: &Sender<Task>, in_order: &Sender<Pending>) -> Result<()> {
        let plan = self.processor.plan;
        let mut rows = Vec::new();
        self.source.for_each_row(Pass::Whole, |row| {
            let shard = row.number / plan.rows_per_shard;
            let last = row.number + 1 >= plan.rows();
            if self.wanted.get(shard) == Some(&true) {
                let next = row.number + 1;
                rows.push(row);
                let in_shard = next % plan.rows_per_shard;
                let ends = last || in_shard == 0 || in_shard.is_multiple_of(plan.max_row_group_rows);
                if ends {
                    let (reply, made) = bounded(1);
                    let task = Task { rows: std::mem::take(&mut rows), place: places.take(), reply };
                    // Nobody there to take it means that the main thread has failed.
                    if in_order.send(Pending { shard, made }).is_err() || to_workers.send(task).is_err() {
                        return ControlFlow::Break(());
                    }
                }
            }
            if last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(())
    }

    fn work(&self, tasks: &Receiver<Task>) {
        for task in tasks {
            // A receiver that is gone means that the main thread has failed.
            let _ = task.reply.send(self.make(task.rows, task.place));
        }
    }

    fn make(&self, rows: Vec<SourceRow>, place: Place) -> Result<Made> {
        let metadata = &self.processor.plan.metadata;
        let mut encoders = [RowGroupEncoder::new(metadata)?, RowGroupEncoder::new(metadata)?];
        let mut rejected = Vec::new();
        let rows_in = rows.len();
        for row in rows {
            let sample = attempt(|| self.processor.process(&row))
                .unwrap_or_else(|panic| Err(Refusal::new(Cause::InternalError, panic)));
            match sample {
                Ok((split, sample)) => {
                    let split = usize::from(split == Split::Validation);
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
                    let RowNames { id, image } = RowNames::of(&row);
                    rejected.push(Rejected { row: row.number, id, image, cause, detail });
                }
            }
        }
        let [train, validation] = encoders;
        Ok(Made { rows_in, row_groups: [train.finish()?, validation.finish()?], rejected, place })
    }

    /// In order, so that `--strict` stops at the first rejected row whoever comes to it first.
    fn hand_on(&self, pending: Receiver<Pending>, writers: &mut Writers, progress: &mut Progress) -> Result<()> {
        let mut rejected = 0;
        for Pending { shard, made } in pending {
            let made = made.recv().map_err(|_| anyhow!("a worker stopped unexpectedly"))??;
            if let Some(first) = made.rejected.first().filter(|_| self.strict) {
                bail!("{first}; repair or remove the row, or run without --strict to collect such rows");
            }
            rejected += made.rejected.len();
            progress.note(format!(", {rejected} rejected"));
            progress.advance(made.rows_in as u64);
            writers.append(shard, made)?;
        }
        Ok(())
    }
}

/// What `work` gives, or the message of its panic: a bug that one row brings out must not take the others with it.
fn attempt<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<Result<T, E>, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("panicked: {}; please report this row", text.unwrap_or("without a message"))
    })
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
