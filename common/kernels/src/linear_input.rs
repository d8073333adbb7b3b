//! The input of linear layers, with the means to recompute it.

use super::cpu::Again;
use burn::tensor::Tensor;

/// The input of linear layers. One that a norm or an activation has made knows how the backward step gets its values again from
/// the tensors kept for the norm's or activation's backward step: the same bits, and the values themselves are not kept.
#[derive(Clone, Debug)]
pub struct LinearInput {
    /// `[T, in]`
    pub values: Tensor<2>,
    /// On the CPU, where a gradient is wanted.
    pub(super) again: Option<Again>,
}

impl From<Tensor<2>> for LinearInput {
    fn from(values: Tensor<2>) -> Self {
        Self { values, again: None }
    }
}

impl From<&Tensor<2>> for LinearInput {
    fn from(values: &Tensor<2>) -> Self {
        values.clone().into()
    }
}

impl From<&LinearInput> for LinearInput {
    fn from(input: &LinearInput) -> Self {
        input.clone()
    }
}

impl From<LinearInput> for Tensor<2> {
    fn from(input: LinearInput) -> Self {
        input.values
    }
}
