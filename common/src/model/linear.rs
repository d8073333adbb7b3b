//! A linear layer in Hugging Face's layout, with optional LoRA matrices.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// `y = x Wᵀ + b (+ scale · (dropout(x) Aᵀ) Bᵀ)`.
#[derive(Module, Debug)]
#[allow(non_snake_case)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
    /// `[rank, in]` as `lora_A.weight`
    pub lora_A: Option<LoraMatrix>,
    /// `[out, rank]` as `lora_B.weight`
    pub lora_B: Option<LoraMatrix>,
    /// `lora_alpha / r`; 0 without LoRA.
    #[module(skip)]
    pub lora_scale: f32,
}

/// One LoRA matrix (a module of its own so that its path ends with `.weight`).
#[derive(Module, Debug)]
pub struct LoraMatrix {
    /// `[rank, in]` or `[out, rank]`
    pub weight: Param<Tensor<2>>,
}
