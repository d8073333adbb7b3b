//! Two linear layers with an activation between: image features into the language model's width.

use super::linear::Linear;
use crate::config::Activation;
use crate::ops;
use burn::module::Module;
use burn::tensor::Tensor;

/// `multi_modal_projector.…`
#[derive(Module, Debug)]
pub struct MultiModalProjector {
    /// `[D_text, D_vision · selected layers]`
    pub linear_1: Linear,
    /// `[D_text, D_text]`
    pub linear_2: Linear,
}

impl MultiModalProjector {
    /// Image features `[N·P, D_vision · selected layers]` → `[N·P, D_text]`.
    ///
    /// # Source
    /// transformers `modeling_llava.py`, `LlavaMultiModalProjector.forward`.
    pub fn forward(&self, features: Tensor<2>, activation: Activation) -> Tensor<2> {
        let hidden = ops::activate(self.linear_1.forward(features, None), activation);
        self.linear_2.forward(hidden, None)
    }
}
