//! Tables of rows: token and position embeddings, output weights.

#![allow(non_snake_case)] // `lora_A` and `lora_B` are the published names.

use super::linear::{LoraMatrix, LoraSlots, held, row_norms};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use kernels::{Dropout, Quantization, QuantizedWeight};

/// A table of rows (`….weight`).
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[rows, D]`
    pub weight: Param<Tensor<2>>,
    /// `[rank, D]` as `lora_A.weight`: LoRA of the products with all rows ([`Embedding::logits`]), not of the rows.
    pub lora_A: Option<LoraMatrix>,
    /// `[rows, rank]` as `lora_B.weight`
    pub lora_B: Option<LoraMatrix>,
    /// DoRA's magnitudes `[rows]`, f32 whatever the weights are.
    pub lora_magnitude_vector: Option<Param<Tensor<1>>>,
    /// Factor of the LoRA branch; 0 without LoRA.
    #[module(skip)]
    pub lora_scale: f32,
    /// The lengths that the magnitudes stand in the place of, where weights do not change ([`Self::keep_row_norms`]).
    #[module(skip)]
    row_norms: Option<Tensor<1>>,
    /// The table in few bits, which then stands for `weight` and is frozen.
    #[module(skip)]
    pub quantized: Option<QuantizedWeight>,
}

impl Embedding {
    /// A table `[rows, D]`.
    pub fn new(weight: Param<Tensor<2>>) -> Self {
        Self {
            weight,
            lora_A: None,
            lora_B: None,
            lora_magnitude_vector: None,
            lora_scale: 0.0,
            row_norms: None,
            quantized: None,
        }
    }

    /// Rows `ids`, in the dtype that the device computes in: `[T]` → `[T, D]`.
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        let weight = self.weight.val();
        let dtype = weight.device().settings().float_dtype;
        match &self.quantized {
            Some(quantized) => quantized.rows(ids).cast(dtype),
            None => kernels::embedding(weight, ids).cast(dtype),
        }
    }

    /// Products with all rows: x `[T, D]` → `[T, rows]`. `dropout` acts as in [`super::Linear::forward`].
    pub fn logits(&self, x: Tensor<2>, dropout: Option<&Dropout>) -> Tensor<2> {
        let weight = held(&self.weight, self.quantized.as_ref());
        let Some((a, b)) = self.lora_A.as_ref().zip(self.lora_B.as_ref()) else {
            return kernels::linear(x, weight, None);
        };
        let norms = || {
            let current = || row_norms(&self.weight, self.quantized.as_ref(), (a, b), self.lora_scale);
            self.row_norms.clone().unwrap_or_else(current)
        };
        let gain = self.lora_magnitude_vector.as_ref().map(|magnitude| magnitude.val() / norms());
        let (a, b, scale) = (a.weight.val(), b.weight.val(), self.lora_scale);
        match gain {
            Some(gain) => kernels::dora_linear(x, weight, None, a, b, scale, gain, dropout),
            None => kernels::lora_linear(x, weight, None, a, b, scale, dropout),
        }
    }

    /// Computes the lengths of rows once: for a model whose weights do not change from here on.
    pub fn keep_row_norms(&mut self) {
        self.row_norms = self.lora_mut().row_norms();
    }

    /// Its LoRA.
    pub fn lora_mut(&mut self) -> LoraSlots<'_> {
        let Self { weight, lora_A, lora_B, lora_magnitude_vector, lora_scale, quantized, .. } = self;
        let quantized = quantized.as_ref();
        LoraSlots { weight, a: lora_A, b: lora_B, magnitude: lora_magnitude_vector, scale: lora_scale, quantized }
    }

    /// The products are not those with `weight` alone.
    pub fn is_composed(&self) -> bool {
        self.quantized.is_some() || self.lora_A.is_some()
    }

    /// Keeps the table in few bits from here on; the float table is freed.
    pub fn quantize(&mut self, format: Quantization) {
        if self.quantized.is_none() {
            self.quantized = Some(QuantizedWeight::quantize(self.weight.val(), format));
            self.weight = Param::from_tensor(Tensor::empty([0, 0], &self.weight.val().device()));
        }
    }
}
