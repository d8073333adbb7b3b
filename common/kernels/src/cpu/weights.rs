//! Weight matrices in f32, half precision or few bits as factors of a product. What is not f32 is widened a few rows at a time, so that no
//! second copy of a weight comes into being, or goes to AMX's tiles.

use super::amx::{self, Lines, Right};
use super::dot_products::Element;
use super::few::{Rows, few};
use super::gemm::{Start, gemm, gemm_into};
use super::int8::{self, Int8Operand, Int8Rows};
use super::matrix::{Matrix, MatrixMut};
use super::nf4::{Nf4Operand, Nf4Rows};
use super::operand::{self, Node, dims, floats};
use super::output::{Place, filled, filled_chunks, write};
use super::simd::multiversion;
use crate::quantized::{LinearWeight, QuantizedWeight};
use burn::backend::flex::FlexTensor;
use burn::tensor::DType;
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Up to so many rows of x, reading the weight is what takes time: it is read once, where it lies.
const FEW_ROWS: usize = crate::MAX_INDEPENDENT_TOKENS;
/// Values that are widened at a time.
const WIDENED: usize = 1 << 20;

/// A weight on the CPU backend, which a backward step can keep.
#[derive(Clone, Debug)]
pub enum WeightOperand {
    /// In a float dtype.
    Float(FlexTensor),
    /// In 8-bit integers.
    Int8(Int8Operand),
    /// In NF4.
    Nf4(Box<Nf4Operand>),
}

impl WeightOperand {
    /// A weight and its place in the graph. It may be in any dtype if it is frozen; a trained one is f32. `None` on another
    /// backend.
    pub fn new(weight: &LinearWeight) -> Option<(Self, Node)> {
        let weight = match weight {
            LinearWeight::Float(weight) => {
                let weight = operand::any_operand(weight)?;
                let supported = Weight::new(&weight.values).is_some();
                let trained = weight.node.tracked() && weight.values.dtype() != DType::F32;
                return (supported && !trained).then_some((Self::Float(weight.values), weight.node));
            }
            LinearWeight::Quantized(QuantizedWeight::Int8(weight)) => Self::Int8(Int8Operand::new(weight)?),
            LinearWeight::Quantized(QuantizedWeight::Nf4(weight)) => Self::Nf4(Box::new(Nf4Operand::new(weight)?)),
        };
        weight.view()?;
        Some((weight, Node::untracked()))
    }

    /// What products are computed with.
    pub fn view(&self) -> Option<Weight<'_>> {
        match self {
            Self::Float(values) => Weight::new(values),
            Self::Int8(weight) => weight.rows().map(Weight::Int8),
            Self::Nf4(weight) => weight.rows().map(Weight::Nf4),
        }
    }
}

/// A weight `[out, in]`.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// As the products are computed.
    F32(Matrix<'a>),
    /// To be widened: values, rows, columns.
    Bf16(&'a [bf16], usize, usize),
    /// To be widened: values, rows, columns.
    F16(&'a [f16], usize, usize),
    /// To be widened.
    Int8(Int8Rows<'a>),
    /// To be widened.
    Nf4(Nf4Rows<'a>),
}

impl<'a> Weight<'a> {
    /// The tensor's values; `None` in another dtype.
    pub fn new(tensor: &'a FlexTensor) -> Option<Self> {
        let [rows, columns] = dims(tensor);
        Some(match tensor.dtype() {
            DType::F32 => Self::F32(Matrix::new(floats(tensor), rows, columns)),
            DType::BF16 => Self::Bf16(tensor.as_slice()?, rows, columns),
            DType::F16 => Self::F16(tensor.as_slice()?, rows, columns),
            _ => return None,
        })
    }

    /// out, in.
    pub fn sizes(&self) -> (usize, usize) {
        match *self {
            Self::F32(matrix) => (matrix.rows, matrix.columns),
            Self::Bf16(_, rows, columns) | Self::F16(_, rows, columns) => (rows, columns),
            Self::Int8(rows) => rows.sizes(),
            Self::Nf4(rows) => rows.sizes(),
        }
    }

    /// Wᵀ as right factor where the machine has tiles for it.
    fn columns(&self) -> Option<Right<'a>> {
        let (out, inputs) = self.sizes();
        match *self {
            _ if !self.has_tiles() => None,
            Self::Bf16(values, ..) => Some(Right::new(Lines::Bf16(values, out, inputs))),
            Self::Int8(rows) => Some(rows.columns()),
            Self::Nf4(rows) => Some(Right::new(Lines::Nf4(rows))),
            Self::F32(_) | Self::F16(..) => None,
        }
    }

    /// W as right factor where the machine has tiles for it.
    fn rows(&self) -> Option<Right<'a>> {
        let (out, inputs) = self.sizes();
        match *self {
            _ if !self.has_tiles() => None,
            Self::Bf16(values, ..) => Some(Right::new(Lines::Bf16Across(values, inputs, out))),
            Self::Int8(rows) => Some(rows.rows()),
            Self::Nf4(rows) => Some(Right::new(Lines::Nf4Across(rows))),
            Self::F32(_) | Self::F16(..) => None,
        }
    }

    /// Whether the machine has tiles, and this is more than a handful of values, which would fill none.
    fn has_tiles(&self) -> bool {
        /// Rows and columns of half a tile.
        const SMALL: usize = 16;
        let (out, inputs) = self.sizes();
        out >= SMALL && inputs >= SMALL && amx::available()
    }

    /// `x Wᵀ + bias`. x `[T, in]` → `[T, out]`.
    pub fn forward(&self, x: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
        fn few_of<E: Element>(x: Matrix, weight: &[E], out: usize, bias: Option<&[f32]>) -> Vec<f32> {
            few(&Rows { x, weight, scales: None }, x.rows, out, bias)
        }
        let (out, _) = self.sizes();
        let columns = self.columns();
        match *self {
            Self::F32(matrix) if x.rows <= FEW_ROWS => return few_of(x, matrix.values(), out, bias),
            Self::Bf16(values, ..) if x.rows <= FEW_ROWS => return few_of(x, values, out, bias),
            Self::F16(values, ..) if x.rows <= FEW_ROWS => return few_of(x, values, out, bias),
            Self::Int8(rows) if x.rows <= FEW_ROWS => return rows.few(x, bias),
            Self::Int8(rows) if x.rows <= int8::MAX_DIRECT_TOKENS && columns.is_none() => return rows.few(x, bias),
            Self::Nf4(rows) if x.rows <= FEW_ROWS => return rows.few(x, bias),
            _ => {}
        }
        filled(x.rows * out, |output| {
            let mut output = MatrixMut::new(output, x.rows, out);
            if let Some(columns) = columns {
                let start = bias.map_or(Start::Zero, Start::Bias);
                // SAFETY: nothing is kept.
                return unsafe { columns.product(x, output, start) }.into_values();
            }
            if let Self::F32(matrix) = self {
                return gemm_into(x, matrix.transposed(), output, bias).into_values();
            }
            for (tile, index) in output.reborrow().tiles(x.rows, self.widened_rows()).into_iter().zip(0..) {
                let bias = bias.map(|bias| &bias[tile.column..][..tile.part.columns]);
                self.widened(index, |part| {
                    gemm_into(x, part.transposed(), tile.part, bias);
                });
            }
            // SAFETY: the tiles have all places, and each was written by its product.
            unsafe { output.assume_written() }.into_values()
        })
    }

    /// `d W`. d `[T, out]` → `[T, in]`.
    pub fn backward(&self, d: Matrix) -> Vec<f32> {
        let (_, inputs) = self.sizes();
        filled(d.rows * inputs, |output| {
            let output = MatrixMut::new(output, d.rows, inputs);
            if let Some(rows) = self.rows() {
                // SAFETY: nothing is kept.
                return unsafe { rows.product(d, output, Start::Zero) }.into_values();
            }
            let columns = self.group(0);
            let mut sum = self.widened(0, |part| gemm_into(d.block(0..d.rows, columns), part, output, None));
            self.add_groups(1, d, &mut sum);
            sum.into_values()
        })
    }

    /// Adds `d W` to `output` `[T, in]`.
    pub fn add_backward(&self, d: Matrix, output: &mut [f32]) {
        let (_, inputs) = self.sizes();
        let mut output = MatrixMut::new(output, d.rows, inputs);
        match self.rows() {
            Some(rows) => {
                // SAFETY: the output has values, and gets values.
                unsafe { rows.product(d, output.into_places(), Start::Keep) };
            }
            None => self.add_groups(0, d, &mut output),
        }
    }

    /// Adds rows of the weight, the `first`-th and those behind it, to `sums`.
    pub fn add_rows(&self, first: usize, sums: &mut [f32]) {
        fn add<E: Element>(sums: &mut [f32], values: &[E]) {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value.widen());
        }
        let (_, columns) = self.sizes();
        let range = first * columns..first * columns + sums.len();
        match *self {
            Self::F32(matrix) => add(sums, &matrix.values()[range]),
            Self::Bf16(values, ..) => add(sums, &values[range]),
            Self::F16(values, ..) => add(sums, &values[range]),
            Self::Int8(rows) => add(sums, &rows.widened(first..first + sums.len() / columns.max(1))),
            Self::Nf4(rows) => add(sums, &rows.widened(first..first + sums.len() / columns.max(1))),
        }
    }

    /// Adds the products with the groups of rows from the `first`-th on.
    fn add_groups(&self, first: usize, d: Matrix, sum: &mut MatrixMut) {
        let (out, _) = self.sizes();
        for index in first..out.div_ceil(self.widened_rows()) {
            let d = d.block(0..d.rows, self.group(index));
            self.widened(index, |part| gemm(d, part, sum.reborrow(), Start::Keep));
        }
    }

    /// Rows that are used at a time: all in f32.
    fn widened_rows(&self) -> usize {
        let (rows, columns) = self.sizes();
        let all = if let Self::F32(_) = self { rows } else { WIDENED / columns.max(1) };
        all.max(1)
    }

    /// The `index`-th of these.
    fn group(&self, index: usize) -> Range<usize> {
        let ((rows, _), group) = (self.sizes(), self.widened_rows());
        index * group..rows.min((index + 1) * group)
    }

    /// The same in f32.
    fn widened<T>(&self, index: usize, use_rows: impl FnOnce(Matrix) -> T) -> T {
        let ((_, columns), rows) = (self.sizes(), self.group(index));
        let range = rows.start * columns..rows.end * columns;
        let widened = match *self {
            Self::F32(matrix) => return use_rows(matrix.block(rows, 0..columns)),
            Self::Bf16(values, ..) => widened(&values[range]),
            Self::F16(values, ..) => widened(&values[range]),
            Self::Int8(weight) => weight.widened(rows.clone()),
            Self::Nf4(weight) => weight.widened(rows.clone()),
        };
        use_rows(Matrix::new(&widened, rows.len(), columns))
    }
}

fn widened<E: Element>(values: &[E]) -> Vec<f32> {
    const CHUNK: usize = 1 << 14;
    filled_chunks(values.len(), CHUNK, values.par_chunks(CHUNK), |from, to| widen(from, to))
}

multiversion! {
    fn widen<'a, E: Element>(from: &[E], to: &'a mut [Place]) -> &'a mut [f32] {
        write(to, from.iter().map(|value| value.widen()))
    }
}
