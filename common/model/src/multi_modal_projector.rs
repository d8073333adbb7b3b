//! Two linear layers with an activation between: image features into the language model's width.

use super::dropout::LoraDropout;
use super::nn::Linear;
use super::nn::init::Initializer;
use crate::config::{Activation, LlavaConfig};
use burn::module::Module;
use burn::tensor::{Device, Tensor};

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

/// Standard deviation of fresh weights (`initializer_range`).
const INITIALIZER_RANGE: f64 = 0.02;

impl MultiModalProjector {
    /// A projector with random weights, f32, as transformers gives a new LLaVA: normal, biases zero.
    pub fn random(config: &LlavaConfig, seed: u64, device: &Device) -> Self {
        Self::init(config, &mut Initializer::random(seed, device))
    }

    /// A projector of the config's shapes, to be filled.
    pub fn zeros(config: &LlavaConfig, device: &Device) -> Self {
        Self::init(config, &mut Initializer::zeros(device))
    }

    pub(crate) fn init(config: &LlavaConfig, init: &mut Initializer<'_>) -> Self {
        let inputs = config.vision.hidden_size * config.vision_feature_layers.len();
        let (width, bias) = (config.text.hidden_size, config.multimodal_projector_bias);
        Self {
            linear_1: init.linear(inputs, width, INITIALIZER_RANGE, bias),
            linear_2: init.linear(width, width, INITIALIZER_RANGE, bias),
        }
    }

    /// Image features `[N·P, D_vision · selected layers]` → `[N·P, D_text]`. `dropout` is that of LoRA branches; its `row_keys`
    /// has one entry for each image, `features_per_image` rows of the features belong to each.
    ///
    /// # Source
    /// transformers `modeling_llava.py`, `LlavaMultiModalProjector.forward`.
    pub fn forward(
        &self,
        features: Tensor<2>,
        activation: Activation,
        dropout: Option<&LoraDropout>,
        features_per_image: usize,
    ) -> Tensor<2> {
        let lens = dropout.map_or_else(Vec::new, |dropout| vec![features_per_image; dropout.row_keys.len()]);
        let site = |linear| dropout?.at(&lens, SITES, linear);
        let hidden = kernels::activate(self.linear_1.forward(features, site(0)), activation);
        self.linear_2.forward(hidden, site(1))
    }
}
