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
pub mod graphics;
pub mod int8;
pub mod kv_cache;
mod linear_input;
pub mod memory;
pub mod metal;
pub mod nf4;
mod operations;
mod packed_heads;
mod products;
pub mod quantized;
pub mod reference;
mod rope;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod self_test;
pub mod vulkan;

pub use activation::Activation;
pub use adamw::{AdamWUpdate, GradientPart, accumulate, adamw, sum_of_squares};
pub use address::Addressed;
pub use cross_entropies::CrossEntropies;
pub use dropout::{Dropout, SequenceStreams};
pub use linear_input::LinearInput;
pub use operations::*;
pub use products::{product, product_by_cublas_lt};
pub use quantized::{LinearWeight, Quantization, QuantizedWeight};
pub use rope::Rope;

use burn::tensor::Tensor;

/// Up to this many tokens the CPU's products with weights are batch-invariant: each token gets the same bits whatever the other
/// tokens are. Products of more tokens are matrix products, which sum in another order. A decode step that wants a row not to
/// depend on its neighbours takes so many at a time.
pub const MAX_INDEPENDENT_TOKENS: usize = 8;

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
