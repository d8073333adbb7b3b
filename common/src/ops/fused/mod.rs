//! Forward/backward kernels for the CPU backend. Each function gives `None` where it does not apply (another backend, a
//! number format without a kernel), and the caller takes the plain composition.

use super::{Mask, Rope};
use crate::model::kv_cache::LayerCache;
use burn::tensor::Tensor;

/// See [`super::linear`].
pub fn linear(_x: &Tensor<2>, _weight: &Tensor<2>, _bias: Option<&Tensor<1>>) -> Option<Tensor<2>> {
    None
}

/// See [`super::lora_linear`].
#[allow(clippy::too_many_arguments)]
pub fn lora_linear(
    _x: &Tensor<2>,
    _weight: &Tensor<2>,
    _bias: Option<&Tensor<1>>,
    _a: &Tensor<2>,
    _b: &Tensor<2>,
    _scale: f32,
    _mask: Option<&Tensor<2>>,
) -> Option<Tensor<2>> {
    None
}

/// See [`super::rms_norm`].
pub fn rms_norm(_x: &Tensor<2>, _weight: &Tensor<1>, _eps: f64) -> Option<Tensor<2>> {
    None
}

/// See [`super::layer_norm`].
pub fn layer_norm(_x: &Tensor<2>, _weight: &Tensor<1>, _bias: &Tensor<1>, _eps: f64) -> Option<Tensor<2>> {
    None
}

/// See [`super::swiglu`].
pub fn swiglu(_gate: &Tensor<2>, _up: &Tensor<2>) -> Option<Tensor<2>> {
    None
}

/// See [`super::gelu`].
pub fn gelu(_x: &Tensor<2>) -> Option<Tensor<2>> {
    None
}

/// See [`super::quick_gelu`].
pub fn quick_gelu(_x: &Tensor<2>) -> Option<Tensor<2>> {
    None
}

/// See [`super::rope`].
pub fn rope(_x: &Tensor<2>, _rope: &Rope, _heads: usize) -> Option<Tensor<2>> {
    None
}

/// See [`super::attention`].
pub fn attention(
    _q: &Tensor<2>,
    _k: &Tensor<2>,
    _v: &Tensor<2>,
    _heads: usize,
    _kv_heads: usize,
    _seq_lens: &[usize],
    _mask: Mask,
) -> Option<Tensor<2>> {
    None
}

/// See [`super::attention_cached`].
pub fn attention_cached(
    _q: &Tensor<2>,
    _caches: &[&LayerCache],
    _seq_lens: &[usize],
    _heads: usize,
    _kv_heads: usize,
) -> Option<Tensor<2>> {
    None
}

/// See [`super::embedding`].
pub fn embedding(_weight: &Tensor<2>, _ids: &[u32]) -> Option<Tensor<2>> {
    None
}

/// See [`super::select_rows`].
pub fn select_rows(_x: &Tensor<2>, _positions: &[usize]) -> Option<Tensor<2>> {
    None
}

/// See [`super::replace_rows`].
pub fn replace_rows(_x: &Tensor<2>, _positions: &[usize], _rows: &Tensor<2>) -> Option<Tensor<2>> {
    None
}

/// See [`super::cross_entropy_sum`].
pub fn cross_entropy_sum(_hidden: &Tensor<2>, _weight: &Tensor<2>, _targets: &[u32]) -> Option<Tensor<1>> {
    None
}
