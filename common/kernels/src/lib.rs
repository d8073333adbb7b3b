//! Numerical operations of the model on packed sequences: plain compositions of burn operations (`plain`), which define them
//! and run on every backend, and forward/backward kernels for the CPU (`fused`), which replace them where they apply.
//!
//! Weights may be stored in another number format than the activations (bf16, f16): the result has the activations' format.

mod activation;
pub mod cpu;
pub mod device;
pub mod dropout;
pub mod int8;
pub mod kv_cache;
mod linear_input;
pub mod memory;
pub mod reference;

pub use activation::Activation;
pub use dropout::Dropout;
pub use linear_input::LinearInput;

use crate::kv_cache::LayerCache;
use burn::tensor::{Device, Tensor, TensorData};

/// Up to so many tokens, the CPU's products with weights give each token the same bits in any company; with more they are
/// computed as matrices, in another order of summation. A decode step that wants a row not to depend on its neighbours takes
/// so many at a time.
pub const MAX_INDEPENDENT_TOKENS: usize = 8;

/// `y = x Wᵀ + b`. x `[T, in]`, weight `[out, in]`, bias `[out]` → `[T, out]`.
pub fn linear(x: impl Into<LinearInput>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let x = x.into();
    cpu::linear(x.clone(), &weight, bias.as_ref()).unwrap_or_else(|| reference::linear(x.values, weight, bias))
}

/// `x + y`, as residual connections add. Both `[T, D]`.
pub fn add(x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
    cpu::add(&x, y).unwrap_or_else(|y| reference::add(x, y))
}

/// `linear` + `scale · (mask ∘ x) Aᵀ Bᵀ`. a `[r, in]`, b `[out, r]`; the mask is that of `dropout`.
#[allow(clippy::too_many_arguments)]
pub fn lora_linear(
    x: impl Into<LinearInput>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f32,
    dropout: Option<&Dropout>,
) -> Tensor<2> {
    let x = x.into();
    cpu::lora_linear(x.clone(), &weight, bias.as_ref(), &a, &b, scale, dropout)
        .unwrap_or_else(|| reference::lora_linear(x.values, weight, bias, a, b, scale, dropout))
}

/// Qwen2's RMSNorm over the last dimension. x `[T, D]`, weight `[D]`.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> LinearInput {
    cpu::rms_norm(&x, &weight, eps).unwrap_or_else(|| reference::rms_norm(x, weight, eps).into())
}

/// LayerNorm over the last dimension. x `[T, D]`, weight and bias `[D]`.
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> LinearInput {
    cpu::layer_norm(&x, &weight, &bias, eps).unwrap_or_else(|| reference::layer_norm(x, weight, bias, eps).into())
}

/// `silu(gate) ∘ up`, both `[T, F]`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> LinearInput {
    cpu::swiglu(&gate, &up).unwrap_or_else(|| reference::swiglu(gate, up).into())
}

/// Exact GELU.
pub fn gelu(x: Tensor<2>) -> LinearInput {
    cpu::gelu(&x).unwrap_or_else(|| reference::gelu(x).into())
}

/// GELU with tanh in place of erf: `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
pub fn gelu_tanh(x: Tensor<2>) -> LinearInput {
    cpu::gelu_tanh(&x).unwrap_or_else(|| reference::gelu_tanh(x).into())
}

/// `x · sigmoid(1.702 x)`.
pub fn quick_gelu(x: Tensor<2>) -> LinearInput {
    cpu::quick_gelu(&x).unwrap_or_else(|| reference::quick_gelu(x).into())
}

/// `x · sigmoid(x)`.
pub fn silu(x: Tensor<2>) -> Tensor<2> {
    reference::silu(x)
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
        let table = |of: fn(f32) -> f32| {
            let values = positions.iter().flat_map(|&p| frequencies.iter().map(move |f| of(p as f32 * f)));
            let shape = [positions.len(), frequencies.len()];
            Tensor::from_data(TensorData::new(values.collect::<Vec<f32>>(), shape), device)
        };
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

/// Rotates the two halves of every head (`rotate_half`). x `[T, heads · head_dim]`.
pub fn rope(x: Tensor<2>, rope: &Rope, heads: usize) -> Tensor<2> {
    cpu::rope(&x, rope, heads).unwrap_or_else(|| reference::rope(x, rope, heads))
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Those of its sequence up to its own position.
    Causal,
    /// Those of its sequence.
    Full,
}

/// Attention within each packed sequence, scale 1/√head_dim. q `[T, heads · head_dim]`, k and v `[T, kv_heads · head_dim]`,
/// `seq_lens` sums to T → `[T, heads · head_dim]`. Query head h uses key/value head `h / (heads / kv_heads)`.
pub fn attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    heads: usize,
    kv_heads: usize,
    seq_lens: &[usize],
    mask: Mask,
) -> Tensor<2> {
    cpu::attention(&q, &k, &v, heads, kv_heads, seq_lens, mask)
        .unwrap_or_else(|| reference::attention(q, k, v, heads, kv_heads, seq_lens, mask))
}

/// Causal attention of the last tokens of each packed sequence, scale 1/√head_dim: `query_lens[i]` of the `seq_lens[i]` tokens
/// of sequence i. q `[Σ query_lens, heads · head_dim]`, k and v `[Σ seq_lens, kv_heads · head_dim]` → as q.
pub fn attention_of_last(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    heads: usize,
    kv_heads: usize,
    query_lens: &[usize],
    seq_lens: &[usize],
) -> Tensor<2> {
    cpu::attention_of_last(&q, &k, &v, heads, kv_heads, query_lens, seq_lens)
        .unwrap_or_else(|| reference::attention_of_last(q, k, v, heads, kv_heads, query_lens, seq_lens))
}

/// Causal attention of new tokens over their sequences' caches, which already hold the new tokens' keys and values.
/// Inference only: no gradient.
///
/// # Shapes
/// q `[T, heads · head_dim]`, the new tokens of every sequence one after another: `seq_lens[i]` of sequence i, the last
/// positions of `caches[i]` → `[T, heads · head_dim]`.
pub fn attention_cached(
    q: Tensor<2>,
    caches: &[&LayerCache],
    seq_lens: &[usize],
    heads: usize,
    kv_heads: usize,
) -> Tensor<2> {
    cpu::attention_cached(&q, caches, seq_lens, heads, kv_heads)
        .unwrap_or_else(|| reference::attention_cached(q, caches, seq_lens, heads))
}

/// Rows of a table. weight `[V, D]`, ids `[T]` → `[T, D]` in the table's number format.
pub fn embedding(weight: Tensor<2>, ids: &[u32]) -> Tensor<2> {
    cpu::embedding(&weight, ids).unwrap_or_else(|| reference::embedding(weight, ids))
}

/// Moves a weight into huge pages where system and backend can; see [`crate::memory::move_into_huge_pages`].
pub fn move_into_huge_pages<const D: usize>(weight: &Tensor<D>) {
    cpu::move_into_huge_pages(weight);
}

/// Rows `positions` of x: `[T, D]` → `[positions, D]`.
pub fn select_rows(x: Tensor<2>, positions: &[usize]) -> Tensor<2> {
    cpu::select_rows(&x, positions).unwrap_or_else(|| reference::select_rows(x, positions))
}

/// x with rows `positions` (ascending, distinct) replaced by `rows`. x `[T, D]`, rows `[positions, D]`.
pub fn replace_rows(x: Tensor<2>, positions: &[usize], rows: Tensor<2>) -> Tensor<2> {
    cpu::replace_rows(&x, positions, &rows).unwrap_or_else(|| reference::replace_rows(x, positions, rows))
}

/// A number whose backward pass starts at `output` with this `gradient` (a tensor without autodiff, shaped like `output`).
pub fn with_gradient(output: Tensor<2>, gradient: Tensor<2>) -> Tensor<1> {
    cpu::with_gradient(&output, &gradient).unwrap_or_else(|| reference::with_gradient(output, gradient))
}

/// Sum over rows of the cross entropy of `hidden · weightᵀ` against `targets`. hidden `[S, D]`, weight `[V, D]` → `[1]`.
pub fn cross_entropy_sum(hidden: Tensor<2>, weight: Tensor<2>, targets: &[u32]) -> Tensor<1> {
    cpu::cross_entropy_sum(&hidden, &weight, targets)
        .unwrap_or_else(|| reference::cross_entropy_sum(hidden, weight, targets))
}
