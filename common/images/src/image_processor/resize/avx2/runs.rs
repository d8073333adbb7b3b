//! The horizontal pass where an output is made of many samples: they are weighed as they lie, 32 at a time, and summed at the
//! end.

use super::super::WIDTH;
use super::super::taps::{AxisTaps, PRECISION_BITS};
use super::{LOW_BITS, parts, vector};
use std::arch::x86_64::*;

/// Outputs whose sums are made together.
const GROUP: usize = 8;

/// For every output, up to a whole [`GROUP`]: where its samples begin, and their weights.
#[derive(Default)]
pub(super) struct Runs {
    /// Vectors of samples of every output.
    vectors: usize,
    starts: Vec<usize>,
    /// `[outputs, vectors]`.
    weights: Vec<Weights>,
    /// Samples that may be read.
    reach: usize,
}

/// The weights of 32 samples.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Weights {
    high: [i8; WIDTH],
    /// Of samples 0 to 7 and 16 to 23, and of the others: as unpacking takes them apart.
    low: [[i16; WIDTH / 2]; 2],
}

impl Runs {
    pub(super) fn fill(&mut self, taps: &AxisTaps) {
        self.vectors = taps.longest().div_ceil(WIDTH);
        self.reach = taps.of(taps.len() - 1).0 + self.vectors * WIDTH;
        self.starts.clear();
        self.weights.clear();
        for output in 0..taps.len().next_multiple_of(GROUP) {
            let (first, coefficients) = if output < taps.len() { taps.of(output) } else { (0, &[][..]) };
            self.starts.push(first);
            for index in 0..self.vectors {
                let coefficients = coefficients.get(index * WIDTH..).unwrap_or(&[]);
                let mut weights = Weights { high: [0; WIDTH], low: [[0; WIDTH / 2]; 2] };
                for (sample, &coefficient) in coefficients.iter().take(WIDTH).enumerate() {
                    let (high, low) = parts(coefficient);
                    weights.high[sample] = high;
                    weights.low[sample / 8 % 2][sample / 16 * 8 + sample % 8] = low;
                }
                self.weights.push(weights);
            }
        }
    }

    /// Samples that may be read.
    pub(super) fn reach(&self) -> usize {
        self.reach
    }

    /// The row `samples` becomes `out`.
    #[target_feature(enable = "avx2")]
    pub(super) fn weigh(&self, samples: &[u8], out: &mut [u8]) {
        assert!(samples.len() >= self.reach);
        let starts = self.starts.as_chunks::<GROUP>().0.iter();
        let groups = starts.zip(self.weights.chunks_exact(GROUP * self.vectors));
        for ((starts, weights), out) in groups.zip(out.as_chunks_mut::<GROUP>().0) {
            let mut sums = [_mm256_setzero_si256(); GROUP];
            for ((sum, &start), weights) in sums.iter_mut().zip(starts).zip(weights.chunks_exact(self.vectors)) {
                // SAFETY: no output starts after the last, from which `reach` is counted.
                *sum = unsafe { self.weigh_one(samples.as_ptr().add(start), weights) };
            }
            *out = rounded(totals(sums));
        }
    }

    /// Numbers whose sum is that of the products.
    ///
    /// # Safety
    /// There are as many samples as weights.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn weigh_one(&self, samples: *const u8, weights: &[Weights]) -> __m256i {
        let zero = _mm256_setzero_si256();
        let (mut high, mut low) = (zero, zero);
        for (index, weights) in weights.iter().enumerate() {
            // SAFETY: the caller's.
            let samples = unsafe { _mm256_loadu_si256(samples.add(index * WIDTH).cast()) };
            high = _mm256_add_epi16(high, _mm256_maddubs_epi16(samples, vector(&weights.high)));
            let [a, b] = [_mm256_unpacklo_epi8(samples, zero), _mm256_unpackhi_epi8(samples, zero)];
            low = _mm256_add_epi32(low, _mm256_madd_epi16(a, vector(&weights.low[0])));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(b, vector(&weights.low[1])));
        }
        // Sums of high products may have left 16 bits; the lost bits would be shifted out of 32.
        let high = _mm256_madd_epi16(high, _mm256_set1_epi16(1));
        _mm256_add_epi32(low, _mm256_slli_epi32::<{ LOW_BITS as i32 }>(high))
    }
}

/// The sum of each vector's numbers.
#[target_feature(enable = "avx2")]
#[inline]
fn totals(sums: [__m256i; GROUP]) -> __m256i {
    let [a, b, c, d] = [0, 2, 4, 6].map(|index| _mm256_hadd_epi32(sums[index], sums[index + 1]));
    let (first, second) = (_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    // Of four vectors each, the lower halves' sums below those of the upper halves.
    let lower = _mm256_permute2x128_si256::<0x20>(first, second);
    let upper = _mm256_permute2x128_si256::<0x31>(first, second);
    _mm256_add_epi32(lower, upper)
}

/// Sums to samples.
#[target_feature(enable = "avx2")]
#[inline]
fn rounded(sums: __m256i) -> [u8; GROUP] {
    let round = _mm256_set1_epi32(1 << (PRECISION_BITS - 1));
    let sums = _mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(_mm256_add_epi32(sums, round));
    let words = _mm_packs_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
    _mm_cvtsi128_si64(_mm_packus_epi16(words, words)).to_le_bytes()
}
