//! The order of rows of several sources, each with its own number of rows in an epoch.

use super::EpochOrder;
use base::mix;

/// Rows of a source of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRows {
    /// All of them.
    pub rows: usize,
    /// How many an epoch trains on: weight × rows, rounded.
    pub per_epoch: usize,
}

impl SourceRows {
    /// Of a weight: that many passes an epoch.
    pub fn weighted(rows: usize, weight: f64) -> Self {
        Self { rows, per_epoch: (rows as f64 * weight).round() as usize }
    }
}

/// The order of the rows of one epoch; any position is computed by itself. Of a single source of weight 1 it is [`EpochOrder`].
///
/// Positions are dealt to the sources at random (without shuffling: one source after the other). A source has its whole passes
/// in every epoch. For the rest of its rows an epoch continues, where the epoch before ended, in a sequence of passes with an
/// order of their own: every row is used once before one is used again.
#[derive(Clone, Copy, Debug)]
pub struct MixedOrder<'a> {
    sources: &'a [SourceRows],
    slots: EpochOrder,
    shuffle: bool,
    seed: u64,
    epoch: u64,
}

impl<'a> MixedOrder<'a> {
    /// The order of an epoch of these sources.
    pub fn new(sources: &'a [SourceRows], shuffle: bool, seed: u64, epoch: u64) -> Self {
        let rows = sources.iter().map(|source| source.per_epoch).sum();
        Self { sources, slots: EpochOrder::new(rows, shuffle, seed, epoch), shuffle, seed, epoch }
    }

    /// The source and the row in it at a position (below the sum of `per_epoch`).
    pub fn row(&self, position: usize) -> (usize, usize) {
        let (mut source, mut slot) = (0, self.slots.row(position));
        while slot >= self.sources[source].per_epoch {
            slot -= self.sources[source].per_epoch;
            source += 1;
        }
        (source, self.row_of(source, slot))
    }

    fn row_of(&self, source: usize, slot: usize) -> usize {
        let SourceRows { rows, per_epoch } = self.sources[source];
        let (of_passes, rest) = (per_epoch - per_epoch % rows, per_epoch % rows);
        let Some(slot) = slot.checked_sub(of_passes) else { return slot % rows };
        let at = self.epoch * rest as u64 + slot as u64;
        let (pass, position) = (at / rows as u64, (at % rows as u64) as usize);
        EpochOrder::new(rows, self.shuffle, self.seed ^ mix(source as u64 + 1), pass).row(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(sources: &[SourceRows], shuffle: bool, epoch: u64) -> Vec<(usize, usize)> {
        let order = MixedOrder::new(sources, shuffle, 7, epoch);
        (0..sources.iter().map(|source| source.per_epoch).sum()).map(|position| order.row(position)).collect()
    }

    fn counts(rows: &[(usize, usize)], source: usize, of: usize) -> Vec<usize> {
        (0..of).map(|row| rows.iter().filter(|&&found| found == (source, row)).count()).collect()
    }

    #[test]
    fn one_source_of_weight_1_is_as_without_a_mixture() {
        for (shuffle, epoch) in [(true, 0), (true, 5), (false, 1)] {
            let plain = EpochOrder::new(100, shuffle, 7, epoch);
            let expected: Vec<(usize, usize)> = (0..100).map(|position| (0, plain.row(position))).collect();
            assert_eq!(rows_of(&[SourceRows::weighted(100, 1.0)], shuffle, epoch), expected);
        }
    }

    #[test]
    fn every_row_is_used_once_before_one_is_used_again() {
        let sources = [SourceRows::weighted(20, 1.0), SourceRows::weighted(10, 0.3), SourceRows::weighted(8, 2.25)];
        assert_eq!(sources.map(|source| source.per_epoch), [20, 3, 18]);
        for shuffle in [true, false] {
            let (mut third, mut quarters) = (vec![0; 10], vec![0; 8]);
            for epoch in 0..20 {
                let rows = rows_of(&sources, shuffle, epoch);
                assert_eq!(counts(&rows, 0, 20), [1; 20], "the whole first source, epoch {epoch}");
                let (b, c) = (counts(&rows, 1, 10), counts(&rows, 2, 8));
                assert_eq!((b.iter().sum::<usize>(), c.iter().sum::<usize>()), (3, 18));
                assert!(c.iter().all(|&count| count >= 2), "two whole passes over the third");
                third.iter_mut().zip(b).for_each(|(sum, count)| *sum += count);
                quarters.iter_mut().zip(c).for_each(|(sum, count)| *sum += count - 2);
                for uses in [&third, &quarters] {
                    let (least, most) = (uses.iter().min().expect("rows"), uses.iter().max().expect("rows"));
                    assert!(most - least <= 1, "epoch {epoch}: {uses:?}");
                }
            }
            assert_eq!((third, quarters), (vec![6; 10], vec![5; 8]));
        }
    }

    #[test]
    fn sources_are_mixed_evenly_and_one_after_the_other_without_shuffling() {
        let sources = [SourceRows::weighted(3000, 1.0), SourceRows::weighted(2000, 0.5)];
        let of_first = |rows: &[(usize, usize)]| rows.iter().filter(|(source, _)| *source == 0).count();
        let rows = rows_of(&sources, true, 0);
        for part in rows.chunks(500) {
            // 375 are expected of 500; five standard deviations of the draw without replacement are 45.
            assert!(of_first(part).abs_diff(375) <= 45, "{}", of_first(part));
        }
        assert_ne!(rows, rows_of(&sources, true, 1));
        let rows = rows_of(&sources, false, 1);
        let expected = (0..3000).map(|row| (0, row)).chain((1000..2000).map(|row| (1, row)));
        assert!(rows.into_iter().eq(expected));
    }
}
