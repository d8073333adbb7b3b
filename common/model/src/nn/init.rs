//! Fresh weights, distributed as transformers initialises the same modules.

use super::{Embedding, LayerNorm, Linear, LoraMatrix, RmsNorm};
use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Draws the weights of one model from one seed, in the order of the calls, or makes them zero.
pub(crate) struct Initializer<'a> {
    /// `None` draws zeros.
    rng: Option<StdRng>,
    device: &'a Device,
}

impl LoraMatrix {
    /// PEFT's A: uniform in ±1/√in (`kaiming_uniform_` with a = √5). `[rank, in]`
    pub(crate) fn random(rank: usize, inputs: usize, seed: u64, device: &Device) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let bound = 1.0 / (inputs as f32).sqrt();
        let values: Vec<f32> = (0..rank * inputs).map(|_| rng.random_range(-bound..=bound)).collect();
        let values = TensorData::new(values, [rank, inputs]);
        Self { weight: Param::from_tensor(Tensor::from_data(values, (device, DType::F32))) }
    }

    /// PEFT's B: zeros. `[out, rank]`
    pub(crate) fn zeros(outputs: usize, rank: usize, device: &Device) -> Self {
        Self { weight: Param::from_tensor(Tensor::zeros([outputs, rank], (device, DType::F32))) }
    }
}

/// A parameter that is made when it is looked at, and never if it is replaced before.
fn lazy<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    let zeros = move |device: &Device, _: bool| Tensor::zeros(shape, device);
    Param::uninitialized(ParamId::new(), zeros, device.clone(), false, shape.into())
}

impl<'a> Initializer<'a> {
    /// Random weights: the same for the same seed.
    pub(crate) fn random(seed: u64, device: &'a Device) -> Self {
        Self { rng: Some(StdRng::seed_from_u64(seed)), device }
    }

    /// Weights to be filled: zeros that take no memory before they are written or replaced.
    pub(crate) fn zeros(device: &'a Device) -> Self {
        Self { rng: None, device }
    }

    /// Normal values with mean 0 (Box–Muller).
    pub(crate) fn normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Param<Tensor<D>> {
        let Some(rng) = &mut self.rng else { return lazy(shape, self.device) };
        let count: usize = shape.iter().product();
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * std;
            let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
            values.extend([(radius * cos) as f32, (radius * sin) as f32]);
        }
        values.truncate(count);
        Param::from_data(TensorData::new(values, shape), self.device)
    }

    /// Uniform values in ±`bound`.
    pub(crate) fn uniform<const D: usize>(&mut self, shape: [usize; D], bound: f32) -> Param<Tensor<D>> {
        let Some(rng) = &mut self.rng else { return lazy(shape, self.device) };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-bound..=bound)).collect();
        Param::from_data(TensorData::new(values, shape), self.device)
    }

    /// A vector of zeros.
    pub(crate) fn zero_vector(&self, len: usize) -> Param<Tensor<1>> {
        Param::from_tensor(Tensor::zeros([len], self.device))
    }

    fn ones(&self, len: usize) -> Param<Tensor<1>> {
        Param::from_tensor(Tensor::ones([len], self.device))
    }

    /// A linear layer with normal weights; a bias is zero.
    pub(crate) fn linear(&mut self, inputs: usize, outputs: usize, std: f64, bias: bool) -> Linear {
        let weight = self.normal([outputs, inputs], std);
        Linear::new(weight, bias.then(|| self.zero_vector(outputs)))
    }

    /// A linear layer with uniform weights of variance 2 / (inputs + outputs) (`xavier_uniform_`).
    pub(crate) fn xavier_linear(&mut self, inputs: usize, outputs: usize, bias: Param<Tensor<1>>) -> Linear {
        let bound = (6.0 / (inputs + outputs) as f32).sqrt();
        Linear::new(self.uniform([outputs, inputs], bound), Some(bias))
    }

    /// A table of normal values.
    pub(crate) fn table(&mut self, rows: usize, width: usize, std: f64) -> Embedding {
        Embedding::new(self.normal([rows, width], std))
    }

    /// Ones and zeros.
    pub(crate) fn layer_norm(&self, width: usize) -> LayerNorm {
        LayerNorm { weight: self.ones(width), bias: self.zero_vector(width) }
    }

    /// Ones.
    pub(crate) fn rms_norm(&self, width: usize) -> RmsNorm {
        RmsNorm { weight: self.ones(width) }
    }
}
