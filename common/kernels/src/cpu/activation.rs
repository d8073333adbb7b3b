//! SwiGLU, GELU and QuickGELU.

use super::again::Again;
use super::operand::{self, bytes_of, floats, incoming, record};
use super::output::{Place, filled_chunks, write};
use super::simd::{erf, exp, multiversion, sigmoid};
use crate::LinearInput;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Values in one task.
const CHUNK: usize = 1 << 14;

/// See [`crate::swiglu`].
pub fn swiglu(gate: &Tensor<2>, up: &Tensor<2>) -> Option<LinearInput> {
    let (gate, up) = (operand::operand(gate)?, operand::operand(up)?);
    let output = product(&gate.values, &up.values);
    let again = (gate.node.tracked() || up.node.tracked()).then(|| {
        let (gate, up) = (gate.values.clone(), up.values.clone());
        Again::new(move || product(&gate, &up))
    });
    let values = record(SwiGlu, [gate.node, up.node], || (gate.values, up.values), output);
    Some(LinearInput { values, again })
}

/// Bytes that [`swiglu`] of gate and up `[T, F]` keeps for its backward step: both.
pub fn swiglu_kept([tokens, width]: [usize; 2]) -> usize {
    bytes_of(2 * tokens * width)
}

/// `silu(gate) ∘ up`.
fn product(gate: &FlexTensor, up: &FlexTensor) -> FlexTensor {
    let shape = operand::dims(gate);
    let inputs = floats(gate).par_chunks(CHUNK).zip(floats(up).par_chunks(CHUNK));
    let output =
        filled_chunks(shape[0] * shape[1], CHUNK, inputs, |(gate, up), output| swiglu_forward(gate, up, output));
    operand::tensor(output, shape)
}

multiversion! {
    fn swiglu_forward<'a>(gate: &[f32], up: &[f32], output: &'a mut [Place]) -> &'a mut [f32] {
        write(output, gate.iter().zip(up).map(|(&gate, &up)| gate / (1.0 + exp(-gate)) * up))
    }
}

multiversion! {
    // `gradient` becomes that of `up`, `gate_gradient` is written.
    fn swiglu_backward<'a>(
        gate: &[f32],
        up: &[f32],
        gradient: &mut [f32],
        gate_gradient: &'a mut [Place],
    ) -> &'a mut [f32] {
        let inputs = gate.iter().zip(up).zip(gradient);
        write(gate_gradient, inputs.map(|((&gate, &up), gradient)| {
            let s = sigmoid(gate);
            let gate_gradient = *gradient * up * (s * (1.0 + gate * (1.0 - s)));
            *gradient *= gate * s;
            gate_gradient
        }))
    }
}

#[derive(Debug)]
struct SwiGlu;

impl Backward<Flex, 2> for SwiGlu {
    type State = (FlexTensor, FlexTensor);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let mut gradient = operand::own(incoming(&ops, gradients));
        let (gate, up) = ops.state;
        let shape = operand::dims(&gate);
        let inputs =
            gradient.par_chunks_mut(CHUNK).zip(floats(&gate).par_chunks(CHUNK)).zip(floats(&up).par_chunks(CHUNK));
        let gate_gradient =
            filled_chunks(floats(&gate).len(), CHUNK, inputs, |((gradient, gate), up), gate_gradient| {
                swiglu_backward(gate, up, gradient, gate_gradient)
            });
        let [gate, up] = ops.parents;
        if let Some(gate) = gate {
            gradients.register::<Flex>(gate.id, operand::tensor(gate_gradient, shape));
        }
        if let Some(up) = up {
            gradients.register::<Flex>(up.id, operand::tensor(gradient, shape));
        }
    }
}

/// See [`crate::gelu`].
pub fn gelu(x: &Tensor<2>) -> Option<LinearInput> {
    activate(x, Unary { forward: gelu_forward, backward: gelu_backward })
}

/// See [`crate::gelu_tanh`].
pub fn gelu_tanh(x: &Tensor<2>) -> Option<LinearInput> {
    activate(x, Unary { forward: gelu_tanh_forward, backward: gelu_tanh_backward })
}

/// See [`crate::quick_gelu`].
pub fn quick_gelu(x: &Tensor<2>) -> Option<LinearInput> {
    activate(x, Unary { forward: quick_gelu_forward, backward: quick_gelu_backward })
}

/// Bytes that an activation of x `[T, F]` alone ([`gelu`], [`quick_gelu`]) keeps for its backward step: x.
pub fn unary_kept([tokens, width]: [usize; 2]) -> usize {
    bytes_of(tokens * width)
}

/// An activation: `forward(x, output)` and `backward(x, gradient)`, which multiplies the derivative into the gradient.
#[derive(Clone, Copy, Debug)]
struct Unary {
    forward: for<'a> fn(&[f32], &'a mut [Place]) -> &'a mut [f32],
    backward: fn(&[f32], &mut [f32]),
}

impl Unary {
    fn of(&self, x: &FlexTensor) -> FlexTensor {
        let shape = operand::dims(x);
        let inputs = floats(x).par_chunks(CHUNK);
        let output = filled_chunks(shape[0] * shape[1], CHUNK, inputs, |x, output| (self.forward)(x, output));
        operand::tensor(output, shape)
    }
}

fn activate(x: &Tensor<2>, unary: Unary) -> Option<LinearInput> {
    let x = operand::operand(x)?;
    let output = unary.of(&x.values);
    let again = x.node.tracked().then(|| {
        let x = x.values.clone();
        Again::new(move || unary.of(&x))
    });
    Some(LinearInput { values: record(unary, [x.node], || x.values, output), again })
}

multiversion! {
    fn gelu_forward<'a>(x: &[f32], output: &'a mut [Place]) -> &'a mut [f32] {
        write(output, x.iter().map(|&x| 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))))
    }
}

multiversion! {
    fn gelu_backward(x: &[f32], gradient: &mut [f32]) {
        // 1 / √(2π)
        const DENSITY_AT_0: f32 = 0.398_942_3;
        for (gradient, &x) in gradient.iter_mut().zip(x) {
            let distribution = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
            *gradient *= distribution + x * (DENSITY_AT_0 * exp(-0.5 * x * x));
        }
    }
}

/// 2 √(2/π): `½ (1 + tanh(z))` is `sigmoid(2 z)`.
const TANH_SCALE: f32 = 1.595_769_2;
const TANH_CUBIC: f32 = 0.044_715;

multiversion! {
    fn gelu_tanh_forward<'a>(x: &[f32], output: &'a mut [Place]) -> &'a mut [f32] {
        write(output, x.iter().map(|&x| x * sigmoid(TANH_SCALE * x * (1.0 + TANH_CUBIC * x * x))))
    }
}

multiversion! {
    fn gelu_tanh_backward(x: &[f32], gradient: &mut [f32]) {
        for (gradient, &x) in gradient.iter_mut().zip(x) {
            let s = sigmoid(TANH_SCALE * x * (1.0 + TANH_CUBIC * x * x));
            *gradient *= s * (1.0 + x * (1.0 - s) * TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * x * x));
        }
    }
}

multiversion! {
    fn quick_gelu_forward<'a>(x: &[f32], output: &'a mut [Place]) -> &'a mut [f32] {
        write(output, x.iter().map(|&x| sigmoid(1.702 * x) * x))
    }
}

multiversion! {
    fn quick_gelu_backward(x: &[f32], gradient: &mut [f32]) {
        for (gradient, &x) in gradient.iter_mut().zip(x) {
            let s = sigmoid(1.702 * x);
            *gradient *= s * (1.0 + 1.702 * x * (1.0 - s));
        }
    }
}

impl Backward<Flex, 1> for Unary {
    type State = FlexTensor;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let mut gradient = operand::own(incoming(&ops, gradients));
        let x = ops.state;
        let chunks = gradient.par_chunks_mut(CHUNK).zip(floats(&x).par_chunks(CHUNK));
        chunks.for_each(|(gradient, x)| (self.backward)(x, gradient));
        if let [Some(parent)] = ops.parents {
            gradients.register::<Flex>(parent.id, operand::tensor(gradient, operand::dims(&x)));
        }
    }
}
