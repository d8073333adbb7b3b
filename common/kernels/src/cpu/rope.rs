//! Rotary position embedding.

use super::operand::{self, floats, incoming, record};
use super::output::filled_chunks;
use super::simd::multiversion;
use crate::Rope;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Tokens in one task.
const TOKENS: usize = 16;

/// See [`crate::rope`].
pub fn rope(x: &Tensor<2>, rope: &Rope, heads: usize) -> Option<Tensor<2>> {
    let (x, cos, sin) = (operand::operand(x)?, operand::operand(&rope.cos)?, operand::operand(&rope.sin)?);
    let shape = operand::dims(&x.values);
    let rotation = Rotation { cos: cos.values, sin: sin.values };
    let task = (TOKENS * shape[1]).max(1);
    let inputs = floats(&x.values).par_chunks(task).enumerate();
    let output = filled_chunks(shape[0] * shape[1], task, inputs, |(index, x), output| {
        let output = output.write_copy_of_slice(x);
        rotation.apply(output, index * TOKENS, shape[1], heads, 1.0);
        output
    });
    Some(record(RopeStep, [x.node], || (rotation, heads), operand::tensor(output, shape)))
}

#[derive(Clone, Debug)]
struct Rotation {
    cos: FlexTensor,
    sin: FlexTensor,
}

impl Rotation {
    /// Rotates the tokens from `first` on; `sign` −1 rotates back.
    fn apply(&self, tokens: &mut [f32], first: usize, width: usize, heads: usize, sign: f32) {
        let half = width / heads / 2;
        for (index, token) in tokens.chunks_exact_mut(width).enumerate() {
            let at = (first + index) * half..(first + index + 1) * half;
            rotate(token, &floats(&self.cos)[at.clone()], &floats(&self.sin)[at], sign);
        }
    }
}

multiversion! {
    fn rotate(token: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in token.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for (((first, second), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (a, b) = (*first, *second);
                *first = a * cos - sign * b * sin;
                *second = b * cos + sign * a * sin;
            }
        }
    }
}

#[derive(Debug)]
struct RopeStep;

impl Backward<Flex, 1> for RopeStep {
    type State = (Rotation, usize);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let [rows, width] = operand::dims(&gradient);
        let mut gradient = operand::own(gradient);
        let (rotation, heads) = ops.state;
        let chunks = gradient.par_chunks_mut((TOKENS * width).max(1)).enumerate();
        chunks.for_each(|(index, tokens)| rotation.apply(tokens, index * TOKENS, width, heads, -1.0));
        if let [Some(x)] = ops.parents {
            gradients.register::<Flex>(x.id, operand::tensor(gradient, [rows, width]));
        }
    }
}
