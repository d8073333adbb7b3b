//! The matrix product `C = A B`, whose factors lie row by row or column by column.
//!
//! Every element of C is summed in the same order, k ascending in slices of a length that depends on the sizes only,
//! whatever part of C it is computed with: the result does not depend on the number of threads.

use super::matrix::{Matrix, MatrixMut, Tile};
use super::microkernel::{Kernel, Panel};
use super::output::Place;
use super::scratch::{Aligned, give, take, unused};
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

impl Start<'_> {
    /// Writes what a part of C, whose first column is `column`, holds before the product is added.
    fn write(self, part: &mut MatrixMut<Place>, column: usize) {
        for row in 0..part.rows {
            let row = part.row_mut(row);
            match self {
                Self::Zero => row.fill(Place::new(0.0)),
                Self::Keep => {}
                Self::Bias(bias) => {
                    row.write_copy_of_slice(&bias[column..][..row.len()]);
                }
            }
        }
    }

    /// For the columns of C from `first` on.
    fn for_columns(self, first: usize) -> Self {
        match self {
            Self::Bias(bias) => Self::Bias(&bias[first..]),
            other => other,
        }
    }
}

/// Longest slice of the inner dimension: a panel of B of this length fits the first-level cache with what streams past it.
const SLICE: usize = 384;
/// Values of B that are packed at a time (8 MB).
const PACKED: usize = 2 << 20;
/// Rows of A that stay in the second-level cache while the panels of a slice of B pass.
const BLOCK_ROWS: usize = 96;
/// Rows of C in one task: enough for a panel of B to be worth fetching, few enough that no thread waits long for another's last.
const TASK_ROWS: usize = 48;
/// With so many rows of C, a task has all of B that is packed, so that its rows of A are fetched once.
const MANY_ROWS: usize = 8 * TASK_ROWS;
/// Tasks that a product with fewer rows is divided into, where copies are to be few, and panels in such a task at most.
const TASKS: usize = 16;
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
    // SAFETY: C has values, and `product` writes nothing but values.
    unsafe { product(Kernel::best(isa()), a, b, c.into_places(), start, is_large(a, b)) }
}

/// The same on the calling thread alone.
pub fn gemm_serial(a: Matrix, b: Matrix, c: MatrixMut, start: Start) {
    // SAFETY: C has values, and `product` writes nothing but values.
    unsafe { product(Kernel::best(isa()), a, b, c.into_places(), start, false) }
}

/// `C = bias + A B` where C has no values yet, on all threads.
pub fn gemm_into<'a>(a: Matrix, b: Matrix, mut c: MatrixMut<'a, Place>, bias: Option<&[f32]>) -> MatrixMut<'a> {
    let start = bias.map_or(Start::Zero, Start::Bias);
    // SAFETY: nothing is kept, and `product` writes all of C.
    unsafe {
        product(Kernel::best(isa()), a, b, c.reborrow(), start, is_large(a, b));
        c.assume_written()
    }
}

/// Whether a product is worth handing to other threads.
fn is_large(a: Matrix, b: Matrix) -> bool {
    a.rows * a.columns * b.columns >= SERIAL_FLOPS
}

/// Writes all of C.
///
/// # Safety
/// With [`Start::Keep`], C has values.
unsafe fn product(kernel: Kernel, a: Matrix, b: Matrix, mut c: MatrixMut<Place>, start: Start, parallel: bool) {
    let (depth, columns) = (a.columns, b.columns);
    assert_eq!((a.rows, depth, columns), (c.rows, b.rows, c.columns), "sizes of a matrix product");
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), columns, "values of the bias");
    }
    if a.rows == 0 || columns == 0 {
        return;
    }
    if depth == 0 {
        return start.write(&mut c, 0);
    }
    let in_place = b.column_stride == 1 && a.rows <= FEW_ROWS && columns.is_multiple_of(kernel.lanes);
    let slice = slice_len(depth);
    let width = kernel.width();
    let group = if in_place { columns } else { (PACKED / depth / width).max(1) * width };
    for tile in c.reborrow().tiles(a.rows, group) {
        let part = b.block(0..depth, tile.column..tile.column + tile.part.columns);
        let len = if in_place { 0 } else { part.columns.next_multiple_of(width) * depth };
        let mut memory = if in_place { Aligned::default() } else { take(&MEMORY, len) };
        let packed = &mut memory[..len];
        if !in_place {
            pack(kernel, part, slice, packed, parallel);
        }
        let b = Slices { in_place: in_place.then_some(part), packed, depth, slice };
        // SAFETY: the tile has values if C has.
        unsafe { multiply(Factors { kernel, a, b }, tile.part, start.for_columns(tile.column), parallel) };
        if !in_place {
            give(&MEMORY, memory);
        }
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
    values: Aligned,
    depth: usize,
    columns: usize,
}

impl Packed {
    /// b `[k, n]`
    pub fn new(b: Matrix) -> Self {
        let kernel = Kernel::best(isa());
        let mut values = Aligned::zeros(b.rows * b.columns.next_multiple_of(kernel.width()));
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
        // SAFETY: `multiply_into` writes nothing but values.
        self.multiply_into(a, unsafe { c.into_places() });
    }

    /// The same where C has no values yet.
    ///
    /// # Panics
    /// If B has fewer rows or columns.
    pub fn multiply_into<'a>(&self, a: Matrix, mut c: MatrixMut<'a, Place>) -> MatrixMut<'a> {
        let sizes = a.columns <= self.depth && c.columns <= self.padded_columns() && a.rows == c.rows;
        assert!(sizes, "sizes of a matrix product");
        if a.columns == 0 {
            return c.fill(0.0);
        }
        let Self { kernel, depth, .. } = *self;
        let b = Slices { in_place: None, packed: &self.values, depth, slice: slice_len(depth) };
        // SAFETY: nothing is kept, and with a depth that is not 0 all of C is written.
        unsafe {
            multiply(Factors { kernel, a, b }, c.reborrow(), Start::Zero, false);
            c.assume_written()
        }
    }
}

/// The factors of a product.
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
    /// Packed rows, of which a product may use the first ones only.
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

/// Writes all of C, unless the depth is 0.
///
/// # Safety
/// With [`Start::Keep`], C has values.
unsafe fn multiply(factors: Factors, c: MatrixMut<Place>, start: Start, parallel: bool) {
    if !parallel {
        // SAFETY: passed on.
        return unsafe { factors.multiply_tile(Tile { row: 0, column: 0, part: c }, start) };
    }
    let width = factors.kernel.width();
    let panels = c.columns.div_ceil(width);
    let together = if c.rows >= MANY_ROWS {
        panels
    } else if factors.a.column_stride != 1 {
        // Every task copies its rows of A: the fewer, the better.
        panels.div_ceil(TASKS.div_ceil(c.rows.div_ceil(TASK_ROWS))).min(TASK_PANELS)
    } else {
        1
    };
    // Whole tiles of the kernel, and no task with a row or two that has all of B pass for them.
    let tasks = (c.rows / TASK_ROWS).max(1);
    let rows = c.rows.div_ceil(tasks).next_multiple_of(factors.kernel.rows);
    let tiles = c.tiles(rows, together * width);
    // SAFETY: a tile has values if C has.
    tiles.into_par_iter().with_max_len(1).for_each(|tile| unsafe { factors.multiply_tile(tile, start) });
}

impl Factors<'_> {
    /// One task: a tile of C, a block of rows at a time, which stays in the second-level cache while the panels of every slice
    /// of B pass. Writes all of the tile, unless the depth is 0.
    ///
    /// # Safety
    /// With [`Start::Keep`], the tile has values.
    unsafe fn multiply_tile(&self, tile: Tile<Place>, start: Start) {
        let Self { kernel, a, b } = *self;
        let Tile { row, column, mut part } = tile;
        let (depth, width) = (a.columns, kernel.width());
        for first_row in (0..part.rows).step_by(BLOCK_ROWS) {
            let rows = BLOCK_ROWS.min(part.rows - first_row);
            // Here, not before the product: by the thread whose cache will hold it.
            if let Start::Bias(_) = start {
                start.write(&mut part.rows(first_row..first_row + rows), column);
            }
            let keep = !matches!(start, Start::Zero);
            for first in (0..depth).step_by(b.slice) {
                let inner = first..depth.min(first + b.slice);
                let block = a.block(row + first_row..row + first_row + rows, inner.clone());
                let mut memory = Aligned::default();
                let block = if b.in_place.is_none() && wants_copy(block, part.columns, width) {
                    memory = take(&ROWS, kernel.strips_len(block));
                    kernel.strips(block, &mut memory)
                } else {
                    kernel.rows_in_place(block)
                };
                for first_column in (0..part.columns).step_by(width) {
                    let panel = b.panel(width, &inner, column + first_column);
                    let columns = width.min(part.columns - first_column);
                    // SAFETY: the tile has values by the caller's word or from its bias (`keep`), or from the slice before.
                    unsafe {
                        kernel.column(block, panel, &mut part, first_row, first_column, columns, keep || first > 0)
                    };
                }
                give(&ROWS, memory);
            }
        }
    }
}

/// Whether a block of A is copied first: its rows are not in order, its columns are not close together, and more than a panel
/// or two of B will be multiplied with it. In place, a tile would touch a line of the cache at every step.
fn wants_copy(block: Matrix, columns: usize, width: usize) -> bool {
    block.column_stride != 1 && block.column_stride != block.rows && columns > 2 * width
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
    static ROWS: Cell<Aligned> = const { unused() };
    static MEMORY: Cell<Aligned> = const { unused() };
}
