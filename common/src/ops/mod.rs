//! Numerical operations of the model on packed sequences: plain compositions of burn operations, which define them and run
//! on every backend, and (`fused`) forward/backward kernels for the CPU.

use burn::tensor::Tensor;

/// `y = x Wᵀ + b`. x `[T, in]`, weight `[out, in]`, bias `[out]` → `[T, out]`.
pub fn linear(_x: Tensor<2>, _weight: Tensor<2>, _bias: Option<Tensor<1>>) -> Tensor<2> {
    todo!()
}

/// `linear` + `scale · (mask ∘ x) Aᵀ Bᵀ`. a `[r, in]`, b `[out, r]`; `mask` `[T, in]` holds 0 or 1/(1−p), `None` without dropout.
#[allow(clippy::too_many_arguments)]
pub fn lora_linear(
    _x: Tensor<2>,
    _weight: Tensor<2>,
    _bias: Option<Tensor<1>>,
    _a: Tensor<2>,
    _b: Tensor<2>,
    _scale: f32,
    _mask: Option<Tensor<2>>,
) -> Tensor<2> {
    todo!()
}

/// Qwen2's RMSNorm over the last dimension. x `[T, D]`, weight `[D]`.
pub fn rms_norm(_x: Tensor<2>, _weight: Tensor<1>, _eps: f64) -> Tensor<2> {
    todo!()
}

/// LayerNorm over the last dimension. x `[T, D]`, weight and bias `[D]`.
pub fn layer_norm(_x: Tensor<2>, _weight: Tensor<1>, _bias: Tensor<1>, _eps: f64) -> Tensor<2> {
    todo!()
}

/// `silu(gate) ∘ up`, both `[T, F]`.
pub fn swiglu(_gate: Tensor<2>, _up: Tensor<2>) -> Tensor<2> {
    todo!()
}

/// Exact GELU.
pub fn gelu(_x: Tensor<2>) -> Tensor<2> {
    todo!()
}

/// `x · sigmoid(1.702 x)`.
pub fn quick_gelu(_x: Tensor<2>) -> Tensor<2> {
    todo!()
}

/// Cosines and sines of RoPE for the packed positions, `[T, head_dim / 2]` each (plain tensors, no graph).
#[derive(Clone, Debug)]
pub struct Rope {
    /// `[T, head_dim / 2]`
    pub cos: Tensor<2>,
    /// `[T, head_dim / 2]`
    pub sin: Tensor<2>,
}

/// Rotates the two halves of every head (`rotate_half`). x `[T, heads · head_dim]`.
pub fn rope(_x: Tensor<2>, _rope: &Rope, _heads: usize) -> Tensor<2> {
    todo!()
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
    _q: Tensor<2>,
    _k: Tensor<2>,
    _v: Tensor<2>,
    _heads: usize,
    _kv_heads: usize,
    _seq_lens: &[usize],
    _mask: Mask,
) -> Tensor<2> {
    todo!()
}

/// Rows of a table. weight `[V, D]`, ids `[T]` → `[T, D]`.
pub fn embedding(_weight: Tensor<2>, _ids: &[u32]) -> Tensor<2> {
    todo!()
}

/// Rows `positions` of x: `[T, D]` → `[positions, D]`.
pub fn select_rows(_x: Tensor<2>, _positions: &[usize]) -> Tensor<2> {
    todo!()
}

/// x with rows `positions` (ascending, distinct) replaced by `rows`. x `[T, D]`, rows `[positions, D]`.
pub fn replace_rows(_x: Tensor<2>, _positions: &[usize], _rows: Tensor<2>) -> Tensor<2> {
    todo!()
}

/// Sum over rows of the cross entropy of `hidden · weightᵀ` against `targets`. hidden `[S, D]`, weight `[V, D]` → `[1]`.
pub fn cross_entropy_sum(_hidden: Tensor<2>, _weight: Tensor<2>, _targets: &[u32]) -> Tensor<1> {
    todo!()
}
