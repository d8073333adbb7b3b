//! Weight matrices in f32, bf16 or f16 as factors of a product; half precision is widened a few rows at a time, so that no
//! second copy of a weight comes into being.

#[cfg(target_arch = "x86_64")]
use super::dot_products::avx2;
use super::dot_products::dots;
use super::gemm::{Start, gemm};
use super::matrix::{Matrix, MatrixMut};
use super::operand::{dims, floats};
use super::simd::multiversion;
use burn::backend::flex::FlexTensor;
use burn::tensor::DType;
use half::{bf16, f16};
use rayon::prelude::*;

/// Up to so many rows of x, reading the weight is what takes time: it is read once, where it lies.
const FEW_ROWS: usize = crate::MAX_INDEPENDENT_TOKENS;
/// Rows of x that share a pass over a weight row.
const TOGETHER: usize = 4;
/// Weight rows in one task.
const TASK_ROWS: usize = 32;
/// Values that are widened at a time.
const WIDENED: usize = 1 << 20;

/// A number format of weights.
pub trait Element: Copy + Send + Sync + 'static {
    /// The value in f32, without branches, so that it can be done for many at once.
    fn widen(self) -> f32;
    /// Dot products with vector instructions.
    ///
    /// # Safety
    /// The machine has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn dots_avx2<const N: usize>(inputs: [&[f32]; N], weight: &[Self]) -> [f32; N];
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn dots_avx2<const N: usize>(inputs: [&[f32]; N], weight: &[Self]) -> [f32; N] {
        // SAFETY: passed on.
        unsafe { avx2::of_f32(inputs, weight) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn dots_avx2<const N: usize>(inputs: [&[f32]; N], weight: &[Self]) -> [f32; N] {
        // SAFETY: passed on.
        unsafe { avx2::of_bf16(inputs, weight) }
    }
}

impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        // The exponent moves by the difference of the biases, 2¹¹², which also makes subnormal numbers right.
        let magnitude = f32::from_bits((bits & 0x7FFF) << 13) * f32::from_bits(0x7780_0000);
        // Infinity and NaN have all exponent bits in either format.
        let special = if bits & 0x7C00 == 0x7C00 { 0x7F80_0000 } else { 0 };
        f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
    }

    #[cfg(target_arch = "x86_64")]
    unsafe fn dots_avx2<const N: usize>(inputs: [&[f32]; N], weight: &[Self]) -> [f32; N] {
        // SAFETY: passed on.
        unsafe { avx2::of_f16(inputs, weight) }
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
}

impl<'a> Weight<'a> {
    /// The tensor's values; `None` in another number format.
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
        }
    }

    /// `x Wᵀ`, into `output`. x `[T, in]`, output `[T, out]`.
    pub fn forward(&self, x: Matrix, output: &mut [f32], bias: Option<&[f32]>) {
        let (out, _) = self.sizes();
        if x.rows <= FEW_ROWS {
            return match *self {
                Self::F32(matrix) => few(x, matrix.values(), output, bias),
                Self::Bf16(values, ..) => few(x, values, output, bias),
                Self::F16(values, ..) => few(x, values, output, bias),
            };
        }
        let mut output = MatrixMut::new(output, x.rows, out);
        if let Self::F32(matrix) = self {
            return gemm(x, matrix.transposed(), output, bias.map_or(Start::Zero, Start::Bias));
        }
        let rows = self.widened_rows();
        for (tile, index) in output.reborrow().tiles(x.rows, rows).into_iter().zip(0..) {
            let start = bias.map_or(Start::Zero, |bias| Start::Bias(&bias[tile.column..][..tile.part.columns]));
            self.widened(index, |part| gemm(x, part.transposed(), tile.part, start));
        }
    }

    /// `d W`, into `output`. d `[T, out]`, output `[T, in]`; added to it when `keep`.
    pub fn backward(&self, d: Matrix, output: &mut [f32], keep: bool) {
        let (out, inputs) = self.sizes();
        let start = |keep| if keep { Start::Keep } else { Start::Zero };
        if let Self::F32(matrix) = self {
            return gemm(d, *matrix, MatrixMut::new(output, d.rows, inputs), start(keep));
        }
        let rows = self.widened_rows();
        for index in 0..out.div_ceil(rows) {
            let columns = index * rows..out.min((index + 1) * rows);
            let output = MatrixMut::new(output, d.rows, inputs);
            self.widened(index, |part| gemm(d.block(0..d.rows, columns), part, output, start(keep || index > 0)));
        }
    }

    fn widened_rows(&self) -> usize {
        let (_, columns) = self.sizes();
        (WIDENED / columns.max(1)).max(1)
    }

    /// The `index`-th group of rows in f32.
    fn widened(&self, index: usize, use_rows: impl FnOnce(Matrix)) {
        let (rows, columns) = self.sizes();
        let group = self.widened_rows();
        let rows = index * group..rows.min((index + 1) * group);
        let range = rows.start * columns..rows.end * columns;
        let mut widened = vec![0.0; range.len()];
        const CHUNK: usize = 1 << 14;
        let chunks = widened.par_chunks_mut(CHUNK);
        match *self {
            Self::F32(matrix) => return use_rows(matrix.block(rows, 0..columns)),
            Self::Bf16(values, ..) => {
                chunks.zip(values[range].par_chunks(CHUNK)).for_each(|(to, from)| widen(from, to))
            }
            Self::F16(values, ..) => chunks.zip(values[range].par_chunks(CHUNK)).for_each(|(to, from)| widen(from, to)),
        }
        use_rows(Matrix::new(&widened, rows.len(), columns));
    }
}

multiversion! {
    fn widen<E: Element>(from: &[E], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.widen());
    }
}

/// `x Wᵀ` for few rows of x: dot products along the weight's rows. A row of x gives the same bits in any company.
fn few<E: Element>(x: Matrix, weight: &[E], output: &mut [f32], bias: Option<&[f32]>) {
    let (tokens, width, out) = (x.rows, x.columns, output.len() / x.rows.max(1));
    let mut by_channel = vec![0.0; tokens * out];
    by_channel.par_chunks_mut((TASK_ROWS * tokens).max(1)).enumerate().for_each(|(task, part)| {
        for (row, part) in part.chunks_mut(tokens).enumerate() {
            let weight = &weight[(task * TASK_ROWS + row) * width..][..width];
            for (group, part) in part.chunks_mut(TOGETHER).enumerate() {
                let inputs: [&[f32]; TOGETHER] = std::array::from_fn(|i| x.row((group * TOGETHER + i).min(tokens - 1)));
                match part.len() {
                    1 => part.copy_from_slice(&dots([inputs[0]], weight)),
                    len => part.copy_from_slice(&dots(inputs, weight)[..len]),
                }
            }
        }
    });
    for (token, output) in output.chunks_mut(out.max(1)).enumerate() {
        for (channel, output) in output.iter_mut().enumerate() {
            *output = by_channel[channel * tokens + token] + bias.map_or(0.0, |bias| bias[channel]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
