//! The innermost loops of the matrix product: a few rows of A times a panel of B, sums held in registers.

use super::matrix::{Matrix, MatrixMut};
use super::output::Place;
use super::simd::{Isa, LINE, prefetch};

/// Vectors side by side in a full tile of C, at most.
const MAX_VECTORS: usize = 3;
/// Rows done together where a last vector reaches beyond C: whole tiles.
const EDGE_ROWS: usize = 24;
/// Steps of the inner dimension in one turn of the loop.
const UNROLLED: usize = 4;

/// An instruction set and the tile that fills its registers.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    isa: Isa,
    /// f32 values in a vector.
    pub lanes: usize,
    /// Rows of a full tile.
    pub rows: usize,
    /// Vectors side by side in a full tile.
    vectors: usize,
}

/// Columns of B as a kernel reads them: the values at k are neighbours, `stride` apart from those at k + 1.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    data: Matrix<'a>,
}

impl<'a> Panel<'a> {
    /// A copy of `width` columns, filled up with zeros.
    pub fn packed(data: &'a [f32], width: usize) -> Self {
        Self { data: Matrix::new(data, data.len() / width, width) }
    }

    /// Columns where they lie.
    pub fn in_place(data: Matrix<'a>) -> Self {
        Self { data }
    }
}

/// Rows of A as a kernel reads them.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    rows: usize,
    depth: usize,
    order: Order,
    /// Distance of neighbours in a column, and in a row. One of them is 1.
    row_stride: usize,
    step: usize,
    /// Distance of full tiles.
    tile: usize,
}

/// How the values of A lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    /// Those of a row are neighbours.
    Rows,
    /// Those of a column are neighbours.
    Columns,
    /// Those of a tile are neighbours, column by column.
    Strips,
}

/// What a microkernel is called with.
#[derive(Clone, Copy)]
struct Call {
    rows: usize,
    depth: usize,
    order: Order,
    a: *const f32,
    a_stride: usize,
    /// Distance of a row's neighbours in A.
    a_step: usize,
    /// Distance of full tiles in A.
    a_tile: usize,
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
    keep: bool,
}

impl Kernel {
    /// The kernel for an instruction set: 24 of 32 registers hold sums (AVX-512, NEON), 12 of 16 (AVX2, SSE2), where one
    /// more in use would already be one too many.
    pub fn best(isa: Isa) -> Self {
        match isa {
            Isa::Avx512 => Self { isa, lanes: 16, rows: 8, vectors: 3 },
            Isa::Avx2 => Self { isa, lanes: 8, rows: 6, vectors: 2 },
            Isa::Base if cfg!(target_arch = "aarch64") => Self { isa, lanes: 4, rows: 8, vectors: 3 },
            Isa::Base => Self { isa, lanes: 4, rows: 6, vectors: 2 },
        }
    }

    /// Columns of a full tile.
    pub fn width(&self) -> usize {
        self.vectors * self.lanes
    }

    /// Rows where they lie: their values, or those of the columns, are neighbours.
    pub fn rows_in_place<'a>(&self, a: Matrix<'a>) -> Rows<'a> {
        assert!(a.column_stride == 1 || a.row_stride == 1, "rows or columns must be in order");
        let (row_stride, step) = (a.row_stride, a.column_stride);
        let order = if step == 1 { Order::Rows } else { Order::Columns };
        Rows { order, data: a.data(), rows: a.rows, depth: a.columns, row_stride, step, tile: self.rows * row_stride }
    }

    /// A copy, tile by tile, in each column by column: a tile's values are neighbours.
    ///
    /// The last tile's rows may be fewer; `memory` holds [`Self::strips_len`] values.
    pub fn strips<'a>(&self, a: Matrix, memory: &'a mut [f32]) -> Rows<'a> {
        let memory = &mut memory[..self.strips_len(a)];
        let distance = self.strip_len(a.columns);
        match self.rows {
            6 => copy_strips::<6>(a.transposed(), memory, distance),
            8 => copy_strips::<8>(a.transposed(), memory, distance),
            rows => unreachable!("tiles of {rows} rows"),
        }
        let (rows, depth) = (a.rows, a.columns);
        Rows { order: Order::Strips, data: memory, rows, depth, row_stride: 1, step: self.rows, tile: distance }
    }

    /// Values of such a copy.
    pub fn strips_len(&self, a: Matrix) -> usize {
        a.rows.div_ceil(self.rows) * self.strip_len(a.columns)
    }

    /// Values from one strip to the next: an odd number of lines of the cache, so that strips do not contend for the same places.
    fn strip_len(&self, depth: usize) -> usize {
        ((self.rows * depth).div_ceil(LINE) | 1) * LINE
    }

    /// `C = A · panel` for all rows of A, in `columns` columns of C from (`row`, `column`) on; added to C when `keep`.
    ///
    /// # Safety
    /// With `keep`, that part of C has values.
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn column(
        &self,
        a: Rows,
        panel: Panel,
        c: &mut MatrixMut<Place>,
        row: usize,
        column: usize,
        columns: usize,
        keep: bool,
    ) {
        let vectors = columns.div_ceil(self.lanes);
        assert!(a.depth == panel.data.rows && panel.data.column_stride == 1);
        assert!(row + a.rows <= c.rows && column + columns <= c.columns);
        assert!(vectors <= self.vectors && vectors * self.lanes <= panel.data.columns);
        assert!(a.order != Order::Strips || panel.data.row_stride == self.width());
        let call = Call {
            rows: a.rows,
            depth: a.depth,
            order: a.order,
            a: a.data.as_ptr(),
            a_stride: a.row_stride,
            a_step: a.step,
            a_tile: a.tile,
            b: panel.data.as_ptr(),
            b_stride: panel.data.row_stride,
            // An element of C, or behind its end if there is nothing to write.
            c: c.as_mut_ptr().cast::<f32>().wrapping_add(row * c.row_stride + column),
            c_stride: c.row_stride,
            keep,
        };
        if columns == vectors * self.lanes {
            // SAFETY: all rows of A (see the two functions that make them) and `vectors` vectors of the panel are `depth` long
            // and deep, and C has that many rows and columns from its address on, by the assertions above; the instruction
            // set was detected.
            return unsafe { self.run(vectors, call) };
        }
        // A last vector that reaches beyond C goes through memory of its own.
        let width = self.width();
        let mut scratch = [0f32; EDGE_ROWS * MAX_VECTORS * 16];
        for first in (0..a.rows).step_by(EDGE_ROWS) {
            let rows = EDGE_ROWS.min(a.rows - first);
            // `EDGE_ROWS` are whole tiles.
            let data = a.data[first / self.rows * a.tile..].as_ptr();
            let edge = Call { rows, a: data, c: scratch.as_mut_ptr(), c_stride: width, keep: false, ..call };
            // SAFETY: as above, with the scratch memory, which is large enough, as C.
            unsafe { self.run(vectors, edge) };
            for (i, from) in scratch.chunks(width).take(rows).enumerate() {
                let to = &mut c.row_mut(row + first + i)[column..column + columns];
                for (to, from) in to.iter_mut().zip(from) {
                    // SAFETY: with `keep` there is a value, by the caller's word.
                    to.write(if keep { unsafe { to.assume_init() + from } } else { *from });
                }
            }
        }
    }

    unsafe fn run(&self, vectors: usize, call: Call) {
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: see `column`.
            Isa::Avx512 => unsafe { avx512::run(vectors, call) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: see `column`.
            Isa::Avx2 => unsafe { avx2::run(vectors, call) },
            // SAFETY: see `column`.
            _ => unsafe { base::run(vectors, call) },
        }
    }
}

/// Columns of A, neighbours in memory, into strips of `ROWS` rows, which are `distance` apart. across `[k, m]`
fn copy_strips<const ROWS: usize>(across: Matrix, memory: &mut [f32], distance: usize) {
    let mut strips: Vec<&mut [[f32; ROWS]]> =
        memory.chunks_mut(distance).map(|strip| strip.as_chunks_mut().0).collect();
    for k in 0..across.rows {
        let (whole, rest) = across.row(k).as_chunks();
        for (strip, values) in strips.iter_mut().zip(whole) {
            strip[k] = *values;
        }
        if !rest.is_empty() {
            strips[whole.len()][k][..rest.len()].copy_from_slice(rest);
        }
    }
}

/// The kernels of one instruction set, for every number of rows and vectors of a tile.
macro_rules! kernels {
    ($name:ident, $(#[$feature:meta])? $vector:ty, $lanes:literal, $rows:expr, $width:expr, $zero:expr, $splat:expr, $load:expr, $store:expr, $fused:expr, $add:expr) => {
        mod $name {
            use super::{Call, Order, UNROLLED, prefetch};
            #[cfg(target_arch = "x86_64")]
            #[allow(unused_imports)]
            use std::arch::x86_64::*;

            const IN_ROWS: u8 = Order::Rows as u8;
            const IN_COLUMNS: u8 = Order::Columns as u8;
            const IN_STRIPS: u8 = Order::Strips as u8;

            /// # Safety
            /// The call's addresses are valid for its rows, `vectors` and depth, and the machine has the instruction set.
            $(#[$feature])?
            pub unsafe fn run(vectors: usize, call: Call) {
                // SAFETY: passed on.
                unsafe {
                    match vectors {
                        3 => rows::<3>(call),
                        2 => rows::<2>(call),
                        _ => rows::<1>(call),
                    }
                }
            }

            /// # Safety
            /// As `run`.
            $(#[$feature])?
            unsafe fn rows<const VECTORS: usize>(call: Call) {
                // SAFETY: passed on.
                unsafe {
                    match call.order {
                        Order::Rows => tiles::<VECTORS, IN_ROWS>(call),
                        Order::Columns => tiles::<VECTORS, IN_COLUMNS>(call),
                        Order::Strips => tiles::<VECTORS, IN_STRIPS>(call),
                    }
                }
            }

            /// All rows, as many at a time as fill the registers, then the largest tile that fits the remaining rows.
            ///
            /// # Safety
            /// As `run`.
            $(#[$feature])?
            unsafe fn tiles<const VECTORS: usize, const ORDER: u8>(mut call: Call) {
                // SAFETY: no more rows are passed on than the call has.
                unsafe {
                    while call.rows >= { $rows } {
                        tile::<{ $rows }, VECTORS, ORDER>(&mut call);
                    }
                    if call.rows >= 6 {
                        tile::<6, VECTORS, ORDER>(&mut call);
                    }
                    if call.rows >= 4 {
                        tile::<4, VECTORS, ORDER>(&mut call);
                    }
                    if call.rows >= 2 {
                        tile::<2, VECTORS, ORDER>(&mut call);
                    }
                    if call.rows >= 1 {
                        tile::<1, VECTORS, ORDER>(&mut call);
                    }
                }
            }

            /// One step: the values of A in `ROWS` rows times a line of B.
            ///
            /// # Safety
            /// As `run`.
            $(#[$feature])?
            #[inline]
            unsafe fn multiply<const ROWS: usize, const VECTORS: usize>(
                sums: &mut [[$vector; VECTORS]; ROWS],
                a: *const f32,
                row_stride: usize,
                b: *const f32,
            ) {
                // SAFETY: all offsets are within what the caller vouches for.
                unsafe {
                    let mut line: [$vector; VECTORS] = [$zero; VECTORS];
                    for vector in 0..VECTORS {
                        line[vector] = $load(b.add(vector * $lanes));
                    }
                    for row in 0..ROWS {
                        let a = $splat(*a.add(row * row_stride));
                        for vector in 0..VECTORS {
                            sums[row][vector] = $fused(a, line[vector], sums[row][vector]);
                        }
                    }
                }
            }

            /// One tile; the call then has the rows behind it.
            ///
            /// # Safety
            /// As `run`.
            $(#[$feature])?
            #[inline]
            unsafe fn tile<const ROWS: usize, const VECTORS: usize, const ORDER: u8>(call: &mut Call) {
                let mut sums: [[$vector; VECTORS]; ROWS] = [[$zero; VECTORS]; ROWS];
                // C is fetched while the sums are made, so that its lines are there when they are written.
                for row in 0..ROWS {
                    let c = call.c.wrapping_add(row * call.c_stride);
                    prefetch(c);
                    prefetch(c.wrapping_add(VECTORS * $lanes - 1));
                }
                // SAFETY: all offsets are within what the caller vouches for.
                unsafe {
                    // Strides that are constants, and several steps a turn: a core that is shared with another hardware thread is
                    // limited by the number of instructions.
                    let (mut a, mut b) = (call.a, call.b);
                    let (row_stride, step, b_stride) = match ORDER {
                        IN_ROWS => (call.a_stride, 1, call.b_stride),
                        IN_COLUMNS => (1, call.a_step, call.b_stride),
                        _ => (1, { $rows }, { $width }),
                    };
                    for _ in 0..call.depth / UNROLLED {
                        for _ in 0..UNROLLED {
                            multiply::<ROWS, VECTORS>(&mut sums, a, row_stride, b);
                            a = a.wrapping_add(step);
                            b = b.wrapping_add(b_stride);
                        }
                    }
                    for _ in 0..call.depth % UNROLLED {
                        multiply::<ROWS, VECTORS>(&mut sums, a, row_stride, b);
                        a = a.wrapping_add(step);
                        b = b.wrapping_add(b_stride);
                    }
                    for row in 0..ROWS {
                        for vector in 0..VECTORS {
                            let c = call.c.add(row * call.c_stride + vector * $lanes);
                            let sum = sums[row][vector];
                            $store(c, if call.keep { $add($load(c), sum) } else { sum });
                        }
                    }
                    call.rows -= ROWS;
                    let done = if ROWS == { $rows } { call.a_tile } else { ROWS * call.a_stride };
                    call.a = call.a.wrapping_add(done);
                    call.c = call.c.wrapping_add(ROWS * call.c_stride);
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(
    avx512,
    #[target_feature(enable = "avx512f")]
    __m512,
    16,
    8,
    48,
    _mm512_setzero_ps(),
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    _mm512_add_ps
);
#[cfg(target_arch = "x86_64")]
kernels!(
    avx2,
    #[target_feature(enable = "avx2,fma")]
    __m256,
    8,
    6,
    16,
    _mm256_setzero_ps(),
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    _mm256_add_ps
);
kernels!(
    base,
    [f32; 4],
    4,
    if cfg!(target_arch = "aarch64") { 8 } else { 6 },
    if cfg!(target_arch = "aarch64") { 12 } else { 8 },
    [0.0; 4],
    |value: f32| [value; 4],
    |from: *const f32| from.cast::<[f32; 4]>().read_unaligned(),
    |to: *mut f32, value: [f32; 4]| to.cast::<[f32; 4]>().write_unaligned(value),
    |a: [f32; 4], b: [f32; 4], sum: [f32; 4]| std::array::from_fn(|i| a[i] * b[i] + sum[i]),
    |a: [f32; 4], b: [f32; 4]| std::array::from_fn(|i| a[i] + b[i])
);

#[cfg(test)]
mod tests {
    use super::super::scratch::Aligned;
    use super::super::simd::isa;
    use super::*;

    #[test]
    fn every_instruction_set_multiplies_rows_in_every_order() {
        // Miri is slow.
        let step = if cfg!(miri) { 4 } else { 1 };
        for kernel in [Isa::Base, isa()].map(Kernel::best) {
            for rows in [1, 2, 5, 6, 7, 8, 13, 25, 48].into_iter().step_by(step) {
                for depth in [1, 3, 4, 9].into_iter().step_by(step - step / 4) {
                    (1..=kernel.width()).step_by(step).for_each(|columns| check(kernel, rows, depth, columns));
                }
            }
        }
    }

    /// Whole numbers, whose products and sums are exact.
    fn check(kernel: Kernel, rows: usize, depth: usize, columns: usize) {
        let (width, values) = (kernel.width(), |len: usize| (0..len).map(|i| (i % 7) as f32 - 3.0).collect::<Vec<_>>());
        let (a, panel) = (values(rows * depth), values(depth * width));
        let across: Vec<f32> = (0..depth * rows).map(|i| a[i % rows * depth + i / rows]).collect();
        let in_rows = Matrix::new(&a, rows, depth);
        let in_columns = Matrix::new(&across, depth, rows).transposed();
        let mut memory = Aligned::zeros(kernel.strips_len(in_columns));
        let orders =
            [kernel.rows_in_place(in_rows), kernel.rows_in_place(in_columns), kernel.strips(in_columns, &mut memory)];
        let product = |row: usize, column: usize| -> f32 {
            (0..depth).map(|k| a[row * depth + k] * panel[k * width + column]).sum()
        };
        for (order, keep) in orders.iter().flat_map(|order| [(order, false), (order, true)]) {
            let mut c = vec![1.0; (rows + 1) * (columns + 2)];
            let output = MatrixMut::new(&mut c, rows + 1, columns + 2);
            // SAFETY: C has values, and gets values.
            unsafe {
                let panel = Panel::packed(&panel, width);
                kernel.column(*order, panel, &mut output.into_places(), 1, 1, columns, keep);
            }
            for (index, &found) in c.iter().enumerate() {
                let (row, column) = (index / (columns + 2), index % (columns + 2));
                let inside = row > 0 && (1..=columns).contains(&column);
                let start = if inside && !keep { 0.0 } else { 1.0 };
                let expected = start + if inside { product(row - 1, column - 1) } else { 0.0 };
                let sizes = format!("{rows} × {depth} × {columns}");
                assert_eq!(found, expected, "{kernel:?}, {order:?}, {sizes}: row {row}, column {column}");
            }
        }
    }
}
