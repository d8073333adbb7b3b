//! A block of 64 × 64 scores and of 64 × head_dim results: what a unit of a cube of 16 × 16 has of it, and its products. 16 scores and
//! 4 · ⌈head_dim / 16⌉ results are in a unit's registers. Factors pass through shared memory, and so do scores on their way from
//! the one product to the other. How the products are computed, and which values of a block a unit has, is [`Products`].

use super::rows::{Rows, offset};
use super::{plain, tensor_cores};
use cubecl::prelude::*;

/// Rows and keys of a block.
pub const BLOCK: usize = 64;
/// Units on a side of a cube.
pub const SIDE: usize = 16;
/// Units of a cube.
pub const UNITS: usize = SIDE * SIDE;
/// Scores of a unit on a side of the block.
pub const TALL: usize = BLOCK / SIDE;
/// From a row of weights to the next: rows of a plane's units start in banks of their own.
pub const PITCH: usize = BLOCK + 4;
/// Units that share a row of scores in the softmax, and as many scores as each of them has.
pub const SHARE: usize = UNITS / BLOCK;

/// Values that are read from global memory at once.
pub const LANES: usize = 4;

/// How the products of blocks are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Products {
    /// In f32.
    Plain,
    /// By tensor cores: factors in half precision, sums in f32.
    TensorCores,
    /// As by tensor cores, with their instruction computed from its definition: to test on devices without.
    #[cfg_attr(not(test), allow(dead_code))]
    Simulated,
}

/// What is known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sizes {
    /// Query heads of a key/value head.
    pub group: usize,
    pub head_dim: usize,
    pub products: Products,
}

impl Sizes {
    /// Columns of a unit in a block of results.
    pub fn columns(self) -> usize {
        self.head_dim.div_ceil(SIDE)
    }

    pub fn is_plain(self) -> bool {
        self.products == Products::Plain
    }

    /// What the kernels take of a cube's shared memory, bytes, with factors of `value_bytes` each.
    pub fn shared_bytes(self, value_bytes: usize) -> usize {
        let floats = self.tile() + BLOCK * PITCH + UNITS + 2 * BLOCK;
        size_of::<f32>() * floats + 2 * value_bytes * self.pairs()
    }

    /// Values of [`Factors::tile`].
    pub fn tile(self) -> usize {
        if self.is_plain() { plain::tile(self) } else { 1 }
    }

    /// Values of [`Factors::pairs`].
    pub fn pairs(self) -> usize {
        if self.is_plain() { 1 } else { tensor_cores::pairs(self) }
    }
}

/// Shared memory for the factors of a product.
#[derive(CubeType)]
pub struct Factors<E: Float, P: Size> {
    /// In f32.
    pub tile: Shared<[f32]>,
    /// Pairs of values as tensor cores read them.
    pub pairs: Shared<[Vector<E, P>]>,
}

#[cube]
pub fn factors<E: Float, P: Size>(#[comptime] sizes: Sizes) -> Factors<E, P> {
    Factors::<E, P> {
        tile: Shared::<[f32]>::new_slice(comptime!(sizes.tile())),
        pairs: Shared::<[Vector<E, P>]>::new_slice(comptime!(sizes.pairs())),
    }
}

/// Row of the block whose value a unit has in register `n`, with `columns` registers in a row, or as many tiles.
#[cube]
pub fn row_of(#[comptime] n: usize, #[comptime] columns: usize, #[comptime] sizes: Sizes) -> usize {
    let mut row = UNIT_POS_Y as usize * TALL + comptime!(n / columns);
    if comptime!(!sizes.is_plain()) {
        row = tensor_cores::row_of(n);
    }
    row
}

/// Column of the block whose value a unit has in register `n`.
#[cube]
pub fn column_of(#[comptime] n: usize, #[comptime] columns: usize, #[comptime] sizes: Sizes) -> usize {
    let mut column = UNIT_POS_X as usize + comptime!(n % columns * SIDE);
    if comptime!(!sizes.is_plain()) {
        column = tensor_cores::column_of(n, columns);
    }
    column
}

/// Products of 64 rows of `a` and 64 rows of `b`, a row of the block for each row of `a`.
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
    if comptime!(sizes.is_plain()) {
        plain::products::<E, N>(a, a_rows, a_first, b, b_rows, b_first, &mut factors.tile, out, sizes);
    } else {
        tensor_cores::products::<E, N, P>(a, a_rows, a_first, b, b_rows, b_first, factors, out, sizes);
    }
}

/// Adds the product of the 64 × 64 `weights` and 64 rows of `b`. All units have written their weights when they come here, or
/// wait for the others.
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
    if comptime!(sizes.is_plain()) {
        plain::accumulate::<E, N>(weights, b, rows, first, &mut factors.tile, out, sizes);
    } else {
        tensor_cores::accumulate::<E, N, P>(weights, b, rows, first, factors, out, sizes);
    }
}

/// Copies `height` rows from `first` on and `width` columns from `column` on into the tile, from place `at` on, each row `pitch`
/// behind the last; zeros where there is no row or no column.
#[cube]
pub fn load<E: Float, N: Size>(
    x: &Tensor<Vector<E, N>>,
    rows: &Rows,
    first: usize,
    column: usize,
    tile: &mut [f32],
    #[comptime] at: usize,
    #[comptime] height: usize,
    #[comptime] width: usize,
    #[comptime] pitch: usize,
    #[comptime] head_dim: usize,
) {
    let unit = UNIT_POS as usize;
    let lanes = N::value();
    let of_row = comptime!(width / lanes);
    for step in 0..comptime!((height * of_row).div_ceil(UNITS)) {
        let index = step * UNITS + unit;
        let row = index / of_row;
        let place = index % of_row * lanes;
        if index < height * of_row {
            let mut values = Vector::<f32, N>::new(0.0);
            if first + row < rows.count && column + place < head_dim {
                values = Vector::cast_from(x[(offset(rows, first + row, head_dim) + column + place) / lanes]);
            }
            #[unroll]
            for lane in 0..lanes {
                tile[at + row * pitch + place + lane] = values.extract(lane);
            }
        }
    }
}

#[cube]
pub fn zeros(#[comptime] len: usize) -> Array<f32> {
    let mut array = Array::<f32>::new(len);
    #[unroll]
    for i in 0..len {
        array[i] = 0.0;
    }
    array
}

/// Writes a unit's part of a block of results.
#[cube]
pub fn store<E: Float>(out: &mut Tensor<E>, rows: &Rows, first: usize, values: &Array<f32>, #[comptime] sizes: Sizes) {
    let columns = comptime!(sizes.columns());
    #[unroll]
    for n in 0..comptime!(TALL * columns) {
        let row = first + row_of(n, columns, sizes);
        let column = column_of(n, columns, sizes);
        if row < rows.count && column < sizes.head_dim {
            out[offset(rows, row, sizes.head_dim) + column] = E::cast_from(values[n]);
        }
    }
}
