//! Products with weights in 8-bit integers. Few tokens multiply the integers where they lie; for more, rows are widened.

#[cfg(target_arch = "x86_64")]
use super::int8_dots;
use super::matrix::Matrix;
use super::operand::{self, floats};
use super::output::{fill_rows, filled, filled_chunks, write};
use super::simd::multiversion;
use crate::int8::Int8Weight;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Up to this many tokens the integers are used as they are; beyond, slices of rows are converted and multiplied as matrices.
pub const MAX_DIRECT_TOKENS: usize = 16;
const _: () = assert!(MAX_DIRECT_TOKENS >= crate::MAX_INDEPENDENT_TOKENS);
/// Output channels that one task computes.
const CHANNELS_PER_TASK: usize = 32;

/// A weight's codes and scales on the CPU backend.
#[derive(Clone, Debug)]
pub struct Int8Operand {
    codes: FlexTensor,
    scales: FlexTensor,
}

impl Int8Operand {
    /// `None` on another backend.
    pub fn new(weight: &Int8Weight) -> Option<Self> {
        let codes = weight.codes.clone().try_into_primitive::<Flex>().ok()?;
        let scales = weight.scales.clone().try_into_primitive::<Flex>().ok()?;
        Some(Self { codes, scales })
    }

    /// Its rows.
    pub fn rows(&self) -> Option<Int8Rows<'_>> {
        let [_, width] = operand::dims(&self.codes);
        Some(Int8Rows { codes: self.codes.as_slice()?, scales: floats(&self.scales), width })
    }
}

/// A weight `[out, in]`: `codes[n, k] · scales[n]`.
#[derive(Clone, Copy)]
pub struct Int8Rows<'a> {
    codes: &'a [i8],
    scales: &'a [f32],
    width: usize,
}

/// Rows of a weight in f32; `None` on another backend.
pub fn int8_rows(weight: &Int8Weight, rows: Range<usize>) -> Option<Tensor<2>> {
    let operand = Int8Operand::new(weight)?;
    let view = operand.rows()?;
    let shape = [rows.len(), view.width];
    Some(Tensor::from_primitive::<Flex>(operand::tensor(view.widened(rows), shape)))
}

impl Int8Rows<'_> {
    /// out, in.
    pub fn sizes(&self) -> (usize, usize) {
        (self.scales.len(), self.width)
    }

    /// Rows in f32.
    pub fn widened(&self, rows: Range<usize>) -> Vec<f32> {
        let (codes, scales) = (&self.codes[rows.start * self.width..rows.end * self.width], &self.scales[rows]);
        let inputs = codes.par_chunks(self.width.max(1)).zip(scales);
        filled_chunks(codes.len(), self.width, inputs, |(codes, &scale), to| scaled(codes, scale, to))
    }

    /// `x Wᵀ + bias` for few tokens, which are bound by reading the weight once. x `[T, in]` → `[T, out]`.
    pub fn few(&self, x: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
        let (tokens, out) = (x.rows, self.scales.len());
        let product = Product { input: x.values(), codes: self.codes, width: self.width };
        // [out, tokens] first, so that a task owns consecutive values.
        let mut transposed = vec![0f32; out * tokens];
        transposed.par_chunks_mut((CHANNELS_PER_TASK * tokens).max(1)).enumerate().for_each(|(task, part)| {
            product.run(task * CHANNELS_PER_TASK, self.scales, tokens, part);
        });
        filled(out * tokens, |output| {
            fill_rows(output, out, 0..tokens, |token, output| {
                let value = |channel: usize| transposed[channel * tokens + token] + bias.map_or(0.0, |b| b[channel]);
                write(output, (0..out).map(value))
            })
        })
    }
}

multiversion! {
    fn scaled<'a>(codes: &[i8], scale: f32, to: &'a mut [super::output::Place]) -> &'a mut [f32] {
        write(to, codes.iter().map(|&code| f32::from(code) * scale))
    }
}

struct Product<'a> {
    input: &'a [f32],
    codes: &'a [i8],
    width: usize,
}

impl Product<'_> {
    /// Output channels from `first` on, `part` `[channels, tokens]`.
    fn run(&self, first: usize, scales: &[f32], tokens: usize, part: &mut [f32]) {
        // Of several tokens, the products take as long with either width.
        #[cfg(target_arch = "x86_64")]
        if int8_dots::available() {
            // SAFETY: a machine with AVX-512 has AVX2 and FMA.
            return self.run_with(first, scales, tokens, part, |x, w| unsafe { dot_avx2(x, w) }, int8_dots::dots);
        }
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has what the functions were compiled for.
            return unsafe { self.run_with(first, scales, tokens, part, |x, w| dot_avx2(x, w), |x, w| dot_avx2(x, w)) };
        }
        self.run_with(first, scales, tokens, part, dot, dot);
    }

    /// Four tokens at a time share the conversion of a code; each token's sum is made in the same order whatever their number.
    fn run_with(
        &self,
        first: usize,
        scales: &[f32],
        tokens: usize,
        part: &mut [f32],
        dot4: impl Fn([&[f32]; 4], &[i8]) -> [f32; 4],
        dot1: impl Fn([&[f32]; 1], &[i8]) -> [f32; 1],
    ) {
        for (channel, sums) in part.chunks_exact_mut(tokens).enumerate() {
            let codes = &self.codes[(first + channel) * self.width..][..self.width];
            let input = |token: usize| &self.input[token * self.width..][..self.width];
            let (blocks, rest) = sums.as_chunks_mut::<4>();
            let done = blocks.len() * 4;
            for (block, sums) in blocks.iter_mut().enumerate() {
                *sums = dot4(std::array::from_fn(|token| input(block * 4 + token)), codes);
            }
            for (token, sum) in rest.iter_mut().enumerate() {
                [*sum] = dot1([input(done + token)], codes);
            }
            sums.iter_mut().for_each(|sum| *sum *= scales[first + channel]);
        }
    }
}

/// Independent partial sums of a dot product.
const LANES: usize = 16;

/// Σ input · code for several tokens.
fn dot<const TOKENS: usize>(inputs: [&[f32]; TOKENS], codes: &[i8]) -> [f32; TOKENS] {
    inputs.map(|input| {
        let mut sums = [0f32; LANES];
        for (input, codes) in input.chunks(LANES).zip(codes.chunks(LANES)) {
            for (sum, (&value, &code)) in sums.iter_mut().zip(input.iter().zip(codes)) {
                *sum += value * f32::from(code);
            }
        }
        sums.iter().sum()
    })
}

/// The same with AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2<const TOKENS: usize>(inputs: [&[f32]; TOKENS], codes: &[i8]) -> [f32; TOKENS] {
    use std::arch::x86_64::*;
    let (chunks, code_rest) = codes.as_chunks::<LANES>();
    assert!(inputs.iter().all(|input| input.len() == codes.len()));
    let mut sums = [[_mm256_setzero_ps(); 2]; TOKENS];
    for (index, codes) in chunks.iter().enumerate() {
        // SAFETY: a chunk has 16 codes, and every input has 16 values from 16 · index on.
        unsafe {
            let codes = _mm_loadu_si128(codes.as_ptr().cast());
            let low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
            let high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(codes)));
            for (sums, input) in sums.iter_mut().zip(&inputs) {
                let input = input.as_ptr().add(LANES * index);
                sums[0] = _mm256_fmadd_ps(_mm256_loadu_ps(input), low, sums[0]);
                sums[1] = _mm256_fmadd_ps(_mm256_loadu_ps(input.add(8)), high, sums[1]);
            }
        }
    }
    std::array::from_fn(|token| {
        let mut lanes = [0f32; 8];
        // SAFETY: eight values fit.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(sums[token][0], sums[token][1])) };
        let rest = &inputs[token][LANES * chunks.len()..];
        let rest: f32 = rest.iter().zip(code_rest).map(|(&value, &code)| value * f32::from(code)).sum();
        lanes.iter().sum::<f32>() + rest
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    fn random(shape: [usize; 2]) -> Tensor<2> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    fn values(tensor: Tensor<2>) -> Vec<f32> {
        tensor.try_into_vec_as::<f32>().expect("f32 values")
    }

    /// The path of CPUs without AVX2 gives the same to rounding.
    fn assert_portable_equals(x: &[f32], rows: Int8Rows<'_>, found: &[f32]) {
        let (out, width) = rows.sizes();
        let tokens = x.len() / width;
        let mut transposed = vec![0f32; out * tokens];
        let product = Product { input: x, codes: rows.codes, width };
        product.run_with(0, rows.scales, tokens, &mut transposed, dot, dot);
        let other = |index: usize| transposed[index % out * tokens + index / out];
        let difference = found.iter().enumerate().map(|(index, a)| (a - other(index)).abs()).fold(0f32, f32::max);
        assert!(difference <= 1e-5 * (width as f32).sqrt(), "{difference:e}");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn wider_vectors_give_the_same_bits() {
        if !int8_dots::available() {
            println!("not run: no AVX-512");
            return;
        }
        for len in [1, 15, 16, 33, 577] {
            let inputs: [Vec<f32>; 4] = std::array::from_fn(|_| values(random([1, len])));
            let codes: Vec<i8> = (0..len).map(|index| (index * 37 % 255) as i8).collect();
            let inputs: [&[f32]; 4] = std::array::from_fn(|token| inputs[token].as_slice());
            // SAFETY: a machine with AVX-512 has AVX2 and FMA.
            let expected = unsafe { dot_avx2(inputs, &codes) };
            assert_eq!(int8_dots::dots(inputs, &codes), expected, "{len} values");
            assert_eq!(int8_dots::dots([inputs[3]], &codes), [expected[3]], "{len} values, alone");
        }
    }

    #[test]
    fn the_direct_product_equals_the_definition_for_any_number_of_tokens() {
        for (tokens, width, out) in [(1, 33, 65), (7, 64, 31), (MAX_DIRECT_TOKENS, 100, 7), (1, 1, 1), (2, 31, 2000)] {
            let (x, int8) = (random([tokens, width]), Int8Weight::quantize(random([out, width])));
            let expected = values(crate::reference::linear(x.clone(), int8.dequantized(0..out), None));
            let (operand, x) = (Int8Operand::new(&int8).expect("the CPU backend"), values(x));
            let rows = operand.rows().expect("i8 codes");
            let found = rows.few(Matrix::new(&x, tokens, width), None);
            assert_portable_equals(&x, rows, &found);
            let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            let tolerance = 1e-5 * (width as f32).sqrt();
            println!("{tokens}×{width}×{out}: largest difference {difference:e} (tolerance {tolerance:e})");
            assert!(found.len() == expected.len() && difference <= tolerance);
            for token in [0, tokens - 1] {
                let alone = rows.few(Matrix::new(&x[token * width..][..width], 1, width), None);
                assert_eq!(alone, found[token * out..][..out], "a row is the same alone, bit for bit");
            }
        }
    }
}
