//! Linear layers, with and without LoRA. A frozen weight gets no gradient, and then its input is not kept.

use super::again::Kept;
use super::dropout::drop_values;
use super::gemm::{Packed, Start, gemm, gemm_into};
use super::matrix::{Matrix, MatrixMut};
use super::operand::{self, Operand, bytes_of, floats, incoming, record};
use super::output::{filled, filled_chunks};
use super::rows::column_sums;
use super::scratch::{Aligned, give, take, unused};
use super::weights::WeightOperand;
use crate::{Dropout, LinearInput, LinearWeight};
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::cell::Cell;

/// Rows in one task of the LoRA branch.
const ROWS: usize = 64;

/// See [`crate::linear`].
pub fn linear(
    x: impl Into<LinearInput>,
    weight: impl Into<LinearWeight>,
    bias: Option<&Tensor<1>>,
) -> Option<Tensor<2>> {
    let LinearInput { values, again } = x.into();
    let x = operand::operand(&values)?;
    let (weight, weight_node) = WeightOperand::new(&weight.into())?;
    let bias = match bias {
        Some(bias) => Some(operand::vector(bias)?),
        None => None,
    };
    let [tokens, _] = operand::dims(&x.values);
    let (output, out) = forward(&x.values, &weight, bias.as_ref())?;
    let output = operand::tensor(output, [tokens, out]);
    let state = Saved {
        x: weight_node.tracked().then(|| Kept::new(&x.values, again.as_ref())),
        weight: x.node.tracked().then_some(weight),
    };
    Some(match bias {
        Some(bias) => record(Linear, [x.node, weight_node, bias.node], || state, output),
        None => record(Linear, [x.node, weight_node], || state, output),
    })
}

/// Bytes that [`linear`] of x `[T, in]` keeps for its backward step: x if the weight is trained, unless x is computed again from what
/// a norm or an activation keeps anyway (`recomputed`).
pub fn linear_kept([tokens, inputs]: [usize; 2], trained: bool, recomputed: bool) -> usize {
    if trained && !recomputed { bytes_of(tokens * inputs) } else { 0 }
}

/// `x Wᵀ + b` as values, and their number for a token.
pub(super) fn forward(x: &FlexTensor, weight: &WeightOperand, bias: Option<&Operand>) -> Option<(Vec<f32>, usize)> {
    let weight = weight.view()?;
    Some((weight.forward(matrix(x), bias.map(|bias| floats(&bias.values))), weight.sizes().0))
}

pub(super) fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let [rows, columns] = operand::dims(tensor);
    Matrix::new(floats(tensor), rows, columns)
}

/// `a b` as tensor.
pub(super) fn product(a: Matrix, b: Matrix) -> FlexTensor {
    operand::tensor(product_values(a, b), [a.rows, b.columns])
}

pub(super) fn product_values(a: Matrix, b: Matrix) -> Vec<f32> {
    filled(a.rows * b.columns, |output| gemm_into(a, b, MatrixMut::new(output, a.rows, b.columns), None).into_values())
}

/// What the backward step needs: x for the weight's gradient, the weight for x's.
#[derive(Clone, Debug)]
struct Saved {
    x: Option<Kept>,
    weight: Option<WeightOperand>,
}

#[derive(Debug)]
struct Linear;

impl<const N: usize> Backward<Flex, N> for Linear {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten();
        let Saved { x, weight } = ops.state;
        let d = matrix(&gradient);
        let (x_parent, weight_parent, bias_parent) = (next(), next(), next());
        if let (Some(parent), Some(x)) = (weight_parent, x) {
            gradients.register::<Flex>(parent.id, product(d.transposed(), matrix(&x.values())));
        }
        if let (Some(parent), Some(weight)) = (x_parent, weight.as_ref().and_then(WeightOperand::view)) {
            let (_, inputs) = weight.sizes();
            gradients.register::<Flex>(parent.id, operand::tensor(weight.backward(d), [d.rows, inputs]));
        }
        if let Some(parent) = bias_parent {
            gradients.register::<Flex>(parent.id, operand::tensor(column_sums(d), [d.columns]));
        }
    }
}

/// See [`crate::lora_linear`].
#[allow(clippy::too_many_arguments)]
pub fn lora_linear(
    x: impl Into<LinearInput>,
    weight: impl Into<LinearWeight>,
    bias: Option<&Tensor<1>>,
    a: &Tensor<2>,
    b: &Tensor<2>,
    scale: f32,
    dropout: Option<&Dropout>,
) -> Option<Tensor<2>> {
    let LinearInput { values, again } = x.into();
    let x = operand::operand(&values)?;
    let (weight, weight_node) = WeightOperand::new(&weight.into())?;
    let (a, b) = (operand::operand(a)?, operand::operand(b)?);
    let bias = match bias {
        Some(bias) => Some(operand::vector(bias)?),
        None => None,
    };
    let (mut output, out) = forward(&x.values, &weight, bias.as_ref())?;
    let ([tokens, _], [rank, _]) = (operand::dims(&x.values), operand::dims(&a.values));
    let low = low_rank(matrix(&x.values), matrix(&a.values), scale, dropout);
    let low_matrix = Matrix::new(&low, tokens, rank);
    gemm(low_matrix, matrix(&b.values).transposed(), MatrixMut::new(&mut output, tokens, out), Start::Keep);
    let weight_tracked = weight_node.tracked();
    let state = || LoraSaved {
        x: Kept::new(&x.values, again.as_ref()),
        weight,
        weight_tracked,
        a: a.values,
        b: b.values,
        low: operand::tensor(low, [tokens, rank]),
        dropout: dropout.cloned(),
        scale,
    };
    let output = operand::tensor(output, [tokens, out]);
    Some(match bias {
        Some(bias) => record(LoraLinear, [x.node, weight_node, a.node, b.node, bias.node], state, output),
        None => record(LoraLinear, [x.node, weight_node, a.node, b.node], state, output),
    })
}

/// Bytes that [`lora_linear`] of x `[T, in]` keeps for its backward step: the values between its matrices, and x unless it is
/// `recomputed` (see [`linear_kept`]).
pub fn lora_linear_kept(x: [usize; 2], rank: usize, recomputed: bool) -> usize {
    bytes_of(x[0] * rank) + linear_kept(x, true, recomputed)
}

/// `scale · (mask ∘ x) Aᵀ`.
pub(super) fn low_rank(x: Matrix, a: Matrix, scale: f32, dropout: Option<&Dropout>) -> Vec<f32> {
    let Some(dropout) = dropout else {
        let mut output = product_values(x, a.transposed());
        output.iter_mut().for_each(|value| *value *= scale);
        return output;
    };
    // A few rows at a time: masked, they stay in the cache until they are multiplied.
    let packed = Packed::new(a.transposed());
    let tasks = (0..x.rows.div_ceil(ROWS)).into_par_iter();
    filled_chunks(x.rows * a.rows, ROWS * a.rows, tasks, |index, output| {
        let first = index * ROWS;
        let rows = ROWS.min(x.rows - first);
        let values = &x.values()[first * x.columns..][..rows * x.columns];
        let mut memory = take(&MASKED, values.len());
        let masked = &mut memory[..values.len()];
        masked.copy_from_slice(values);
        drop_values(dropout, first, x.columns, masked);
        let output = MatrixMut::new(output, rows, a.rows);
        let output = packed.multiply_into(Matrix::new(masked, rows, x.columns), output).into_values();
        output.iter_mut().for_each(|value| *value *= scale);
        give(&MASKED, memory);
        output
    })
}

/// `mask ∘ x`.
pub(super) fn masked(x: Matrix, dropout: &Dropout) -> Vec<f32> {
    let chunk = (ROWS * x.columns).max(1);
    filled_chunks(x.rows * x.columns, chunk, x.values().par_chunks(chunk).enumerate(), |(index, x_rows), output| {
        let output = output.write_copy_of_slice(x_rows);
        drop_values(dropout, index * ROWS, x.columns, output);
        output
    })
}

thread_local! {
    static MASKED: Cell<Aligned> = const { unused() };
}

#[derive(Clone, Debug)]
struct LoraSaved {
    x: Kept,
    weight: WeightOperand,
    weight_tracked: bool,
    a: FlexTensor,
    b: FlexTensor,
    /// `scale · (mask ∘ x) Aᵀ`
    low: FlexTensor,
    dropout: Option<Dropout>,
    scale: f32,
}

#[derive(Debug)]
struct LoraLinear;

impl<const N: usize> Backward<Flex, N> for LoraLinear {
    type State = LoraSaved;

    fn backward(self, ops: Ops<LoraSaved, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten();
        let (x, weight, a, b, bias) = (next(), next(), next(), next(), next());
        let saved = ops.state;
        let d = matrix(&gradient);
        if let Some(weight) = weight.filter(|_| saved.weight_tracked) {
            gradients.register::<Flex>(weight.id, product(d.transposed(), matrix(&saved.x.values())));
        }
        if let Some(bias) = bias {
            gradients.register::<Flex>(bias.id, operand::tensor(column_sums(d), [d.columns]));
        }
        if let Some(b) = b {
            gradients.register::<Flex>(b.id, product(d.transposed(), matrix(&saved.low)));
        }
        // scale · d B, the gradient of (mask ∘ x) Aᵀ.
        let mut of_low = operand::own(product(d, matrix(&saved.b)));
        of_low.iter_mut().for_each(|value| *value *= saved.scale);
        let [_, rank] = operand::dims(&saved.low);
        let of_low = Matrix::new(&of_low, d.rows, rank);
        if let Some(a) = a {
            let values = saved.x.values();
            let input = matrix(&values);
            let dropped = saved.dropout.as_ref().map(|dropout| masked(input, dropout));
            let input = dropped.as_ref().map_or(input, |dropped| Matrix::new(dropped, input.rows, input.columns));
            gradients.register::<Flex>(a.id, product(of_low.transposed(), input));
        }
        if let Some(x) = x {
            gradients.register::<Flex>(x.id, saved.input_gradient(d, of_low));
        }
    }
}

impl LoraSaved {
    /// `d W + mask ∘ (of_low A)`.
    fn input_gradient(&self, d: Matrix, of_low: Matrix) -> FlexTensor {
        let a = matrix(&self.a);
        let mut output = match &self.dropout {
            None => product_values(of_low, a),
            Some(dropout) => {
                let (packed, tasks) = (Packed::new(a), (0..d.rows.div_ceil(ROWS)).into_par_iter());
                filled_chunks(d.rows * a.columns, ROWS * a.columns, tasks, |index, output| {
                    let (first, rows) = (index * ROWS, output.len() / a.columns);
                    let of_low = of_low.block(first..first + rows, 0..of_low.columns);
                    let output = packed.multiply_into(of_low, MatrixMut::new(output, rows, a.columns)).into_values();
                    drop_values(dropout, first, a.columns, output);
                    output
                })
            }
        };
        if let Some(weight) = self.weight.view() {
            weight.add_backward(d, &mut output);
        }
        operand::tensor(output, [d.rows, a.columns])
    }
}
