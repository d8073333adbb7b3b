//! Dropout of the LoRA branches: a pure function of the row, independent of rank and batch.

use base::splitmix;
use kernels::{Dropout, SequenceStreams};

/// Dropout for the rows of a packed batch.
///
/// Whether a value is dropped depends on (seed, the row's key, layer, projection, token, channel) only: splitting the batch,
/// spreading it over ranks, or recomputing a block gives the same mask.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraDropout {
    /// Probability that a value becomes 0; the others are divided by 1 − probability.
    pub probability: f64,
    /// Seed of the run.
    pub seed: u64,
    /// One for each sequence of the batch (each image, in the vision tower): the row's position in the whole run.
    pub row_keys: Vec<u64>,
}

/// Dropout at one projection of one layer.
#[derive(Clone, Copy, Debug)]
pub struct SiteDropout<'a> {
    dropout: &'a LoraDropout,
    seq_lens: &'a [usize],
    /// Tokens of each sequence that are computed, its last ones; `None`: all.
    last: Option<&'a [usize]>,
    site: u64,
}

impl LoraDropout {
    /// Dropout for the `projection`-th projection of `layer`; `None` when nothing is ever dropped.
    pub fn at<'a>(&'a self, seq_lens: &'a [usize], layer: usize, projection: usize) -> Option<SiteDropout<'a>> {
        let site = (layer as u64) << 8 | projection as u64;
        (self.probability > 0.0).then_some(SiteDropout { dropout: self, seq_lens, last: None, site })
    }
}

impl<'a> SiteDropout<'a> {
    /// The same for the last `lens` tokens of each sequence only.
    pub fn of_last(self, lens: &'a [usize]) -> Self {
        Self { last: Some(lens), ..self }
    }

    /// For the tokens of the batch.
    pub fn of_values(&self) -> Dropout {
        Dropout::of_sequences(self.sequences(), self.site, self.dropout.probability)
    }

    /// For single tokens of the batch, by their positions in it (ascending).
    pub fn of_positions(&self, positions: &[usize]) -> Dropout {
        let (mut sequences, mut start) = (self.sequences().into_iter().peekable(), 0);
        let of_position = |&position: &usize| {
            while let Some(sequence) = sequences.peek() {
                if position < start + sequence.tokens.len() {
                    let token = sequence.tokens.start + position - start;
                    return Some(SequenceStreams { hash: sequence.hash, tokens: token..token + 1 });
                }
                start += sequence.tokens.len();
                sequences.next();
            }
            None
        };
        let tokens = positions.iter().filter_map(of_position).collect();
        Dropout::of_sequences(tokens, self.site, self.dropout.probability)
    }

    /// The computed tokens of each sequence.
    fn sequences(&self) -> Vec<SequenceStreams> {
        let LoraDropout { seed, ref row_keys, .. } = *self.dropout;
        let rows = row_keys.iter().zip(self.seq_lens).zip(self.last.unwrap_or(self.seq_lens));
        let of_row = |((&key, &len), &last): ((&u64, &usize), &usize)| SequenceStreams {
            hash: splitmix(seed ^ splitmix(key)),
            tokens: len - last..len,
        };
        rows.map(of_row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(row_keys: &[u64], seq_lens: &[usize], layer: usize, width: usize) -> Vec<f32> {
        let dropout = LoraDropout { probability: 0.25, seed: 3, row_keys: row_keys.into() };
        let site = dropout.at(seq_lens, layer, 1).expect("a probability above 0");
        site.of_values().mask_values(width)
    }

    #[test]
    fn a_rows_mask_does_not_depend_on_its_batch() {
        let together = mask(&[7, 8], &[5, 3], 2, 10);
        let apart = [mask(&[7], &[5], 2, 10), mask(&[8], &[3], 2, 10)].concat();
        assert_eq!(together, apart);
        assert_ne!(mask(&[7], &[5], 2, 10), mask(&[7], &[5], 1, 10), "another layer");
        assert_ne!(mask(&[7], &[5], 2, 10), mask(&[8], &[5], 2, 10), "another row");
    }

    #[test]
    fn the_last_tokens_have_the_mask_that_they_have_among_all() {
        let dropout = LoraDropout { probability: 0.25, seed: 3, row_keys: vec![7, 8] };
        let site = dropout.at(&[5, 3], 2, 1).expect("a probability above 0");
        let all = site.of_values().mask_values(10);
        assert_eq!(site.of_last(&[2, 3]).of_values().mask_values(10), all[30..]);
        assert_eq!(site.of_positions(&[1, 6]).mask_values(10), [&all[10..20], &all[60..70]].concat());
    }

    #[test]
    fn a_quarter_is_dropped_and_the_rest_scaled() {
        let values = mask(&[1], &[100], 0, 1000);
        let dropped = values.iter().filter(|&&value| value == 0.0).count() as f64 / values.len() as f64;
        println!("dropped {dropped} of 100,000 values (0.25 ± 0.005)");
        assert!((dropped - 0.25).abs() < 0.005);
        assert!(values.iter().all(|&value| value == 0.0 || value == 4.0 / 3.0));
    }

    #[test]
    fn nothing_to_drop_is_no_mask() {
        let dropout = LoraDropout { probability: 0.0, seed: 3, row_keys: vec![1] };
        assert!(dropout.at(&[4], 0, 0).is_none());
    }
}
