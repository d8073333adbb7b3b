//! The matrix product `C = A B`, whose factors lie row by row or column by column.
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
use std::ops::Range;

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
/// Values of B that are packed at a time (8 MB).
const PACKED: usize = 2 << 20;
/// Rows of C in one task.
const TASK_ROWS: usize = 96;
/// Panels of B in one task at most, unless C has few rows.
const TASK_PANELS: usize = 8;
/// Tasks that a product with few rows is divided into, where copies are to be few.
const TASKS: usize = 16;
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
    let in_place = b.column_stride == 1 && a.rows <= FEW_ROWS && columns.is_multiple_of(kernel.lanes);
    let slice = slice_len(depth);
    let width = kernel.width();
    let group = if in_place { columns } else { (PACKED / depth / width).max(1) * width };
    for tile in c.reborrow().tiles(a.rows, group) {
        let part = b.block(0..depth, tile.column..tile.column + tile.part.columns);
        if in_place {
            multiply(
                Factors { kernel, a, b: Slices { in_place: Some(part), packed: &[], depth, slice } },
                tile.part,
                keep,
                parallel,
            );
            continue;
        }
        let len = part.columns.next_multiple_of(width) * depth;
        let mut memory = take(&MEMORY, len);
        let packed = &mut memory[..len];
        pack(kernel, part, slice, packed, parallel);
        multiply(Factors { kernel, a, b: Slices { in_place: None, packed, depth, slice } }, tile.part, keep, parallel);
        give(&MEMORY, memory);
    }
}

/// Length of the slices of an inner dimension that is not 0.
fn slice_len(depth: usize) -> usize {
    depth.div_ceil(depth.div_ceil(SLICE))
}

/// A right side that is packed once for several products on one thread.
#[derive(Debug)]
pub struct Packed {
    kernel: Kernel,
    values: Vec<f32>,
    depth: usize,
    columns: usize,
}

impl Packed {
    /// b `[k, n]`
    pub fn new(b: Matrix) -> Self {
        let kernel = Kernel::best(isa());
        let mut values = super::operand::buffer(b.rows * b.columns.next_multiple_of(kernel.width()));
        if !values.is_empty() {
            pack(kernel, b, slice_len(b.rows), &mut values, false);
        }
        Self { kernel, values, depth: b.rows, columns: b.columns }
    }

    /// Columns of B and those of zeros that fill up its last panel.
    pub fn padded_columns(&self) -> usize {
        self.columns.next_multiple_of(self.kernel.width())
    }

    /// `C = A B` on this thread, with the first `a.columns` rows and `c.columns` columns of B; columns of zeros may be among
    /// them.
    ///
    /// # Panics
    /// If B has fewer.
    pub fn multiply(&self, a: Matrix, c: MatrixMut) {
        let sizes = a.columns <= self.depth && c.columns <= self.padded_columns() && a.rows == c.rows;
        assert!(sizes, "sizes of a matrix product");
        let Self { kernel, depth, .. } = *self;
        let b = Slices { in_place: None, packed: &self.values, depth, slice: slice_len(depth.max(1)) };
        multiply(Factors { kernel, a, b }, c, false, false);
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

/// What is multiplied.
#[derive(Clone, Copy)]
struct Factors<'a> {
    kernel: Kernel,
    a: Matrix<'a>,
    b: Slices<'a>,
}

/// B as the kernels read it, in slices of the inner dimension.
#[derive(Clone, Copy)]
struct Slices<'a> {
    in_place: Option<Matrix<'a>>,
    /// Slice by slice, in each panel by panel.
    packed: &'a [f32],
    /// Rows of what was packed, of which the product may need the first ones only.
    depth: usize,
    /// Length of a slice; the last may be shorter.
    slice: usize,
}

impl<'a> Slices<'a> {
    /// The panel of a slice whose first column is `column`, a multiple of `width`.
    fn panel(&self, width: usize, inner: &Range<usize>, column: usize) -> Panel<'a> {
        match self.in_place {
            Some(b) => Panel::in_place(b.block(inner.clone(), column..b.columns)),
            None => {
                let padded = self.packed.len() / self.depth;
                let begin = padded * inner.start + column * self.slice.min(self.depth - inner.start);
                Panel::packed(&self.packed[begin..][..width * inner.len()], width)
            }
        }
    }
}

fn multiply(factors: Factors, c: MatrixMut, keep: bool, parallel: bool) {
    if !parallel {
        return factors.multiply_tile(Tile { row: 0, column: 0, part: c }, keep);
    }
    // Tasks small enough that no thread waits long for another's last one.
    let width = factors.kernel.width();
    let panels = c.columns.div_ceil(width);
    let together = if c.rows >= 4 * TASK_ROWS {
        panels.div_ceil(panels.div_ceil(TASK_PANELS))
    } else if factors.a.column_stride != 1 {
        // Every task copies its rows of A: the fewer, the better.
        panels.div_ceil(TASKS.div_ceil(c.rows.div_ceil(TASK_ROWS))).min(TASK_PANELS)
    } else {
        1
    };
    let tiles = c.tiles(TASK_ROWS, together * width);
    tiles.into_par_iter().with_max_len(1).for_each(|tile| factors.multiply_tile(tile, keep));
}

impl Factors<'_> {
    /// One task: a tile of C, a block of rows at a time, which stays in the second-level cache while the panels of every slice
    /// of B pass.
    fn multiply_tile(&self, tile: Tile, keep: bool) {
        let Self { kernel, a, b } = *self;
        let Tile { row, column, mut part } = tile;
        let (depth, width) = (a.columns, kernel.width());
        for first_row in (0..part.rows).step_by(TASK_ROWS) {
            let rows = TASK_ROWS.min(part.rows - first_row);
            for first in (0..depth).step_by(b.slice) {
                let inner = first..depth.min(first + b.slice);
                let block = a.block(row + first_row..row + first_row + rows, inner.clone());
                let mut memory = Vec::new();
                let block = if wants_copy(block, part.columns, width) {
                    memory = take(&ROWS, block.rows * block.columns);
                    columns_in_order(block, &mut memory)
                } else {
                    block
                };
                for first_column in (0..part.columns).step_by(width) {
                    let panel = b.panel(width, &inner, column + first_column);
                    let columns = width.min(part.columns - first_column);
                    kernel.column(block, panel, &mut part, first_row, first_column, columns, keep || first > 0);
                }
                give(&ROWS, memory);
            }
        }
    }
}

/// Whether a block of A is copied first: its rows are not in order, its columns are not close together, and more than a panel
/// or two of B will be multiplied with it.
fn wants_copy(block: Matrix, columns: usize, width: usize) -> bool {
    block.column_stride != 1 && block.column_stride != block.rows && columns > 2 * width
}

/// A copy of a block of A whose rows are not in order, column by column: kernels read it as well, and copying whole stretches
/// of memory is cheaper than transposing.
fn columns_in_order<'a>(block: Matrix, memory: &'a mut [f32]) -> Matrix<'a> {
    let across = block.transposed();
    let memory = &mut memory[..block.rows * block.columns];
    for (index, column) in memory.chunks_exact_mut(block.rows.max(1)).enumerate() {
        column.copy_from_slice(across.row(index));
    }
    Matrix::new(memory, block.columns, block.rows).transposed()
}

/// Copies B into slices, and in these into panels of the kernel's width, k by k; the last panel is filled up with zeros.
fn pack(kernel: Kernel, b: Matrix, slice: usize, packed: &mut [f32], parallel: bool) {
    let width = kernel.width();
    let padded = b.columns.next_multiple_of(width);
    let mut panels = Vec::with_capacity(b.rows.div_ceil(slice) * padded / width);
    for (index, part) in packed.chunks_mut(padded * slice).enumerate() {
        let inner = index * slice..b.rows.min((index + 1) * slice);
        let columns = (0..b.columns).step_by(width).map(|first| first..b.columns.min(first + width));
        let parts = part.chunks_exact_mut(width * inner.len()).zip(columns);
        panels.extend(parts.map(|(panel, columns)| (b.block(inner.clone(), columns), panel)));
    }
    if parallel {
        panels.into_par_iter().for_each(|(b, panel)| pack_panel(b, panel, width));
    } else {
        panels.into_iter().for_each(|(b, panel)| pack_panel(b, panel, width));
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
    static ROWS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static MEMORY: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}
