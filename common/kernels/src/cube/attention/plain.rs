//! Products in f32 arithmetic, for every device: a unit has 4 × 4 scores, and of a block of results 4 rows of every 16th column.

use super::block::{BLOCK, LANES, PITCH, SIDE, Sizes, TALL, load};
use super::rows::Rows;
use cubecl::prelude::*;

/// Rows of a factor of the results that are in shared memory at a time.
pub const SLICE: usize = BLOCK / 4;

/// Of head_dim, so much is in shared memory at a time: whole vectors, at most 20 values. With 24, which the compiler unrolls,
/// registers spill for some sizes.
fn depth(sizes: Sizes) -> usize {
    let depths = (1..=20 / LANES).rev().map(|vectors| vectors * LANES);
    depths.into_iter().find(|&depth| sizes.head_dim.is_multiple_of(depth)).unwrap_or(LANES)
}

/// Values of the factors in shared memory.
pub fn tile(sizes: Sizes) -> usize {
    usize::max(2 * BLOCK * (depth(sizes) + 1), SLICE * SIDE * sizes.columns())
}

/// Products of 64 rows of `a` and 64 rows of `b`: `out[i · 4 + j]` is that of row `4 · y + i` and row `x + 16 · j`.
#[cube]
pub fn products<E: Float, N: Size>(
    a: &Tensor<Vector<E, N>>,
    a_rows: &Rows,
    a_first: usize,
    b: &Tensor<Vector<E, N>>,
    b_rows: &Rows,
    b_first: usize,
    tile: &mut [f32],
    out: &mut Array<f32>,
    #[comptime] sizes: Sizes,
) {
    let depth = comptime!(depth(sizes));
    let pitch = comptime!(depth + 1);
    let head_dim = comptime!(sizes.head_dim);
    let x = UNIT_POS_X as usize;
    let y = UNIT_POS_Y as usize;
    #[unroll]
    for i in 0..TALL * TALL {
        out[i] = 0.0;
    }
    for part in 0..head_dim / depth {
        load::<E, N>(a, a_rows, a_first, part * depth, tile, 0usize, BLOCK, depth, pitch, head_dim);
        load::<E, N>(b, b_rows, b_first, part * depth, tile, comptime!(BLOCK * pitch), BLOCK, depth, pitch, head_dim);
        sync_cube();
        for k in 0..depth {
            let mut left = Array::<f32>::new(TALL);
            #[unroll]
            for i in 0..TALL {
                left[i] = tile[(y * TALL + i) * pitch + k];
            }
            #[unroll]
            for j in 0..TALL {
                let right = tile[BLOCK * pitch + (x + j * SIDE) * pitch + k];
                #[unroll]
                for i in 0..TALL {
                    out[i * TALL + j] += left[i] * right;
                }
            }
        }
        sync_cube();
    }
}

/// Adds the product of the 64 × 64 `weights` and 64 rows of `b`: to `out[i · columns + j]` that of row `4 · y + i` and column
/// `x + 16 · j`. All units have written their weights when they come here.
#[cube]
pub fn accumulate<E: Float, N: Size>(
    weights: &[f32],
    b: &Tensor<Vector<E, N>>,
    rows: &Rows,
    first: usize,
    tile: &mut [f32],
    out: &mut Array<f32>,
    #[comptime] sizes: Sizes,
) {
    let columns = comptime!(sizes.columns());
    let width = comptime!(columns * SIDE);
    let x = UNIT_POS_X as usize;
    let y = UNIT_POS_Y as usize;
    let zero = 0usize;
    for part in 0..BLOCK / SLICE {
        load::<E, N>(b, rows, first + part * SLICE, zero, tile, 0usize, SLICE, width, width, sizes.head_dim);
        sync_cube();
        for k in 0..SLICE {
            let mut left = Array::<f32>::new(TALL);
            #[unroll]
            for i in 0..TALL {
                left[i] = weights[(y * TALL + i) * PITCH + part * SLICE + k];
            }
            #[unroll]
            for j in 0..columns {
                let right = tile[k * width + x + j * SIDE];
                #[unroll]
                for i in 0..TALL {
                    out[i * columns + j] += left[i] * right;
                }
            }
        }
        sync_cube();
    }
}
