//! LoRA: configuration, attaching to a model, merging into its weights.

use super::Llava;
use burn::tensor::Device;

/// What an adapter says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Scale is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout on the LoRA branch's input, probability.
    pub lora_dropout: f64,
    /// Projections of the language model that get LoRA (`q_proj`, …).
    pub target_modules: Vec<String>,
    /// The vision tower's q, k, v get LoRA too.
    pub lora_vision: bool,
}

/// Adds freshly initialised matrices (A Kaiming-uniform as PEFT's, B zero) to the targeted layers.
pub fn attach(_model: &mut Llava, _config: &LoraConfig, _seed: u64, _device: &Device) {
    todo!()
}

/// Adds `scale · B A` to every targeted weight and removes the matrices.
pub fn merge(_model: Llava) -> Llava {
    todo!()
}
