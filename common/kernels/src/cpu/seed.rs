//! The start of a backward pass from a given gradient of its output.

use super::operand::{self, record};
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

/// See [`crate::with_gradient`].
pub fn with_gradient(output: &Tensor<2>, gradient: &Tensor<2>) -> Option<Tensor<1>> {
    let (output, gradient) = (operand::operand(output)?, operand::operand(gradient)?);
    if operand::dims(&output.values) != operand::dims(&gradient.values) {
        return None;
    }
    Some(record(Seed, [output.node], || gradient.values, operand::tensor(vec![0.0], [1])))
}

#[derive(Debug)]
struct Seed;

impl Backward<Flex, 1> for Seed {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        if let [Some(output)] = ops.parents {
            gradients.register::<Flex>(output.id, ops.state);
        }
    }
}
