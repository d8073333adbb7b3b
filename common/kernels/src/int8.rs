//! Products with weights in 8-bit integers: one scale for each row (output channel), activations in f32.

use burn::backend::Flex;
use burn::tensor::{DType, Int, Tensor, TensorData};
use rayon::prelude::*;

/// Up to this many tokens the integers are used as they are; beyond, slices of rows are converted and multiplied as matrices.
const MAX_DIRECT_TOKENS: usize = 16;
const _: () = assert!(MAX_DIRECT_TOKENS >= super::MAX_INDEPENDENT_TOKENS);
/// Rows converted at a time.
const CONVERTED_ROWS: usize = 1024;
/// Output channels that one task computes.
const CHANNELS_PER_TASK: usize = 32;

/// A weight matrix in 8-bit integers: `codes[n, k] · scales[n]` stands for `W[n, k]`.
#[derive(Clone, Debug)]
pub struct Int8Weight {
    /// i8 `[out, in]`, −127..=127.
    pub codes: Tensor<2, Int>,
    /// f32 `[out]`.
    pub scales: Tensor<1>,
}

impl Int8Weight {
    /// Rounds a weight `[out, in]` of any float format: each row's largest magnitude becomes ±127.
    pub fn quantize(weight: Tensor<2>) -> Self {
        let ([rows, width], device) = (weight.dims(), weight.device());
        let (mut codes, mut scales) = (Vec::with_capacity(rows * width), Vec::with_capacity(rows));
        for start in (0..rows).step_by(CONVERTED_ROWS) {
            let part = weight.clone().narrow(0, start, CONVERTED_ROWS.min(rows - start)).cast(DType::F32);
            let values = part.into_data();
            for row in values.as_slice::<f32>().unwrap_or_default().chunks_exact(width.max(1)) {
                let scale = row.iter().fold(0f32, |largest, value| largest.max(value.abs())) / 127.0;
                let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                codes.extend(row.iter().map(|value| (value * inverse).round() as i8));
                scales.push(scale);
            }
        }
        Self {
            codes: Tensor::from_data(TensorData::new(codes, [rows, width]), (&device, DType::I8)),
            scales: Tensor::from_data(TensorData::new(scales, [rows]), &device),
        }
    }

    /// Moves the codes into huge pages where system and backend can.
    pub fn move_into_huge_pages(&self) {
        if let Ok(codes) = self.codes.clone().try_into_primitive::<Flex>() {
            crate::memory::move_into_huge_pages(codes.bytes());
        }
    }

    /// Rows `start..start + rows` in f32.
    pub fn dequantized(&self, start: usize, rows: usize) -> Tensor<2> {
        self.dequantized_directly(start, rows).unwrap_or_else(|| {
            let scales = self.scales.clone().narrow(0, start, rows).unsqueeze_dim(1);
            self.codes.clone().narrow(0, start, rows).float() * scales
        })
    }

    /// The same on the CPU, in one pass.
    fn dequantized_directly(&self, start: usize, rows: usize) -> Option<Tensor<2>> {
        let [_, width] = self.codes.dims();
        let codes = self.codes.clone().try_into_primitive::<Flex>().ok()?;
        let scales = self.scales.clone().try_into_primitive::<Flex>().ok()?;
        let codes = &codes.as_slice::<i8>()?[start * width..(start + rows) * width];
        let scales = &scales.as_slice::<f32>()?[start..start + rows];
        let mut values = vec![0f32; rows * width];
        let row_pairs = values.par_chunks_exact_mut(width.max(1)).zip(codes.par_chunks_exact(width.max(1)));
        row_pairs.zip(scales).for_each(|((values, codes), scale)| {
            values.iter_mut().zip(codes).for_each(|(value, &code)| *value = f32::from(code) * scale);
        });
        Some(Tensor::from_data(TensorData::new(values, [rows, width]), &self.scales.device()))
    }

    /// Rows `ids` in f32: `[T]` → `[T, in]`.
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let count = ids.len();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &self.scales.device());
        let scales = self.scales.clone().select(0, ids.clone()).unsqueeze_dim(1);
        self.codes.clone().select(0, ids).float() * scales
    }
}

/// `y = x Wᵀ + b`. x f32 `[T, in]` → `[T, out]`. Inference only: no gradient.
pub fn linear_int8(x: Tensor<2>, weight: &Int8Weight, bias: Option<Tensor<1>>) -> Tensor<2> {
    let [tokens, _] = x.dims();
    let direct = if tokens <= MAX_DIRECT_TOKENS { direct(&x, weight) } else { None };
    let y = direct.unwrap_or_else(|| converted(x, weight));
    match bias {
        Some(bias) => y + bias.cast(DType::F32).unsqueeze(),
        None => y,
    }
}

/// The definition: a slice of rows at a time becomes f32.
fn converted(x: Tensor<2>, weight: &Int8Weight) -> Tensor<2> {
    let [out, _] = weight.codes.dims();
    let starts = (0..out).step_by(CONVERTED_ROWS);
    let rows = starts.map(|start| weight.dequantized(start, CONVERTED_ROWS.min(out - start)));
    Tensor::cat(rows.map(|rows| super::linear(x.clone(), rows, None)).collect(), 1)
}

/// The same on the CPU without converting anything in memory: few tokens are bound by reading the weight once.
fn direct(x: &Tensor<2>, weight: &Int8Weight) -> Option<Tensor<2>> {
    let ([tokens, width], [out, _]) = (x.dims(), weight.codes.dims());
    let input = x.clone().try_into_primitive::<Flex>().ok()?.to_contiguous();
    let codes = weight.codes.clone().try_into_primitive::<Flex>().ok()?;
    let scales = weight.scales.clone().try_into_primitive::<Flex>().ok()?;
    let (input, codes, scales) = (input.as_slice::<f32>()?, codes.as_slice::<i8>()?, scales.as_slice::<f32>()?);
    let product = Product { input, codes, width };
    // [out, tokens] first, so that a task owns consecutive values.
    let mut transposed = vec![0f32; out * tokens];
    transposed.par_chunks_mut((CHANNELS_PER_TASK * tokens).max(1)).enumerate().for_each(|(task, part)| {
        product.run(task * CHANNELS_PER_TASK, scales, tokens, part);
    });
    let mut y = vec![0f32; out * tokens];
    for (token, row) in y.chunks_exact_mut(out.max(1)).enumerate() {
        row.iter_mut().enumerate().for_each(|(channel, value)| *value = transposed[channel * tokens + token]);
    }
    Some(Tensor::from_data(TensorData::new(y, [tokens, out]), &x.device()))
}

struct Product<'a> {
    input: &'a [f32],
    codes: &'a [i8],
    width: usize,
}

impl Product<'_> {
    /// Output channels from `first` on, `part` `[channels, tokens]`.
    fn run(&self, first: usize, scales: &[f32], tokens: usize, part: &mut [f32]) {
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

    #[test]
    fn a_weight_is_kept_to_half_a_step() {
        let weight = random([5, 70]);
        let int8 = Int8Weight::quantize(weight.clone());
        let (found, expected) = (values(int8.rows(&[0, 1, 2, 3, 4])), values(weight));
        for (row, (found, expected)) in found.chunks(70).zip(expected.chunks(70)).enumerate() {
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            println!("row {row}: largest difference {difference:e} (half a step: {:e})", largest / 254.0);
            assert!(difference <= largest / 254.0 * 1.001);
        }
    }

    /// The path of CPUs without AVX2 gives the same to rounding.
    fn assert_portable_equals(x: &Tensor<2>, int8: &Int8Weight, found: &[f32]) {
        let ([tokens, width], [out, _]) = (x.dims(), int8.codes.dims());
        let codes = int8.codes.clone().try_into_vec_as::<i8>().expect("i8 codes");
        let scales = int8.scales.clone().try_into_vec_as::<f32>().expect("f32 scales");
        let input = values(x.clone());
        let mut transposed = vec![0f32; out * tokens];
        let product = Product { input: &input, codes: &codes, width };
        product.run_with(0, &scales, tokens, &mut transposed, dot, dot);
        let other = |index: usize| transposed[index % out * tokens + index / out];
        let difference = found.iter().enumerate().map(|(index, a)| (a - other(index)).abs()).fold(0f32, f32::max);
        assert!(difference <= 1e-5 * (width as f32).sqrt(), "{difference:e}");
    }

    #[test]
    fn a_row_of_zeros_stays_zeros() {
        let int8 = Int8Weight::quantize(Tensor::zeros([2, 3], &Device::flex()));
        assert_eq!(values(int8.rows(&[1])), [0.0; 3]);
        assert_eq!(values(linear_int8(random([1, 3]), &int8, None)), [0.0; 2]);
    }

    #[test]
    fn the_direct_product_equals_the_definition_for_any_number_of_tokens() {
        for (tokens, width, out) in [(1, 33, 65), (7, 64, 31), (MAX_DIRECT_TOKENS, 100, 7), (1, 1, 1), (2, 31, 2000)] {
            let (x, int8) = (random([tokens, width]), Int8Weight::quantize(random([out, width])));
            let expected = values(converted(x.clone(), &int8));
            let found = values(direct(&x, &int8).expect("the CPU backend"));
            assert_portable_equals(&x, &int8, &found);
            let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            let tolerance = 1e-5 * (width as f32).sqrt();
            println!("{tokens}×{width}×{out}: largest difference {difference:e} (tolerance {tolerance:e})");
            assert!(found.len() == expected.len() && difference <= tolerance);
            for token in [0, tokens - 1] {
                let alone = values(direct(&x.clone().narrow(0, token, 1), &int8).expect("the CPU backend"));
                assert_eq!(alone, found[token * out..][..out], "a row is the same alone, bit for bit");
            }
        }
    }
}
