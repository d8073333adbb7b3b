//! The vertical pass: rows are weighed whole, 32 columns at a time.

use super::super::WIDTH;
use super::super::taps::AxisTaps;
use super::{Pair, Sums, store};
use std::arch::x86_64::*;

/// For every row of the window: its first source row, and its taps.
#[derive(Default)]
pub(super) struct Rows {
    rows: Vec<Row>,
    pairs: Vec<Pair>,
}

struct Row {
    first: usize,
    taps: usize,
    pairs: std::ops::Range<usize>,
}

impl Rows {
    pub(super) fn fill(&mut self, taps: &AxisTaps) {
        self.rows.clear();
        self.pairs.clear();
        for index in 0..taps.len() {
            let (first, coefficients) = taps.of(index);
            let begin = self.pairs.len();
            self.pairs.extend(coefficients.chunks(2).map(Pair::new));
            self.rows.push(Row { first, taps: coefficients.len(), pairs: begin..self.pairs.len() });
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn weigh(&self, index: usize, narrow: &[u8], stride: usize, out: &mut [u8]) {
        let Row { first, taps, ref pairs } = self.rows[index];
        let narrow = &narrow[first * stride..(first + taps) * stride];
        let width = out.len();
        assert!(width <= stride && stride >= WIDTH);
        match &self.pairs[pairs.clone()] {
            // What enlarging needs everywhere but at the edges.
            &[first, second] => weigh_rows(&[first, second], narrow, stride, taps, out),
            pairs => weigh_rows(pairs, narrow, stride, taps, out),
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn weigh_rows(pairs: &[Pair], narrow: &[u8], stride: usize, taps: usize, out: &mut [u8]) {
    let width = out.len();
    for left in (0..width).step_by(WIDTH) {
        // The last outputs are made with some before them, again.
        let left = left.min(width.saturating_sub(WIDTH));
        let mut sums = [Sums::zero(), Sums::zero()];
        for (index, pair) in pairs.iter().enumerate() {
            // A pair's second row that is not there has no weight.
            let rows = [2 * index, (2 * index + 1).min(taps - 1)];
            // SAFETY: there are `taps` rows of `stride` samples, and `left + WIDTH` is at most that.
            let [a, b] = rows.map(|row| unsafe { _mm256_loadu_si256(narrow.as_ptr().add(row * stride + left).cast()) });
            let (high, low) = (_mm256_set1_epi16(pair.high), _mm256_set1_epi32(pair.low));
            sums[0].add(_mm256_unpacklo_epi8(a, b), high, low, low);
            sums[1].add(_mm256_unpackhi_epi8(a, b), high, low, low);
        }
        let [low, high] = sums.map(|sums| sums.rounded());
        let bytes = _mm256_packus_epi16(low, high);
        match out[left..].first_chunk_mut() {
            Some(out) => store(bytes, out),
            None => {
                let mut whole = [0; WIDTH];
                store(bytes, &mut whole);
                out.copy_from_slice(&whole[..width]);
            }
        }
    }
}
