//! The start of a backward pass from a given gradient of its output: no product, no sum.

use super::{Backend, empty, matrix, record, rows_and_width};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;

/// See [`crate::with_gradient`]. The number itself is not computed.
pub fn with_gradient(output: &Tensor<2>, gradient: &Tensor<2>) -> Option<Tensor<1>> {
    let (output, gradient) = (matrix(output)?, matrix(gradient)?);
    if rows_and_width(&output.values) != rows_and_width(&gradient.values)
        || output.values.dtype != gradient.values.dtype
    {
        return None;
    }
    let number = empty(&output.values, [1], output.values.dtype);
    Some(record(Seed, [output.node], || gradient.values, number))
}

#[derive(Debug)]
struct Seed;

impl Backward<Backend, 1> for Seed {
    type State = CubeTensor;

    fn backward(self, ops: Ops<CubeTensor, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        if let [Some(output)] = ops.parents {
            gradients.register::<Backend>(output.id, ops.state);
        }
    }
}
