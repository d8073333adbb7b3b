//! Activations of a micro-step on a GPU, in values: what the kernels of `kernels::cube` keep for their backward steps. Where the CPU's
//! kernels compute the inputs of products again, these keep them.

use super::memory::Step;
use crate::trainable::Choice;
use base::names;
use model::config::{TextConfig, VisionConfig};
use model::text::TEXT_LINEARS;
use model::vision::VISION_LINEARS;

/// What CUDA keeps for itself on a device, with the kernels' code, and what a product by cuBLASLt may take beside its matrices, bytes.
pub(super) const CONTEXT: f64 = 0.5e9 + kernels::cuda::cublas_lt::WORKSPACE as f64;

impl Step<'_> {
    /// Whether the input of one of these layers is kept: for the gradient of their weights, or of their LoRA.
    fn keeps_input_of(&self, layer: &str, linears: &[&str]) -> bool {
        let choice = Choice::new(self.config.train_type, self.lora);
        linears.iter().any(|linear| {
            let path = format!("{layer}.{linear}");
            self.lora.is_some_and(|lora| lora.has_lora(&path)) || choice.is_covered(&format!("{path}.weight"))
        })
    }

    /// Of a layer of the language model, beside its input: keys and values of all tokens, the rest of `queries` of them.
    pub(super) fn text_layer_on_gpu(&self, tokens: f64, queries: f64) -> f64 {
        let text = &self.model.text;
        let TextConfig { hidden_size, intermediate_size, .. } = *text;
        let (width, inner) = (hidden_size as f64, intermediate_size as f64);
        let (of_queries, of_keys) = (text.query_width() as f64, text.key_value_width() as f64);
        // A LoRA may be on some layers only: as if it were on all.
        let layer = format!("{}.layers.0", names::TEXT_MODEL);
        // The attention keeps its output, which is the input of the last of its projections.
        let [q, k, v, _, gate, up, down] = TEXT_LINEARS;
        let input = |linears: &[&str], values: f64| if self.keeps_input_of(&layer, linears) { values } else { 0.0 };
        let before_norm = if text.qk_norm { queries * of_queries + tokens * of_keys } else { 0.0 };
        let attention = 2.0 * queries * of_queries + 2.0 * tokens * of_keys;
        input(&[q, k, v], tokens * width)
            + before_norm
            + attention
            + queries * width
            + input(&[gate, up], queries * width)
            + 2.0 * queries * inner
            + input(&[down], queries * inner)
    }

    /// Of a layer of a trained tower, beside its input.
    pub(super) fn vision_layer_on_gpu(&self, tokens: f64) -> f64 {
        let VisionConfig { hidden_size, intermediate_size, .. } = self.model.vision;
        let (width, inner) = (hidden_size as f64, intermediate_size as f64);
        let layer = format!("{}.encoder.layers.0", names::VISION_MODEL);
        let [q, k, v, _, first, second] = VISION_LINEARS;
        let input = |linears: &[&str], values: f64| if self.keeps_input_of(&layer, linears) { values } else { 0.0 };
        let kept =
            input(&[q, k, v], width) + 4.0 * width + width + input(&[first], width) + inner + input(&[second], inner);
        tokens * kept
    }

    /// Of the projector: its input, the activation's input and output.
    pub(super) fn projector_on_gpu(&self) -> f64 {
        let inputs = self.model.vision.hidden_size * self.model.vision_feature_layers.len();
        let hidden = self.model.text.hidden_size;
        self.shape.features * (inputs + 2 * hidden) as f64
    }

    /// Of the head: gradients of hidden states and, where it is trained, of the weight (f32 and rounded), and the logits.
    pub(super) fn head_on_gpu(&self) -> f64 {
        let TextConfig { hidden_size, vocab_size, .. } = self.model.text;
        let (width, vocabulary, rows) = (hidden_size as f64, vocab_size as f64, self.shape.supervised);
        let of_weight = if self.blocks.trains_head() { 3.0 * vocabulary * width } else { 0.0 };
        4.0 * rows * width + 2.0 * rows * vocabulary + of_weight
    }
}
