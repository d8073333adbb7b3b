//! RMSNorm and LayerNorm.

use super::again::Again;
use super::operand::{self, bytes_of, floats, incoming, record};
use super::output::{Place, fill_rows, filled_chunks, write};
use super::simd::{multiversion, sum};
use crate::LinearInput;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::sync::Arc;

/// Rows in one task; the weight's gradient is summed within tasks, then over tasks in order.
const ROWS: usize = 32;

/// See [`crate::rms_norm`].
pub fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, eps: f64) -> Option<LinearInput> {
    let (x, weight) = (operand::operand(x)?, operand::vector(weight)?);
    let shape = operand::dims(&x.values);
    let mut inverse = vec![0.0; shape[0]];
    let output = by_rows(&x.values, &mut inverse, |x, inverse, output| {
        *inverse = inverse_root_mean_square(x, eps as f32);
        scaled(x, floats(&weight.values), *inverse, output)
    });
    let weight_tracked = weight.node.tracked();
    let (mean, inverse) = (Arc::default(), inverse.into());
    let saved = Saved { x: x.values, weight: weight.values, bias: None, weight_tracked, mean, inverse };
    let again = (x.node.tracked() || weight_tracked).then(|| saved.again());
    let values = record(RmsNorm, [x.node, weight.node], || saved, operand::tensor(output, shape));
    Some(LinearInput { values, again })
}

/// Bytes that [`rms_norm`] of x `[T, D]` keeps for its backward step: x, and a number for each row.
pub fn rms_norm_kept([tokens, width]: [usize; 2]) -> usize {
    bytes_of(tokens * width + tokens)
}

/// See [`crate::layer_norm`].
pub fn layer_norm(x: &Tensor<2>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Option<LinearInput> {
    let (x, weight, bias) = (operand::operand(x)?, operand::vector(weight)?, operand::vector(bias)?);
    let shape = operand::dims(&x.values);
    let mut statistics = vec![(0.0, 0.0); shape[0]];
    let output = by_rows(&x.values, &mut statistics, |x, statistics, output| {
        *statistics = mean_and_inverse_deviation(x, eps as f32);
        centred(x, floats(&weight.values), floats(&bias.values), *statistics, output)
    });
    let weight_tracked = weight.node.tracked() || bias.node.tracked();
    let (mean, inverse): (Vec<f32>, Vec<f32>) = statistics.into_iter().unzip();
    let (mean, inverse, weight_values) = (mean.into(), inverse.into(), weight.values);
    let saved = Saved { x: x.values, weight: weight_values, bias: Some(bias.values), weight_tracked, mean, inverse };
    let again = (x.node.tracked() || weight_tracked).then(|| saved.again());
    let values = record(LayerNorm, [x.node, weight.node, bias.node], || saved, operand::tensor(output, shape));
    Some(LinearInput { values, again })
}

/// Bytes that [`layer_norm`] of x `[T, D]` keeps for its backward step: x, and two numbers for each row.
pub fn layer_norm_kept([tokens, width]: [usize; 2]) -> usize {
    bytes_of(tokens * width + 2 * tokens)
}

/// What the backward steps need.
#[derive(Clone, Debug)]
struct Saved {
    x: FlexTensor,
    weight: FlexTensor,
    /// LayerNorm's, to compute its output again.
    bias: Option<FlexTensor>,
    weight_tracked: bool,
    /// Of every row; empty in RMSNorm.
    mean: Arc<[f32]>,
    inverse: Arc<[f32]>,
}

/// The output of which `f(row of x, element of per_row, row)` writes every row.
fn by_rows<S: Send>(
    x: &FlexTensor,
    per_row: &mut [S],
    f: impl for<'a> Fn(&[f32], &mut S, &'a mut [Place]) -> &'a mut [f32] + Sync,
) -> Vec<f32> {
    let [rows, width] = operand::dims(x);
    let task = (ROWS * width).max(1);
    let inputs = floats(x).par_chunks(task).zip(per_row.par_chunks_mut(ROWS));
    filled_chunks(rows * width, task, inputs, |(x, per_row), output| {
        fill_rows(output, width, x.chunks_exact(width).zip(per_row), |(x, per_row), output| f(x, per_row, output))
    })
}

multiversion! {
    fn inverse_root_mean_square(x: &[f32], eps: f32) -> f32 {
        1.0 / (sum(x.len(), |i| x[i] * x[i]) / x.len() as f32 + eps).sqrt()
    }
}

multiversion! {
    fn mean_and_inverse_deviation(x: &[f32], eps: f32) -> (f32, f32) {
        let mean = sum(x.len(), |i| x[i]) / x.len() as f32;
        let variance = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / x.len() as f32;
        (mean, 1.0 / (variance + eps).sqrt())
    }
}

multiversion! {
    // RMSNorm's output from its statistics.
    fn scaled<'a>(x: &[f32], weight: &[f32], inverse: f32, output: &'a mut [Place]) -> &'a mut [f32] {
        write(output, x.iter().zip(weight).map(|(&x, &weight)| x * inverse * weight))
    }
}

multiversion! {
    // LayerNorm's output from its statistics.
    fn centred<'a>(
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        statistics: (f32, f32),
        output: &'a mut [Place],
    ) -> &'a mut [f32] {
        let (mean, inverse) = statistics;
        let inputs = x.iter().zip(weight).zip(bias);
        write(output, inputs.map(|((&x, &weight), &bias)| (x - mean) * inverse * weight + bias))
    }
}

multiversion! {
    // `gradient` becomes that of x; the weight's and bias's are added to unless they are empty. `centre` is whether the
    // mean was taken off.
    fn norm_backward(
        x: &[f32],
        weight: &[f32],
        mean: f32,
        inverse: f32,
        centre: bool,
        gradient: &mut [f32],
        weight_gradient: &mut [f32],
        bias_gradient: &mut [f32],
    ) {
        let width = gradient.len();
        let (x, weight) = (&x[..width], &weight[..width]);
        let along = sum(width, |i| gradient[i] * weight[i] * ((x[i] - mean) * inverse)) / width as f32;
        let level = if centre { sum(width, |i| gradient[i] * weight[i]) / width as f32 } else { 0.0 };
        for ((total, &gradient), &x) in weight_gradient.iter_mut().zip(&*gradient).zip(x) {
            *total += gradient * ((x - mean) * inverse);
        }
        for (total, &gradient) in bias_gradient.iter_mut().zip(&*gradient) {
            *total += gradient;
        }
        for ((gradient, &x), &weight) in gradient.iter_mut().zip(x).zip(weight) {
            *gradient = (*gradient * weight - level - (x - mean) * inverse * along) * inverse;
        }
    }
}

impl Saved {
    /// How to compute the norm's output again.
    fn again(&self) -> Again {
        let Self { x, weight, bias, mean, inverse, .. } = self.clone();
        Again::new(move || {
            let shape = operand::dims(&x);
            let mut rows: Vec<usize> = (0..shape[0]).collect();
            let output = by_rows(&x, &mut rows, |x, &mut row, output| match &bias {
                None => scaled(x, floats(&weight), inverse[row], output),
                Some(bias) => centred(x, floats(&weight), floats(bias), (mean[row], inverse[row]), output),
            });
            operand::tensor(output, shape)
        })
    }

    /// Gradients of x, weight and bias; the last two are empty when nobody wants them.
    fn backward(&self, mut gradient: Vec<f32>, centre: bool) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let [_, width] = operand::dims(&self.x);
        let parameters = if self.weight_tracked { width } else { 0 };
        let biases = if centre { parameters } else { 0 };
        let task = (ROWS * width).max(1);
        let x = floats(&self.x).par_chunks(task);
        let partial: Vec<_> = gradient
            .par_chunks_mut(task)
            .zip(x)
            .enumerate()
            .map(|(index, (gradient, x))| {
                let mut totals = (vec![0.0; parameters], vec![0.0; biases]);
                for (row, (gradient, x)) in gradient.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
                    let row = index * ROWS + row;
                    let mean = self.mean.get(row).copied().unwrap_or(0.0);
                    let weight = floats(&self.weight);
                    let inverse = self.inverse[row];
                    norm_backward(x, weight, mean, inverse, centre, gradient, &mut totals.0, &mut totals.1);
                }
                totals
            })
            .collect();
        let (mut weight, mut bias) = (vec![0.0; parameters], vec![0.0; biases]);
        for (weight_part, bias_part) in partial {
            weight.iter_mut().zip(weight_part).for_each(|(total, part)| *total += part);
            bias.iter_mut().zip(bias_part).for_each(|(total, part)| *total += part);
        }
        (gradient, weight, bias)
    }
}

#[derive(Debug)]
struct RmsNorm;

impl Backward<Flex, 2> for RmsNorm {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = operand::own(incoming(&ops, gradients));
        let [rows, width] = operand::dims(&ops.state.x);
        let (of_x, of_weight, _) = ops.state.backward(gradient, false);
        let [x, weight] = ops.parents;
        if let Some(x) = x {
            gradients.register::<Flex>(x.id, operand::tensor(of_x, [rows, width]));
        }
        if let Some(weight) = weight {
            gradients.register::<Flex>(weight.id, operand::tensor(of_weight, [width]));
        }
    }
}

#[derive(Debug)]
struct LayerNorm;

impl Backward<Flex, 3> for LayerNorm {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = operand::own(incoming(&ops, gradients));
        let [rows, width] = operand::dims(&ops.state.x);
        let (of_x, of_weight, of_bias) = ops.state.backward(gradient, true);
        let [x, weight, bias] = ops.parents;
        if let Some(x) = x {
            gradients.register::<Flex>(x.id, operand::tensor(of_x, [rows, width]));
        }
        if let Some(weight) = weight {
            gradients.register::<Flex>(weight.id, operand::tensor(of_weight, [width]));
        }
        if let Some(bias) = bias {
            gradients.register::<Flex>(bias.id, operand::tensor(of_bias, [width]));
        }
    }
}
