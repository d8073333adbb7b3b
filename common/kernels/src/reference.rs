//! The definitions: compositions of burn operations that run, and differentiate, on every backend.

use crate::kv_cache::LayerCache;
use crate::{CrossEntropies, Dropout, LinearWeight, Mask, Rope, frozen, product};
use burn::tensor::{Bool, DType, Int, Tensor, TensorData, activation};

/// Rows of a weight that are converted at a time when its dtype differs from the activations'.
const CONVERTED_ROWS: usize = 1024;

/// See [`crate::linear`].
pub fn linear(x: impl Into<Tensor<2>>, weight: impl Into<LinearWeight>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let x = x.into();
    let dtype = x.dtype();
    let y = match weight.into() {
        LinearWeight::Float(weight) if weight.dtype() == dtype => product(x, weight.transpose()),
        LinearWeight::Float(weight) => linear_converting(x, weight),
        LinearWeight::Quantized(weight) => frozen::product(x, &weight),
    };
    match bias {
        Some(bias) => y + narrowed(bias, dtype).unsqueeze(),
        None => y,
    }
}

/// `x Wᵀ` with W in another dtype, a slice of rows at a time so that no second copy of W comes into being.
fn linear_converting(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let [out, _] = weight.dims();
    let parts = (0..out)
        .step_by(CONVERTED_ROWS)
        .map(|start| {
            let rows = weight.clone().narrow(0, start, CONVERTED_ROWS.min(out - start)).cast(x.dtype());
            product(x.clone(), rows.transpose())
        })
        .collect();
    Tensor::cat(parts, 1)
}

/// See [`crate::add`].
pub fn add(x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
    x + y
}

/// See [`crate::lora_linear`].
pub fn lora_linear(
    x: impl Into<Tensor<2>>,
    weight: impl Into<LinearWeight>,
    bias: Option<Tensor<1>>,
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f32,
    dropout: Option<&Dropout>,
) -> Tensor<2> {
    let x = x.into();
    let [_, width] = x.dims();
    let dropped = match dropout {
        Some(dropout) => x.clone() * dropout.mask(width, &x.device()),
        None => x.clone(),
    };
    linear(x, weight, bias) + linear(linear(dropped, a, None), b, None) * scale
}

/// See [`crate::dora_linear`].
#[allow(clippy::too_many_arguments)]
pub fn dora_linear(
    x: impl Into<Tensor<2>>,
    weight: impl Into<LinearWeight>,
    bias: Option<Tensor<1>>,
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f32,
    gain: Tensor<1>,
    dropout: Option<&Dropout>,
) -> Tensor<2> {
    let (x, weight) = (x.into(), weight.into());
    let ([_, width], dtype) = (x.dims(), x.dtype());
    let branch = |x: Tensor<2>| linear(linear(x, a.clone(), None), b.clone(), None) * scale;
    // In f32: near 1, where bf16 has three digits.
    let scaled = |y: Tensor<2>| narrowed(widened(y) * gain.clone().unsqueeze(), dtype);
    let Some(dropout) = dropout else {
        let y = scaled(linear(x.clone(), weight, None) + branch(x));
        return match bias {
            Some(bias) => y + narrowed(bias, dtype).unsqueeze(),
            None => y,
        };
    };
    let dropped = x.clone() * dropout.mask(width, &x.device());
    let rest = linear(x - dropped.clone(), weight.clone(), bias);
    rest + scaled(linear(dropped.clone(), weight, None) + branch(dropped))
}

/// See [`crate::row_norms`].
pub fn row_norms(weight: impl Into<LinearWeight>, a: Tensor<2>, b: Tensor<2>, scale: f32) -> Tensor<1> {
    let ([out, _], weight, has_graph) = (b.dims(), weight.into(), b.device().is_autodiff());
    let slice = |start: usize, rows: usize| match &weight {
        LinearWeight::Float(weight) => weight.clone().narrow(0, start, rows).detach(),
        LinearWeight::Quantized(weight) => {
            let rows = weight.dequantized(start..start + rows);
            if has_graph { Tensor::from_inner(rows) } else { rows }
        }
    };
    let (a, b) = (a.detach().cast(DType::F32), b.detach().cast(DType::F32));
    let parts = (0..out)
        .step_by(CONVERTED_ROWS)
        .map(|start| {
            let rows = CONVERTED_ROWS.min(out - start);
            let delta = b.clone().narrow(0, start, rows).matmul(a.clone()) * scale;
            let sum = slice(start, rows).cast(DType::F32) + delta;
            sum.square().sum_dim(1).sqrt().reshape([rows])
        })
        .collect();
    Tensor::cat(parts, 0)
}

/// See [`crate::rms_norm`].
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = widened(x);
    let mean_square = x.clone().square().mean_dim(1);
    narrowed(x / (mean_square + eps).sqrt(), dtype) * narrowed(weight, dtype).unsqueeze()
}

/// See [`crate::layer_norm`].
pub fn layer_norm(x: Tensor<2>, weight: Tensor<1>, bias: Tensor<1>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = widened(x);
    let (weight, bias) = (narrowed(weight, x.dtype()), narrowed(bias, x.dtype()));
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    narrowed(centred / (variance + eps).sqrt() * weight.unsqueeze() + bias.unsqueeze(), dtype)
}

/// See [`crate::swiglu`].
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    silu(gate) * up
}

/// See [`crate::gelu`].
pub fn gelu(x: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    narrowed(activation::gelu(widened(x)), dtype)
}

/// See [`crate::gelu_tanh`].
pub fn gelu_tanh(x: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    let x = widened(x);
    let inner = (x.clone() + x.clone().powi_scalar(3) * 0.044_715) * (2.0 / std::f64::consts::PI).sqrt();
    narrowed(x * (inner.tanh() + 1.0) * 0.5, dtype)
}

/// See [`crate::quick_gelu`].
pub fn quick_gelu(x: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    let x = widened(x);
    narrowed(activation::sigmoid(x.clone() * 1.702) * x, dtype)
}

/// See [`crate::silu`].
pub fn silu(x: Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    narrowed(activation::silu(widened(x)), dtype)
}

/// See [`crate::rope`].
pub fn rope(x: Tensor<2>, rope: &Rope, heads: usize) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let half = width / heads / 2;
    let x = x.reshape([tokens, heads, 2 * half]);
    let (first, second) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
    let (cos, sin) = (rope.cos.clone().unsqueeze_dim::<3>(1), rope.sin.clone().unsqueeze_dim::<3>(1));
    let rotated = vec![
        first.clone() * cos.clone() - second.clone() * sin.clone(), //
        second * cos + first * sin,
    ];
    Tensor::cat(rotated, 2).reshape([tokens, width])
}

/// See [`crate::attention`].
pub fn attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    heads: usize,
    kv_heads: usize,
    seq_lens: &[usize],
    mask: Mask,
) -> Tensor<2> {
    sequences(q, k, v, heads, kv_heads, seq_lens, seq_lens, mask)
}

/// See [`crate::attention_of_last`].
pub fn attention_of_last(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    heads: usize,
    kv_heads: usize,
    query_lens: &[usize],
    seq_lens: &[usize],
) -> Tensor<2> {
    sequences(q, k, v, heads, kv_heads, query_lens, seq_lens, Mask::Causal)
}

#[allow(clippy::too_many_arguments)]
fn sequences(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    heads: usize,
    kv_heads: usize,
    query_lens: &[usize],
    seq_lens: &[usize],
    mask: Mask,
) -> Tensor<2> {
    let (mut start, mut first_query) = (0, 0);
    let mut outputs = Vec::with_capacity(seq_lens.len());
    for (&queries, &len) in query_lens.iter().zip(seq_lens) {
        if queries > 0 {
            let rows = |x: &Tensor<2>| x.clone().narrow(0, start, len);
            let q = q.clone().narrow(0, first_query, queries);
            outputs.push(attend(q, rows(&k), rows(&v), heads, kv_heads, mask));
        }
        (start, first_query) = (start + len, first_query + queries);
    }
    if outputs.is_empty() { q } else { Tensor::cat(outputs, 0) }
}

/// See [`crate::attention_cached`].
///
/// The caches know `kv_heads`.
pub fn attention_cached(
    q: Tensor<2>,
    caches: &[&LayerCache],
    seq_lens: &[usize],
    heads: usize,
    _kv_heads: usize,
) -> Tensor<2> {
    let mut start = 0;
    let mut outputs = Vec::with_capacity(seq_lens.len());
    for (cache, &len) in caches.iter().zip(seq_lens) {
        let (keys, values) = cache.filled();
        outputs.push(attend_heads(q.clone().narrow(0, start, len), keys, values, heads, Mask::Causal));
        start += len;
    }
    Tensor::cat(outputs, 0)
}

/// Attention of one sequence whose queries are its last positions. q `[L, heads · d]`, k and v `[S, kv_heads · d]`, L ≤ S.
fn attend(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, heads: usize, kv_heads: usize, mask: Mask) -> Tensor<2> {
    let [keys, width] = k.dims();
    let by_head = |x: Tensor<2>| x.reshape([keys, kv_heads, width / kv_heads]).permute([1, 0, 2]);
    attend_heads(q, by_head(k), by_head(v), heads, mask)
}

/// As [`attend`], k and v `[kv_heads, S, d]`.
fn attend_heads(q: Tensor<2>, k: Tensor<3>, v: Tensor<3>, heads: usize, mask: Mask) -> Tensor<2> {
    let ([queries, width], [kv_heads, keys, head_dim]) = (q.dims(), k.dims());
    let group = heads / kv_heads;
    // The query heads that share a key/value head become rows of one product.
    let q = q.reshape([queries, kv_heads, group, head_dim]).permute([1, 2, 0, 3]);
    let q = q.reshape([kv_heads, group * queries, head_dim]);
    let mut scores = q.matmul(k.transpose()) * (1.0 / (head_dim as f64).sqrt());
    if mask == Mask::Causal && queries > 1 {
        let hidden = future(queries, keys, &scores).unsqueeze::<4>().expand([kv_heads, group, queries, keys]);
        scores = scores.reshape([kv_heads, group, queries, keys]).mask_fill(hidden, f32::NEG_INFINITY).reshape([
            kv_heads,
            group * queries,
            keys,
        ]);
    }
    let shares = narrowed(activation::softmax(widened(scores), 2), v.dtype());
    let output = shares.matmul(v);
    output.reshape([kv_heads, group, queries, head_dim]).permute([2, 0, 1, 3]).reshape([queries, width])
}

/// `[queries, keys]`: true where the key comes after the query; the queries are the last positions. Computed where it is used: a
/// mask from the host would be a copy for each sequence of each layer.
fn future(queries: usize, keys: usize, like: &Tensor<3>) -> Tensor<2, Bool> {
    let positions =
        |range: std::ops::Range<usize>| Tensor::<1, Int>::arange(range.start as i64..range.end as i64, &like.device());
    let of_keys = positions(0..keys).unsqueeze_dim::<2>(0).expand([queries, keys]);
    of_keys.greater(positions(keys - queries..keys).unsqueeze_dim::<2>(1).expand([queries, keys]))
}

/// See [`crate::embedding`].
pub fn embedding(weight: Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let ids = ids.iter().map(|&id| i64::from(id));
    let ids = indices(ids, &weight);
    weight.select(0, ids)
}

/// See [`crate::select_rows`].
pub fn select_rows(x: Tensor<2>, positions: &[usize]) -> Tensor<2> {
    let positions = indices(positions.iter().map(|&position| position as i64), &x);
    x.select(0, positions)
}

/// See [`crate::replace_rows`].
pub fn replace_rows(x: Tensor<2>, positions: &[usize], rows: Tensor<2>) -> Tensor<2> {
    let [tokens, _] = x.dims();
    let mut source: Vec<i64> = (0..tokens as i64).collect();
    for (row, &position) in positions.iter().enumerate() {
        source[position] = (tokens + row) as i64;
    }
    let source = indices(source.into_iter(), &x);
    Tensor::cat(vec![x, rows], 0).select(0, source)
}

/// See [`crate::with_gradient`].
pub fn with_gradient(output: Tensor<2>, gradient: Tensor<2>) -> Tensor<1> {
    (output * Tensor::from_inner(gradient)).sum()
}

/// See [`crate::cross_entropy_sum`].
pub fn cross_entropy_sum(hidden: Tensor<2>, weight: Tensor<2>, targets: &[u32]) -> CrossEntropies {
    cross_entropy_of_logits(linear(hidden, weight, None), targets)
}

/// Cross entropy of logits `[S, V]` against `targets`, summed over rows.
pub fn cross_entropy_of_logits(logits: Tensor<2>, targets: &[u32]) -> CrossEntropies {
    let rows = targets.len();
    let targets = indices(targets.iter().map(|&target| i64::from(target)), &logits);
    let picked = activation::log_softmax(widened(logits), 1).gather(1, targets.unsqueeze_dim(1));
    let values = if picked.device().is_autodiff() { picked.clone().inner() } else { picked.clone() };
    CrossEntropies { sum: picked.sum().neg(), rows: values.neg().reshape([rows]) }
}

/// An index tensor on the device of `like`.
fn indices(values: impl Iterator<Item = i64>, like: &Tensor<2>) -> Tensor<1, Int> {
    let values: Vec<i64> = values.collect();
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), &like.device())
}

/// Half-precision values in f32: what sums or exponentiates them does so in f32, as transformers does.
fn widened<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if matches!(x.dtype(), DType::BF16 | DType::F16) { x.cast(DType::F32) } else { x }
}

/// In the dtype of the activations.
fn narrowed<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
