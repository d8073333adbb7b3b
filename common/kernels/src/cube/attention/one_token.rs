//! One token of a sequence over its cache, as decode steps have it: a cube for each key/value head and each [`KEYS`] keys, and
//! where there are more keys a second launch that merges the parts. How keys are divided depends on their number alone, so that a
//! sequence gives the same bits whatever the other sequences are.
//!
//! # Arithmetic
//! For T keys and h key/value heads of d: 2 · h · d · T values read once, 4 FLOP for each and each query head that shares them. A
//! layer of the real job (20 heads of 128, 700 keys in f32): 14.3 MB, 3 µs at 4.8 TB/s, by 120 cubes.

#![allow(clippy::collapsible_if)] // cubecl reads the code

use super::super::{constant, cube_max, cube_sum, cubes_of_units, element, empty, matrix, strided, vector_size};
use crate::kv_cache::LayerCache;
use crate::packed_heads::head_dim;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// Units of a cube, and keys of a part: a unit has the score of one.
const KEYS: usize = 128;
/// Query heads that may share a key/value head: their results are in a unit's registers.
const MOST_HEADS: usize = 8;
/// Widest head: a unit has a column of the result.
const MOST_HEAD_DIM: usize = KEYS;

/// What is known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sizes {
    /// Query heads of a key/value head.
    group: usize,
    head_dim: usize,
    /// All keys are in one part.
    whole: bool,
}

/// See [`crate::attention_cached`], for one token of each sequence. `None` as the kernels for more tokens.
pub fn attention(
    q: &Tensor<2>,
    caches: &[&LayerCache],
    seq_lens: &[usize],
    heads: usize,
    kv_heads: usize,
) -> Option<Tensor<2>> {
    if seq_lens.iter().any(|&len| len != 1) {
        return None;
    }
    let lens: Vec<usize> = caches.iter().map(|cache| cache.len()).collect();
    let head_dim = head_dim(q.dims(), &[], [heads, kv_heads], seq_lens, &lens)?;
    let group = heads / kv_heads;
    if group > MOST_HEADS || head_dim > MOST_HEAD_DIM || q.dims()[0] == 0 {
        return None;
    }
    let q = matrix(q).filter(|q| !q.node.tracked())?;
    let hardware = &q.values.client.properties().hardware;
    let most = hardware.max_cube_count;
    let parts = lens.iter().max().map_or(0, |len| len.div_ceil(KEYS));
    if (hardware.max_units_per_cube as usize) < KEYS || kv_heads > most.0 as usize || parts > most.1 as usize {
        return None;
    }
    let buffer = |x: &Tensor<3>| {
        strided(x)
            .filter(|x| x.dtype == q.values.dtype && x.meta.shape()[0] == kv_heads && x.meta.shape()[2] == head_dim)
    };
    let buffers = caches.iter().map(|cache| {
        let (keys, values) = cache.buffers();
        Some([buffer(keys)?, buffer(values)?])
    });
    let buffers: Vec<[CubeTensor; 2]> = buffers.collect::<Option<_>>()?;
    let output = super::empty_like(&q.values);
    for (token, ([k, v], keys)) in buffers.into_iter().zip(lens).enumerate() {
        of_token(&q.values, [k, v], &output, token, keys, [group, kv_heads, head_dim]);
    }
    Some(constant(q.node, output))
}

fn of_token(
    q: &CubeTensor,
    [k, v]: [CubeTensor; 2],
    output: &CubeTensor,
    token: usize,
    keys: usize,
    [group, kv_heads, head_dim]: [usize; 3],
) {
    let heads = group * kv_heads;
    let parts = keys.div_ceil(KEYS);
    let sizes = Sizes { group, head_dim, whole: parts == 1 };
    let strides = [&k, &v].into_iter().flat_map(|x| [x.meta.strides()[0], x.meta.strides()[1]]);
    let size = vector_size(head_dim, &[q, &k, &v, output]).min(4);
    let size = if strides.into_iter().all(|stride| stride.is_multiple_of(size)) { size } else { 1 };
    let of_parts = if sizes.whole { [1, head_dim] } else { [parts * heads, head_dim] };
    let (results, sums) = (empty(q, of_parts, DType::F32), empty(q, [2 * of_parts[0]], DType::F32));
    one_token::launch(
        &q.client,
        CubeCount::Static(kv_heads as u32, parts as u32, 1),
        CubeDim::new_1d(KEYS as u32),
        size,
        q.clone().into_tensor_arg(),
        k.into_tensor_arg(),
        v.into_tensor_arg(),
        output.clone().into_tensor_arg(),
        results.clone().into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        token as u32,
        keys as u32,
        1.0 / (head_dim as f32).sqrt(),
        sizes,
        element(q),
    );
    if !sizes.whole {
        merge::launch(
            &q.client,
            cubes_of_units(q, heads * head_dim),
            CubeDim::new_1d(super::super::UNITS),
            results.into_tensor_arg(),
            sums.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            token as u32,
            parts as u32,
            heads as u32,
            head_dim as u32,
            element(q),
        );
    }
}

/// A cube for each key/value head and part of the keys: the output, or the part's results before they are divided by the sums of
/// exponentials, `[parts, heads, head_dim]`, and largest scores and sums, `[parts, heads, 2]`.
#[cube(launch)]
fn one_token<E: Float, N: Size>(
    q: &Buffer<Vector<E, N>>,
    k: &Buffer<Vector<E, N>>,
    v: &Buffer<Vector<E, N>>,
    output: &mut Buffer<Vector<E, N>>,
    results: &mut Buffer<Vector<f32, N>>,
    sums: &mut Buffer<f32>,
    token: u32,
    keys: u32,
    scale: f32,
    #[comptime] sizes: Sizes,
    #[define(E)] _dtype: ElemType,
) {
    let lanes = N::value();
    let group = comptime!(sizes.group);
    let vectors = comptime!(sizes.head_dim / lanes);
    let unit = UNIT_POS as usize;
    let kv_head = CUBE_POS_X as usize;
    let heads = CUBE_COUNT_X as usize * group;
    let first_key = CUBE_POS_Y as usize * KEYS;
    // Of the token's heads that share these keys.
    let first_head = kv_head * group;
    let queries_at = (token as usize * heads + first_head) * vectors;
    let mut queries = Shared::<[Vector<f32, N>]>::new_slice(comptime!(group * vectors));
    let mut weights = Shared::<[f32]>::new_slice(comptime!(group * KEYS));
    let mut shared = Shared::<[Vector<f32, N>]>::new_slice(KEYS);

    for step in 0..comptime!((group * vectors).div_ceil(KEYS)) {
        let at = step * KEYS + unit;
        if at < group * vectors {
            queries[at] = Vector::<f32, N>::cast_from(q[queries_at + at]) * Vector::new(scale);
        }
    }
    sync_cube();

    let is_key = first_key + unit < keys as usize;
    let mut scores = Array::<f32>::new(group);
    #[unroll]
    for head in 0..group {
        scores[head] = f32::new(f32::MIN);
    }
    if is_key {
        #[unroll]
        for head in 0..group {
            scores[head] = 0.0f32;
        }
        let at = (kv_head * k.stride(0) + (first_key + unit) * k.stride(1)) / lanes;
        for column in 0..vectors {
            let key = Vector::<f32, N>::cast_from(k[at + column]);
            #[unroll]
            for head in 0..group {
                let query = queries[head * vectors + column];
                #[unroll]
                for lane in 0..lanes {
                    scores[head] = fma(key.extract(lane), query.extract(lane), scores[head]);
                }
            }
        }
    }
    let mut totals = Array::<f32>::new(group);
    #[unroll]
    for head in 0..group {
        let largest = cube_max(scores[head]);
        let mut weight = 0.0f32;
        if is_key {
            weight = (scores[head] - largest).exp();
        }
        weights[head * KEYS + unit] = weight;
        let total = cube_sum(weight);
        totals[head] = total;
        if comptime!(!sizes.whole) {
            if unit == 0 {
                let at = 2 * (CUBE_POS_Y as usize * heads + first_head + head);
                sums[at] = largest;
                sums[at + 1] = total;
            }
        }
    }
    sync_cube();

    // Some units for each vector of the result, each with every `shares`-th key.
    let shares = comptime!(KEYS / vectors);
    let (share, column) = (unit / vectors, unit % vectors);
    let mut sum = Array::<Vector<f32, N>>::new(group);
    #[unroll]
    for head in 0..group {
        sum[head] = Vector::<f32, N>::new(0.0f32);
    }
    if share < shares {
        let of_part = min(keys as usize - first_key, KEYS);
        let mut key = share;
        while key < of_part {
            let at = (kv_head * v.stride(0) + (first_key + key) * v.stride(1)) / lanes;
            let value = Vector::<f32, N>::cast_from(v[at + column]);
            #[unroll]
            for head in 0..group {
                sum[head] += value * Vector::new(weights[head * KEYS + key]);
            }
            key += shares;
        }
    }
    #[unroll]
    for head in 0..group {
        shared[unit] = sum[head];
        sync_cube();
        if unit < vectors {
            let mut result = shared[unit];
            for other in 1..shares {
                result += shared[other * vectors + unit];
            }
            if comptime!(sizes.whole) {
                let divided = result / Vector::new(totals[head]);
                output[queries_at + head * vectors + unit] = Vector::cast_from(divided);
            } else {
                results[(CUBE_POS_Y as usize * heads + first_head + head) * vectors + unit] = result;
            }
        }
        sync_cube();
    }
}

/// A unit for each value of the output.
#[cube(launch)]
fn merge<E: Float>(
    results: &Buffer<f32>,
    sums: &Buffer<f32>,
    output: &mut Buffer<E>,
    token: u32,
    parts: u32,
    heads: u32,
    head_dim: u32,
    #[define(E)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS as u32;
    if at < heads * head_dim {
        let head = at / head_dim;
        let mut largest = sums[(2 * head) as usize];
        for part in 1..parts {
            largest = max(largest, sums[(2 * (part * heads + head)) as usize]);
        }
        let mut result = 0.0f32;
        let mut total = 0.0f32;
        for part in 0..parts {
            let of_part = (2 * (part * heads + head)) as usize;
            let factor = (sums[of_part] - largest).exp();
            result += factor * results[(part * heads * head_dim + at) as usize];
            total += factor * sums[of_part + 1];
        }
        output[(token * heads * head_dim + at) as usize] = E::cast_from(result / total);
    }
}
