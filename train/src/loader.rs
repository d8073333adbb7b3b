//! Prefetching loader threads: micro-batches in an order that does not depend on how many threads there are.

use crate::mixture::Mixture;
use crate::order::{BatchPlan, Cursor, GlobalBatch, MixedOrder};
use anyhow::{Result, anyhow, bail};
use base::mix;
use crossbeam::channel::{Receiver, Sender, bounded};
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a loader reads, and for whom.
#[derive(Clone)]
pub struct Source {
    /// The rows.
    pub shards: Arc<Mixture>,
    /// The model's configuration (image features per image, longest position).
    pub config: Arc<LlavaConfig>,
    /// How rows become micro-batches.
    pub plan: BatchPlan,
    /// Rows in a new order every epoch.
    pub shuffle: bool,
    /// Seed of the order.
    pub seed: u64,
    /// The rank that the micro-batches are for.
    pub rank: usize,
    /// Longest row, tokens with images expanded.
    pub max_length: usize,
}

/// A micro-batch; it has no rows when the last batch of an epoch is too small for every rank.
pub struct MicroBatch {
    /// The rows, packed; `None` when there are none.
    pub batch: Option<PackedBatch>,
    /// One key per row: its place in the run, for dropout.
    pub row_keys: Vec<u64>,
    /// The rows' numbers in the data.
    pub rows: Vec<usize>,
    /// The source of each row.
    pub sources: Vec<usize>,
}

/// Where a micro-batch stands in the run.
struct Ticket {
    batch: GlobalBatch,
    micro_step: usize,
}

impl Source {
    /// Tickets from a cursor on, without end.
    fn tickets(&self, cursor: Cursor) -> impl Iterator<Item = Ticket> + use<> {
        let plan = self.plan;
        let steps = std::iter::successors(Some(plan.next(cursor)), move |(_, cursor)| Some(plan.next(*cursor)));
        steps.flat_map(move |(batch, _)| {
            (0..plan.accumulation).map(move |micro_step| Ticket { batch: batch.clone(), micro_step })
        })
    }

    fn load(&self, ticket: &Ticket) -> Result<MicroBatch> {
        let Ticket { batch: GlobalBatch { epoch, .. }, micro_step } = ticket;
        let order = MixedOrder::new(self.shards.rows(), self.shuffle, self.seed, *epoch);
        let positions = self.plan.micro_batch(&ticket.batch, *micro_step, self.rank);
        let row_keys: Vec<u64> = positions.clone().map(|position| mix(mix(*epoch) ^ position as u64)).collect();
        if row_keys.is_empty() {
            return Ok(MicroBatch { batch: None, row_keys, rows: Vec::new(), sources: Vec::new() });
        }
        let places: Vec<(usize, usize)> = positions.map(|position| order.row(position)).collect();
        let numbers: Vec<usize> = places.iter().map(|&place| self.shards.number(place)).collect();
        let batch = self.read(&numbers)?;
        if let Some(row) = batch.seq_lens.iter().position(|&len| len > self.max_length) {
            bail!(
                "row {:?}: {} tokens with its images, more than the {} allowed; give a larger --model_max_length, or run \
                 preprocess shards with --max-length",
                batch.ids[row],
                batch.seq_lens[row],
                self.max_length
            );
        }
        let sources = places.into_iter().map(|(source, _)| source).collect();
        Ok(MicroBatch { batch: Some(batch), row_keys, rows: numbers, sources })
    }

    /// Rows, decoded to where they are in the batch.
    fn read(&self, rows: &[usize]) -> Result<PackedBatch> {
        let side = self.shards.metadata().map_or(0, |metadata| metadata.crop_size);
        let mut batch =
            PackedBatch { pixel_values: Vec::with_capacity(rows.len() * 3 * side * side), ..Default::default() };
        for &row in rows {
            let row = self.shards.read_row_into(row, &mut batch.pixel_values)?;
            batch.push(row, self.config.image_token_index, self.config.image_seq_length())?;
        }
        Ok(batch)
    }
}

/// Reads ahead on threads of its own. Dropping it ends them.
pub struct Loader {
    lanes: Lanes,
    next: usize,
    /// Time that the training thread has waited for data.
    pub waited: Duration,
}

enum Lanes {
    /// Read by the caller.
    Inline(Box<dyn Iterator<Item = Result<MicroBatch>> + Send>),
    /// Thread `i` of n reads micro-batches i, i + n, i + 2n, …
    Threads(Vec<Receiver<Result<MicroBatch>>>),
}

impl Loader {
    /// Starts `workers` threads, each at most `prefetch` micro-batches ahead; 0 workers read when asked.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub fn start(source: Source, cursor: Cursor, workers: usize, prefetch: usize) -> Result<Self> {
        let lanes = if workers == 0 {
            let tickets = source.tickets(cursor);
            Lanes::Inline(Box::new(tickets.map(move |ticket| source.load(&ticket))))
        } else {
            let start = |worker: usize| -> Result<_> {
                let (sender, receiver) = bounded(prefetch);
                let source = source.clone();
                std::thread::Builder::new()
                    .name(format!("loader {worker}"))
                    .spawn(move || serve(&source, cursor, worker, workers, &sender))?;
                Ok(receiver)
            };
            Lanes::Threads((0..workers).map(start).collect::<Result<_>>()?)
        };
        Ok(Self { lanes, next: 0, waited: Duration::ZERO })
    }

    /// The next micro-batch.
    ///
    /// # Errors
    /// A row that cannot be read or is too long, by name.
    pub fn next_micro_batch(&mut self) -> Result<MicroBatch> {
        let begin = Instant::now();
        let found = match &mut self.lanes {
            Lanes::Inline(micro_batches) => micro_batches.next().ok_or_else(|| anyhow!("no more rows"))?,
            Lanes::Threads(receivers) => {
                let lane = self.next % receivers.len();
                receivers[lane].recv().map_err(|_| anyhow!("loader thread {lane} ended without a word"))?
            }
        };
        self.next += 1;
        self.waited += begin.elapsed();
        found
    }
}

fn serve(source: &Source, cursor: Cursor, worker: usize, workers: usize, sender: &Sender<Result<MicroBatch>>) {
    for ticket in source.tickets(cursor).skip(worker).step_by(workers) {
        let loaded = source.load(&ticket);
        let failed = loaded.is_err();
        // The loader was dropped, or the error that it now has ends the run.
        if sender.send(loaded).is_err() || failed {
            return;
        }
    }
}
