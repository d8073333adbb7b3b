//! A linear layer in Hugging Face's layout, with optional LoRA matrices.

#![allow(non_snake_case)] // `lora_A` and `lora_B` are the published names.

use crate::dropout::SiteDropout;
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use kernels::LinearInput;
use kernels::int8::{Int8Weight, linear_int8};

/// `y = x Wᵀ + b (+ scale · (dropout(x) Aᵀ) Bᵀ)`; with magnitudes (DoRA), each row of `W + scale · BA` is scaled to its own.
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
    /// DoRA's magnitudes `[out]`, f32 whatever the weights are.
    pub lora_magnitude_vector: Option<Param<Tensor<1>>>,
    /// Factor of the LoRA branch; 0 without LoRA.
    #[module(skip)]
    pub lora_scale: f32,
    /// The lengths that the magnitudes stand in the place of, where weights do not change ([`Self::keep_row_norms`]).
    #[module(skip)]
    row_norms: Option<Tensor<1>>,
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
        Self {
            weight,
            bias,
            lora_A: None,
            lora_B: None,
            lora_magnitude_vector: None,
            lora_scale: 0.0,
            row_norms: None,
            int8: None,
        }
    }

    /// x `[T, in]` → `[T, out]`. `dropout` acts on the LoRA branch's input only.
    pub fn forward(&self, x: impl Into<LinearInput>, dropout: Option<SiteDropout>) -> Tensor<2> {
        let x = x.into();
        let bias = self.bias.as_ref().map(Param::val);
        let lora = self.lora_A.as_ref().zip(self.lora_B.as_ref()).map(|(a, b)| (a.weight.val(), b.weight.val()));
        if let Some((gain, (a, b))) = self.gain().zip(lora.clone()) {
            return self.forward_dora(x, (gain, a, b), dropout);
        }
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

    /// With magnitudes.
    fn forward_dora(
        &self,
        x: LinearInput,
        (gain, a, b): (Tensor<1>, Tensor<2>, Tensor<2>),
        dropout: Option<SiteDropout>,
    ) -> Tensor<2> {
        let bias = self.bias.as_ref().map(Param::val);
        let Some(int8) = &self.int8 else {
            let dropout = dropout.map(|dropout| dropout.of_values());
            let weight = self.weight.val();
            return kernels::dora_linear(x, weight, bias, a, b, self.lora_scale, gain, dropout.as_ref());
        };
        let branch = kernels::linear(kernels::linear(x.clone(), a, None), b, None) * self.lora_scale;
        let y = (linear_int8(x.values, int8, None) + branch) * gain.unsqueeze();
        match bias {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    /// What DoRA multiplies the outputs by: magnitudes by lengths. The lengths have no gradient.
    ///
    /// # Source
    /// peft 0.21, `tuners/lora/dora.py`, `DoraLinearLayer.forward`.
    fn gain(&self) -> Option<Tensor<1>> {
        let magnitude = self.lora_magnitude_vector.as_ref()?.val();
        let current = || {
            let (a, b) = self.lora_A.as_ref().zip(self.lora_B.as_ref())?;
            Some(row_norms(&self.weight, self.int8.as_ref(), (a, b), self.lora_scale))
        };
        Some(magnitude / self.row_norms.clone().or_else(current)?)
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

    /// Keeps the weight in 8-bit integers from here on; the float weight is freed.
    pub fn quantize_int8(&mut self) {
        if self.int8.is_none() {
            self.int8 = Some(Int8Weight::quantize(self.weight.val()));
            self.weight = Param::from_tensor(Tensor::empty([0, 0], &self.weight.val().device()));
        }
    }
}

/// The LoRA of a layer, with its weight.
pub struct LoraSlots<'a> {
    /// `[out, in]`
    pub weight: &'a mut Param<Tensor<2>>,
    /// `[rank, in]`
    pub a: &'a mut Option<LoraMatrix>,
    /// `[out, rank]`
    pub b: &'a mut Option<LoraMatrix>,
    /// `[out]`
    pub magnitude: &'a mut Option<Param<Tensor<1>>>,
    /// Factor of the LoRA branch.
    pub scale: &'a mut f32,
    /// The weight in 8-bit integers, which then stands for `weight`.
    pub int8: Option<&'a Int8Weight>,
}

impl LoraSlots<'_> {
    /// The lengths of the rows of `W + scale · BA`, f32 `[out]`; `None` without magnitudes.
    pub fn row_norms(&self) -> Option<Tensor<1>> {
        let (a, b) = self.a.as_ref().zip(self.b.as_ref())?;
        self.magnitude.as_ref().map(|_| row_norms(self.weight, self.int8, (a, b), *self.scale))
    }
}

/// The lengths of the rows of `W + scale · BA`, f32 `[out]`, of a weight as it is held.
pub(super) fn row_norms(
    weight: &Param<Tensor<2>>,
    int8: Option<&Int8Weight>,
    (a, b): (&LoraMatrix, &LoraMatrix),
    scale: f32,
) -> Tensor<1> {
    let (a, b) = (a.weight.val(), b.weight.val());
    let [out, _] = b.dims();
    match int8 {
        Some(int8) => kernels::reference::row_norms_of(out, |start, rows| int8.dequantized(start, rows), a, b, scale),
        None => kernels::row_norms(weight.val(), a, b, scale),
    }
}
