//! NF4 weights on the CPU. Few tokens multiply the codes' values where they lie; for more, codes become f32 a slice of rows at a time, or the
//! tiles of AMX.

use super::dot_products::dots;
use super::few::{Dots, few};
use super::matrix::Matrix;
use super::operand::{self, floats};
use super::output::{Place, fill_rows, filled, filled_chunks, write};
#[cfg(target_arch = "x86_64")]
use super::simd::{Isa, isa};
use super::simd::{LANES, fold, multiversion};
use crate::nf4::{Absmax, Nf4Weight, VALUES};
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// The two values of a byte, the high half's first.
static PAIRS: [[f32; 2]; 256] = {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [VALUES[byte >> 4], VALUES[byte & 15]];
        byte += 1;
    }
    pairs
};

/// A weight on the CPU backend.
#[derive(Clone, Debug)]
pub struct Nf4Operand {
    codes: FlexTensor,
    absmax: AbsmaxOperand,
    block: usize,
    shape: [usize; 2],
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // It is part of what is boxed.
enum AbsmaxOperand {
    Plain(FlexTensor),
    Nested { codes: FlexTensor, map: FlexTensor, absmax: FlexTensor, block: usize, offset: f32 },
}

impl Nf4Operand {
    /// `None` on another backend.
    pub fn new(weight: &Nf4Weight) -> Option<Self> {
        let floats = |tensor: &Tensor<1>| tensor.clone().try_into_primitive::<Flex>().ok();
        let absmax = match &weight.absmax {
            Absmax::Plain(absmax) => AbsmaxOperand::Plain(floats(absmax)?),
            Absmax::Nested { codes, map, absmax, block, offset } => AbsmaxOperand::Nested {
                codes: codes.clone().try_into_primitive::<Flex>().ok()?,
                map: floats(map)?,
                absmax: floats(absmax)?,
                block: *block,
                offset: *offset,
            },
        };
        let codes = weight.codes.clone().try_into_primitive::<Flex>().ok()?;
        Some(Self { codes, absmax, block: weight.block, shape: weight.shape })
    }

    /// Its rows.
    pub fn rows(&self) -> Option<Nf4Rows<'_>> {
        let absmax = match &self.absmax {
            AbsmaxOperand::Plain(absmax) => AbsmaxRows::Plain(floats(absmax)),
            AbsmaxOperand::Nested { codes, map, absmax, block, offset } => AbsmaxRows::Nested {
                codes: codes.as_slice()?,
                map: floats(map).first_chunk()?,
                absmax: floats(absmax),
                block: *block,
                offset: *offset,
            },
        };
        Some(Nf4Rows { codes: self.codes.as_slice()?, absmax, block: self.block, shape: self.shape })
    }
}

/// A weight `[out, in]`.
#[derive(Clone, Copy)]
pub struct Nf4Rows<'a> {
    codes: &'a [u8],
    absmax: AbsmaxRows<'a>,
    block: usize,
    shape: [usize; 2],
}

#[derive(Clone, Copy)]
enum AbsmaxRows<'a> {
    Plain(&'a [f32]),
    Nested { codes: &'a [u8], map: &'a [f32; 256], absmax: &'a [f32], block: usize, offset: f32 },
}

impl AbsmaxRows<'_> {
    /// The largest magnitude of a block; the product is rounded before the sum.
    #[inline(always)]
    fn get(&self, index: usize) -> f32 {
        match *self {
            Self::Plain(absmax) => absmax[index],
            Self::Nested { codes, map, absmax, block, offset } => {
                map[usize::from(codes[index])] * absmax[index / block] + offset
            }
        }
    }

    /// Those of the blocks from `first` on.
    #[inline(always)]
    fn fill(&self, first: usize, to: &mut [f32]) {
        match *self {
            Self::Plain(absmax) => to.copy_from_slice(&absmax[first..first + to.len()]),
            Self::Nested { codes, map, absmax, block, offset } => {
                let (mut first, mut to) = (first, to);
                while !to.is_empty() {
                    // Blocks whose magnitudes are rounded together, with one scale.
                    let outer = first / block;
                    let count = to.len().min((outer + 1) * block - first);
                    let (part, rest) = to.split_at_mut(count);
                    let scale = absmax[outer];
                    for (to, &code) in part.iter_mut().zip(&codes[first..first + count]) {
                        *to = map[usize::from(code)] * scale + offset;
                    }
                    (first, to) = (first + count, rest);
                }
            }
        }
    }
}

/// Rows of a weight in f32; `None` on another backend.
pub fn nf4_rows(weight: &Nf4Weight, rows: Range<usize>) -> Option<Tensor<2>> {
    let operand = Nf4Operand::new(weight)?;
    let values = operand.rows()?.widened(rows.clone());
    Some(Tensor::from_primitive::<Flex>(operand::tensor(values, [rows.len(), weight.shape[1]])))
}

impl Nf4Rows<'_> {
    /// out, in.
    pub fn sizes(&self) -> (usize, usize) {
        (self.shape[0], self.shape[1])
    }

    /// Rows in f32.
    pub fn widened(&self, rows: Range<usize>) -> Vec<f32> {
        let width = self.shape[1];
        filled_chunks(rows.len() * width, width, rows.into_par_iter(), |row, to| self.row(row, to))
    }

    /// `x Wᵀ + bias` for few tokens. x `[T, in]` → `[T, out]`.
    pub fn few(&self, x: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
        let (out, width) = self.sizes();
        if Codes::fit(width, self.block) {
            return few(&Codes { weight: *self, x: pairs_apart(x) }, x.rows, out, bias);
        }
        few(&Widened { weight: *self, x }, x.rows, out, bias)
    }

    /// A row in f32.
    fn row<'t>(&self, row: usize, to: &'t mut [Place]) -> &'t mut [f32] {
        let (width, block) = (self.shape[1], self.block);
        let start = row * width;
        if width.is_multiple_of(block) {
            let blocks = start / block..(start + width) / block;
            return fill_rows(to, block, blocks, |index, to| {
                decode(&self.codes[index * block / 2..][..block / 2], self.absmax.get(index), to)
            });
        }
        write(to, self.values(row, 0..width))
    }

    /// Some values of a row in f32, one by one.
    pub fn values(&self, row: usize, columns: Range<usize>) -> impl Iterator<Item = f32> {
        let start = row * self.shape[1];
        (start + columns.start..start + columns.end).map(|index| {
            let pair = PAIRS[usize::from(self.codes[index / 2])];
            pair[index % 2] * self.absmax.get(index / self.block)
        })
    }

    /// Codes of some values of a row, two a byte, and the magnitude that they have in common; `None` if they are in several blocks or
    /// begin within a byte. Behind an odd number of values the last byte has another code.
    #[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
    #[inline(always)]
    pub fn codes(&self, row: usize, columns: Range<usize>) -> Option<(&[u8], f32)> {
        let (start, len) = (row * self.shape[1] + columns.start, columns.len());
        let block = start / self.block;
        let whole = start.is_multiple_of(2) && start + len <= (block + 1) * self.block;
        whole.then(|| (&self.codes[start / 2..(start + len).div_ceil(2)], self.absmax.get(block)))
    }
}

/// Rows of x with rows of a weight that are not whole blocks: these become f32.
struct Widened<'a> {
    weight: Nf4Rows<'a>,
    x: Matrix<'a>,
}

impl Dots for Widened<'_> {
    fn width(&self) -> usize {
        self.x.columns
    }

    fn dots<const T: usize, const R: usize>(&self, token: usize, channel: usize) -> [[f32; T]; R] {
        std::array::from_fn(|r| {
            let row = filled(self.x.columns, |to| self.weight.row(channel + r, to));
            let [sums] = dots(std::array::from_fn(|t| self.x.row(token + t)), [row.as_slice()]);
            sums
        })
    }
}

/// Bytes whose values are multiplied at a time.
const BYTES: usize = LANES;

/// Rows of x with rows of a weight that are whole blocks: the codes' values are summed block by block, in sixteen lanes (two values a lane
/// and step), and each block's sum is multiplied with its largest magnitude.
struct Codes<'a> {
    weight: Nf4Rows<'a>,
    /// As [`pairs_apart`] makes it.
    x: Vec<f32>,
}

/// x with the values of even position in front of those of odd position, in each 32.
fn pairs_apart(x: Matrix) -> Vec<f32> {
    let mut apart = Vec::with_capacity(x.rows * x.columns);
    for row in 0..x.rows {
        for values in x.row(row).chunks(2 * BYTES) {
            apart.extend(values.iter().step_by(2));
            apart.extend(values.iter().skip(1).step_by(2));
        }
    }
    apart
}

impl Codes<'_> {
    /// Whether a weight's rows are whole blocks, and these whole steps.
    fn fit(width: usize, block: usize) -> bool {
        width.is_multiple_of(block) && block.is_multiple_of(2 * BYTES)
    }

    /// Products of `R` rows of the weight with `T` rows of x.
    fn rows<const T: usize, const R: usize>(&self, token: usize, channel: usize) -> [[f32; T]; R] {
        let (Nf4Rows { codes, absmax, block, .. }, width) = (self.weight, self.weight.shape[1]);
        let inputs: [&[f32]; T] = std::array::from_fn(|t| &self.x[(token + t) * width..][..width]);
        let codes: [&[u8]; R] = std::array::from_fn(|r| &codes[(channel + r) * width / 2..][..width / 2]);
        let absmax = |r: usize, first: usize, to: &mut [f32]| absmax.fill((channel + r) * width / block + first, to);
        #[cfg(target_arch = "x86_64")]
        if isa() == Isa::Avx512 {
            // SAFETY: the machine has AVX-512; inputs and codes are as long as a row, which is whole blocks (`fit`).
            return unsafe { codes_avx512(inputs, codes, absmax, block) };
        }
        codes_portable(inputs, codes, absmax, block)
    }
}

impl Dots for Codes<'_> {
    fn width(&self) -> usize {
        self.weight.shape[1]
    }

    fn dots<const T: usize, const R: usize>(&self, token: usize, channel: usize) -> [[f32; T]; R] {
        self.rows(token, channel)
    }
}

/// The definition. `absmax` writes the largest magnitudes of a row's blocks, from one on.
fn codes_portable<const T: usize, const R: usize>(
    inputs: [&[f32]; T],
    codes: [&[u8]; R],
    absmax: impl Fn(usize, usize, &mut [f32]),
    block: usize,
) -> [[f32; T]; R] {
    std::array::from_fn(|r| {
        let mut sums = [[0f32; LANES]; T];
        for (index, codes) in codes[r].chunks_exact(block / 2).enumerate() {
            let mut scale = [0.0];
            absmax(r, index, &mut scale);
            let mut of_block = [[0f32; LANES]; T];
            for (step, bytes) in codes.as_chunks::<BYTES>().0.iter().enumerate() {
                let values: [[f32; LANES]; 2] =
                    std::array::from_fn(|odd| bytes.map(|byte| PAIRS[usize::from(byte)][odd]));
                for (sums, input) in of_block.iter_mut().zip(inputs) {
                    add_products(sums, &values, &input[index * block + step * 2 * BYTES..][..2 * BYTES]);
                }
            }
            for (sums, of_block) in sums.iter_mut().zip(of_block) {
                sums.iter_mut().zip(of_block).for_each(|(sum, of_block)| *sum = of_block.mul_add(scale[0], *sum));
            }
        }
        sums.map(fold)
    })
}

multiversion! {
    fn add_products(sums: &mut [f32; LANES], values: &[[f32; LANES]; 2], input: &[f32]) {
        let (input, _) = input.as_chunks::<LANES>();
        for (values, input) in values.iter().zip(input) {
            for lane in 0..LANES {
                sums[lane] = input[lane].mul_add(values[lane], sums[lane]);
            }
        }
    }
}

/// Blocks whose largest magnitudes are made at a time.
#[cfg(target_arch = "x86_64")]
const SCALES: usize = 32;

/// The same with AVX-512: the sixteen values are a register, which the codes index. Several rows side by side share what is read of x
/// and do not wait for their sums; the rows behind them are fetched meanwhile.
///
/// # Safety
/// The machine has AVX-512; codes are whole blocks of whole steps, and inputs are twice as long.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
#[allow(clippy::needless_range_loop)] // Arrays side by side.
unsafe fn codes_avx512<const T: usize, const R: usize>(
    inputs: [&[f32]; T],
    codes: [&[u8]; R],
    absmax: impl Fn(usize, usize, &mut [f32]),
    block: usize,
) -> [[f32; T]; R] {
    use super::simd::prefetch;
    use std::arch::x86_64::*;
    // SAFETY: sixteen values are there.
    let values = unsafe { _mm512_loadu_ps(VALUES.as_ptr()) };
    let bytes = codes.first().map_or(0, |codes| codes.len());
    let blocks = 2 * bytes / block;
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    for first in (0..blocks).step_by(SCALES) {
        let count = SCALES.min(blocks - first);
        let mut scales = [[0f32; SCALES]; R];
        scales.iter_mut().enumerate().for_each(|(r, scales)| absmax(r, first, &mut scales[..count]));
        for index in first..first + count {
            let mut of_block = [[_mm512_setzero_ps(); T]; R];
            for byte in (index * block / 2..(index + 1) * block / 2).step_by(BYTES) {
                for r in 0..R {
                    if byte % 64 < BYTES {
                        prefetch(codes[r].as_ptr().wrapping_add(byte + R * bytes).cast());
                    }
                    // SAFETY: sixteen bytes are there, and inputs have 32 values from twice the byte's place on.
                    unsafe {
                        let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes[r].as_ptr().add(byte).cast()));
                        // Of an index only the low four bits count.
                        let even = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), values);
                        let odd = _mm512_permutexvar_ps(codes, values);
                        for t in 0..T {
                            let input = inputs[t].as_ptr().add(2 * byte);
                            of_block[r][t] = _mm512_fmadd_ps(_mm512_loadu_ps(input), even, of_block[r][t]);
                            of_block[r][t] = _mm512_fmadd_ps(_mm512_loadu_ps(input.add(BYTES)), odd, of_block[r][t]);
                        }
                    }
                }
            }
            for r in 0..R {
                let scale = _mm512_set1_ps(scales[r][index - first]);
                for t in 0..T {
                    sums[r][t] = _mm512_fmadd_ps(of_block[r][t], scale, sums[r][t]);
                }
            }
        }
    }
    sums.map(|sums| {
        sums.map(|sum| {
            let mut lanes = [0f32; LANES];
            // SAFETY: there is room for sixteen values.
            unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
            fold(lanes)
        })
    })
}

multiversion! {
    /// Two values a byte.
    fn decode<'t>(bytes: &[u8], absmax: f32, to: &'t mut [Place]) -> &'t mut [f32] {
        let (pairs, rest) = to.as_chunks_mut::<2>();
        assert!(rest.is_empty() && pairs.len() == bytes.len());
        for (pair, &byte) in pairs.iter_mut().zip(bytes) {
            let values = PAIRS[usize::from(byte)];
            pair[0].write(values[0] * absmax);
            pair[1].write(values[1] * absmax);
        }
        // SAFETY: every pair was written, and there are no other places.
        unsafe { to.assume_init_mut() }
    }
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

    /// Rows of whole blocks are summed from their codes, others are widened; alone or with others a row of x gives the same bits.
    #[test]
    fn few_tokens_give_the_product_of_the_widened_weight() {
        for (tokens, width, out, nested) in [
            (1, 64, 33, true),
            (8, 576, 70, true),
            (5, 192, 9, false),
            (3, 32, 5, true),
            (7, 100, 12, false),
            (2, 2048, 3, true),
        ] {
            let x = values(random([tokens, width]));
            let nf4 = Nf4Weight::quantize(random([out, width]), nested);
            let operand = Nf4Operand::new(&nf4).expect("the CPU backend");
            let rows = operand.rows().expect("codes");
            let bias: Vec<f32> = (0..out).map(|channel| channel as f32).collect();
            let (found, weight) = (rows.few(Matrix::new(&x, tokens, width), Some(&bias)), rows.widened(0..out));
            let mut largest = 0f64;
            for (index, &found) in found.iter().enumerate() {
                let (token, channel) = (index / out, index % out);
                let row = x[token * width..][..width].iter().zip(&weight[channel * width..]);
                let expected = f64::from(bias[channel]) + row.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>();
                largest = largest.max((f64::from(found) - expected).abs());
            }
            let tolerance = 1e-6 * (width as f64).sqrt() + 1e-6 * out as f64;
            println!("{tokens} × {width} × {out}: largest difference {largest:e} (tolerance {tolerance:e})");
            assert!(largest < tolerance);
            for token in 0..tokens {
                let alone = rows.few(Matrix::new(&x[token * width..][..width], 1, width), Some(&bias));
                assert_eq!(alone, found[token * out..][..out], "{tokens} × {width} × {out}: row {token} alone");
            }
        }
    }

    #[test]
    fn vectors_give_the_bits_of_the_definition() {
        for (width, block) in [(64, 64), (576, 64), (1216, 64), (128, 32), (256, 128)] {
            let x = values(random([3, width]));
            let codes: Vec<u8> = (0..width / 2).map(|index| (index * 37 % 256) as u8).collect();
            let inputs: [&[f32]; 3] = std::array::from_fn(|t| &x[t * width..][..width]);
            let absmax = |r: usize, first: usize, to: &mut [f32]| {
                to.iter_mut().enumerate().for_each(|(index, to)| *to = 0.3 + (first + index + 7 * r) as f32);
            };
            let reversed: Vec<u8> = codes.iter().rev().copied().collect();
            let expected = codes_portable(inputs, [codes.as_slice(), &reversed], absmax, block);
            #[cfg(target_arch = "x86_64")]
            if isa() == Isa::Avx512 {
                // SAFETY: the machine has AVX-512; the sizes are those of the definition.
                let found = unsafe { codes_avx512(inputs, [codes.as_slice(), &reversed], absmax, block) };
                assert_eq!(found, expected, "{width} values");
            }
            assert!(expected.iter().flatten().all(|value| value.is_finite()));
        }
    }
}
