//! One more token for each cached sequence: its queries and keys are rotated, keys and values written behind those of the cache, in
//! one launch a sequence.

use super::{Backend, UNITS, cubes_of_units, element, empty, matrix, rows_and_width, strided, vector_size};
use crate::Rope;
use crate::kv_cache::LayerCache;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// Writes the caches and gives the rotated queries; the caches' lengths stay as they are. q `[T, heads · head_dim]`, k and v
/// `[T, kv_heads · head_dim]`, one token of each of T sequences. `None` on another backend, with autodiff, and for sizes that do not
/// fit: nothing was written.
pub(crate) fn append_rotated(
    [q, k, v]: [&Tensor<2>; 3],
    rope: &Rope,
    heads: usize,
    caches: &[&LayerCache],
) -> Option<Tensor<2>> {
    if q.device().is_autodiff() {
        return None;
    }
    let [q, k, v] = [rows_apart(q)?, rows_apart(k)?, rows_apart(v)?];
    let [cos, sin] = [matrix(&rope.cos)?.values, matrix(&rope.sin)?.values];
    let ([tokens, width], [_, half]) = (rows_and_width(&q), rows_and_width(&cos));
    let buffers = caches.iter().map(|cache| {
        let (keys, values) = cache.buffers();
        Some(Buffers { keys: cached(keys, &q)?, values: cached(values, &q)?, len: cache.len() })
    });
    let buffers: Vec<Buffers> = buffers.collect::<Option<_>>()?;
    let all = [&q, &k, &v, &cos, &sin].into_iter().chain(buffers.iter().flat_map(|of| [&of.keys, &of.values]));
    let size = vector_size(half, &all.collect::<Vec<_>>());
    let strides = [&q, &k, &v].map(|x| x.meta.strides()[0]);
    let mut all_strides = strides.into_iter().chain(buffers.iter().flat_map(Buffers::strides));
    let size = if all_strides.all(|stride| stride.is_multiple_of(size)) { size } else { 1 };
    let [of_q, of_k, of_v] = strides.map(|stride| (stride / size) as u32);
    let fits = |of: &Buffers| {
        let [kv_heads, capacity, head_dim] = of.keys.meta.shape().dims();
        of.keys.meta.shape() == of.values.meta.shape()
            && of.keys.meta.strides() == of.values.meta.strides()
            && head_dim == 2 * half
            && of.len < capacity
            && [&k, &v].into_iter().all(|x| rows_and_width(x) == [tokens, kv_heads * head_dim])
    };
    if tokens == 0
        || width != heads * 2 * half
        || buffers.len() != tokens
        || [&cos, &sin].into_iter().any(|table| rows_and_width(table) != [tokens, half] || table.dtype != DType::F32)
        || [&k, &v].into_iter().any(|x| x.dtype != q.dtype)
        || !buffers.iter().all(fits)
    {
        return None;
    }
    let output = empty(&q, [tokens, width], q.dtype);
    for (token, of) in buffers.into_iter().enumerate() {
        let [kv_heads, _, _] = of.keys.meta.shape().dims();
        let units = (heads + 2 * kv_heads) * half / size;
        let [of_head, of_token] = [of.keys.meta.strides()[0], of.keys.meta.strides()[1]];
        append_token::launch(
            &q.client,
            cubes_of_units(&q, units),
            CubeDim::new_1d(UNITS),
            size,
            q.clone().into_tensor_arg(),
            k.clone().into_tensor_arg(),
            v.clone().into_tensor_arg(),
            cos.clone().into_tensor_arg(),
            sin.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            of.keys.into_tensor_arg(),
            of.values.into_tensor_arg(),
            token as u32,
            of_q,
            of_k,
            of_v,
            of.len as u32,
            units as u32,
            (half / size) as u32,
            heads as u32,
            kv_heads as u32,
            (of_head / size) as u32,
            (of_token / size) as u32,
            element(&q),
        );
    }
    Some(Tensor::from_primitive::<Backend>(output))
}

/// A sequence's keys and values in a layer.
struct Buffers {
    keys: CubeTensor,
    values: CubeTensor,
    len: usize,
}

impl Buffers {
    fn strides(&self) -> [usize; 4] {
        let [keys, values] = [&self.keys, &self.values].map(|x| x.meta.strides());
        [keys[0], keys[1], values[0], values[1]]
    }
}

/// Queries, keys or values; rows may lie apart, as parts of one output do.
fn rows_apart(x: &Tensor<2>) -> Option<CubeTensor> {
    let is_read = matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16) && !x.device().is_autodiff();
    if is_read { strided(x).filter(|x| !x.meta.is_tiled()) } else { None }
}

/// A cache's buffer, to be written to: rows beyond the cache's length are part of no other tensor's values.
fn cached(buffer: &Tensor<3>, like: &CubeTensor) -> Option<CubeTensor> {
    strided(buffer).filter(|buffer| buffer.dtype == like.dtype && !buffer.meta.is_tiled())
}

/// A unit for each vector of a head's first half and the one of its second half that belongs to it: of the queries' heads, then of
/// the keys', then of the values'.
#[cube(launch)]
fn append_token<F: Float, N: Size>(
    q: &Buffer<Vector<F, N>>,
    k: &Buffer<Vector<F, N>>,
    v: &Buffer<Vector<F, N>>,
    cos: &Buffer<Vector<f32, N>>,
    sin: &Buffer<Vector<f32, N>>,
    output: &mut Buffer<Vector<F, N>>,
    keys: &mut Buffer<Vector<F, N>>,
    values: &mut Buffer<Vector<F, N>>,
    token: u32,
    of_q: u32,
    of_k: u32,
    of_v: u32,
    position: u32,
    units: u32,
    half: u32,
    heads: u32,
    kv_heads: u32,
    of_head: u32,
    of_token: u32,
    #[define(F)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS as u32;
    if unit < units {
        let (at, head) = (unit % half, unit / half);
        let angle = (token * half + at) as usize;
        let cos = cos[angle];
        let sin = sin[angle];
        if head < heads {
            let first = (token * of_q + head * 2 * half + at) as usize;
            let second = first + half as usize;
            let (a, b) = (Vector::<f32, N>::cast_from(q[first]), Vector::<f32, N>::cast_from(q[second]));
            let place = ((token * heads + head) * 2 * half + at) as usize;
            output[place] = Vector::cast_from(a * cos - b * sin);
            output[place + half as usize] = Vector::cast_from(b * cos + a * sin);
        } else if head < heads + kv_heads {
            let head = head - heads;
            let first = (token * of_k + head * 2 * half + at) as usize;
            let second = first + half as usize;
            let (a, b) = (Vector::<f32, N>::cast_from(k[first]), Vector::<f32, N>::cast_from(k[second]));
            let place = (head * of_head + position * of_token + at) as usize;
            keys[place] = Vector::cast_from(a * cos - b * sin);
            keys[place + half as usize] = Vector::cast_from(b * cos + a * sin);
        } else {
            let head = head - heads - kv_heads;
            let first = (token * of_v + head * 2 * half + at) as usize;
            let place = (head * of_head + position * of_token + at) as usize;
            values[place] = v[first];
            values[place + half as usize] = v[first + half as usize];
        }
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use crate::Rope;
    use crate::cpu::tests::{assert_near, values};
    use crate::cube::tests::compare::{gpu, read};
    use crate::kv_cache::{KvCache, LayerCache, append_rotated};
    use burn::tensor::{Device, Tensor, TensorData};

    #[test]
    fn one_token_of_each_sequence() {
        let Some(device) = gpu() else { return };
        for (heads, kv_heads, head_dim) in [(1, 1, 2), (4, 2, 12), (2, 2, 64), (7, 1, 80), (3, 3, 128)] {
            let past = [0, 5, 130];
            let run = |device: &Device, by_kernel: bool| {
                let random = |seed, rows, heads: usize| {
                    let shape = [rows, heads * head_dim];
                    Tensor::<2>::from_data(TensorData::new(values(seed, rows * heads * head_dim), shape), device)
                };
                let mut caches = past.map(|past| {
                    // Room for one more.
                    let mut cache = KvCache::new(1, kv_heads, head_dim, past + 1, device);
                    if past > 0 {
                        cache.layer_mut(0).append(random(1, past, kv_heads), random(2, past, kv_heads));
                    }
                    cache
                });
                let rope = Rope::new(&past, &Rope::frequencies(head_dim, 1e4), device);
                let [q, k, v] = [(3, heads), (4, kv_heads), (5, kv_heads)].map(|(seed, heads)| random(seed, 3, heads));
                if by_kernel {
                    let layers: Vec<&LayerCache> = caches.iter().map(|cache| cache.layer(0)).collect();
                    assert!(super::append_rotated([&q, &k, &v], &rope, heads, &layers).is_some(), "it applies");
                }
                let mut layers: Vec<_> = caches.iter_mut().map(|cache| cache.layer_mut(0)).collect();
                let q = append_rotated([q, k, v], [&rope, &rope], [heads, kv_heads], &[1; 3], &mut layers);
                let filled = caches.iter().flat_map(|cache| {
                    assert_eq!(cache.len(), cache.capacity());
                    let (keys, values) = cache.layer(0).filled();
                    [read(keys), read(values)]
                });
                std::iter::once(read(q)).chain(filled).collect::<Vec<_>>()
            };
            let (found, expected) = (run(&device, true), run(&Device::flex(), false));
            for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let name = format!("{heads} heads, {kv_heads} of keys, of {head_dim}, part {part}");
                assert_near(&name, found, expected, 1e-6);
            }
        }
    }
}
