//! Linear layers, with and without LoRA. A frozen weight gets no gradient, and then its input is not kept.

use super::gemm::{Start, gemm};
use super::matrix::{Matrix, MatrixMut};
use super::operand::{self, Operand, buffer, floats, incoming, record};
use super::rows::column_sums;
use super::weights::Weight;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

/// Values in one task of the elementwise passes.
const CHUNK: usize = 1 << 14;

/// See [`crate::ops::linear`].
pub fn linear(x: &Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> Option<Tensor<2>> {
    let x = operand::operand(x)?;
    let weight = weight_operand(weight)?;
    let bias = match bias {
        Some(bias) => Some(operand::operand(bias)?),
        None => None,
    };
    let [tokens, _] = operand::dims(&x.values);
    let [out, _] = operand::dims(&weight.values);
    let output = operand::tensor(forward(&x.values, &weight.values, bias.as_ref())?, [tokens, out]);
    let state = Saved::new(&x, &weight);
    Some(match bias {
        Some(bias) => record(Linear, [x.node, weight.node, bias.node], || state, output),
        None => record(Linear, [x.node, weight.node], || state, output),
    })
}

/// A weight in any number format that can be frozen; a trained one is f32.
fn weight_operand(weight: &Tensor<2>) -> Option<Operand> {
    let weight = operand::any_operand(weight)?;
    let supported = Weight::new(&weight.values).is_some();
    let trained = weight.node.tracked() && weight.values.dtype() != DType::F32;
    (supported && !trained).then_some(weight)
}

/// `x Wᵀ + b` as values.
fn forward(x: &FlexTensor, weight: &FlexTensor, bias: Option<&Operand>) -> Option<Vec<f32>> {
    let (x, weight) = (matrix(x), Weight::new(weight)?);
    let mut output = buffer(x.rows * weight.sizes().0);
    weight.forward(x, &mut output, bias.map(|bias| floats(&bias.values)));
    Some(output)
}

fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    let [rows, columns] = operand::dims(tensor);
    Matrix::new(floats(tensor), rows, columns)
}

/// `a b` as tensor.
fn product(a: Matrix, b: Matrix) -> FlexTensor {
    let mut output = buffer(a.rows * b.columns);
    gemm(a, b, MatrixMut::new(&mut output, a.rows, b.columns), Start::Zero);
    operand::tensor(output, [a.rows, b.columns])
}

/// What the backward step needs: x for the weight's gradient, the weight for x's.
#[derive(Clone, Debug)]
struct Saved {
    x: Option<FlexTensor>,
    weight: Option<FlexTensor>,
}

impl Saved {
    fn new(x: &Operand, weight: &Operand) -> Self {
        Self {
            x: weight.node.tracked().then(|| x.values.clone()),
            weight: x.node.tracked().then(|| weight.values.clone()),
        }
    }
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
            gradients.register::<Flex>(parent.id, product(d.transposed(), matrix(&x)));
        }
        if let (Some(parent), Some(weight)) = (x_parent, weight.as_ref().and_then(Weight::new)) {
            let (_, inputs) = weight.sizes();
            let mut of_x = buffer(d.rows * inputs);
            weight.backward(d, &mut of_x, false);
            gradients.register::<Flex>(parent.id, operand::tensor(of_x, [d.rows, inputs]));
        }
        if let Some(parent) = bias_parent {
            gradients.register::<Flex>(parent.id, operand::tensor(column_sums(d), [d.columns]));
        }
    }
}

/// See [`crate::ops::lora_linear`].
#[allow(clippy::too_many_arguments)]
pub fn lora_linear(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    a: &Tensor<2>,
    b: &Tensor<2>,
    scale: f32,
    mask: Option<&Tensor<2>>,
) -> Option<Tensor<2>> {
    let (x, weight) = (operand::operand(x)?, weight_operand(weight)?);
    let (a, b) = (operand::operand(a)?, operand::operand(b)?);
    let bias = match bias {
        Some(bias) => Some(operand::operand(bias)?),
        None => None,
    };
    let mask = match mask {
        Some(mask) => Some(operand::operand(mask)?.values),
        None => None,
    };
    let mut output = forward(&x.values, &weight.values, bias.as_ref())?;
    let [tokens, _] = operand::dims(&x.values);
    let ([out, _], [rank, _]) = (operand::dims(&weight.values), operand::dims(&a.values));
    let mut low = low_rank(&x.values, &a.values, mask.as_ref());
    low.iter_mut().for_each(|value| *value *= scale);
    let low_matrix = Matrix::new(&low, tokens, rank);
    gemm(low_matrix, matrix(&b.values).transposed(), MatrixMut::new(&mut output, tokens, out), Start::Keep);
    let weight_tracked = weight.node.tracked();
    let state = || LoraSaved {
        weight_x: weight_tracked.then(|| x.values.clone()),
        x: x.values,
        weight: weight.values,
        a: a.values,
        b: b.values,
        low: operand::tensor(low, [tokens, rank]),
        mask,
        scale,
    };
    let output = operand::tensor(output, [tokens, out]);
    Some(match bias {
        Some(bias) => record(LoraLinear, [x.node, weight.node, a.node, b.node, bias.node], state, output),
        None => record(LoraLinear, [x.node, weight.node, a.node, b.node], state, output),
    })
}

/// `(mask ∘ x) Aᵀ`.
fn low_rank(x: &FlexTensor, a: &FlexTensor, mask: Option<&FlexTensor>) -> Vec<f32> {
    let [tokens, _] = operand::dims(x);
    let [rank, width] = operand::dims(a);
    let mut output = buffer(tokens * rank);
    let dropped = mask.map(|mask| masked(floats(x), floats(mask)));
    let x = Matrix::new(dropped.as_deref().unwrap_or(floats(x)), tokens, width);
    gemm(x, matrix(a).transposed(), MatrixMut::new(&mut output, tokens, rank), Start::Zero);
    output
}

fn masked(x: &[f32], mask: &[f32]) -> Vec<f32> {
    let mut output = buffer(x.len());
    (output.par_chunks_mut(CHUNK), x.par_chunks(CHUNK), mask.par_chunks(CHUNK)).into_par_iter().for_each(
        |(output, x, mask)| {
            output.iter_mut().zip(x).zip(mask).for_each(|((output, x), mask)| *output = x * mask);
        },
    );
    output
}

#[derive(Clone, Debug)]
struct LoraSaved {
    weight_x: Option<FlexTensor>,
    x: FlexTensor,
    weight: FlexTensor,
    a: FlexTensor,
    b: FlexTensor,
    /// `scale · (mask ∘ x) Aᵀ`
    low: FlexTensor,
    mask: Option<FlexTensor>,
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
        if let (Some(weight), Some(x)) = (weight, &saved.weight_x) {
            gradients.register::<Flex>(weight.id, product(d.transposed(), matrix(x)));
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
            let dropped = saved.mask.as_ref().map(|mask| masked(floats(&saved.x), floats(mask)));
            let input = Matrix::new(dropped.as_deref().unwrap_or(floats(&saved.x)), d.rows, matrix(&saved.a).columns);
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
        let shape = [d.rows, a.columns];
        let mut output = buffer(shape[0] * shape[1]);
        gemm(of_low, a, MatrixMut::new(&mut output, shape[0], shape[1]), Start::Zero);
        if let Some(mask) = &self.mask {
            let chunks = output.par_chunks_mut(CHUNK).zip(floats(mask).par_chunks(CHUNK));
            chunks.for_each(|(values, mask)| values.iter_mut().zip(mask).for_each(|(value, mask)| *value *= mask));
        }
        if let Some(weight) = Weight::new(&self.weight) {
            weight.backward(d, &mut output, true);
        }
        operand::tensor(output, shape)
    }
}
