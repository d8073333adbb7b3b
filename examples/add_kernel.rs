//! A kernel with a backward pass for the CPU: squared ReLU, `max(x, 0)²`, in a feed-forward layer.
//!
//!     cargo run --release -p kernels --example add_kernel
//!
//! Every operation has a definition, a composition of burn operations that runs and differentiates on all backends, and may have
//! kernels that replace it where they apply. This file has both, the choice between them, and the comparison of values and
//! gradients that a kernel's test makes. Within the crate they are a function in `reference.rs`, a file in `cpu/`, a row
//! in `operations.rs` and a row in `cpu/tests.rs` (CONTRIBUTING.md).

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use kernels::device;

/// The definition.
fn reference(x: Tensor<2>) -> Tensor<2> {
    x.clamp_min(0.0).square()
}

/// The kernel; `None` on another backend and in another dtype.
fn cpu(x: &Tensor<2>) -> Option<Tensor<2>> {
    if x.dtype() != DType::F32 || !x.device().is_autodiff() {
        return None;
    }
    let (x, node) = x.clone().try_into_primitive::<Autodiff<Flex>>().ok()?.into_parts();
    let output = mapped(&x, |x| x.max(0.0) * x);
    // What the backward pass reads is kept only if a gradient is wanted.
    let recorded: FloatTensor<Autodiff<Flex>> =
        match SquaredRelu.prepare::<NoCheckpointing>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(x, output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        };
    Some(Tensor::from_primitive::<Autodiff<Flex>>(recorded))
}

/// What the model calls.
fn squared_relu(x: Tensor<2>) -> Tensor<2> {
    cpu(&x).unwrap_or_else(|| reference(x))
}

#[derive(Debug)]
struct SquaredRelu;

impl Backward<Flex, 1> for SquaredRelu {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let incoming = gradients.consume::<Flex>(&ops.node);
        let slope = floats(&ops.state);
        let gradient = floats(&incoming).iter().zip(slope).map(|(gradient, x)| gradient * 2.0 * x.max(0.0)).collect();
        if let [Some(parent)] = ops.parents {
            gradients.register::<Flex>(parent.id, like(&ops.state, gradient));
        }
    }
}

fn floats(x: &FlexTensor) -> Vec<f32> {
    x.clone().into_data().try_into_vec().expect("f32")
}

fn mapped(x: &FlexTensor, f: impl Fn(f32) -> f32) -> FlexTensor {
    like(x, floats(x).into_iter().map(f).collect())
}

fn like(x: &FlexTensor, values: Vec<f32>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, x.layout().shape().clone()))
}

/// Values of `down(activation(up(x)))`, and the gradients of their sum for x and the weights.
fn feed_forward(device: &Device, activation: fn(Tensor<2>) -> Tensor<2>) -> Vec<Vec<f32>> {
    let (tokens, width, intermediate) = (37, 64, 96);
    device.seed(1);
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 0.5), device).require_grad();
    let (x, up, down) = (random([tokens, width]), random([intermediate, width]), random([width, intermediate]));
    let hidden = activation(kernels::linear(x.clone(), up.clone(), None));
    let output = kernels::linear(hidden, down.clone(), None);
    let gradients = output.clone().sum().backward();
    let of = |leaf: &Tensor<2>| leaf.grad(&gradients).expect("a gradient");
    let tensors = [output.inner(), of(&x), of(&up), of(&down)];
    tensors.map(|tensor| tensor.into_data().try_into_vec().expect("f32")).to_vec()
}

fn main() {
    let device = device::cpu_autodiff();
    assert!(cpu(&Tensor::ones([1, 1], &device)).is_some(), "the kernel applies on this device");
    let (found, expected) = (feed_forward(&device, squared_relu), feed_forward(&device, reference));
    for (name, (found, expected)) in
        ["values", "gradient of x", "gradient of up", "gradient of down"].iter().zip(found.iter().zip(&expected))
    {
        let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        println!("{name:<17} largest difference {difference:.1e} of {largest:.1}");
        assert!(difference <= 1e-5 * largest, "{name}: the kernel differs from its definition");
    }
}
