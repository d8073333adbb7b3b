//! Products by tensor cores, in tiles of 16 × 8 values summed over 16 (`mma.sync.m16n8k16`). Eight planes of 32 units have 16 rows and
//! half of the columns of a block each. Which values of a tile a unit has is what PTX says of that instruction, so that scores and
//! results stay in registers between products.

use super::block::{BLOCK, Factors, PITCH, Products, SIDE, Sizes, TALL, UNITS};
use super::rows::{Rows, offset};
use cubecl::cmma::MmaDefinition;
use cubecl::ir::FloatKind;
use cubecl::ir::features::MmaConfig;
use cubecl::prelude::*;

/// Units of a plane.
const PLANE: usize = 32;
/// Planes with rows of their own; the others have other columns.
const ROW_PLANES: usize = BLOCK / M;
/// Rows, columns and summands of a tile.
const M: usize = 16;
const N8: usize = 8;
const K: usize = 16;
/// Pairs between the ends of rows of a factor: units of a plane read banks of their own.
const GAP: usize = 4;

/// Whether the device has the instruction for factors of this type.
pub fn has(client: &Client, element: ElemType) -> bool {
    let config = |config: &MmaConfig| {
        [config.a_type, config.b_type].iter().all(|ty| *ty == element)
            && config.cd_type == ElemType::Float(FloatKind::F32)
            && [config.m as usize, config.n as usize, config.k as usize] == [M, N8, K]
    };
    !matches!(element, ElemType::Float(FloatKind::F32)) && client.properties().features.matmul.mma.iter().any(config)
}

/// head_dim in whole tiles.
fn padded(sizes: Sizes) -> usize {
    sizes.head_dim.next_multiple_of(K)
}

/// Of head_dim, so much is in shared memory at a time for scores.
fn depth(sizes: Sizes) -> usize {
    let most = if sizes.products == Products::Simulated { K } else { 5 * K };
    let depths = (1..=most / K).rev().map(|tiles| tiles * K);
    depths.into_iter().find(|&depth| padded(sizes).is_multiple_of(depth)).unwrap_or(K)
}

/// Rows of a factor of the results that are in shared memory at a time.
fn slice(sizes: Sizes) -> usize {
    if sizes.products == Products::Simulated { K } else { BLOCK }
}

/// Pairs of the factors in shared memory.
pub fn pairs(sizes: Sizes) -> usize {
    usize::max(2 * BLOCK * (depth(sizes) / 2 + GAP), slice(sizes) / 2 * (SIDE * sizes.columns() + 2 * GAP))
}

/// See [`super::block::row_of`].
#[cube]
pub fn row_of(#[comptime] n: usize) -> usize {
    first_row() + UNIT_POS as usize % PLANE / 4 + comptime!(n % 4 / 2 * 8)
}

/// See [`super::block::column_of`]: `tiles` side by side.
#[cube]
pub fn column_of(#[comptime] n: usize, #[comptime] tiles: usize) -> usize {
    first_column(tiles) + UNIT_POS as usize % 4 * 2 + comptime!(n / 4 * N8 + n % 2)
}

/// First row of the plane's tiles.
#[cube]
fn first_row() -> usize {
    UNIT_POS as usize / PLANE % ROW_PLANES * M
}

/// First column of the plane's tiles.
#[cube]
fn first_column(#[comptime] tiles: usize) -> usize {
    UNIT_POS as usize / (PLANE * ROW_PLANES) * comptime!(tiles * N8)
}

/// Where `lane` of a plane has register `i` of a tile of 16 rows: of pairs or of single values, `step` behind each other.
#[cube]
fn of_left(lane: usize, i: usize, #[comptime] pitch: usize, #[comptime] step: usize) -> usize {
    (lane / 4 + i % 2 * 8) * pitch + (lane % 4 + i / 2 * 4) * step
}

/// Where `lane` has register `i` of a tile of 8 columns that lie as rows of pairs.
#[cube]
fn of_rows(lane: usize, i: usize, #[comptime] pitch: usize) -> usize {
    lane / 4 * pitch + lane % 4 + i * 4
}

/// Where `lane` has register `i` of a tile of 8 columns, rows of pairs below each other.
#[cube]
fn of_columns(lane: usize, i: usize, #[comptime] pitch: usize) -> usize {
    (lane % 4 + i * 4) * pitch + lane / 4
}

/// Adds the product of the tiles `a` and `b` to `sums[at..at + 4]`, a unit's values of a tile.
#[cube]
fn multiply<E: Float, P: Size>(
    a: &Array<Vector<E, P>>,
    b: &Array<Vector<E, P>>,
    sums: &mut Array<f32>,
    #[comptime] at: usize,
) {
    let tile = MmaDefinition::<E, E, f32>::new(M, N8, K);
    let mut values = Array::<Vector<f32, P>>::new(2usize);
    #[unroll]
    for i in 0..2usize {
        let mut pair = Vector::<f32, P>::new(0.0);
        pair.insert(0usize, sums[at + 2 * i]);
        pair.insert(1usize, sums[at + 2 * i + 1]);
        values[i] = pair;
    }
    tile.execute_inplace(a, b, &mut values);
    #[unroll]
    for i in 0..2usize {
        sums[at + 2 * i] = values[i].extract(0usize);
        sums[at + 2 * i + 1] = values[i].extract(1usize);
    }
}

/// The lane that has summands `2 · pair` and `2 · pair + 1` of row (or column) `row` of a tile.
#[cube]
fn lane_of(row: usize, pair: usize) -> usize {
    row % 8 * 4 + pair % 4
}

/// Copies 64 rows from `first` on and `width` columns from `column` on into shared memory from pair `at` on, each row `pitch` pairs
/// behind the last; zeros where there is no row or no column.
#[cube]
fn load_rows<E: Float, N: Size, P: Size>(
    x: &Tensor<Vector<E, N>>,
    rows: &Rows,
    first: usize,
    column: usize,
    out: &mut Shared<[Vector<E, P>]>,
    #[comptime] at: usize,
    #[comptime] width: usize,
    #[comptime] pitch: usize,
    #[comptime] head_dim: usize,
) {
    let lanes = N::value();
    let of_row = comptime!(width / lanes);
    for step in 0..comptime!((BLOCK * of_row).div_ceil(UNITS)) {
        let index = step * UNITS + UNIT_POS as usize;
        let row = index / of_row;
        let place = index % of_row * lanes;
        if index < BLOCK * of_row {
            let mut values = Vector::<E, N>::new(E::new(0.0));
            if first + row < rows.count && column + place < head_dim {
                values = x[(offset(rows, first + row, head_dim) + column + place) / lanes];
            }
            #[unroll]
            for pair in 0..comptime!(lanes / 2) {
                let mut values_of_pair = Vector::<E, P>::new(E::new(0.0));
                values_of_pair.insert(0usize, values.extract(2 * pair));
                values_of_pair.insert(1usize, values.extract(2 * pair + 1));
                out[at + row * pitch + place / 2 + pair] = values_of_pair;
            }
        }
    }
}

/// Copies `height` rows from `first` on into shared memory: pairs of the values of two rows below each other, each pair of rows
/// `pitch` pairs behind the last.
#[cube]
fn load_columns<E: Float, N: Size, P: Size>(
    x: &Tensor<Vector<E, N>>,
    rows: &Rows,
    first: usize,
    out: &mut Shared<[Vector<E, P>]>,
    #[comptime] height: usize,
    #[comptime] width: usize,
    #[comptime] pitch: usize,
    #[comptime] head_dim: usize,
) {
    let lanes = N::value();
    let of_row = comptime!(width / lanes);
    for step in 0..comptime!((height / 2 * of_row).div_ceil(UNITS)) {
        let index = step * UNITS + UNIT_POS as usize;
        let row = index / of_row * 2;
        let place = index % of_row * lanes;
        if index < height / 2 * of_row {
            let mut upper = Vector::<E, N>::new(E::new(0.0));
            let mut lower = Vector::<E, N>::new(E::new(0.0));
            if first + row < rows.count && place < head_dim {
                upper = x[(offset(rows, first + row, head_dim) + place) / lanes];
            }
            if first + row + 1 < rows.count && place < head_dim {
                lower = x[(offset(rows, first + row + 1, head_dim) + place) / lanes];
            }
            #[unroll]
            for lane in 0..lanes {
                let mut pair = Vector::<E, P>::new(E::new(0.0));
                pair.insert(0usize, upper.extract(lane));
                pair.insert(1usize, lower.extract(lane));
                out[row / 2 * pitch + place + lane] = pair;
            }
        }
    }
}

/// See [`super::block::products`].
#[cube]
pub fn products<E: Float, N: Size, P: Size>(
    a: &Tensor<Vector<E, N>>,
    a_rows: &Rows,
    a_first: usize,
    b: &Tensor<Vector<E, N>>,
    b_rows: &Rows,
    b_first: usize,
    factors: &mut Factors<E, P>,
    out: &mut Array<f32>,
    #[comptime] sizes: Sizes,
) {
    let depth = comptime!(depth(sizes));
    let pitch = comptime!(depth / 2 + GAP);
    let of_b = comptime!(BLOCK * pitch);
    let lane = UNIT_POS as usize % PLANE;
    let first_row = first_row();
    let first_column = first_column(TALL);
    #[unroll]
    for n in 0..TALL * TALL {
        out[n] = 0.0;
    }
    for part in 0..comptime!(padded(sizes) / depth) {
        load_rows::<E, N, P>(
            a,
            a_rows,
            a_first,
            part * depth,
            &mut factors.pairs,
            0usize,
            depth,
            pitch,
            sizes.head_dim,
        );
        load_rows::<E, N, P>(b, b_rows, b_first, part * depth, &mut factors.pairs, of_b, depth, pitch, sizes.head_dim);
        sync_cube();
        for k in 0..comptime!(depth / K) {
            let left_at = first_row * pitch + k * (K / 2);
            let right_at = of_b + first_column * pitch + k * (K / 2);
            if comptime!(sizes.products == Products::TensorCores) {
                let mut left = Array::<Vector<E, P>>::new(4usize);
                #[unroll]
                for i in 0..4usize {
                    left[i] = factors.pairs[left_at + of_left(lane, i, pitch, 1usize)];
                }
                #[unroll]
                for tile in 0..TALL {
                    let mut right = Array::<Vector<E, P>>::new(2usize);
                    #[unroll]
                    for i in 0..2usize {
                        right[i] = factors.pairs[right_at + tile * N8 * pitch + of_rows(lane, i, pitch)];
                    }
                    multiply::<E, P>(&left, &right, out, comptime!(tile * 4));
                }
            } else {
                for n in 0..TALL * TALL {
                    let row = lane / 4 + n % 4 / 2 * 8;
                    let column = lane % 4 * 2 + n % 2;
                    let mut sum = 0.0f32;
                    for pair in 0..K / 2 {
                        let left = left_at + of_left(lane_of(row, pair), row / 8 + pair / 4 * 2, pitch, 1usize);
                        let right = right_at + n / 4 * (N8 * pitch) + of_rows(lane_of(column, pair), pair / 4, pitch);
                        let left = Vector::<f32, P>::cast_from(factors.pairs[left]);
                        let right = Vector::<f32, P>::cast_from(factors.pairs[right]);
                        sum +=
                            left.extract(0usize) * right.extract(0usize) + left.extract(1usize) * right.extract(1usize);
                    }
                    out[n] += sum;
                }
            }
        }
        sync_cube();
    }
}

/// See [`super::block::accumulate`].
#[cube]
pub fn accumulate<E: Float, N: Size, P: Size>(
    weights: &[f32],
    b: &Tensor<Vector<E, N>>,
    rows: &Rows,
    first: usize,
    factors: &mut Factors<E, P>,
    out: &mut Array<f32>,
    #[comptime] sizes: Sizes,
) {
    let columns = comptime!(sizes.columns());
    let width = comptime!(columns * SIDE);
    let pitch = comptime!(width + 2 * GAP);
    let slice = comptime!(slice(sizes));
    let lane = UNIT_POS as usize % PLANE;
    let first_row = first_row();
    let first_column = first_column(columns);
    for part in 0..comptime!(BLOCK / slice) {
        load_columns::<E, N, P>(b, rows, first + part * slice, &mut factors.pairs, slice, width, pitch, sizes.head_dim);
        sync_cube();
        for k in 0..comptime!(slice / K) {
            let left_at = first_row * PITCH + part * slice + k * K;
            let right_at = k * (K / 2) * pitch + first_column;
            if comptime!(sizes.products == Products::TensorCores) {
                let mut left = Array::<Vector<E, P>>::new(4usize);
                #[unroll]
                for i in 0..4usize {
                    let at = left_at + of_left(lane, i, PITCH, 2usize);
                    let mut values = Vector::<E, P>::new(E::new(0.0));
                    values.insert(0usize, E::cast_from(weights[at]));
                    values.insert(1usize, E::cast_from(weights[at + 1]));
                    left[i] = values;
                }
                #[unroll]
                for tile in 0..columns {
                    let mut right = Array::<Vector<E, P>>::new(2usize);
                    #[unroll]
                    for i in 0..2usize {
                        right[i] = factors.pairs[right_at + tile * N8 + of_columns(lane, i, pitch)];
                    }
                    multiply::<E, P>(&left, &right, out, comptime!(tile * 4));
                }
            } else {
                for n in 0..comptime!(TALL * columns) {
                    let row = lane / 4 + n % 4 / 2 * 8;
                    let column = lane % 4 * 2 + n % 2;
                    let mut sum = 0.0f32;
                    for pair in 0..K / 2 {
                        let left = left_at + of_left(lane_of(row, pair), row / 8 + pair / 4 * 2, PITCH, 2usize);
                        let right = right_at + n / 4 * N8 + of_columns(lane_of(column, pair), pair / 4, pitch);
                        let right = Vector::<f32, P>::cast_from(factors.pairs[right]);
                        sum += weights[left] * right.extract(0usize) + weights[left + 1] * right.extract(1usize);
                    }
                    out[n] += sum;
                }
            }
        }
        sync_cube();
    }
}
