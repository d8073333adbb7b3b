//! DoRA: linear layers with LoRA whose rows have trained lengths.

use super::again::Kept;
use super::gemm::{Packed, Start, gemm};
use super::linear::{forward, lora_linear_kept, low_rank, masked, matrix, product, product_values};
use super::matrix::{Matrix, MatrixMut};
use super::operand::{self, bytes_of, floats, incoming, record};
use super::output::{filled_chunks, write};
use super::rows::column_sums;
use super::scratch::{Aligned, give, take, unused};
use super::weights::{Weight, WeightOperand};
use crate::{Dropout, LinearInput, LinearWeight};
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::cell::Cell;

/// Rows in one task.
const ROWS: usize = 64;

thread_local! {
    static SUMS: Cell<Aligned> = const { unused() };
}

/// See [`crate::row_norms`].
pub fn row_norms(weight: impl Into<LinearWeight>, a: &Tensor<2>, b: &Tensor<2>, scale: f32) -> Option<Tensor<1>> {
    let ((weight, _), a, b) = (WeightOperand::new(&weight.into())?, operand::operand(a)?, operand::operand(b)?);
    let norms = norms(&weight.view()?, matrix(&a.values), matrix(&b.values), scale);
    let out = norms.len();
    Some(a.node.constant(operand::tensor(norms, [out])))
}

/// Some rows of `W + scale · BA` at a time, which no longer are in memory afterwards.
fn norms(weight: &Weight, a: Matrix, b: Matrix, scale: f32) -> Vec<f32> {
    let (out, inputs) = weight.sizes();
    let packed = Packed::new(a);
    filled_chunks(out, ROWS, (0..out.div_ceil(ROWS)).into_par_iter(), |index, output| {
        let (first, rows) = (index * ROWS, output.len());
        let mut memory = take(&SUMS, rows * inputs);
        let sums = &mut memory[..rows * inputs];
        let b = b.block(first..first + rows, 0..b.columns);
        packed.multiply(b, MatrixMut::new(sums, rows, inputs));
        sums.iter_mut().for_each(|sum| *sum *= scale);
        weight.add_rows(first, sums);
        let length = |row: &[f32]| row.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
        let output = write(output, sums.chunks_exact(inputs.max(1)).map(|row| length(row) as f32));
        give(&SUMS, memory);
        output
    })
}

/// See [`crate::dora_linear`].
#[allow(clippy::too_many_arguments)]
pub fn dora_linear(
    x: impl Into<LinearInput>,
    weight: impl Into<LinearWeight>,
    bias: Option<&Tensor<1>>,
    a: &Tensor<2>,
    b: &Tensor<2>,
    scale: f32,
    gain: &Tensor<1>,
    dropout: Option<&Dropout>,
) -> Option<Tensor<2>> {
    let LinearInput { values, again } = x.into();
    let (x, (weight, weight_node)) = (operand::operand(&values)?, WeightOperand::new(&weight.into())?);
    let (a, b, gain) = (operand::operand(a)?, operand::operand(b)?, operand::operand(gain)?);
    let bias = match bias {
        Some(bias) => Some(operand::vector(bias)?),
        None => None,
    };
    let input = Dropped::new(matrix(&x.values), dropout);
    let weights = weight.view()?;
    let ([tokens, _], (out, _), [rank, _]) = (operand::dims(&x.values), weights.sizes(), operand::dims(&a.values));
    let low = low_rank(input.kept(), matrix(&a.values), scale, None);
    // x̃ (W + scale · BA)ᵀ
    let mut turned = weights.forward(input.kept(), None);
    let of_output = MatrixMut::new(&mut turned, tokens, out);
    gemm(Matrix::new(&low, tokens, rank), matrix(&b.values).transposed(), of_output, Start::Keep);
    let gains = floats(&gain.values);
    let rest = match input.rest() {
        Some(rest) => Some(forward(&operand::tensor(rest, operand::dims(&x.values)), &weight, bias.as_ref())?.0),
        None => None,
    };
    let bias_values = bias.as_ref().map(|bias| floats(&bias.values));
    let output = combined(&turned, gains, rest.as_deref(), bias_values);
    let weight_tracked = weight_node.tracked();
    let state = || Saved {
        x: Kept::new(&x.values, again.as_ref()),
        weight,
        weight_tracked,
        a: a.values,
        b: b.values,
        gain: gain.values,
        low: operand::tensor(low, [tokens, rank]),
        turned: operand::tensor(turned, [tokens, out]),
        dropout: dropout.cloned(),
        scale,
    };
    let output = operand::tensor(output, [tokens, out]);
    Some(match bias {
        Some(bias) => record(DoraLinear, [x.node, weight_node, a.node, b.node, gain.node, bias.node], state, output),
        None => record(DoraLinear, [x.node, weight_node, a.node, b.node, gain.node], state, output),
    })
}

/// Bytes that [`dora_linear`] of x `[T, in]` keeps for its backward step: what LoRA keeps, and the output before its gain.
pub fn dora_linear_kept(x: [usize; 2], rank: usize, out: usize, recomputed: bool) -> usize {
    lora_linear_kept(x, rank, recomputed) + bytes_of(x[0] * out)
}

/// `gain ∘ turned + rest`, or + bias where there is no rest.
fn combined(turned: &[f32], gain: &[f32], rest: Option<&[f32]>, bias: Option<&[f32]>) -> Vec<f32> {
    let out = gain.len().max(1);
    let rows = turned.par_chunks(out).enumerate();
    filled_chunks(turned.len(), out, rows, |(row, turned), output| {
        let scaled = turned.iter().zip(gain).map(|(value, gain)| value * gain);
        match (rest, bias) {
            (Some(rest), _) => write(output, scaled.zip(&rest[row * out..]).map(|(value, rest)| value + rest)),
            (None, Some(bias)) => write(output, scaled.zip(bias).map(|(value, bias)| value + bias)),
            (None, None) => write(output, scaled),
        }
    })
}

/// An input and what dropout leaves of it.
struct Dropped<'a> {
    x: Matrix<'a>,
    /// x̃, where there is dropout.
    masked: Option<Vec<f32>>,
}

impl<'a> Dropped<'a> {
    fn new(x: Matrix<'a>, dropout: Option<&Dropout>) -> Self {
        Self { x, masked: dropout.map(|dropout| masked(x, dropout)) }
    }

    /// x̃
    fn kept(&self) -> Matrix<'_> {
        self.masked.as_ref().map_or(self.x, |masked| Matrix::new(masked, self.x.rows, self.x.columns))
    }

    /// x − x̃; `None` where that is 0.
    fn rest(&self) -> Option<Vec<f32>> {
        let masked = self.masked.as_ref()?;
        Some(together(self.x.values(), masked, |x, kept| x - kept))
    }
}

/// `of` each pair of values.
fn together(a: &[f32], b: &[f32], of: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    const CHUNK: usize = 1 << 14;
    let chunks = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    filled_chunks(a.len(), CHUNK, chunks, |(a, b), output| write(output, a.iter().zip(b).map(|(&a, &b)| of(a, b))))
}

#[derive(Clone, Debug)]
struct Saved {
    x: Kept,
    weight: WeightOperand,
    weight_tracked: bool,
    a: FlexTensor,
    b: FlexTensor,
    gain: FlexTensor,
    /// `scale · x̃ Aᵀ`
    low: FlexTensor,
    /// `x̃ (W + scale · BA)ᵀ`
    turned: FlexTensor,
    dropout: Option<Dropout>,
    scale: f32,
}

#[derive(Debug)]
struct DoraLinear;

impl<const N: usize> Backward<Flex, N> for DoraLinear {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten();
        let (x, weight, a, b, gain, bias) = (next(), next(), next(), next(), next(), next());
        let saved = ops.state;
        let d = matrix(&gradient);
        if let Some(bias) = bias {
            gradients.register::<Flex>(bias.id, operand::tensor(column_sums(d), [d.columns]));
        }
        if let Some(gain) = gain {
            let products = together(d.values(), floats(&saved.turned), |d, turned| d * turned);
            let sums = column_sums(Matrix::new(&products, d.rows, d.columns));
            gradients.register::<Flex>(gain.id, operand::tensor(sums, [d.columns]));
        }
        // gain ∘ d, the gradient of x̃ (W + scale · BA)ᵀ.
        let scaled = combined(d.values(), floats(&saved.gain), None, None);
        let of_turned = Matrix::new(&scaled, d.rows, d.columns);
        if let Some(b) = b {
            gradients.register::<Flex>(b.id, product(of_turned.transposed(), matrix(&saved.low)));
        }
        let mut of_low = product_values(of_turned, matrix(&saved.b));
        of_low.iter_mut().for_each(|value| *value *= saved.scale);
        let [_, rank] = operand::dims(&saved.low);
        let of_low = Matrix::new(&of_low, d.rows, rank);
        let weight = weight.filter(|_| saved.weight_tracked);
        if a.is_some() || weight.is_some() {
            let values = saved.x.values();
            let input = Dropped::new(matrix(&values), saved.dropout.as_ref());
            if let Some(a) = a {
                gradients.register::<Flex>(a.id, product(of_low.transposed(), input.kept()));
            }
            if let Some(weight) = weight {
                let mut sum = product_values(of_turned.transposed(), input.kept());
                if let Some(rest) = input.rest() {
                    let rest = Matrix::new(&rest, d.rows, input.x.columns);
                    let sums = MatrixMut::new(&mut sum, d.columns, input.x.columns);
                    gemm(d.transposed(), rest, sums, Start::Keep);
                }
                gradients.register::<Flex>(weight.id, operand::tensor(sum, [d.columns, input.x.columns]));
            }
        }
        if let Some(x) = x {
            gradients.register::<Flex>(x.id, saved.input_gradient(d, of_turned, of_low));
        }
    }
}

impl Saved {
    /// `mask ∘ (of_turned W + of_low A) + (1 − mask) ∘ (d W)`.
    fn input_gradient(&self, d: Matrix, of_turned: Matrix, of_low: Matrix) -> FlexTensor {
        let a = matrix(&self.a);
        let mut through = product_values(of_low, a);
        let Some(weight) = self.weight.view() else {
            return operand::tensor(through, [d.rows, a.columns]);
        };
        let output = match &self.dropout {
            None => {
                weight.add_backward(of_turned, &mut through);
                through
            }
            // mask ∘ ((of_turned − d) W + of_low A) + d W
            Some(dropout) => {
                let less = together(of_turned.values(), d.values(), |turned, d| turned - d);
                weight.add_backward(Matrix::new(&less, d.rows, d.columns), &mut through);
                let mut output = masked(Matrix::new(&through, d.rows, a.columns), dropout);
                weight.add_backward(d, &mut output);
                output
            }
        };
        operand::tensor(output, [d.rows, a.columns])
    }
}
