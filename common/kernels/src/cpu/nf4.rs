//! NF4 weights on the CPU: codes become f32 a slice of rows at a time.

use super::matrix::Matrix;
use super::operand::{self, floats};
use super::output::{Place, fill_rows, filled, filled_chunks, write};
use super::simd::multiversion;
use super::weights::few;
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
                map: floats(map),
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
    Nested { codes: &'a [u8], map: &'a [f32], absmax: &'a [f32], block: usize, offset: f32 },
}

impl AbsmaxRows<'_> {
    /// The largest magnitude of a block; the product is rounded before the sum.
    fn get(&self, index: usize) -> f32 {
        match *self {
            Self::Plain(absmax) => absmax[index],
            Self::Nested { codes, map, absmax, block, offset } => {
                map[usize::from(codes[index])] * absmax[index / block] + offset
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
        few(x, out, bias, |row| filled(width, |to| self.row(row, to)))
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
        let value = |index: usize| {
            let pair = PAIRS[usize::from(self.codes[index / 2])];
            pair[index % 2] * self.absmax.get(index / block)
        };
        write(to, (start..start + width).map(value))
    }
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
