//! Kernels of decode steps, which have no backward step.

use crate::{Sizes, tensor, values};
use base::mix;
use burn::tensor::{DType, Device, Tensor};
use kernels::kv_cache::{KvCache, LayerCache, append_rotated};
use kernels::{LinearWeight, Quantization, QuantizedWeight, Rope};

/// A case on a device: each call computes the output.
pub type Run = Box<dyn FnMut() -> Tensor<2>>;

/// An operation of one token of each of some sequences, f32.
pub struct Case {
    pub name: String,
    /// The case on a device without autodiff.
    pub on: Box<dyn Fn(&Device) -> Run>,
}

/// Sequences of a step: there is a kernel for each of these.
const SEQUENCES: [usize; 4] = [1, 2, 4, 8];
/// Formats of weights; `None`: bf16.
const FORMATS: [(&str, Option<Quantization>); 3] =
    [("bf16", None), ("int8", Some(Quantization::Int8)), ("nf4", Some(Quantization::Nf4 { double_quant: true }))];

/// `all`: also for 1 to 8 query heads of a key/value head.
pub fn cases(sizes: Sizes, all: bool) -> Vec<Case> {
    let Sizes { width, inner, heads, tokens, .. } = sizes;
    let mut cases = Vec::new();
    for sequences in SEQUENCES {
        let mut case = |name: String, on: Box<dyn Fn(&Device) -> Run>| {
            cases.push(Case { name: format!("decode {sequences}, {name}"), on });
        };
        for (format, quantization) in FORMATS {
            let of = |out, inputs| Product { sequences, inputs, out, quantization };
            let (square, wide, back) = (of(width, width), of(inner, width), of(width, inner));
            if quantization.is_none() {
                case(format!("q, k, v, {format}"), Box::new(move |device| square.joined(device)));
                case(format!("gate, up, {format}"), Box::new(move |device| wide.gated(device)));
            }
            case(format!("q, {format}"), Box::new(move |device| square.biased(device)));
            case(format!("output, {format}"), Box::new(move |device| square.onto(device)));
            case(format!("down, {format}"), Box::new(move |device| back.onto(device)));
        }
        // More than a part of the keys.
        let len = tokens.max(300);
        let mut attention = |heads, kv_heads| {
            let name = format!("attention, {heads} of {kv_heads} heads");
            case(name, Box::new(move |device| attended(sequences, [heads, kv_heads], 128, len, device)));
        };
        attention(heads, heads);
        for group in if all { 1..=8 } else { 4..=4 } {
            attention(2 * group, 2);
        }
    }
    cases
}

/// A product of a few rows with a weight `[out, inputs]`.
#[derive(Clone, Copy)]
struct Product {
    sequences: usize,
    inputs: usize,
    out: usize,
    quantization: Option<Quantization>,
}

impl Product {
    fn x(self, width: usize, of: u64, device: &Device) -> Tensor<2> {
        tensor(values([self.sequences, width], 1.0, of), device, DType::F32)
    }

    fn weight(self, of: u64, device: &Device) -> LinearWeight {
        let weight = values([self.out, self.inputs], 0.03, of);
        match self.quantization {
            // The CPU's tests say what its products of bf16 weights are.
            None => LinearWeight::Float(tensor(weight, device, DType::BF16)),
            Some(format) => {
                LinearWeight::Quantized(QuantizedWeight::quantize(tensor(weight, device, DType::F32), format))
            }
        }
    }

    fn bias(self, device: &Device) -> Tensor<1> {
        tensor(values([1, self.out], 1.0, 9), device, DType::F32).flatten(0, 1)
    }

    fn biased(self, device: &Device) -> Run {
        let (x, weight, bias) = (self.x(self.inputs, 0, device), self.weight(1, device), self.bias(device));
        Box::new(move || kernels::linear(x.clone(), weight.clone(), Some(bias.clone())))
    }

    fn onto(self, device: &Device) -> Run {
        let [x, residual] = [(self.inputs, 0), (self.out, 2)].map(|(width, of)| self.x(width, of, device));
        let weight = self.weight(1, device);
        Box::new(move || kernels::linear_onto(residual.clone(), x.clone(), weight.clone(), None))
    }

    fn gated(self, device: &Device) -> Run {
        let (x, weights) = (self.x(self.inputs, 0, device), [1, 2].map(|of| self.weight(of, device)));
        Box::new(move || kernels::gated_linear(x.clone(), weights.clone(), [None, None]).into())
    }

    fn joined(self, device: &Device) -> Run {
        let (x, bias) = (self.x(self.inputs, 0, device), self.bias(device));
        let weights = [1, 2, 3].map(|of| self.weight(of, device));
        Box::new(move || {
            let x = x.clone().into();
            let [first, second, third] = &weights;
            let outputs = kernels::joined_linears(&x, [first, second, third], [Some(&bias); 3]);
            // The CPU has no such kernel.
            let each = || weights.each_ref().map(|weight| kernels::linear(&x, weight.clone(), Some(bias.clone())));
            Tensor::cat(outputs.unwrap_or_else(each).to_vec(), 1)
        })
    }
}

/// Rotation, keys and values into the caches, and attention: of sequences of different lengths, the longest `len`.
fn attended(sequences: usize, of_heads: [usize; 2], head_dim: usize, len: usize, device: &Device) -> Run {
    let [heads, kv_heads] = of_heads;
    let random = |rows, heads: usize, of| tensor(values([rows, heads * head_dim], 1.0, of), device, DType::F32);
    let lens: Vec<usize> = (0..sequences).map(|at| len - (mix(at as u64) % (len as u64 / 2)) as usize).collect();
    let caches = lens.iter().zip(4..).map(|(&len, of)| {
        let mut cache = KvCache::new(1, kv_heads, head_dim, len + 1, device);
        cache.layer_mut(0).append(random(len, kv_heads, of), random(len, kv_heads, 20 + of));
        cache
    });
    let mut caches: Vec<KvCache> = caches.collect();
    let rope = Rope::new(&lens, &Rope::frequencies(head_dim, 5e6), device);
    let [q, k, v] = [(heads, 0), (kv_heads, 1), (kv_heads, 2)].map(|(heads, of)| random(sequences, heads, of));
    let ones = vec![1; sequences];
    Box::new(move || {
        let new = [q.clone(), k.clone(), v.clone()];
        let mut layers: Vec<_> = caches.iter_mut().map(|cache| cache.layer_mut(0)).collect();
        let q = append_rotated(new, [&rope, &rope], of_heads, &ones, &mut layers);
        let layers: Vec<&LayerCache> = caches.iter().map(|cache| cache.layer(0)).collect();
        let output = kernels::attention_cached(q, &layers, &ones, heads, kv_heads);
        caches.iter_mut().zip(&lens).for_each(|(cache, &len)| cache.truncate(len));
        output
    })
}
