//! The innermost loops of the matrix product: a few rows of A times a panel of B, sums held in registers.

use super::matrix::{Matrix, MatrixMut};
use super::simd::Isa;

/// Vectors side by side in a full tile of C, at most.
const MAX_VECTORS: usize = 3;
/// Rows done together where a last vector reaches beyond C.
const EDGE_ROWS: usize = 24;
/// Steps of the inner dimension in one turn of the loop.
const UNROLLED: usize = 4;

/// An instruction set and the tile that fills its registers.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    isa: Isa,
    /// f32 values in a vector.
    pub lanes: usize,
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

/// What a microkernel is called with.
#[derive(Clone, Copy)]
struct Call {
    rows: usize,
    depth: usize,
    a: *const f32,
    a_stride: usize,
    /// Distance of a row's neighbours in A.
    a_step: usize,
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
            Isa::Avx512 => Self { isa, lanes: 16, vectors: 3 },
            Isa::Avx2 => Self { isa, lanes: 8, vectors: 2 },
            Isa::Base if cfg!(target_arch = "aarch64") => Self { isa, lanes: 4, vectors: 3 },
            Isa::Base => Self { isa, lanes: 4, vectors: 2 },
        }
    }

    /// Columns of a full tile.
    pub fn width(&self) -> usize {
        self.vectors * self.lanes
    }

    /// `C = A · panel` for all rows of A, in `columns` columns of C from (`row`, `column`) on; added to C when `keep`.
    #[allow(clippy::too_many_arguments)]
    pub fn column(
        &self,
        a: Matrix,
        panel: Panel,
        c: &mut MatrixMut,
        row: usize,
        column: usize,
        columns: usize,
        keep: bool,
    ) {
        let vectors = columns.div_ceil(self.lanes);
        assert!(
            (a.column_stride == 1 || a.row_stride == 1)
                && a.columns == panel.data.rows
                && panel.data.column_stride == 1
        );
        assert!(row + a.rows <= c.rows && column + columns <= c.columns);
        assert!(vectors <= self.vectors && vectors * self.lanes <= panel.data.columns);
        let call = Call {
            rows: a.rows,
            depth: a.columns,
            a: a.as_ptr(),
            a_stride: a.row_stride,
            a_step: a.column_stride,
            b: panel.data.as_ptr(),
            b_stride: panel.data.row_stride,
            // SAFETY: (row, column) is an element of C or one past its end, by the assertions above.
            c: unsafe { c.as_mut_ptr().add(row * c.row_stride + column) },
            c_stride: c.row_stride,
            keep,
        };
        if columns == vectors * self.lanes {
            // SAFETY: all rows of A and `vectors` vectors of the panel are `depth` long and deep, and C has that many rows and
            // columns from its address on, by the assertions above; the instruction set was detected.
            return unsafe { self.run(vectors, call) };
        }
        // A last vector that reaches beyond C goes through memory of its own.
        let width = self.width();
        let mut scratch = [0f32; EDGE_ROWS * MAX_VECTORS * 16];
        for first in (0..a.rows).step_by(EDGE_ROWS) {
            let rows = EDGE_ROWS.min(a.rows - first);
            let a = a.block(first..first + rows, 0..a.columns);
            let edge = Call { rows, a: a.as_ptr(), c: scratch.as_mut_ptr(), c_stride: width, keep: false, ..call };
            // SAFETY: as above, with the scratch memory, which is large enough, as C.
            unsafe { self.run(vectors, edge) };
            for (i, from) in scratch.chunks(width).take(rows).enumerate() {
                let to = &mut c.row_mut(row + first + i)[column..column + columns];
                to.iter_mut().zip(from).for_each(|(to, from)| *to = if keep { *to + from } else { *from });
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

/// The kernels of one instruction set, for every number of rows and vectors of a tile.
macro_rules! kernels {
    ($name:ident, $(#[$feature:meta])? $vector:ty, $lanes:literal, $rows:expr, $zero:expr, $splat:expr, $load:expr, $store:expr, $fused:expr, $add:expr) => {
        mod $name {
            use super::{Call, UNROLLED};
            #[cfg(target_arch = "x86_64")]
            #[allow(unused_imports)]
            use std::arch::x86_64::*;

            /// # Safety
            /// The call's addresses are valid for its rows, `vectors` and depth, and the machine has the instruction set.
            $(#[$feature])?
            pub unsafe fn run(vectors: usize, call: Call) {
                // SAFETY: passed on.
                unsafe {
                    match (vectors, call.a_step) {
                        (3, 1) => rows::<3, true>(call),
                        (2, 1) => rows::<2, true>(call),
                        (_, 1) => rows::<1, true>(call),
                        (3, _) => rows::<3, false>(call),
                        (2, _) => rows::<2, false>(call),
                        _ => rows::<1, false>(call),
                    }
                }
            }

            /// All rows, as many at a time as fill the registers, then of what is left a number that there is a tile for.
            ///
            /// # Safety
            /// As `run`.
            $(#[$feature])?
            unsafe fn rows<const VECTORS: usize, const IN_ORDER: bool>(mut call: Call) {
                // SAFETY: no more rows are passed on than the call has.
                unsafe {
                    while call.rows >= { $rows } {
                        tile::<{ $rows }, VECTORS, IN_ORDER>(&mut call);
                    }
                    if call.rows >= 6 {
                        tile::<6, VECTORS, IN_ORDER>(&mut call);
                    }
                    if call.rows >= 4 {
                        tile::<4, VECTORS, IN_ORDER>(&mut call);
                    }
                    if call.rows >= 2 {
                        tile::<2, VECTORS, IN_ORDER>(&mut call);
                    }
                    if call.rows >= 1 {
                        tile::<1, VECTORS, IN_ORDER>(&mut call);
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
            unsafe fn tile<const ROWS: usize, const VECTORS: usize, const IN_ORDER: bool>(call: &mut Call) {
                let mut sums: [[$vector; VECTORS]; ROWS] = [[$zero; VECTORS]; ROWS];
                // SAFETY: all offsets are within what the caller vouches for.
                unsafe {
                    // One of A's strides is 1, so that addresses are constants; several steps a turn, because a core that is shared
                    // with another hardware thread is limited by the number of instructions.
                    let (mut a, mut b) = (call.a, call.b);
                    let (row_stride, step) = if IN_ORDER { (call.a_stride, 1) } else { (1, call.a_step) };
                    for _ in 0..call.depth / UNROLLED {
                        for _ in 0..UNROLLED {
                            multiply::<ROWS, VECTORS>(&mut sums, a, row_stride, b);
                            a = a.wrapping_add(step);
                            b = b.wrapping_add(call.b_stride);
                        }
                    }
                    for _ in 0..call.depth % UNROLLED {
                        multiply::<ROWS, VECTORS>(&mut sums, a, row_stride, b);
                        a = a.wrapping_add(step);
                        b = b.wrapping_add(call.b_stride);
                    }
                    for row in 0..ROWS {
                        for vector in 0..VECTORS {
                            let c = call.c.add(row * call.c_stride + vector * $lanes);
                            let sum = sums[row][vector];
                            $store(c, if call.keep { $add($load(c), sum) } else { sum });
                        }
                    }
                    call.rows -= ROWS;
                    call.a = call.a.wrapping_add(ROWS * call.a_stride);
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
    [0.0; 4],
    |value: f32| [value; 4],
    |from: *const f32| from.cast::<[f32; 4]>().read_unaligned(),
    |to: *mut f32, value: [f32; 4]| to.cast::<[f32; 4]>().write_unaligned(value),
    |a: [f32; 4], b: [f32; 4], sum: [f32; 4]| std::array::from_fn(|i| a[i] * b[i] + sum[i]),
    |a: [f32; 4], b: [f32; 4]| std::array::from_fn(|i| a[i] + b[i])
);
