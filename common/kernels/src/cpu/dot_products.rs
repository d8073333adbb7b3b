//! Dot products of the rows of a weight with few rows of x, for decode steps.
//!
//! Sums have sixteen lanes, products and sums are separate operations, lanes are added pairwise: the same bits on every
//! machine, and for a row of x whatever the other rows are. The vector instructions are written out because the compiler, left to
//! itself, works on two lanes at a time here.

use super::simd::{LANES, fold};
use super::weights::Element;

/// A dot product of `weight` with each of the inputs, which are at least as long.
pub fn dots<E: Element, const N: usize>(inputs: [&[f32]; N], weight: &[E]) -> [f32; N] {
    let inputs = inputs.map(|input| &input[..weight.len()]);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: the machine has both.
        return unsafe { E::dots_avx2(inputs, weight) };
    }
    portable(inputs, weight)
}

/// The definition, and the way of other machines.
fn portable<E: Element, const N: usize>(inputs: [&[f32]; N], weight: &[E]) -> [f32; N] {
    let mut sums = [[0f32; LANES]; N];
    let (chunks, rest) = weight.as_chunks::<LANES>();
    for (index, chunk) in chunks.iter().enumerate() {
        let chunk: [f32; LANES] = std::array::from_fn(|lane| chunk[lane].widen());
        for (sums, input) in sums.iter_mut().zip(inputs) {
            let input = &input[index * LANES..][..LANES];
            for lane in 0..LANES {
                sums[lane] += input[lane] * chunk[lane];
            }
        }
    }
    add_rest(sums.map(fold), inputs, rest)
}

/// Adds the products behind the last whole chunk.
#[inline(always)]
fn add_rest<E: Element, const N: usize>(mut totals: [f32; N], inputs: [&[f32]; N], rest: &[E]) -> [f32; N] {
    for (total, input) in totals.iter_mut().zip(inputs) {
        let input = &input[input.len() - rest.len()..];
        rest.iter().zip(input).for_each(|(weight, input)| *total += weight.widen() * input);
    }
    totals
}

/// The same with AVX2, for one dtype: `$load` gives sixteen values from an address on, in two vectors.
#[cfg(target_arch = "x86_64")]
macro_rules! avx2_dots {
    ($name:ident, $element:ty, $load:expr) => {
        /// # Safety
        /// The machine has AVX2 and F16C.
        #[target_feature(enable = "avx2,f16c")]
        #[allow(clippy::needless_range_loop)] // Four arrays side by side.
        pub unsafe fn $name<const N: usize>(inputs: [&[f32]; N], weight: &[$element]) -> [f32; N] {
            use std::arch::x86_64::*;
            let (chunks, rest) = weight.as_chunks::<{ super::LANES }>();
            assert!(inputs.iter().all(|input| input.len() == weight.len()));
            let mut low = [_mm256_setzero_ps(); N];
            let mut high = [_mm256_setzero_ps(); N];
            for (index, chunk) in chunks.iter().enumerate() {
                // SAFETY: a chunk has sixteen values, and every input has sixteen from `index` · 16 on.
                unsafe {
                    let (first, second): (__m256, __m256) = $load(chunk.as_ptr());
                    for n in 0..N {
                        let input = inputs[n].as_ptr().add(index * super::LANES);
                        low[n] = _mm256_add_ps(low[n], _mm256_mul_ps(_mm256_loadu_ps(input), first));
                        high[n] = _mm256_add_ps(high[n], _mm256_mul_ps(_mm256_loadu_ps(input.add(8)), second));
                    }
                }
            }
            let mut totals = [0f32; N];
            for n in 0..N {
                let eight = _mm256_add_ps(low[n], high[n]);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                totals[n] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
            }
            super::add_rest(totals, inputs, rest)
        }
    };
}

/// One function a dtype.
#[cfg(target_arch = "x86_64")]
pub mod avx2 {
    avx2_dots!(of_f32, f32, |from: *const f32| (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))));
    avx2_dots!(of_bf16, half::bf16, |from: *const half::bf16| {
        // The high half of an f32.
        let widen = |from: *const half::bf16| {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        };
        (widen(from), widen(from.add(8)))
    });
    avx2_dots!(of_f16, half::f16, |from: *const half::f16| {
        let widen = |from: *const half::f16| _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
        (widen(from), widen(from.add(8)))
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[allow(clippy::needless_range_loop)]
    fn assert_same_bits<E: Element>(what: &str, from_f32: fn(f32) -> E) {
        for len in [1, 15, 16, 17, 64, 577, 1000] {
            let value = |index: usize| ((index * 7919 + 13) % 1000) as f32 / 317.0 - 1.5;
            let inputs: [Vec<f32>; 4] = std::array::from_fn(|n| (0..len).map(|i| value(i * 5 + n)).collect());
            let weight: Vec<E> = (0..len).map(|i| from_f32(value(i * 3 + 1))).collect();
            let rows: [&[f32]; 4] = std::array::from_fn(|n| inputs[n].as_slice());
            let found = dots(rows, &weight);
            assert_eq!(found, portable(rows, &weight), "{what}, {len} values");
            for n in 0..4 {
                assert_eq!(dots([rows[n]], &weight), [found[n]], "{what}, {len} values: a row alone");
            }
        }
    }

    #[test]
    fn vectors_give_the_bits_of_the_definition() {
        assert_same_bits("f32", |value| value);
        assert_same_bits("bf16", bf16::from_f32);
        assert_same_bits("f16", f16::from_f32);
    }
}
