//! A linear layer in Hugging Face's layout, with optional LoRA matrices.

#![allow(non_snake_case)] // `lora_A` and `lora_B` are the published names.

use crate::dropout::SiteDropout;
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use kernels::{LinearInput, LinearWeight, Quantization, QuantizedWeight};

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
    /// The weight in few bits, which then stands for `weight` and is frozen.
    #[module(skip)]
    pub quantized: Option<QuantizedWeight>,
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
            quantized: None,
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
        match lora {
            None => kernels::linear(x, self.weight(), bias),
            Some((a, b)) => {
                let dropout = dropout.map(|dropout| dropout.of_values());
                kernels::lora_linear(x, self.weight(), bias, a, b, self.lora_scale, dropout.as_ref())
            }
        }
    }

    /// `residual` and [`Self::forward`].
    pub fn forward_onto(
        &self,
        residual: Tensor<2>,
        x: impl Into<LinearInput>,
        dropout: Option<SiteDropout>,
    ) -> Tensor<2> {
        match self.lora_A {
            None => kernels::linear_onto(residual, x, self.weight(), self.bias.as_ref().map(Param::val)),
            Some(_) => kernels::add(residual, self.forward(x, dropout)),
        }
    }

    /// The outputs of three layers without LoRA in one launch, where the device has a kernel for it.
    pub fn joined(layers: [&Self; 3], x: &LinearInput) -> Option<[Tensor<2>; 3]> {
        // On a CPU there is none.
        if layers.iter().any(|layer| layer.lora_A.is_some()) || x.values.device() == kernels::device::cpu() {
            return None;
        }
        let weights = layers.map(Self::weight);
        let biases = layers.map(|layer| layer.bias.as_ref().map(Param::val));
        kernels::joined_linears(x, weights.each_ref(), biases.each_ref().map(Option::as_ref))
    }

    /// `silu(gate(x)) ∘ up(x)`.
    pub fn gated([gate, up]: [&Self; 2], x: LinearInput, [of_gate, of_up]: [Option<SiteDropout>; 2]) -> LinearInput {
        if gate.lora_A.is_some() || up.lora_A.is_some() {
            let gate = gate.forward(&x, of_gate);
            return kernels::swiglu(gate, up.forward(x, of_up));
        }
        let bias = |linear: &Self| linear.bias.as_ref().map(Param::val);
        kernels::gated_linear(x, [gate.weight(), up.weight()], [bias(gate), bias(up)])
    }

    /// With magnitudes.
    fn forward_dora(
        &self,
        x: LinearInput,
        (gain, a, b): (Tensor<1>, Tensor<2>, Tensor<2>),
        dropout: Option<SiteDropout>,
    ) -> Tensor<2> {
        let bias = self.bias.as_ref().map(Param::val);
        let dropout = dropout.map(|dropout| dropout.of_values());
        kernels::dora_linear(x, self.weight(), bias, a, b, self.lora_scale, gain, dropout.as_ref())
    }

    /// What products are computed with.
    fn weight(&self) -> LinearWeight {
        held(&self.weight, self.quantized.as_ref())
    }

    /// What DoRA multiplies the outputs by: magnitudes by lengths. The lengths have no gradient.
    ///
    /// # Source
    /// peft 0.21, `tuners/lora/dora.py`, `DoraLinearLayer.forward`.
    fn gain(&self) -> Option<Tensor<1>> {
        let magnitude = self.lora_magnitude_vector.as_ref()?.val();
        let current = || {
            let (a, b) = self.lora_A.as_ref().zip(self.lora_B.as_ref())?;
            Some(row_norms(&self.weight, self.quantized.as_ref(), (a, b), self.lora_scale))
        };
        Some(magnitude / self.row_norms.clone().or_else(current)?)
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

    /// Keeps the weight in few bits from here on; the float weight is freed.
    pub fn quantize(&mut self, format: Quantization) {
        if self.quantized.is_none() {
            self.quantized = Some(QuantizedWeight::quantize(self.weight.val(), format));
            self.weight = Param::from_tensor(Tensor::empty([0, 0], &self.weight.val().device()));
        }
    }

    /// The weight in f32 again: the values that its codes stand for.
    pub fn dequantize(&mut self) {
        if let Some(quantized) = self.quantized.take() {
            let [rows, _] = quantized.dims();
            let (device, weight) = (self.weight.val().device(), quantized.dequantized(0..rows));
            let weight = if device.is_autodiff() { Tensor::from_inner(weight) } else { weight };
            self.weight = Param::from_tensor(weight);
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
    /// The weight in few bits, which then stands for `weight`.
    pub quantized: Option<&'a QuantizedWeight>,
}

impl LoraSlots<'_> {
    /// out, in.
    pub fn dims(&self) -> [usize; 2] {
        self.quantized.map_or_else(|| self.weight.dims(), QuantizedWeight::dims)
    }

    /// The lengths of the rows of `W + scale · BA`, f32 `[out]`; `None` without magnitudes.
    pub fn row_norms(&self) -> Option<Tensor<1>> {
        let (a, b) = self.a.as_ref().zip(self.b.as_ref())?;
        self.magnitude.as_ref().map(|_| row_norms(self.weight, self.quantized, (a, b), *self.scale))
    }
}

/// A weight as it is held: what stands for it, if something does.
pub(super) fn held(weight: &Param<Tensor<2>>, quantized: Option<&QuantizedWeight>) -> LinearWeight {
    quantized.cloned().map_or_else(|| weight.val().into(), LinearWeight::from)
}

/// The lengths of the rows of `W + scale · BA`, f32 `[out]`, of a weight as it is held.
pub(super) fn row_norms(
    weight: &Param<Tensor<2>>,
    quantized: Option<&QuantizedWeight>,
    (a, b): (&LoraMatrix, &LoraMatrix),
    scale: f32,
) -> Tensor<1> {
    kernels::row_norms(held(weight, quantized), a.weight.val(), b.weight.val(), scale)
}
