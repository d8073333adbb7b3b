//! Two linear layers with an activation between: image features into the language model's width.

use super::dropout::{LoraDropout, SiteDropout};
use super::linear::Linear;
use crate::config::Activation;
use burn::module::Module;
use burn::tensor::Tensor;

/// Layer number of the projector's dropout sites, above those of the towers.
const SITES: usize = 1 << 17;

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
        self.forward_with(features, activation, |_| None)
    }

    /// As [`MultiModalProjector::forward`], with dropout of LoRA branches: `dropout.row_keys` has one entry for each image,
    /// `features_per_image` rows of the features belong to each.
    pub fn forward_dropped(
        &self,
        features: Tensor<2>,
        activation: Activation,
        dropout: Option<&LoraDropout>,
        features_per_image: usize,
    ) -> Tensor<2> {
        let lens = dropout.map_or_else(Vec::new, |dropout| vec![features_per_image; dropout.row_keys.len()]);
        self.forward_with(features, activation, |linear| dropout?.at(&lens, SITES, linear))
    }

    fn forward_with<'a>(
        &self,
        features: Tensor<2>,
        activation: Activation,
        dropout: impl Fn(usize) -> Option<SiteDropout<'a>>,
    ) -> Tensor<2> {
        let hidden = kernels::activate(self.linear_1.forward(features, dropout(0)), activation);
        self.linear_2.forward(hidden, dropout(1))
    }
}
