//! Norms over the last dimension.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use kernels::LinearInput;

/// RMSNorm's weight.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[D]`
    pub weight: Param<Tensor<1>>,
}

/// LayerNorm's weight and bias.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[D]`
    pub weight: Param<Tensor<1>>,
    /// `[D]`
    pub bias: Param<Tensor<1>>,
}

impl RmsNorm {
    /// x `[T, D]` → same.
    pub fn forward(&self, x: Tensor<2>, eps: f64) -> LinearInput {
        kernels::rms_norm(x, self.weight.val(), eps)
    }

    /// Each head normalised on its own: x `[T, heads · D]` → same.
    pub fn forward_heads(&self, x: Tensor<2>, eps: f64) -> Tensor<2> {
        let [tokens, width] = x.dims();
        let [head_dim] = self.weight.dims();
        let by_head = x.reshape([tokens * (width / head_dim), head_dim]);
        self.forward(by_head, eps).values.reshape([tokens, width])
    }
}

impl LayerNorm {
    /// x `[T, D]` → same.
    pub fn forward(&self, x: Tensor<2>, eps: f64) -> LinearInput {
        kernels::layer_norm(x, self.weight.val(), self.bias.val(), eps)
    }
}
