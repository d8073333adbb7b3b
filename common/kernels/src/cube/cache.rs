//! One more token for each cached sequence: its queries and keys are rotated, keys and values written behind those of the cache, in
//! one launch for all sequences.

use super::caches::{Cached, OfLaunch, most_of_launch};
use super::{Backend, UNITS, element, empty, matrix, rows_and_width, strided};
use crate::Rope;
use crate::kv_cache::LayerCache;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Writes the caches and gives the rotated queries; the caches' lengths stay as they are. q `[T, heads · head_dim]`, k and v
/// `[T, kv_heads · head_dim]`, one token of each of T sequences. `None` on another backend, with autodiff, and for sizes that do not
/// fit: nothing was written.
pub(crate) fn append_rotated(
    [q, k, v]: [&Tensor<2>; 3],
    rope: &Rope,
    [heads, kv_heads]: [usize; 2],
    caches: &[&LayerCache],
) -> Option<Tensor<2>> {
    if q.device().is_autodiff() {
        return None;
    }
    let [q, k, v] = [rows_apart(q)?, rows_apart(k)?, rows_apart(v)?];
    let [cos, sin] = [matrix(&rope.cos)?.values, matrix(&rope.sin)?.values];
    let [tokens, half] = rows_and_width(&cos);
    let head_dim = 2 * half;
    let caches = Cached::all(caches, q.dtype, [kv_heads, head_dim])?;
    if tokens == 0
        || half == 0
        || caches.len() != tokens
        || caches.iter().any(|cached| cached.len >= cached.capacity())
        || [&cos, &sin].into_iter().any(|table| rows_and_width(table) != [tokens, half] || table.dtype != DType::F32)
        || rows_and_width(&q) != [tokens, heads * head_dim]
        || [&k, &v].into_iter().any(|x| x.dtype != q.dtype || rows_and_width(x) != [tokens, kv_heads * head_dim])
    {
        return None;
    }
    let strides = [&q, &k, &v].map(|x| x.meta.strides()[0]);
    let others = [&q, &k, &v, &cos, &sin];
    let size = caches.iter().map(|cached| cached.vector_size(half, &others)).min()?;
    let size = if strides.iter().all(|stride| stride.is_multiple_of(size)) { size } else { 1 };
    let [of_q, of_k, of_v] = strides.map(|stride| (stride / size) as u32);
    let units = (heads + 2 * kv_heads) * half / size;
    let cubes = units.div_ceil(UNITS as usize) as u32;
    if cubes > q.client.properties().hardware.max_cube_count.0 {
        return None;
    }
    let output = empty(&q, [tokens, heads * head_dim], q.dtype);
    let mut first = 0;
    for of_launch in caches.chunks(most_of_launch(&q, 6)) {
        let caches = OfLaunch::new(of_launch);
        append_token::launch(
            &q.client,
            CubeCount::Static(cubes, of_launch.len() as u32, 1),
            CubeDim::new_1d(UNITS),
            size,
            q.clone().into_buffer_arg(),
            k.clone().into_buffer_arg(),
            v.clone().into_buffer_arg(),
            cos.clone().into_buffer_arg(),
            sin.clone().into_buffer_arg(),
            output.clone().into_buffer_arg(),
            caches.keys().collect(),
            caches.values().collect(),
            caches.lens().collect(),
            caches.head_strides(size).collect(),
            caches.token_strides(size).collect(),
            first,
            of_q,
            of_k,
            of_v,
            units as u32,
            (half / size) as u32,
            heads as u32,
            kv_heads as u32,
            element(&q),
        );
        first += of_launch.len() as u32;
    }
    Some(Tensor::from_primitive::<Backend>(output))
}

/// Queries, keys or values; rows may lie apart, as parts of one output do.
fn rows_apart(x: &Tensor<2>) -> Option<CubeTensor> {
    let is_read = matches!(x.dtype(), DType::F32 | DType::BF16 | DType::F16) && !x.device().is_autodiff();
    if is_read { strided(x).filter(|x| !x.meta.is_tiled()) } else { None }
}

/// Cubes of a token, and the sequences. A unit for each vector of a head's first half and the one of its second half that belongs to
/// it: of the queries' heads, then of the keys', then of the values'. Caches are written behind their `lens` rows: these are part of
/// no other tensor's values.
#[cube(launch)]
fn append_token<F: Float, N: Size>(
    q: &[Vector<F, N>],
    k: &[Vector<F, N>],
    v: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    output: &mut [Vector<F, N>],
    keys: &mut Sequence<Box<[Vector<F, N>]>>,
    values: &mut Sequence<Box<[Vector<F, N>]>>,
    lens: &Sequence<u32>,
    head_strides: &Sequence<u32>,
    token_strides: &Sequence<u32>,
    first_token: u32,
    of_q: u32,
    of_k: u32,
    of_v: u32,
    units: u32,
    half: u32,
    heads: u32,
    kv_heads: u32,
    #[define(F)] _dtype: ElemType,
) {
    let unit = CUBE_POS_X * CUBE_DIM + UNIT_POS;
    if unit < units {
        let token = first_token + CUBE_POS_Y;
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
            let (a, b) = (Vector::cast_from(a * cos - b * sin), Vector::cast_from(b * cos + a * sin));
            write::<F, N>(keys, lens, head_strides, token_strides, head, at, a, half, b);
        } else {
            let head = head - heads - kv_heads;
            let first = (token * of_v + head * 2 * half + at) as usize;
            let second = first + half as usize;
            write::<F, N>(values, lens, head_strides, token_strides, head, at, v[first], half, v[second]);
        }
    }
}

/// Writes two vectors, the second `half` a head behind the first, to the next row of a head in the cache of the cube's sequence.
#[cube]
fn write<F: Float, N: Size>(
    caches: &mut Sequence<Box<[Vector<F, N>]>>,
    lens: &Sequence<u32>,
    head_strides: &Sequence<u32>,
    token_strides: &Sequence<u32>,
    head: u32,
    at: u32,
    first: Vector<F, N>,
    half: u32,
    second: Vector<F, N>,
) {
    #[unroll]
    for sequence in 0..comptime!(lens.len()) {
        if CUBE_POS_Y == sequence as u32 {
            let place = head * head_strides[sequence] + lens[sequence] * token_strides[sequence] + at;
            let cache = caches.index_mut(sequence);
            cache[place as usize] = first;
            cache[(place + half) as usize] = second;
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
        for (heads, kv_heads, head_dim) in [(1, 1, 2), (4, 2, 12), (2, 2, 64), (7, 1, 80), (3, 3, 128)] {
            // Of more than eight, some are in a launch of their own.
            for sequences in if head_dim == 64 { 1..=9 } else { 8..=8 } {
                check([heads, kv_heads], head_dim, &[0, 5, 130, 1, 127, 300, 128, 2, 40][..sequences]);
            }
        }
    }

    fn check([heads, kv_heads]: [usize; 2], head_dim: usize, past: &[usize]) {
        let Some(device) = gpu() else { return };
        let run = |device: &Device, by_kernel: bool| {
            let random = |seed, rows, heads: usize| {
                let shape = [rows, heads * head_dim];
                Tensor::<2>::from_data(TensorData::new(values(seed, rows * heads * head_dim), shape), device)
            };
            let caches = past.iter().map(|&past| {
                // Room for one more.
                let mut cache = KvCache::new(1, kv_heads, head_dim, past + 1, device);
                if past > 0 {
                    cache.layer_mut(0).append(random(1, past, kv_heads), random(2, past, kv_heads));
                }
                cache
            });
            let mut caches: Vec<_> = caches.collect();
            let rope = Rope::new(past, &Rope::frequencies(head_dim, 1e4), device);
            let [q, k, v] =
                [(3, heads), (4, kv_heads), (5, kv_heads)].map(|(seed, heads)| random(seed, past.len(), heads));
            if by_kernel {
                let layers: Vec<&LayerCache> = caches.iter().map(|cache| cache.layer(0)).collect();
                let found = super::append_rotated([&q, &k, &v], &rope, [heads, kv_heads], &layers);
                assert!(found.is_some(), "it applies");
            }
            let mut layers: Vec<_> = caches.iter_mut().map(|cache| cache.layer_mut(0)).collect();
            let ones = vec![1; past.len()];
            let q = append_rotated([q, k, v], [&rope, &rope], [heads, kv_heads], &ones, &mut layers);
            let filled = caches.iter().flat_map(|cache| {
                assert_eq!(cache.len(), cache.capacity());
                let (keys, values) = cache.layer(0).filled();
                [read(keys), read(values)]
            });
            std::iter::once(read(q)).chain(filled).collect::<Vec<_>>()
        };
        let (found, expected) = (run(&device, true), run(&Device::flex(), false));
        for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let name = format!("{heads} heads, {kv_heads} of keys, of {head_dim}, after {past:?}, part {part}");
            assert_near(&name, found, expected, 1e-6);
        }
    }
}
