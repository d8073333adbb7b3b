//! Products with weights in 8-bit integers. Few tokens multiply the integers where they lie; for more, rows are widened.

use super::amx::{Lines, Right};
use super::few::{Rows, few};
use super::matrix::Matrix;
use super::operand::{self, floats};
use super::output::{filled_chunks, write};
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

impl<'a> Int8Rows<'a> {
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
        few(&Rows { x, weight: self.codes, scales: Some(self.scales) }, x.rows, self.scales.len(), bias)
    }

    /// Wᵀ as right factor.
    pub fn columns(&self) -> Right<'a> {
        let (out, width) = self.sizes();
        Right { column_scales: Some(self.scales), ..Right::new(Lines::Int8(self.codes, out, width)) }
    }

    /// W as right factor.
    pub fn rows(&self) -> Right<'a> {
        let (out, width) = self.sizes();
        Right { row_scales: Some(self.scales), ..Right::new(Lines::Int8Across(self.codes, width, out)) }
    }
}

multiversion! {
    fn scaled<'a>(codes: &[i8], scale: f32, to: &'a mut [super::output::Place]) -> &'a mut [f32] {
        write(to, codes.iter().map(|&code| f32::from(code) * scale))
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

    #[test]
    fn the_direct_product_equals_the_definition_for_any_number_of_tokens() {
        for (tokens, width, out) in [(1, 33, 65), (7, 64, 31), (MAX_DIRECT_TOKENS, 100, 7), (1, 1, 1), (2, 31, 2000)] {
            let (x, int8) = (random([tokens, width]), Int8Weight::quantize(random([out, width])));
            let expected = values(crate::reference::linear(x.clone(), int8.dequantized(0..out), None));
            let (operand, x) = (Int8Operand::new(&int8).expect("the CPU backend"), values(x));
            let rows = operand.rows().expect("i8 codes");
            let found = rows.few(Matrix::new(&x, tokens, width), None);
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
