//! `C = start + A B` with both factors packed into tiles.

use super::pack::{Side, pack};
use super::tiles::{self, BLOCK, Block, Configured, DEPTH, LINES, PAIRS, Strip};
use super::{Lines, Right};
use crate::cpu::gemm::Start;
use crate::cpu::matrix::{Matrix, MatrixMut, Tile};
use crate::cpu::output::Place;
use crate::cpu::scratch::{Aligned, Scratch, give, take, unused};
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Longest slice of the inner dimension.
const SLICE: usize = 1024;
/// Pairs of either factor that are packed at a time (8 MB, 16 MB).
const PACKED_B: usize = 2 << 20;
const PACKED_A: usize = 4 << 20;
/// Rows of C in one task at most: B's strips stay in the first-level cache meanwhile.
const TASK_ROWS: usize = 8 * BLOCK;

/// Writes all of C. a `[m, k]`, b `[k, n]`, c `[m, n]`. An element is summed in an order that depends on k alone.
///
/// # Safety
/// The machine has AMX ([`super::available`]). With [`Start::Keep`], C has values.
pub unsafe fn product(a: Matrix, b: Right, mut c: MatrixMut<Place>, start: Start) {
    let (columns, depth) = b.lines.sizes();
    assert_eq!((a.rows, a.columns, columns), (c.rows, depth, c.columns), "sizes of a matrix product");
    assert!(b.column_scales.is_none_or(|scales| scales.len() == columns), "scales of the columns");
    assert!(depth > 0);
    let slice = depth.div_ceil(depth.div_ceil(SLICE)).next_multiple_of(DEPTH);
    let group = |packed: usize, planes: usize| (packed / (slice / DEPTH * planes * PAIRS)).max(2) / 2 * BLOCK;
    let [a_planes, b_planes] = b.lines.planes();
    let (row_group, column_group) = (group(PACKED_A, a_planes), group(PACKED_B, b_planes));
    for first in (0..depth).step_by(slice) {
        let inner = first..depth.min(first + slice);
        for column in (0..columns).step_by(column_group) {
            let group = column..columns.min(column + column_group);
            let right = Packed::new(b.lines, b_planes, group, inner.clone(), Side::B, &B);
            for Tile { row, mut part, .. } in c.reborrow().tiles(row_group, columns) {
                let rows = row..row + part.rows;
                let left = Packed::new(Lines::F32(a), a_planes, rows, inner.clone(), Side::A, &A);
                let task = |tile: Tile<Place>| {
                    // SAFETY: passed on; from the second slice on C has the values of the first.
                    unsafe {
                        multiply(&left, &right, b.column_scales, tile, if first > 0 { Start::Keep } else { start })
                    }
                };
                let mut tiles =
                    part.reborrow().columns(column..columns.min(column + column_group)).tiles(TASK_ROWS, BLOCK);
                tiles.iter_mut().for_each(|tile| tile.column += column);
                tiles.into_par_iter().with_max_len(1).for_each(task);
                left.give();
            }
            right.give();
        }
    }
}

/// A task: 32 columns of C and some rows.
///
/// # Safety
/// As [`product`].
unsafe fn multiply(left: &Packed, right: &Packed, scales: Option<&[f32]>, tile: Tile<Place>, start: Start) {
    let Tile { row, column, mut part } = tile;
    let mut block = Block([[0.0; BLOCK]; BLOCK]);
    // SAFETY: passed on.
    let configured = unsafe { Configured::new() };
    let strip = column - right.lines.start;
    let b = [strip, strip + LINES].map(|line| right.strip(line / LINES));
    for first in (0..part.rows).step_by(BLOCK) {
        let rows = BLOCK.min(part.rows - first);
        let a =
            [Some(left.strip((row + first) / LINES)), (rows > LINES).then(|| left.strip((row + first) / LINES + 1))];
        tiles::multiply(&configured, a, b, &mut block);
        for (values, index) in block.0.iter_mut().zip(first..first + rows) {
            let values = &mut values[..part.columns];
            if let Some(scales) = scales {
                values.iter_mut().zip(&scales[column..]).for_each(|(value, scale)| *value *= scale);
            }
            let to = part.row_mut(index);
            match start {
                Start::Zero => {
                    to.write_copy_of_slice(values);
                }
                Start::Bias(bias) => {
                    let sums = values.iter().zip(&bias[column..]);
                    to.iter_mut().zip(sums).for_each(|(to, (value, bias))| *to = Place::new(value + bias));
                }
                Start::Keep => to.iter_mut().zip(values).for_each(|(to, value)| {
                    // SAFETY: C has values, by the caller's word.
                    to.write(unsafe { to.assume_init() } + *value);
                }),
            }
        }
    }
}

/// Lines of a factor in tiles.
struct Packed {
    memory: Aligned,
    scratch: &'static Scratch,
    lines: Range<usize>,
    planes: usize,
    /// Pairs of a strip of sixteen lines.
    strip: usize,
}

impl Packed {
    fn new(
        factor: Lines,
        planes: usize,
        lines: Range<usize>,
        inner: Range<usize>,
        side: Side,
        scratch: &'static Scratch,
    ) -> Self {
        let strip = inner.len().div_ceil(DEPTH) * planes * PAIRS;
        // Strips come in pairs; of a second that has no lines nothing is used.
        let len = lines.len().div_ceil(BLOCK) * 2 * strip;
        let mut memory = take(scratch, len);
        let pairs: &mut [u32] = bytemuck::cast_slice_mut(&mut memory[..len]);
        let pack_strip = |(index, pairs): (usize, &mut [u32])| {
            let first = lines.start + index * LINES;
            match first < lines.end {
                // SAFETY: a machine with AMX has AVX-512.
                true => unsafe { pack(factor, planes, first, inner.clone(), side, pairs) },
                false => pairs.fill(0),
            }
        };
        pairs.par_chunks_exact_mut(strip).enumerate().for_each(pack_strip);
        Self { memory, scratch, lines, planes, strip }
    }

    fn strip(&self, index: usize) -> Strip<'_> {
        let pairs = bytemuck::cast_slice(&self.memory[index * self.strip..][..self.strip]);
        Strip { pairs, planes: self.planes }
    }

    fn give(self) {
        give(self.scratch, self.memory);
    }
}

thread_local! {
    static A: Cell<Aligned> = const { unused() };
    static B: Cell<Aligned> = const { unused() };
}
