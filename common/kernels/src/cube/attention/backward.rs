//! The backward kernels: scores are computed again from the logarithm of each row's sum.

// `is_multiple_of` has no expansion in cubecl's language.
#![allow(clippy::manual_is_multiple_of)]

use super::block::{
    BLOCK, PITCH, SHARE, Sizes, TALL, UNITS, accumulate, column_of, factors, products, row_of, store, zeros,
};
use super::rows::{key_rows, last_first, number, offset, place, query_rows, seen};
use cubecl::prelude::*;

/// The gradient of a block of rows of q; and Σ gradient ∘ output of each row (`delta`). Cubes as [`forward`].
#[cube(launch)]
pub fn backward_q<E: Float, N: Size>(
    q: &Tensor<Vector<E, N>>,
    k: &Tensor<Vector<E, N>>,
    v: &Tensor<Vector<E, N>>,
    table: &[u32],
    output: &Tensor<Vector<E, N>>,
    gradient: &Tensor<Vector<E, N>>,
    lse: &[f32],
    delta: &mut [f32],
    of_q: &mut Tensor<E>,
    scale: f32,
    #[comptime] sizes: Sizes,
    #[define(E)] _dtype: ElemType,
) {
    let place = place(table, CUBE_POS_X as usize, CUBE_POS_Y as usize, sizes);
    let first = last_first(CUBE_COUNT_Z, CUBE_POS_Z) * BLOCK;
    if first >= place.rows {
        terminate!();
    }
    let group = comptime!(sizes.group);
    let head_dim = comptime!(sizes.head_dim);
    let columns = comptime!(sizes.columns());
    let kv_heads = CUBE_COUNT_X as usize;
    let queries = query_rows(q.stride(0), &place, sizes);
    let outputs = query_rows(output.stride(0), &place, sizes);
    let gradients = query_rows(gradient.stride(0), &place, sizes);
    let keys = key_rows(k.stride(0), k.stride(1), &place);
    let values = key_rows(v.stride(0), v.stride(1), &place);

    let size!(P) = 2usize;
    let mut tile = factors::<E, P>(sizes);
    let mut weights = Shared::<[f32]>::new_slice(BLOCK * PITCH);
    let mut partial = Shared::<[f32]>::new_slice(UNITS);
    let mut lses = Shared::<[f32]>::new_slice(BLOCK);
    let mut deltas = Shared::<[f32]>::new_slice(BLOCK);
    let mut scores = zeros(TALL * TALL);
    let mut of_weights = zeros(TALL * TALL);
    let mut result = zeros(comptime!(TALL * columns));

    let unit = UNIT_POS as usize;
    let row = unit / SHARE;
    let mut sum = 0.0f32;
    if first + row < place.rows {
        let of_output = offset(&outputs, first + row, head_dim);
        let of_gradient = offset(&gradients, first + row, head_dim);
        let lanes = N::value();
        for step in 0..comptime!((head_dim / lanes).div_ceil(SHARE)) {
            let column = (step * SHARE + unit % SHARE) * lanes;
            if column < head_dim {
                let left = Vector::<f32, N>::cast_from(output[(of_output + column) / lanes]);
                let product = left * Vector::<f32, N>::cast_from(gradient[(of_gradient + column) / lanes]);
                #[unroll]
                for lane in 0..lanes {
                    sum += product.extract(lane);
                }
            }
        }
    }
    partial[unit] = sum;
    sync_cube();
    if unit % SHARE == 0 {
        let mut whole = 0.0f32;
        #[unroll]
        for other in 0..SHARE {
            whole += partial[unit + other];
        }
        deltas[row] = whole;
        let mut of_row = 0.0f32;
        if first + row < place.rows {
            let index = number(&place, first + row, kv_heads, group);
            delta[index] = whole;
            of_row = lse[index];
        }
        lses[row] = of_row;
    }

    let of_block = seen(&place, min(first + BLOCK, place.rows) - 1, sizes);
    for block in 0..of_block.div_ceil(BLOCK) {
        let first_key = block * BLOCK;
        products::<E, N, P>(q, &queries, first, k, &keys, first_key, &mut tile, &mut scores, sizes);
        products::<E, N, P>(gradient, &gradients, first, v, &values, first_key, &mut tile, &mut of_weights, sizes);
        #[unroll]
        for n in 0..TALL * TALL {
            let row = row_of(n, TALL, sizes);
            let key = column_of(n, TALL, sizes);
            let mut value = 0.0f32;
            if first_key + key < seen(&place, first + row, sizes) && first + row < place.rows {
                let weight = (scores[n] * scale - lses[row]).exp();
                value = weight * (of_weights[n] - deltas[row]) * scale;
            }
            weights[row * PITCH + key] = value;
        }
        sync_cube();
        accumulate::<E, N, P>(&weights, k, &keys, first_key, &mut tile, &mut result, sizes);
    }
    let rows = query_rows(of_q.stride(0), &place, sizes);
    store::<E>(of_q, &rows, first, &result, sizes);
}

/// The gradients of a block of keys and values, summed over the rows that see them. Cubes: key/value heads, sequences, blocks of
/// the longest sequence, the first first: under a causal mask most rows see it.
#[cube(launch)]
pub fn backward_kv<E: Float, N: Size>(
    q: &Tensor<Vector<E, N>>,
    k: &Tensor<Vector<E, N>>,
    v: &Tensor<Vector<E, N>>,
    table: &[u32],
    gradient: &Tensor<Vector<E, N>>,
    lse: &[f32],
    delta: &[f32],
    of_k: &mut Tensor<E>,
    of_v: &mut Tensor<E>,
    scale: f32,
    #[comptime] sizes: Sizes,
    #[define(E)] _dtype: ElemType,
) {
    let place = place(table, CUBE_POS_X as usize, CUBE_POS_Y as usize, sizes);
    let first_key = CUBE_POS_Z as usize * BLOCK;
    if first_key >= place.keys {
        terminate!();
    }
    let group = comptime!(sizes.group);
    let columns = comptime!(sizes.columns());
    let kv_heads = CUBE_COUNT_X as usize;
    let queries = query_rows(q.stride(0), &place, sizes);
    let gradients = query_rows(gradient.stride(0), &place, sizes);
    let keys = key_rows(k.stride(0), k.stride(1), &place);
    let values = key_rows(v.stride(0), v.stride(1), &place);

    let size!(P) = 2usize;
    let mut tile = factors::<E, P>(sizes);
    let mut weights = Shared::<[f32]>::new_slice(BLOCK * PITCH);
    let mut lses = Shared::<[f32]>::new_slice(BLOCK);
    let mut deltas = Shared::<[f32]>::new_slice(BLOCK);
    let mut scores = zeros(TALL * TALL);
    let mut of_weights = zeros(TALL * TALL);
    let mut sums_k = zeros(comptime!(TALL * columns));
    let mut sums_v = zeros(comptime!(TALL * columns));

    let unit = UNIT_POS as usize;
    // The block in which a row first sees a key of this block.
    let mut first_block = 0usize;
    if first_key > place.past {
        first_block = (first_key - place.past) * group / BLOCK;
    }
    for block in first_block..place.rows.div_ceil(BLOCK) {
        let first = block * BLOCK;
        if unit < BLOCK {
            let mut of_row = 0.0f32;
            let mut whole = 0.0f32;
            if first + unit < place.rows {
                let index = number(&place, first + unit, kv_heads, group);
                of_row = lse[index];
                whole = delta[index];
            }
            lses[unit] = of_row;
            deltas[unit] = whole;
        }
        products::<E, N, P>(k, &keys, first_key, q, &queries, first, &mut tile, &mut scores, sizes);
        products::<E, N, P>(v, &values, first_key, gradient, &gradients, first, &mut tile, &mut of_weights, sizes);
        #[unroll]
        for n in 0..TALL * TALL {
            let key = row_of(n, TALL, sizes);
            let row = column_of(n, TALL, sizes);
            let mut weight = 0.0f32;
            let mut value = 0.0f32;
            if first_key + key < seen(&place, first + row, sizes) && first + row < place.rows {
                weight = (scores[n] * scale - lses[row]).exp();
                value = weight * (of_weights[n] - deltas[row]) * scale;
            }
            weights[key * PITCH + row] = weight;
            of_weights[n] = value;
        }
        sync_cube();
        accumulate::<E, N, P>(&weights, gradient, &gradients, first, &mut tile, &mut sums_v, sizes);
        #[unroll]
        for n in 0..TALL * TALL {
            weights[row_of(n, TALL, sizes) * PITCH + column_of(n, TALL, sizes)] = of_weights[n];
        }
        sync_cube();
        accumulate::<E, N, P>(&weights, q, &queries, first, &mut tile, &mut sums_k, sizes);
    }
    let rows = key_rows(of_k.stride(0), of_k.stride(1), &place);
    store::<E>(of_k, &rows, first_key, &sums_k, sizes);
    let rows = key_rows(of_v.stride(0), of_v.stride(1), &place);
    store::<E>(of_v, &rows, first_key, &sums_v, sizes);
}
