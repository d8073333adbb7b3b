//! The forward kernel.

// `is_multiple_of` has no expansion in cubecl's language.
#![allow(clippy::manual_is_multiple_of)]

use super::block::{
    BLOCK, PITCH, SHARE, Sizes, TALL, UNITS, accumulate, column_of, factors, products, row_of, store, zeros,
};
use super::rows::{key_rows, last_first, number, place, query_rows, seen};
use cubecl::prelude::*;

/// Attention of a block of rows, and the logarithm of the sum of each row's exponentials. Cubes: key/value heads, sequences
/// from `first_sequence` on, blocks of the longest sequence, the last first: under a causal mask it has most keys.
#[cube(launch)]
pub fn forward<E: Float, N: Size>(
    q: &Tensor<Vector<E, N>>,
    k: &Tensor<Vector<E, N>>,
    v: &Tensor<Vector<E, N>>,
    table: &[u32],
    output: &mut Tensor<E>,
    lse: &mut [f32],
    first_sequence: u32,
    scale: f32,
    #[comptime] sizes: Sizes,
    #[define(E)] _dtype: ElemType,
) {
    let place = place(table, CUBE_POS_X as usize, (first_sequence + CUBE_POS_Y) as usize, sizes);
    let first = last_first(CUBE_COUNT_Z, CUBE_POS_Z) * BLOCK;
    if first >= place.rows {
        terminate!();
    }
    let group = comptime!(sizes.group);
    let columns = comptime!(sizes.columns());
    let kv_heads = CUBE_COUNT_X as usize;
    let queries = query_rows(q.stride(0), &place, sizes);
    let keys = key_rows(k.stride(0), k.stride(1), &place);
    let values = key_rows(v.stride(0), v.stride(1), &place);

    let size!(P) = 2usize;
    let mut tile = factors::<E, P>(sizes);
    let mut weights = Shared::<[f32]>::new_slice(BLOCK * PITCH);
    let mut partial = Shared::<[f32]>::new_slice(UNITS);
    let mut changes = Shared::<[f32]>::new_slice(BLOCK);
    let mut scores = zeros(TALL * TALL);
    let mut result = zeros(comptime!(TALL * columns));

    let unit = UNIT_POS as usize;
    // Four neighbours have a row of the softmax together.
    let row = unit / SHARE;
    let of_row = seen(&place, first + row, sizes);
    let of_block = seen(&place, min(first + BLOCK, place.rows) - 1, sizes);
    let mut largest = f32::new(f32::MIN);
    let mut total = 0.0f32;

    for block in 0..of_block.div_ceil(BLOCK) {
        let first_key = block * BLOCK;
        products::<E, N, P>(q, &queries, first, k, &keys, first_key, &mut tile, &mut scores, sizes);
        #[unroll]
        for n in 0..TALL * TALL {
            weights[row_of(n, TALL, sizes) * PITCH + column_of(n, TALL, sizes)] = scores[n] * scale;
        }
        sync_cube();
        let mut most = largest;
        for step in 0..BLOCK / SHARE {
            let key = step * SHARE + unit % SHARE;
            if first_key + key < of_row {
                most = max(most, weights[row * PITCH + key]);
            }
        }
        partial[unit] = most;
        sync_cube();
        #[unroll]
        for other in 0..SHARE {
            most = max(most, partial[row * SHARE + other]);
        }
        let change = (largest - most).exp();
        largest = most;
        total *= change;
        for step in 0..BLOCK / SHARE {
            let key = step * SHARE + unit % SHARE;
            let mut weight = 0.0f32;
            if first_key + key < of_row {
                weight = (weights[row * PITCH + key] - most).exp();
            }
            weights[row * PITCH + key] = weight;
            total += weight;
        }
        if unit % SHARE == 0 {
            changes[row] = change;
        }
        sync_cube();
        #[unroll]
        for n in 0..comptime!(TALL * columns) {
            result[n] *= changes[row_of(n, columns, sizes)];
        }
        accumulate::<E, N, P>(&weights, v, &values, first_key, &mut tile, &mut result, sizes);
    }

    partial[unit] = total;
    sync_cube();
    if unit % SHARE == 0 {
        let mut sum = 0.0f32;
        #[unroll]
        for other in 0..SHARE {
            sum += partial[unit + other];
        }
        changes[row] = 1.0 / sum;
        if first + row < place.rows {
            lse[number(&place, first + row, kv_heads, group)] = largest + sum.ln();
        }
    }
    sync_cube();
    #[unroll]
    for n in 0..comptime!(TALL * columns) {
        result[n] *= changes[row_of(n, columns, sizes)];
    }
    let rows = query_rows(output.stride(0), &place, sizes);
    store::<E>(output, &rows, first, &result, sizes);
}
