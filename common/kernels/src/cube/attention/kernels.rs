//! The kernels. A cube of 16 × 16 units computes a block of 64 × 64 scores, 16 of them in a unit's registers, and adds up a block
//! of 64 × head_dim results, 4 · ⌈head_dim / 16⌉ in a unit's registers. Factors pass through shared memory, and so do scores on
//! their way from the one product to the other. How the products are computed, and which values of a block a unit has, is
//! [`Products`].

// `is_multiple_of` has no expansion in cubecl's language.
#![allow(clippy::manual_is_multiple_of)]

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
const SHARE: usize = UNITS / BLOCK;

/// Values that are read from global memory at once.
pub const LANES: usize = 4;

/// Numbers of a sequence in the table: first query, queries, first key, keys, and keys before the first query that it sees: all
/// without a causal mask.
pub const SEQUENCE: usize = 5;

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
fn factors<E: Float, P: Size>(#[comptime] sizes: Sizes) -> Factors<E, P> {
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
fn products<E: Float, N: Size, P: Size>(
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
fn accumulate<E: Float, N: Size, P: Size>(
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

/// The rows of one sequence and one head in a matrix of heads. The query heads that share a key/value head are rows too: row
/// `r` is head `r % group` of token `r / group`.
#[derive(CubeType, Clone, Copy)]
pub struct Rows {
    /// Where the first begins.
    pub start: usize,
    /// From a token to the next.
    pub stride: usize,
    pub count: usize,
    #[cube(comptime)]
    pub group: usize,
}

#[cube]
pub fn offset(rows: &Rows, row: usize, #[comptime] head_dim: usize) -> usize {
    rows.start + row / rows.group * rows.stride + row % rows.group * head_dim
}

/// A sequence of the table, and a key/value head of it.
#[derive(CubeType, Clone, Copy)]
struct Place {
    kv_head: usize,
    first_query: usize,
    /// Queries · group.
    rows: usize,
    first_key: usize,
    keys: usize,
    /// Keys before the first query, or all.
    past: usize,
}

#[cube]
fn place(table: &[u32], kv_head: usize, sequence: usize, #[comptime] sizes: Sizes) -> Place {
    let at = sequence * SEQUENCE;
    Place {
        kv_head,
        first_query: table[at] as usize,
        rows: table[at + 1] as usize * sizes.group,
        first_key: table[at + 2] as usize,
        keys: table[at + 3] as usize,
        past: table[at + 4] as usize,
    }
}

/// Rows in `[tokens, heads · head_dim]`.
#[cube]
fn query_rows(stride: usize, place: &Place, #[comptime] sizes: Sizes) -> Rows {
    Rows {
        start: place.first_query * stride + place.kv_head * sizes.group * sizes.head_dim,
        stride,
        count: place.rows,
        group: sizes.group,
    }
}

/// Rows in `[kv_heads, tokens, head_dim]`.
#[cube]
fn key_rows(head_stride: usize, stride: usize, place: &Place) -> Rows {
    Rows { start: place.first_key * stride + place.kv_head * head_stride, stride, count: place.keys, group: 1usize }
}

/// The block of a cube, when the last block comes first.
#[cube]
fn last_first(blocks: u32, block: u32) -> usize {
    (blocks - 1 - block) as usize
}

/// Where a row's number is in `[queries, heads]`.
#[cube]
fn number(place: &Place, row: usize, kv_heads: usize, #[comptime] group: usize) -> usize {
    ((place.first_query + row / group) * kv_heads + place.kv_head) * group + row % group
}

/// Keys that a row sees.
#[cube]
fn seen(place: &Place, row: usize, #[comptime] sizes: Sizes) -> usize {
    min(place.past + row / sizes.group + 1, place.keys)
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
fn zeros(#[comptime] len: usize) -> Array<f32> {
    let mut array = Array::<f32>::new(len);
    #[unroll]
    for i in 0..len {
        array[i] = 0.0;
    }
    array
}

/// Writes a unit's part of a block of results.
#[cube]
fn store<E: Float>(out: &mut Tensor<E>, rows: &Rows, first: usize, values: &Array<f32>, #[comptime] sizes: Sizes) {
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
