//! One token of each sequence over its cache, as decode steps have it: a cube for each key/value head, each [`KEYS`] keys and each
//! sequence, and where a sequence has more keys a second launch that merges the parts. How keys are divided depends on their number
//! alone, so that a sequence gives the same bits whatever the other sequences are.
//!
//! # Arithmetic
//! For T keys and h key/value heads of d: 2 · h · d · T values read once, 4 FLOP for each and each query head that shares them. A
//! layer of the real job (20 heads of 128, 700 keys in f32): 14.3 MB, 3 µs at 4.8 TB/s, by 120 cubes.

#![allow(clippy::collapsible_if)] // cubecl reads the code

use super::super::caches::{Cached, MOST, OfLaunch, most_of_launch};
use super::super::{UNITS, constant, cube_max, cube_sum, element, empty, matrix};
use crate::kv_cache::LayerCache;
use crate::packed_heads::head_dim;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a cube, and keys of a part: a unit has the score of one.
const KEYS: usize = 128;
const KEYS_OF_PART: u32 = KEYS as u32;
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
    let cubes = [kv_heads, parts, MOST];
    if (hardware.max_units_per_cube as usize) < KEYS
        || cubes.into_iter().zip([most.0, most.1, most.2]).any(|(cubes, most)| cubes > most as usize)
    {
        return None;
    }
    let caches = Cached::all(caches, q.values.dtype, [kv_heads, head_dim])?;
    let output = super::empty_like(&q.values);
    let size = |cached: &Cached| cached.vector_size(head_dim, &[&q.values, &output]).min(4);
    let first_size = size(caches.first()?);
    // A sequence is read in the vectors that it would be read in alone.
    let are_alike = caches.iter().all(|cached| size(cached) == first_size);
    let of_launch = if are_alike { most_of_launch(&q.values, 4) } else { 1 };
    let mut first = 0;
    for caches in caches.chunks(of_launch) {
        let size = caches.first().map_or(1, size);
        of_sequences(&q.values, caches, &output, first, size, kv_heads, Sizes { group, head_dim });
        first += caches.len();
    }
    Some(constant(q.node, output))
}

/// The tokens from `first` on, one for each of the caches.
fn of_sequences(
    q: &CubeTensor,
    caches: &[Cached],
    output: &CubeTensor,
    first: usize,
    size: usize,
    kv_heads: usize,
    sizes: Sizes,
) {
    let (heads, head_dim) = (sizes.group * kv_heads, sizes.head_dim);
    let parts = caches.iter().map(|cached| cached.len.div_ceil(KEYS));
    let (longest, all) = (parts.clone().max().unwrap_or(0), parts.sum::<usize>());
    let of_parts = if longest > 1 { [all * heads, head_dim] } else { [1, head_dim] };
    let (results, sums) = (empty(q, of_parts, DType::F32), empty(q, [2 * of_parts[0]], DType::F32));
    let of_launch = OfLaunch::new(caches);
    one_token::launch(
        &q.client,
        CubeCount::Static(kv_heads as u32, longest as u32, caches.len() as u32),
        CubeDim::new_1d(KEYS as u32),
        size,
        q.clone().into_buffer_arg(),
        of_launch.keys().collect(),
        of_launch.values().collect(),
        output.clone().into_buffer_arg(),
        results.clone().into_buffer_arg(),
        sums.clone().into_buffer_arg(),
        of_launch.lens().collect(),
        of_launch.head_strides(size).collect(),
        of_launch.token_strides(size).collect(),
        first as u32,
        1.0 / (head_dim as f32).sqrt(),
        sizes,
        element(q),
    );
    if longest > 1 {
        let lens = caches.iter().map(|cached| cached.len as u32);
        merge::launch(
            &q.client,
            CubeCount::Static((heads * head_dim).div_ceil(UNITS as usize) as u32, caches.len() as u32, 1),
            CubeDim::new_1d(UNITS),
            results.into_buffer_arg(),
            sums.into_buffer_arg(),
            output.clone().into_buffer_arg(),
            // As many for any number of sequences: one kernel.
            lens.chain(std::iter::repeat(0)).take(MOST).collect(),
            first as u32,
            heads as u32,
            head_dim as u32,
            element(q),
        );
    }
}

/// A cube for each key/value head, part of the keys and sequence: the output of a sequence of one part; of one with more, the part's
/// results before they are divided by the sums of exponentials, `[parts, heads, head_dim]`, and largest scores and sums, `[parts,
/// heads, 2]`, with the parts of the sequences one behind the other. Products are added by `fma`: the kernels for different numbers
/// of sequences give the same bits.
#[cube(launch)]
fn one_token<E: Float, N: Size>(
    q: &[Vector<E, N>],
    keys: &Sequence<Box<[Vector<E, N>]>>,
    values: &Sequence<Box<[Vector<E, N>]>>,
    output: &mut [Vector<E, N>],
    results: &mut [Vector<f32, N>],
    sums: &mut [f32],
    lens: &Sequence<u32>,
    head_strides: &Sequence<u32>,
    token_strides: &Sequence<u32>,
    first_token: u32,
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
    let (of_sequence, parts_before) = keys_and_parts_before(lens, CUBE_POS_Z);
    if first_key >= of_sequence {
        terminate!();
    }
    let is_whole = of_sequence <= KEYS;
    // Of the token's heads that share these keys.
    let first_head = kv_head * group;
    let queries_at = ((first_token + CUBE_POS_Z) as usize * heads + first_head) * vectors;
    let results_at = (parts_before + CUBE_POS_Y as usize) * heads + first_head;
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

    let is_key = first_key + unit < of_sequence;
    let mut scores = Array::<f32>::new(group);
    #[unroll]
    for head in 0..group {
        scores[head] = f32::new(f32::MIN);
    }
    if is_key {
        #[unroll]
        for sequence in 0..comptime!(lens.len()) {
            if CUBE_POS_Z == sequence as u32 {
                let at =
                    kv_head * head_strides[sequence] as usize + (first_key + unit) * token_strides[sequence] as usize;
                score::<E, N>(&keys[sequence], at, &queries, &mut scores, sizes);
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
        if !is_whole && unit == 0 {
            let at = 2 * (results_at + head);
            sums[at] = largest;
            sums[at + 1] = total;
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
        let of_part = min(of_sequence - first_key, KEYS);
        #[unroll]
        for sequence in 0..comptime!(lens.len()) {
            if CUBE_POS_Z == sequence as u32 {
                let stride = token_strides[sequence] as usize;
                let at = kv_head * head_strides[sequence] as usize + first_key * stride + column;
                weigh::<E, N>(&values[sequence], at, stride, share, of_part, &weights, &mut sum, sizes);
            }
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
            if is_whole {
                let divided = result / Vector::new(totals[head]);
                output[queries_at + head * vectors + unit] = Vector::cast_from(divided);
            } else {
                results[(results_at + head) * vectors + unit] = result;
            }
        }
        sync_cube();
    }
}

/// Keys of a sequence, and the parts of those before it.
#[cube]
fn keys_and_parts_before(lens: &Sequence<u32>, sequence: u32) -> (usize, usize) {
    let mut keys = 0u32;
    let mut parts_before = 0u32;
    #[unroll]
    for other in 0..comptime!(lens.len()) {
        if sequence == other as u32 {
            keys = lens[other];
        } else if sequence > other as u32 {
            parts_before += lens[other].div_ceil(KEYS_OF_PART);
        }
    }
    (keys as usize, parts_before as usize)
}

/// The scores of the key at `at` for each query head.
#[cube]
fn score<E: Float, N: Size>(
    keys: &[Vector<E, N>],
    at: usize,
    queries: &[Vector<f32, N>],
    scores: &mut Array<f32>,
    #[comptime] sizes: Sizes,
) {
    let lanes = N::value();
    let group = comptime!(sizes.group);
    let vectors = comptime!(sizes.head_dim / lanes);
    #[unroll]
    for head in 0..group {
        scores[head] = 0.0f32;
    }
    for column in 0..vectors {
        let key = Vector::<f32, N>::cast_from(keys[at + column]);
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

/// Adds the values of a part's keys `first`, `first + shares`, … by their weights, for each query head.
#[cube]
fn weigh<E: Float, N: Size>(
    values: &[Vector<E, N>],
    at: usize,
    stride: usize,
    first: usize,
    keys: usize,
    weights: &[f32],
    sum: &mut Array<Vector<f32, N>>,
    #[comptime] sizes: Sizes,
) {
    let lanes = N::value();
    let group = comptime!(sizes.group);
    let shares = comptime!(KEYS / (sizes.head_dim / lanes));
    let mut key = first;
    while key < keys {
        let value = Vector::<f32, N>::cast_from(values[at + key * stride]);
        #[unroll]
        for head in 0..group {
            sum[head] = fma(value, Vector::new(weights[head * KEYS + key]), sum[head]);
        }
        key += shares;
    }
}

/// Merges the parts of the sequences with more than one: a unit for each value of a token's output, and the sequences.
#[cube(launch)]
fn merge<E: Float>(
    results: &[f32],
    sums: &[f32],
    output: &mut [E],
    lens: &Sequence<u32>,
    first_token: u32,
    heads: u32,
    head_dim: u32,
    #[define(E)] _dtype: ElemType,
) {
    let at = CUBE_POS_X * CUBE_DIM + UNIT_POS;
    let (keys, first_part) = keys_and_parts_before(lens, CUBE_POS_Y);
    if at < heads * head_dim && keys > KEYS {
        let first = first_part as u32;
        let end = first + (keys as u32).div_ceil(KEYS_OF_PART);
        let head = at / head_dim;
        let mut largest = sums[(2 * (first * heads + head)) as usize];
        for part in first + 1..end {
            largest = max(largest, sums[(2 * (part * heads + head)) as usize]);
        }
        let mut result = 0.0f32;
        let mut total = 0.0f32;
        for part in first..end {
            let of_part = (2 * (part * heads + head)) as usize;
            let factor = (sums[of_part] - largest).exp();
            result += factor * results[(part * heads * head_dim + at) as usize];
            total += factor * sums[of_part + 1];
        }
        output[((first_token + CUBE_POS_Y) * heads * head_dim + at) as usize] = E::cast_from(result / total);
    }
}
