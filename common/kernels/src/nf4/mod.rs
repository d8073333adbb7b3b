//! Weights in 4-bit NormalFloat (NF4): a code stands for one of sixteen values between −1 and 1, and the values of a block are
//! multiples of the block's largest magnitude (`absmax`), which may itself be stored in 8 bits.
//!
//! # Source
//! bitsandbytes 0.50, `functional.quantize_4bit` and `dequantize_4bit` with `quant_type="nf4"`; the values are the same, bit for
//! bit, as those it gives in f32.

mod absmax;

pub use absmax::{ABSMAX_BLOCK, Absmax, dynamic_map};

use crate::quantized::bytes;
use burn::tensor::{DType, Device, Int, IntDType, Tensor, TensorData};
use rayon::prelude::*;
use std::ops::Range;

/// Values in a block, unless a file says otherwise.
pub const BLOCK: usize = 64;

/// What the codes stand for.
pub const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The code of 0.
const ZERO: u8 = 7;

/// A weight matrix in NF4.
#[derive(Clone, Debug)]
pub struct Nf4Weight {
    /// u8 `[⌈out · in / 2⌉]`: two codes a byte, the first in the high half; rows follow each other without a gap.
    pub codes: Tensor<1, Int>,
    /// The largest magnitude of each block.
    pub absmax: Absmax,
    /// Values in a block: even; the last block may have fewer.
    pub block: usize,
    /// out, in.
    pub shape: [usize; 2],
}

/// Bytes of so many values in blocks of [`BLOCK`].
pub fn bytes_of(values: usize, double_quant: bool) -> usize {
    values.div_ceil(2) + absmax::bytes_of(values.div_ceil(BLOCK), double_quant)
}

impl Nf4Weight {
    /// Rounds a weight `[out, in]` of any float dtype to the nearest values, in blocks of [`BLOCK`].
    pub fn quantize(weight: Tensor<2>, double_quant: bool) -> Self {
        let (shape, device) = (weight.dims(), weight.device().without_autodiff());
        let weight = weight.cast(DType::F32).into_data();
        let values = weight.as_slice::<f32>().unwrap_or_default();
        let (mut codes, mut absmax) = (vec![0; values.len().div_ceil(2)], vec![0.0; values.len().div_ceil(BLOCK)]);
        let blocks = values.par_chunks(BLOCK).zip(codes.par_chunks_mut(BLOCK / 2)).zip(&mut absmax);
        blocks.for_each(|((values, codes), absmax)| *absmax = quantize_block(values, codes));
        Self::from_parts(codes, Absmax::new(absmax, double_quant, &device), BLOCK, shape, &device)
    }

    /// Of codes, two a byte.
    pub fn from_parts(codes: Vec<u8>, absmax: Absmax, block: usize, shape: [usize; 2], device: &Device) -> Self {
        let bytes = codes.len();
        let codes = Tensor::from_data(TensorData::new(codes, [bytes]), (device, DType::U8));
        Self { codes, absmax, block, shape }
    }

    /// Some rows in f32: `[rows, in]`, on the device without autodiff.
    pub fn dequantized(&self, rows: Range<usize>) -> Tensor<2> {
        crate::cpu::nf4_rows(self, rows.clone()).unwrap_or_else(|| self.dequantized_by_operations(rows))
    }

    /// The same on any backend.
    pub(crate) fn dequantized_by_operations(&self, rows: Range<usize>) -> Tensor<2> {
        let [out, width] = self.shape;
        let (start, end) = (rows.start * width, rows.end * width);
        // Whole blocks, so that their bytes and magnitudes are ranges, too.
        let blocks = start / self.block..end.div_ceil(self.block);
        let (first, last) = (blocks.start * self.block, (blocks.end * self.block).min(out * width));
        let count = blocks.len();
        let absmax = self.absmax.values(blocks).unsqueeze_dim::<2>(1).expand([count, self.block]);
        let absmax = absmax.reshape([count * self.block]).narrow(0, 0, last - first);
        let bytes = self.codes.clone().narrow(0, first / 2, last.div_ceil(2) - first / 2).cast(IntDType::I32);
        let high = bytes.clone().bitwise_right_shift_scalar(4);
        let codes = Tensor::stack::<2>(vec![high, bytes.bitwise_and_scalar(15)], 1);
        let [pairs, _] = codes.dims();
        let codes = codes.reshape([2 * pairs]).narrow(0, 0, last - first);
        let values = Tensor::<1>::from_data(TensorData::from(VALUES), (&self.codes.device(), DType::F32));
        let values = values.select(0, codes) * absmax;
        values.narrow(0, start - first, end - start).reshape([rows.len(), width])
    }

    pub(crate) fn bytes(&self) -> Vec<Vec<u8>> {
        let mut all = vec![bytes(self.codes.clone().into_data())];
        all.extend(self.absmax.bytes());
        all
    }
}

/// Writes the codes of a block and gives its largest magnitude.
///
/// # Source
/// bitsandbytes `backends/default/ops.py`, `quantize_4bit`: a value between two codes gets the nearer one, halfway the lower.
fn quantize_block(values: &[f32], codes: &mut [u8]) -> f32 {
    /// Smallest divisor.
    const TINY: f32 = 1e-38;
    let absmax = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let inverse = 1.0 / absmax.max(TINY);
    let whole = values.len() == BLOCK;
    let code = |value: f32| {
        // The rest behind the last whole block is divided, as there.
        let scaled = if whole { value * inverse } else { value / absmax.max(TINY) };
        let scaled = scaled.clamp(-1.0, 1.0);
        let halfway = VALUES.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0);
        halfway.fold(0u8, |code, bound| code + u8::from(scaled > bound))
    };
    for (pair, byte) in values.chunks(2).zip(codes) {
        *byte = code(pair[0]) << 4 | pair.get(1).map_or(ZERO, |&value| code(value));
    }
    if whole { absmax } else { absmax.max(TINY) }
}

#[cfg(test)]
mod tests;
