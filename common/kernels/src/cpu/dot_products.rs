//! Dot products of rows of a weight with few rows of x, for decode steps.
//!
//! Sums have sixteen lanes of fused operations, lane i for the values i, i + 16, …; lanes are added pairwise: the same bits on every
//! machine, and for a row of x whatever the other rows are. The vector instructions are written out because the compiler, left to
//! itself, works on two lanes at a time here. Several rows of the weight are read side by side: one alone would wait for its sums.

#[cfg(target_arch = "x86_64")]
use super::simd::{Isa, isa};
use super::simd::{LANES, fold};
use half::{bf16, f16};

/// Bytes of a line of the cache.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// A dtype of weights.
pub trait Element: Copy + Send + Sync + 'static {
    /// The value in f32, without branches, so that it can be done for many at once.
    fn widen(self) -> f32;
    /// [`dots`] with vector instructions of 32 bytes.
    ///
    /// # Safety
    /// The machine has AVX2, FMA and F16C; all slices are as long as the first weight.
    #[cfg(target_arch = "x86_64")]
    unsafe fn dots_avx2<const T: usize, const R: usize>(inputs: [&[f32]; T], weights: [&[Self]; R]) -> [[f32; T]; R];
    /// The same of 64 bytes. What lies `ahead` values behind each weight is fetched meanwhile.
    ///
    /// # Safety
    /// The machine has AVX-512; all slices are as long as the first weight.
    #[cfg(target_arch = "x86_64")]
    unsafe fn dots_avx512<const T: usize, const R: usize>(
        inputs: [&[f32]; T],
        weights: [&[Self]; R],
        ahead: usize,
    ) -> [[f32; T]; R];
}

/// A dot product of each of the weights, which have one length, with each of the inputs, which are at least as long.
pub fn dots<E: Element, const T: usize, const R: usize>(inputs: [&[f32]; T], weights: [&[E]; R]) -> [[f32; T]; R] {
    dots_of_rows(inputs, weights, 0)
}

/// The same of rows of a matrix, of which those `ahead` values behind are used next: the processor by itself does not see that coming,
/// since every row is short.
pub fn dots_of_rows<E: Element, const T: usize, const R: usize>(
    inputs: [&[f32]; T],
    weights: [&[E]; R],
    ahead: usize,
) -> [[f32; T]; R] {
    let len = weights.first().map_or(0, |weight| weight.len());
    let (inputs, weights) = (inputs.map(|input| &input[..len]), weights.map(|weight| &weight[..len]));
    #[cfg(target_arch = "x86_64")]
    match isa() {
        // SAFETY: the machine has it, and the slices are of one length.
        Isa::Avx512 => return unsafe { E::dots_avx512(inputs, weights, ahead) },
        // SAFETY: as above.
        Isa::Avx2 if is_x86_feature_detected!("f16c") => return unsafe { E::dots_avx2(inputs, weights) },
        _ => {}
    }
    let _ = ahead;
    portable(inputs, weights)
}

/// The definition, and the way of other machines.
fn portable<E: Element, const T: usize, const R: usize>(inputs: [&[f32]; T], weights: [&[E]; R]) -> [[f32; T]; R] {
    weights.map(|weight| {
        let mut sums = [[0f32; LANES]; T];
        for (index, chunk) in weight.chunks(LANES).enumerate() {
            for (sums, input) in sums.iter_mut().zip(inputs) {
                add(sums, &input[index * LANES..], chunk);
            }
        }
        sums.map(fold)
    })
}

/// Adds up to sixteen products.
#[inline(always)]
fn add<E: Element>(sums: &mut [f32; LANES], input: &[f32], weight: &[E]) {
    sums.iter_mut()
        .zip(input.iter().zip(weight))
        .for_each(|(sum, (&x, &weight))| *sum = x.mul_add(weight.widen(), *sum));
}

/// What a dtype needs: `$widen` makes a value f32, `$halves` sixteen values from an address on, in two vectors, `$whole` those lanes of
/// sixteen that a mask has.
macro_rules! element {
    ($element:ident, $widen:expr, $halves:expr, $whole:expr) => {
        impl Element for $element {
            #[inline(always)]
            fn widen(self) -> f32 {
                $widen(self)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::needless_range_loop)] // Arrays side by side.
            unsafe fn dots_avx2<const T: usize, const R: usize>(
                inputs: [&[f32]; T],
                weights: [&[Self]; R],
            ) -> [[f32; T]; R] {
                use std::arch::x86_64::*;
                let len = weights.first().map_or(0, |weight| weight.len());
                let whole = len / LANES * LANES;
                let mut sums = [[[_mm256_setzero_ps(); 2]; T]; R];
                for k in (0..whole).step_by(LANES) {
                    for r in 0..R {
                        // SAFETY: every weight and input has sixteen values from k on.
                        unsafe {
                            let [first, second]: [__m256; 2] = $halves(weights[r].as_ptr().add(k));
                            for t in 0..T {
                                let input = inputs[t].as_ptr().add(k);
                                sums[r][t][0] = _mm256_fmadd_ps(_mm256_loadu_ps(input), first, sums[r][t][0]);
                                sums[r][t][1] = _mm256_fmadd_ps(_mm256_loadu_ps(input.add(8)), second, sums[r][t][1]);
                            }
                        }
                    }
                }
                let mut totals = [[0f32; T]; R];
                for r in 0..R {
                    for t in 0..T {
                        let mut lanes = [0f32; LANES];
                        // SAFETY: there is room for two vectors.
                        unsafe {
                            _mm256_storeu_ps(lanes.as_mut_ptr(), sums[r][t][0]);
                            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), sums[r][t][1]);
                        }
                        add(&mut lanes, &inputs[t][whole..], &weights[r][whole..]);
                        totals[r][t] = fold(lanes);
                    }
                }
                totals
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::needless_range_loop)] // Arrays side by side.
            unsafe fn dots_avx512<const T: usize, const R: usize>(
                inputs: [&[f32]; T],
                weights: [&[Self]; R],
                ahead: usize,
            ) -> [[f32; T]; R] {
                use std::arch::x86_64::*;
                let len = weights.first().map_or(0, |weight| weight.len());
                let mut sums = [[_mm512_setzero_ps(); T]; R];
                for k in (0..len).step_by(LANES) {
                    let mask: __mmask16 = if len - k < LANES { (1 << (len - k)) - 1 } else { !0 };
                    if ahead > 0 && k.is_multiple_of(CACHE_LINE / size_of::<Self>()) {
                        for r in 0..R {
                            super::simd::prefetch(weights[r].as_ptr().wrapping_add(k + ahead).cast());
                        }
                    }
                    // SAFETY: every weight and input has the values of the mask from k on.
                    unsafe {
                        let mut values = [_mm512_setzero_ps(); R];
                        for r in 0..R {
                            values[r] = $whole(mask, weights[r].as_ptr().add(k));
                        }
                        for t in 0..T {
                            let input = _mm512_maskz_loadu_ps(mask, inputs[t].as_ptr().add(k));
                            for r in 0..R {
                                sums[r][t] = _mm512_fmadd_ps(input, values[r], sums[r][t]);
                            }
                        }
                    }
                }
                let mut totals = [[0f32; T]; R];
                for r in 0..R {
                    for t in 0..T {
                        let sum = sums[r][t];
                        let eight = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps::<1>(sum));
                        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                        totals[r][t] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
                    }
                }
                totals
            }
        }
    };
}

element!(
    f32,
    |value: f32| value,
    |from: *const f32| [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))],
    |mask, from: *const f32| _mm512_maskz_loadu_ps(mask, from)
);
element!(
    bf16,
    |value: bf16| f32::from_bits(u32::from(value.to_bits()) << 16),
    |from: *const half::bf16| {
        // The high half of an f32.
        let widen = |halves| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)));
        [widen(_mm_loadu_si128(from.cast())), widen(_mm_loadu_si128(from.add(8).cast()))]
    },
    |mask, from: *const half::bf16| {
        let halves = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
    }
);
element!(
    f16,
    |value: f16| {
        let bits = u32::from(value.to_bits());
        // The exponent moves by the difference of the biases, 2¹¹², which also makes subnormal numbers right.
        let magnitude = f32::from_bits((bits & 0x7FFF) << 13) * f32::from_bits(0x7780_0000);
        // Infinity and NaN have all exponent bits in either format.
        let special = if bits & 0x7C00 == 0x7C00 { 0x7F80_0000 } else { 0 };
        f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
    },
    |from: *const half::f16| {
        [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))]
    },
    |mask, from: *const half::f16| _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from.cast()))
);
element!(
    i8,
    |value: i8| f32::from(value),
    |from: *const i8| {
        let widen = |codes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
        let codes = _mm_loadu_si128(from.cast());
        [widen(codes), widen(_mm_srli_si128::<8>(codes))]
    },
    |mask, from: *const i8| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, from)))
);

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::needless_range_loop)]
    fn assert_same_bits<E: Element>(what: &str, from_f32: fn(f32) -> E) {
        for len in [1, 15, 16, 17, 64, 577, 1000] {
            let value = |index: usize| ((index * 7919 + 13) % 1000) as f32 / 317.0 - 1.5;
            let inputs: [Vec<f32>; 4] = std::array::from_fn(|n| (0..len).map(|i| value(i * 5 + n)).collect());
            let weights: [Vec<E>; 3] = std::array::from_fn(|r| (0..len).map(|i| from_f32(value(i * 3 + r))).collect());
            let rows: [&[f32]; 4] = std::array::from_fn(|n| inputs[n].as_slice());
            let weights: [&[E]; 3] = std::array::from_fn(|r| weights[r].as_slice());
            let expected = portable(rows, weights);
            assert_eq!(dots(rows, weights), expected, "{what}, {len} values");
            assert_eq!(dots_of_rows(rows, weights, 3 * len), expected, "{what}, {len} values");
            #[cfg(target_arch = "x86_64")]
            if isa() >= Isa::Avx2 && is_x86_feature_detected!("f16c") {
                // SAFETY: the machine has both, and the slices are of one length.
                assert_eq!(unsafe { E::dots_avx2(rows, weights) }, expected, "{what}, {len} values with AVX2");
            }
            for (n, r) in (0..4).flat_map(|n| (0..3).map(move |r| (n, r))) {
                assert_eq!(dots([rows[n]], [weights[r]]), [[expected[r][n]]], "{what}, {len} values: rows alone");
            }
        }
    }

    #[test]
    fn vectors_give_the_bits_of_the_definition() {
        assert_same_bits("f32", |value| value);
        assert_same_bits("bf16", bf16::from_f32);
        assert_same_bits("f16", f16::from_f32);
        assert_same_bits("i8", |value| (value * 80.0) as i8);
    }

    #[test]
    fn widening_is_exact() {
        for bits in 0..=u16::MAX {
            let (half, brain) = (f16::from_bits(bits), bf16::from_bits(bits));
            let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert!(same(half.widen(), half.to_f32()), "f16 {bits:#x}: {} where {half}", half.widen());
            assert!(same(brain.widen(), brain.to_f32()), "bf16 {bits:#x}");
        }
    }
}
