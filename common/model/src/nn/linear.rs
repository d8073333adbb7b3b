//! A linear layer in Hugging Face's layout, with optional LoRA matrices.

#![allow(non_snake_case)] // `lora_A` and `lora_B` are the published names.

use crate::dropout::SiteDropout;
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use kernels::LinearInput;
use kernels::int8::{Int8Weight, linear_int8};

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
    /// The weight in 8-bit integers, which then stands for `weight` (inference only).
    #[module(skip)]
    pub int8: Option<Int8Weight>,
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
        Self { weight, bias, lora_A: None, lora_B: None, lora_scale: 0.0, int8: None }
    }

    /// x `[T, in]` → `[T, out]`. `dropout` acts on the LoRA branch's input only.
    pub fn forward(&self, x: impl Into<LinearInput>, dropout: Option<SiteDropout>) -> Tensor<2> {
        let x = x.into();
        let bias = self.bias.as_ref().map(Param::val);
        let lora = self.lora_A.as_ref().zip(self.lora_B.as_ref()).map(|(a, b)| (a.weight.val(), b.weight.val()));
        match (&self.int8, lora) {
            (None, None) => kernels::linear(x, self.weight.val(), bias),
            (None, Some((a, b))) => {
                let dropout = dropout.map(|dropout| dropout.of_values());
                kernels::lora_linear(x, self.weight.val(), bias, a, b, self.lora_scale, dropout.as_ref())
            }
            (Some(int8), None) => linear_int8(x.values, int8, bias),
            (Some(int8), Some((a, b))) => {
                let branch = kernels::linear(kernels::linear(x.clone(), a, None), b, None) * self.lora_scale;
                linear_int8(x.values, int8, bias) + branch
            }
        }
    }

    /// Keeps the weight in 8-bit integers from here on; the float weight is freed.
    pub fn quantize_int8(&mut self) {
        if self.int8.is_none() {
            self.int8 = Some(Int8Weight::quantize(self.weight.val()));
            self.weight = Param::from_tensor(Tensor::empty([0, 0], &self.weight.val().device()));
        }
    }
}
