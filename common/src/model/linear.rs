//! A linear layer in Hugging Face's layout, with optional LoRA matrices.

#![allow(non_snake_case)] // `lora_A` and `lora_B` are the published names.

use super::dropout::SiteDropout;
use crate::ops;
use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// `y = x Wᵀ + b (+ scale · (dropout(x) Aᵀ) Bᵀ)`.
#[derive(Module, Debug)]
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

impl Linear {
    /// A layer without LoRA. weight `[out, in]`, bias `[out]`.
    pub fn new(weight: Param<Tensor<2>>, bias: Option<Param<Tensor<1>>>) -> Self {
        Self { weight, bias, lora_A: None, lora_B: None, lora_scale: 0.0 }
    }

    /// x `[T, in]` → `[T, out]`. `dropout` acts on the LoRA branch's input only.
    pub fn forward(&self, x: Tensor<2>, dropout: Option<SiteDropout>) -> Tensor<2> {
        let weight = self.weight.val();
        let bias = self.bias.as_ref().map(Param::val);
        match (&self.lora_A, &self.lora_B) {
            (Some(a), Some(b)) => {
                let mask = dropout.map(|dropout| dropout.mask(&x));
                ops::lora_linear(x, weight, bias, a.weight.val(), b.weight.val(), self.lora_scale, mask)
            }
            _ => ops::linear(x, weight, bias),
        }
    }
}
