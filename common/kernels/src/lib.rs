//! Numerical operations of the model on packed sequences. `reference` defines them as compositions of burn operations, which run
//! on every backend; `cpu` has kernels for the CPU that replace them where they apply, `cube` kernels for GPUs. The table that says which kernel an
//! operation tries is `operations`.
//!
//! Weights may have another dtype than the activations (bf16, f16): the result has the activations' dtype.

mod activation;
mod adamw;
mod address;
pub mod cpu;
mod cross_entropies;
#[cfg(feature = "cube")]
mod cube;
pub mod cuda;
pub mod device;
pub mod dropout;
mod frozen;
pub mod int8;
pub mod kv_cache;
mod linear_input;
pub mod memory;
pub mod nf4;
mod operations;
pub mod quantized;
pub mod reference;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod self_test;
pub mod vulkan;

pub use activation::Activation;
pub use adamw::{AdamWUpdate, adamw, sum_of_squares};
pub use address::Addressed;
pub use cross_entropies::CrossEntropies;
pub use dropout::{Dropout, SequenceStreams};
pub use linear_input::LinearInput;
pub use operations::*;
pub use quantized::{LinearWeight, Quantization, QuantizedWeight};

use burn::tensor::{Device, Tensor, TensorData};

/// Up to this many tokens the CPU's products with weights are batch-invariant: each token gets the same bits whatever the other
/// tokens are. Products of more tokens are matrix products, which sum in another order. A decode step that wants a row not to
/// depend on its neighbours takes so many at a time.
pub const MAX_INDEPENDENT_TOKENS: usize = 8;

/// Cosines and sines of RoPE for the packed positions, `[T, head_dim / 2]` each (plain tensors, no graph).
#[derive(Clone, Debug)]
pub struct Rope {
    /// `[T, head_dim / 2]`
    pub cos: Tensor<2>,
    /// `[T, head_dim / 2]`
    pub sin: Tensor<2>,
}

impl Rope {
    /// The table for tokens at `positions` of their sequences; `frequencies` `[head_dim / 2]` are angles from one token to the
    /// next, radians.
    ///
    /// # Source
    /// transformers `Qwen2RotaryEmbedding.forward`: angles in f32.
    pub fn new(positions: &[usize], frequencies: &[f32], device: &Device) -> Self {
        let table = |positions: &[usize], of: fn(f32) -> f32| {
            let values = positions.iter().flat_map(|&p| frequencies.iter().map(move |f| of(p as f32 * f)));
            let shape = [positions.len(), frequencies.len()];
            Tensor::from_data(TensorData::new(values.collect::<Vec<f32>>(), shape), device)
        };
        // Rows of a batch share positions: only the longest one's rotations are computed and copied to the device.
        let distinct: Vec<usize> = (0..positions.iter().max().map_or(0, |last| last + 1)).collect();
        if distinct.len() >= positions.len() {
            return Self { cos: table(positions, f32::cos), sin: table(positions, f32::sin) };
        }
        let rows: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
        let rows = Tensor::from_data(TensorData::new(rows, [positions.len()]), device);
        let table = |of: fn(f32) -> f32| table(&distinct, of).select(0, rows.clone());
        Self { cos: table(f32::cos), sin: table(f32::sin) }
    }

    /// The table for packed sequences that each start at position 0.
    pub fn packed(seq_lens: &[usize], frequencies: &[f32], device: &Device) -> Self {
        let positions: Vec<usize> = seq_lens.iter().flat_map(|&len| 0..len).collect();
        Self::new(&positions, frequencies, device)
    }

    /// Unscaled angles from one token to the next, `[head_dim / 2]`, radians: theta^(−2i / head_dim), in f32.
    ///
    /// # Source
    /// transformers `Qwen2RotaryEmbedding.compute_default_rope_parameters`.
    pub fn frequencies(head_dim: usize, theta: f64) -> Vec<f32> {
        let frequency = |i: usize| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32);
        (0..head_dim / 2).map(frequency).collect()
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Those of its sequence up to its own position.
    Causal,
    /// Those of its sequence.
    Full,
}

/// The activation that a config names.
pub fn activate(x: Tensor<2>, activation: Activation) -> LinearInput {
    match activation {
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::QuickGelu => quick_gelu(x),
        Activation::Silu => silu(x).into(),
    }
}

/// Moves a weight into huge pages where system and backend can; see [`memory::move_into_huge_pages`].
pub fn move_into_huge_pages<const D: usize>(weight: &Tensor<D>) {
    cpu::move_into_huge_pages(weight);
}
