//! Tables of rows: token and position embeddings, output weights.

#![allow(non_snake_case)] // `lora_A` and `lora_B` are the published names.

use super::linear::{LoraMatrix, LoraSlots, row_norms};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use kernels::int8::{Int8Weight, linear_int8};

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
    /// The table in 8-bit integers, which then stands for `weight` (inference only).
    #[module(skip)]
    pub int8: Option<Int8Weight>,
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
            int8: None,
        }
    }

    /// Rows `ids`, in the dtype that the device computes in: `[T]` → `[T, D]`.
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        let weight = self.weight.val();
        let dtype = weight.device().settings().float_dtype;
        match &self.int8 {
            Some(int8) => int8.rows(ids),
            None => kernels::embedding(weight, ids).cast(dtype),
        }
    }

    /// Products with all rows: x `[T, D]` → `[T, rows]`.
    pub fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        let branch = self.lora_A.as_ref().zip(self.lora_B.as_ref()).map(|(a, b)| {
            let low = kernels::linear(x.clone(), a.weight.val(), None);
            kernels::linear(low, b.weight.val(), None) * self.lora_scale
        });
        let logits = match &self.int8 {
            Some(int8) => linear_int8(x, int8, None),
            None => kernels::linear(x, self.weight.val(), None),
        };
        let logits = match branch {
            Some(branch) => logits + branch,
            None => logits,
        };
        let current = || {
            let (a, b) = self.lora_A.as_ref().zip(self.lora_B.as_ref())?;
            Some(row_norms(&self.weight, self.int8.as_ref(), (a, b), self.lora_scale))
        };
        let norms = || self.row_norms.clone().or_else(current);
        match self.lora_magnitude_vector.as_ref().and_then(|magnitude| Some(magnitude.val() / norms()?)) {
            Some(gain) => logits * gain.unsqueeze(),
            None => logits,
        }
    }

    /// Computes the lengths of rows once: for a model whose weights do not change from here on.
    pub fn keep_row_norms(&mut self) {
        self.row_norms = self.lora_mut().row_norms();
    }

    /// Its LoRA.
    pub fn lora_mut(&mut self) -> LoraSlots<'_> {
        let Self { weight, lora_A, lora_B, lora_magnitude_vector, lora_scale, int8, .. } = self;
        let int8 = int8.as_ref();
        LoraSlots { weight, a: lora_A, b: lora_B, magnitude: lora_magnitude_vector, scale: lora_scale, int8 }
    }

    /// The products are not those with `weight` alone.
    pub fn is_composed(&self) -> bool {
        self.int8.is_some() || self.lora_A.is_some()
    }

    /// Keeps the table in 8-bit integers from here on; the float table is freed.
    pub fn quantize_int8(&mut self) {
        if self.int8.is_none() {
            self.int8 = Some(Int8Weight::quantize(self.weight.val()));
            self.weight = Param::from_tensor(Tensor::empty([0, 0], &self.weight.val().device()));
        }
    }
}
