//! The horizontal pass where outputs are close to each other: shuffles bring the samples of eight or four outputs to their
//! places.

use super::super::WIDTH;
use super::super::taps::AxisTaps;
use super::{NOTHING, Pair, Sums, store, vector};
use std::arch::x86_64::*;

/// Samples that one load takes.
const WINDOW: usize = 16;
/// Outputs in half a vector.
const HALF: usize = 8;

/// For every vector of sixteen outputs: where their samples are, and their taps.
///
/// Vectors come in twos, for 32 outputs: 0 to 7 and 16 to 23 in one, 8 to 15 and 24 to 31 in the other, as packing wants it.
#[derive(Default)]
pub(super) struct Columns {
    /// Loads that bring the samples of half a vector: 1 or 2, the more the more the image shrinks.
    loads: usize,
    /// Pairs of taps of every output.
    pairs: usize,
    /// `[vectors, loads]`.
    gathers: Vec<Gather>,
    /// `[vectors, pairs]`.
    weights: Vec<Weights>,
    /// Samples that may be read.
    reach: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Gather {
    /// Puts each output's two samples at its place.
    shuffle: [u8; WIDTH],
    /// First sample of either half's load, for the first pair of taps.
    starts: [usize; 2],
}

/// The weights of a pair of taps of sixteen outputs.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Weights {
    high: [i16; 16],
    even: [i32; 8],
    odd: [i32; 8],
}

impl Columns {
    /// `false` if outputs are too far from each other.
    pub(super) fn fill(&mut self, taps: &AxisTaps) -> bool {
        let blocks = taps.len().div_ceil(WIDTH);
        // Beyond the window: the last output again, without weight.
        let first = |output: usize| taps.of(output.min(taps.len() - 1)).0;
        let fits = |group: usize| {
            let mut groups = (0..blocks * WIDTH).step_by(group);
            groups.all(|output| first(output + group - 1) - first(output) <= WINDOW - 2)
        };
        let Some(group) = [HALF, HALF / 2].into_iter().find(|&group| fits(group)) else { return false };
        self.loads = HALF / group;
        self.pairs = taps.longest().div_ceil(2);
        self.reach = first(taps.len() - 1) + 2 * self.pairs + WINDOW;
        self.gathers.clear();
        self.weights.clear();
        for vector in 0..2 * blocks {
            let halves = [0, 1].map(|half| vector / 2 * WIDTH + half * 2 * HALF + vector % 2 * HALF);
            for load in 0..self.loads {
                let mut shuffle = [NOTHING; WIDTH];
                for (half, output) in halves.into_iter().enumerate() {
                    for lane in load * group..(load + 1) * group {
                        let sample = (first(output + lane) - first(output + load * group)) as u8;
                        shuffle[2 * (half * HALF + lane)..][..2].copy_from_slice(&[sample, sample + 1]);
                    }
                }
                let starts = halves.map(|output| first(output + load * group));
                self.gathers.push(Gather { shuffle, starts });
            }
            for pair in 0..self.pairs {
                let mut weights = Weights { high: [0; 16], even: [0; 8], odd: [0; 8] };
                for lane in 0..2 * HALF {
                    let output = halves[lane / HALF] + lane % HALF;
                    let coefficients = if output < taps.len() { taps.of(output).1 } else { &[] };
                    let Pair { high, low } = Pair::new(coefficients.get(2 * pair..).unwrap_or(&[]));
                    weights.high[lane] = high;
                    [&mut weights.even, &mut weights.odd][lane % 2][lane / 2] = low;
                }
                self.weights.push(weights);
            }
        }
        true
    }

    /// The row `samples` becomes `out`.
    #[target_feature(enable = "avx2")]
    pub(super) fn weigh(&self, samples: &[u8], out: &mut [u8]) {
        match (self.loads, self.pairs) {
            (1, 2) => self.weigh_with::<1, 2>(samples, out),
            (1, _) => self.weigh_with::<1, 0>(samples, out),
            _ => self.weigh_with::<2, 0>(samples, out),
        }
    }

    /// Samples that may be read.
    pub(super) fn reach(&self) -> usize {
        self.reach
    }

    /// `PAIRS` is the number of pairs, if it is known: for enlarging.
    #[target_feature(enable = "avx2")]
    fn weigh_with<const LOADS: usize, const PAIRS: usize>(&self, samples: &[u8], out: &mut [u8]) {
        assert!(samples.len() >= self.reach && self.loads == LOADS && (PAIRS == 0 || PAIRS == self.pairs));
        let pairs = if PAIRS == 0 { self.pairs } else { PAIRS };
        let gathers = self.gathers.as_chunks::<LOADS>().0;
        let mut vectors = gathers.iter().zip(self.weights.chunks_exact(pairs));
        let sixteen = |(gathers, weights): (&[Gather; LOADS], &[Weights])| {
            let mut sums = Sums::zero();
            for (pair, weights) in weights.iter().enumerate() {
                let mut taps = _mm256_setzero_si256();
                for Gather { starts, shuffle } in gathers {
                    // SAFETY: a load begins at the first tap of an output or an even number of taps, fewer than `2 · pairs`,
                    // after it: it ends within `reach`.
                    let [low, high] =
                        starts.map(|start| unsafe { _mm_loadu_si128(samples.as_ptr().add(start + 2 * pair).cast()) });
                    let window = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high);
                    taps = _mm256_or_si256(taps, _mm256_shuffle_epi8(window, vector(shuffle)));
                }
                sums.add(taps, vector(&weights.high), vector(&weights.even), vector(&weights.odd));
            }
            sums.rounded()
        };
        for out in out.as_chunks_mut::<WIDTH>().0 {
            let (Some(even), Some(odd)) = (vectors.next(), vectors.next()) else { return };
            store(_mm256_packus_epi16(sixteen(even), sixteen(odd)), out);
        }
    }
}
