//! The rows of each step: a pure function of (seed, epoch, position), the same for any number of ranks and workers.

mod mixed;

pub use mixed::{MixedOrder, SourceRows};

use base::mix;
use serde::{Deserialize, Serialize};

/// The order of the rows of one epoch; any position is computed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochOrder {
    rows: u64,
    /// `None`: the order of the shards.
    key: Option<u64>,
}

impl EpochOrder {
    /// The order of `rows` rows in `epoch`.
    pub fn new(rows: usize, shuffle: bool, seed: u64, epoch: u64) -> Self {
        let key = shuffle.then(|| mix(seed ^ mix(epoch.wrapping_add(0x9E37_79B9_7F4A_7C15))));
        Self { rows: rows as u64, key }
    }

    /// The row at a position (`position` < rows).
    pub fn row(&self, position: usize) -> usize {
        let Some(key) = self.key else { return position };
        // A Feistel network permutes a power of four that holds all rows; values outside are walked through it again
        // until they land inside, which keeps it a permutation of 0..rows. Fewer than four walks on average.
        let half_bits = (64 - self.rows.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
        let mut value = position as u64;
        loop {
            value = feistel(value, half_bits, key);
            if value < self.rows {
                return value as usize;
            }
        }
    }
}

const FEISTEL_ROUNDS: u64 = 6;

fn feistel(value: u64, half_bits: u32, key: u64) -> u64 {
    let mask = (1u64 << half_bits) - 1;
    let (mut left, mut right) = (value >> half_bits, value & mask);
    for round in 0..FEISTEL_ROUNDS {
        let mixed = mix(right ^ mix(key.wrapping_add(round))) & mask;
        (left, right) = (right, left ^ mixed);
    }
    (left << half_bits) | right
}

/// Where a run stands in its data: the next row to train on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cursor {
    /// Finished epochs.
    pub epoch: u64,
    /// Rows of the current epoch that have been trained on.
    pub position: usize,
}

/// Positions of one global batch in its epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalBatch {
    /// The epoch.
    pub epoch: u64,
    /// First position.
    pub start: usize,
    /// One past the last position. The last batch of an epoch is smaller when the rows do not divide.
    pub end: usize,
}

/// How rows become global batches, micro-batches and steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    /// Rows of an epoch.
    pub rows: usize,
    /// Rows of a micro-batch, per rank.
    pub micro_batch_size: usize,
    /// Micro-batches of a step, per rank.
    pub accumulation: usize,
    /// Ranks.
    pub world_size: usize,
    /// Where the run ends, if that is not after a number of steps: the last batch is cut there.
    pub end: Option<Cursor>,
}

impl BatchPlan {
    /// Rows of a full global batch.
    pub fn global_batch_size(&self) -> usize {
        self.micro_batch_size * self.accumulation * self.world_size
    }

    /// Steps of an epoch. Every row is trained on once, so a remainder makes one more, smaller step: 595,375 rows in
    /// batches of 128 are 4,652 steps, of which the last has 47 rows.
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.global_batch_size()) as u64
    }

    /// Steps of a whole run.
    pub fn max_steps(&self, max_steps: i64, epochs: f64) -> u64 {
        match u64::try_from(max_steps) {
            Ok(steps) if steps > 0 => steps,
            _ => (epochs * self.steps_per_epoch() as f64).ceil() as u64,
        }
    }

    /// The cursor after so many steps from the start.
    pub fn cursor_after(&self, steps: u64) -> Cursor {
        let (epoch, rest) = (steps / self.steps_per_epoch(), steps % self.steps_per_epoch());
        Cursor { epoch, position: rest as usize * self.global_batch_size() }
    }

    /// Steps from a cursor to a later one; 0 if it is not later.
    pub fn steps_between(&self, cursor: Cursor, end: Cursor) -> u64 {
        let steps = |rows: usize| rows.div_ceil(self.global_batch_size()) as u64;
        match end.epoch.checked_sub(cursor.epoch) {
            None => 0,
            Some(0) => steps(end.position.saturating_sub(cursor.position)),
            Some(epochs) => {
                steps(self.rows - cursor.position) + (epochs - 1) * self.steps_per_epoch() + steps(end.position)
            }
        }
    }

    /// Whether no row is left.
    pub fn is_at_end(&self, cursor: Cursor) -> bool {
        self.end.is_some_and(|end| cursor >= end)
    }

    /// The batch at a cursor, and the cursor after it.
    pub fn next(&self, cursor: Cursor) -> (GlobalBatch, Cursor) {
        let rows = match self.end {
            Some(end) if end.epoch == cursor.epoch && end.position > cursor.position => end.position,
            _ => self.rows,
        };
        let end = (cursor.position + self.global_batch_size()).min(rows);
        let batch = GlobalBatch { epoch: cursor.epoch, start: cursor.position, end };
        let next = if end == self.rows {
            Cursor { epoch: cursor.epoch + 1, position: 0 }
        } else {
            Cursor { epoch: cursor.epoch, position: end }
        };
        (batch, next)
    }

    /// Positions of the micro-batch of (micro-step, rank): the global batch dealt out in order, ranks within micro-steps.
    /// May be empty in the last batch of an epoch.
    pub fn micro_batch(&self, batch: &GlobalBatch, micro_step: usize, rank: usize) -> std::ops::Range<usize> {
        let start = batch.start + (micro_step * self.world_size + rank) * self.micro_batch_size;
        start.min(batch.end)..(start + self.micro_batch_size).min(batch.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_another_permutation() {
        for rows in [1, 2, 3, 5, 32, 100, 1025] {
            let mut orders = Vec::new();
            for epoch in 0..3 {
                let order = EpochOrder::new(rows, true, 42, epoch);
                let found: Vec<usize> = (0..rows).map(|position| order.row(position)).collect();
                let mut sorted = found.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..rows).collect::<Vec<_>>(), "{rows} rows, epoch {epoch}");
                orders.push(found);
            }
            assert!(rows < 32 || (orders[0] != orders[1] && orders[1] != orders[2]), "{rows} rows");
        }
    }

    #[test]
    fn without_shuffling_the_order_is_the_shards() {
        assert_eq!(EpochOrder::new(9, false, 1, 4).row(7), 7);
    }

    #[test]
    fn a_shuffled_order_spreads_neighbours() {
        let rows = 10_000;
        let order = EpochOrder::new(rows, true, 7, 0);
        let mean_step = (1..rows).map(|i| order.row(i).abs_diff(order.row(i - 1)) as f64).sum::<f64>() / rows as f64;
        // Two independent uniform positions are rows / 3 apart on average.
        assert!((mean_step / (rows as f64 / 3.0) - 1.0).abs() < 0.03, "{mean_step}");
    }

    #[test]
    fn the_real_job_has_4652_steps_an_epoch() {
        let plan = BatchPlan { rows: 595_375, micro_batch_size: 4, accumulation: 8, world_size: 4, end: None };
        assert_eq!(plan.steps_per_epoch(), 4652);
        let (last, next) = plan.next(Cursor { epoch: 0, position: 4651 * 128 });
        assert_eq!((last.end - last.start, next), (47, Cursor { epoch: 1, position: 0 }));
    }

    #[test]
    fn a_global_batch_has_the_same_rows_however_it_is_split() {
        let splits = [(1, 12, 1), (2, 3, 2), (3, 1, 4), (4, 1, 3), (12, 1, 1)];
        for (micro_batch_size, accumulation, world_size) in splits {
            let plan = BatchPlan { rows: 31, micro_batch_size, accumulation, world_size, end: None };
            let (mut cursor, mut seen) = (Cursor::default(), Vec::new());
            while cursor.epoch == 0 {
                let (batch, next) = plan.next(cursor);
                for micro_step in 0..accumulation {
                    (0..world_size).for_each(|rank| seen.extend(plan.micro_batch(&batch, micro_step, rank)));
                }
                cursor = next;
            }
            assert_eq!(seen, (0..31).collect::<Vec<_>>(), "{plan:?}");
        }
    }

    /// Started with 4 rows a step for 2.5 epochs of 30 rows; from a cursor on with another number: the run ends at the same
    /// row, and every row until there is trained on once.
    #[test]
    fn a_run_ends_at_its_row_with_any_batch() {
        let plan =
            |micro_batch_size, end| BatchPlan { rows: 30, micro_batch_size, accumulation: 1, world_size: 1, end };
        let at_start = plan(4, None);
        let end = at_start.cursor_after(at_start.max_steps(-1, 2.5));
        assert_eq!(end, Cursor { epoch: 2, position: 16 });
        for (rows, from) in [(8, (0, 4)), (3, (1, 28)), (7, (2, 8)), (40, (0, 0)), (5, (2, 16)), (4, (1, 0))] {
            let (changed, from) = (plan(rows, Some(end)), Cursor { epoch: from.0, position: from.1 });
            let (mut cursor, mut steps, mut trained) = (from, 0, 0);
            while !changed.is_at_end(cursor) {
                let (batch, next) = changed.next(cursor);
                (cursor, steps, trained) = (next, steps + 1, trained + batch.end - batch.start);
            }
            assert_eq!((cursor, steps), (end, changed.steps_between(from, end)), "{rows} rows a step from {from:?}");
            let expected = (end.epoch - from.epoch) as usize * 30 + end.position - from.position;
            assert_eq!(trained, expected, "{rows} rows a step from {from:?}");
        }
        assert_eq!(at_start.steps_between(end, Cursor::default()), 0);
    }
}
