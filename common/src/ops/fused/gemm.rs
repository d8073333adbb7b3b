//! The matrix product `C = A B`, for any strides of A and B.
//!
//! Every element of C is summed in the same order, k ascending in slices of a length that depends on the sizes only,
//! whatever part of C it is computed with: the result does not depend on the number of threads.

use super::matrix::{Matrix, MatrixMut, Tile};
use super::microkernel::{Kernel, Panel};
use super::scratch::{give, take};
use super::simd::isa;
use super::transpose::transpose;
use rayon::prelude::*;
use std::cell::Cell;

/// What C holds before the product is added.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// Its present values.
    Keep,
    /// This row, in every row.
    Bias(&'a [f32]),
}

/// Longest slice of the inner dimension: a panel of B of this length fits the first-level cache with what streams past it.
const SLICE: usize = 384;
/// Columns of B that are packed at a time; with a slice's length a few MB.
const PACKED_COLUMNS: usize = 2304;
/// Rows of C in one task.
const TASK_ROWS: usize = 96;
/// Panels of B in one task at most, unless C has few rows.
const TASK_PANELS: usize = 8;
/// With at most so many rows of A, B is read where it lies if its rows are in order.
const FEW_ROWS: usize = 64;
/// Products below this size are not worth handing to another thread.
const SERIAL_FLOPS: usize = 1 << 18;

/// `C = start + A B`, on all threads.
///
/// # Shapes
/// a `[m, k]`, b `[k, n]`, c `[m, n]`
pub fn gemm(a: Matrix, b: Matrix, c: MatrixMut, start: Start) {
    if a.rows * a.columns * b.columns < SERIAL_FLOPS {
        return gemm_serial(a, b, c, start);
    }
    product(Kernel::best(isa()), a, b, c, start, true);
}

/// The same on the calling thread alone.
pub fn gemm_serial(a: Matrix, b: Matrix, c: MatrixMut, start: Start) {
    product(Kernel::best(isa()), a, b, c, start, false);
}

fn product(kernel: Kernel, a: Matrix, b: Matrix, mut c: MatrixMut, start: Start, parallel: bool) {
    let (depth, columns) = (a.columns, b.columns);
    assert_eq!((a.rows, depth, columns), (c.rows, b.rows, c.columns), "sizes of a matrix product");
    prepare(&mut c, start);
    if a.rows == 0 || columns == 0 {
        return;
    }
    if depth == 0 {
        if matches!(start, Start::Zero) {
            (0..c.rows).for_each(|row| c.row_mut(row).fill(0.0));
        }
        return;
    }
    let keep = !matches!(start, Start::Zero);
    let slice = depth.div_ceil(depth.div_ceil(SLICE));
    let in_place = b.column_stride == 1 && a.rows <= FEW_ROWS && columns.is_multiple_of(kernel.lanes);
    for first_column in (0..columns).step_by(PACKED_COLUMNS) {
        let column_range = first_column..columns.min(first_column + PACKED_COLUMNS);
        for first in (0..depth).step_by(slice) {
            let inner = first..depth.min(first + slice);
            let part_a = a.block(0..a.rows, inner.clone());
            let ordered = (a.column_stride != 1).then(|| rows_in_order(part_a, parallel));
            let part_a = ordered.as_deref().map_or(part_a, |ordered| Matrix::new(ordered, a.rows, inner.len()));
            let part_b = b.block(inner.clone(), column_range.clone());
            let keep = keep || first > 0;
            let part_c = columns_of(&mut c, &column_range);
            if in_place {
                multiply(kernel, part_a, Panels { in_place: Some(part_b), packed: &[] }, part_c, keep, parallel);
            } else {
                let len = part_b.columns.div_ceil(kernel.width()) * kernel.width() * inner.len();
                let mut memory = take(&PACKED, len);
                let packed = &mut memory[..len];
                pack(kernel, part_b, packed, parallel);
                multiply(kernel, part_a, Panels { in_place: None, packed }, part_c, keep, parallel);
                give(&PACKED, memory);
            }
        }
    }
}

/// Writes what C starts from, where the kernels cannot do it along the way.
fn prepare(c: &mut MatrixMut, start: Start) {
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), c.columns, "values of the bias");
        for row in 0..c.rows {
            c.row_mut(row).copy_from_slice(bias);
        }
    }
}

fn columns_of<'a>(c: &'a mut MatrixMut, columns: &std::ops::Range<usize>) -> MatrixMut<'a> {
    let (rows, groups) = (c.rows, columns.start / PACKED_COLUMNS);
    let mut tiles = c.reborrow().tiles(rows, PACKED_COLUMNS);
    tiles.swap_remove(groups).part
}

/// A slice of B as the kernels read it.
#[derive(Clone, Copy)]
struct Panels<'a> {
    in_place: Option<Matrix<'a>>,
    packed: &'a [f32],
}

impl Panels<'_> {
    /// The panel whose first column is `column`, a multiple of the kernel's width.
    fn at(&self, kernel: Kernel, depth: usize, column: usize) -> Panel<'_> {
        match self.in_place {
            Some(b) => Panel::in_place(b.block(0..depth, column..b.columns)),
            None => Panel::packed(&self.packed[column * depth..][..kernel.width() * depth], kernel.width()),
        }
    }
}

fn multiply(kernel: Kernel, a: Matrix, b: Panels, c: MatrixMut, keep: bool, parallel: bool) {
    if !parallel {
        return multiply_tile(kernel, a, b, Tile { row: 0, column: 0, part: c }, keep);
    }
    // Tasks small enough that no thread waits long for another's last one.
    let panels = c.columns.div_ceil(kernel.width());
    let together = if c.rows >= 4 * TASK_ROWS { panels.div_ceil(panels.div_ceil(TASK_PANELS)) } else { 1 };
    let tiles = c.tiles(TASK_ROWS, together * kernel.width());
    tiles.into_par_iter().with_max_len(1).for_each(|tile| multiply_tile(kernel, a, b, tile, keep));
}

/// One task: a tile of C, a block of rows at a time, which stays in the second-level cache while panels of B pass.
fn multiply_tile(kernel: Kernel, a: Matrix, b: Panels, tile: Tile, keep: bool) {
    let Tile { row, column, mut part } = tile;
    let depth = a.columns;
    for first_row in (0..part.rows).step_by(TASK_ROWS) {
        let rows = TASK_ROWS.min(part.rows - first_row);
        let block = a.block(row + first_row..row + first_row + rows, 0..depth);
        for first_column in (0..part.columns).step_by(kernel.width()) {
            let panel = b.at(kernel, depth, column + first_column);
            let columns = kernel.width().min(part.columns - first_column);
            kernel.column(block, panel, &mut part, first_row, first_column, columns, keep);
        }
    }
}

/// A copy of A whose rows are in order.
fn rows_in_order(a: Matrix, parallel: bool) -> Vec<f32> {
    const ROWS: usize = 64;
    let mut ordered = super::operand::buffer(a.rows * a.columns);
    let copy = |(index, ordered): (usize, &mut [f32])| {
        let rows = index * ROWS..a.rows.min((index + 1) * ROWS);
        transpose(a.block(rows, 0..a.columns).transposed(), ordered, a.columns);
    };
    if parallel {
        ordered.par_chunks_mut(ROWS * a.columns).enumerate().for_each(copy);
    } else {
        ordered.chunks_mut(ROWS * a.columns).enumerate().for_each(copy);
    }
    ordered
}

/// Copies B into panels of the kernel's width, k by k; the last panel is filled up with zeros.
fn pack(kernel: Kernel, b: Matrix, packed: &mut [f32], parallel: bool) {
    let width = kernel.width();
    let pack_panel = |(index, panel): (usize, &mut [f32])| {
        let columns = index * width..b.columns.min((index + 1) * width);
        pack_panel(b.block(0..b.rows, columns), panel, width);
    };
    if parallel {
        packed.par_chunks_mut(width * b.rows).enumerate().for_each(pack_panel);
    } else {
        packed.chunks_mut(width * b.rows).enumerate().for_each(pack_panel);
    }
}

fn pack_panel(b: Matrix, panel: &mut [f32], width: usize) {
    if b.column_stride == 1 {
        for (k, to) in panel.chunks_exact_mut(width).enumerate() {
            to[..b.columns].copy_from_slice(b.row(k));
            to[b.columns..].fill(0.0);
        }
        return;
    }
    if b.columns < width {
        panel.fill(0.0);
    }
    transpose(b.transposed(), panel, width);
}

thread_local! {
    static PACKED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}
