//! Dot products of 8-bit integers with f32 values, with AVX-512.

use super::simd::{Isa, isa};

/// Products and sums under way in a vector.
const LANES: usize = 16;

/// Whether [`dots`] runs on this machine.
pub fn available() -> bool {
    isa() == Isa::Avx512
}

/// Σ input · code for several inputs as long as `codes`: sixteen fused partial sums. Partial sums i and i + 8 are added, then the
/// eight results in order, then the products after the last whole sixteen. An input's result does not depend on the other inputs.
///
/// # Panics
/// On a machine without AVX-512.
pub fn dots<const N: usize>(inputs: [&[f32]; N], codes: &[i8]) -> [f32; N] {
    assert!(available() && inputs.iter().all(|input| input.len() == codes.len()));
    // SAFETY: the machine has AVX-512.
    unsafe { avx512(inputs, codes) }
}

#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
fn avx512<const N: usize>(inputs: [&[f32]; N], codes: &[i8]) -> [f32; N] {
    use std::arch::x86_64::*;
    let (chunks, code_rest) = codes.as_chunks::<LANES>();
    let mut sums = [_mm512_setzero_ps(); N];
    for (index, codes) in chunks.iter().enumerate() {
        // SAFETY: a chunk has 16 codes, and every input has 16 values from 16 · index on.
        unsafe {
            let codes = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes.as_ptr().cast())));
            for (sum, input) in sums.iter_mut().zip(&inputs) {
                *sum = _mm512_fmadd_ps(_mm512_loadu_ps(input.as_ptr().add(LANES * index)), codes, *sum);
            }
        }
    }
    std::array::from_fn(|n| {
        let (low, high) = (_mm512_castps512_ps256(sums[n]), _mm512_extractf32x8_ps::<1>(sums[n]));
        let mut lanes = [0f32; LANES / 2];
        // SAFETY: eight values fit.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(low, high)) };
        let rest = &inputs[n][LANES * chunks.len()..];
        let rest: f32 = rest.iter().zip(code_rest).map(|(&value, &code)| value * f32::from(code)).sum();
        lanes.iter().sum::<f32>() + rest
    })
}
