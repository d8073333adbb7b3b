//! Matrix products on the tiles of AMX (Intel, from Sapphire Rapids on): bf16 factors, f32 sums.
//!
//! An f32 value is the sum of three bf16 values, exactly, and a weight in bf16 or in 8-bit integers is one: its product with f32 values is three
//! products of tiles. Results are as exact as those of fused f32 operations, in another order; an element's order depends on the inner
//! dimension alone.
//!
//! NF4's values are f32, and f32 with f32 would take six products, which gains too little beside AVX-512. There both factors are two bf16 values
//! each, rounded to the nearest, so that a value is off by 2^-18 at most, and the product of the two second ones is left out: three products
//! again. A result is off by 3 · 2^-18 (1.1e-5) of the sum of the magnitudes of its products at most (4e-6 in tests); NF4 itself rounds
//! weights to 1e-1. Weights in f32 and f16 do not use tiles.
//!
//! # Differs
//! Tiles take denormal values as 0, a second or third bf16 value too: below 3e-33 low bits are lost. An infinite weight times a value that bf16
//! does not hold exactly gives NaN. With NF4, an infinite value on either side gives an infinity or NaN, and finite values from 2^127 on are
//! off by 2^-16.

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod pack;
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod product;
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod tiles;

use super::gemm::Start;
use super::matrix::{Matrix, MatrixMut};
use super::nf4::Nf4Rows;
use super::output::{Place, filled_chunks, write};
use half::bf16;
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
use product::product;
use rayon::prelude::*;

/// Lines of a factor: rows of A (f32), or columns of B. The sizes are lines, then values of each.
#[derive(Clone, Copy)]
pub enum Lines<'a> {
    /// `[lines, depth]`.
    F32(Matrix<'a>),
    /// Values of a line are neighbours.
    Bf16(&'a [bf16], usize, usize),
    /// Values of lines are neighbours: `[depth, lines]`.
    Bf16Across(&'a [bf16], usize, usize),
    /// Values of a line are neighbours.
    Int8(&'a [i8], usize, usize),
    /// Values of lines are neighbours: `[depth, lines]`.
    Int8Across(&'a [i8], usize, usize),
    /// Rows of a weight.
    Nf4(Nf4Rows<'a>),
    /// Columns of a weight.
    Nf4Across(Nf4Rows<'a>),
}

impl Lines<'_> {
    /// Lines, values of each.
    pub fn sizes(&self) -> (usize, usize) {
        match *self {
            Self::F32(matrix) => (matrix.rows, matrix.columns),
            Self::Bf16(_, lines, depth)
            | Self::Bf16Across(_, lines, depth)
            | Self::Int8(_, lines, depth)
            | Self::Int8Across(_, lines, depth) => (lines, depth),
            Self::Nf4(rows) => rows.sizes(),
            Self::Nf4Across(rows) => {
                let (depth, lines) = rows.sizes();
                (lines, depth)
            }
        }
    }

    /// bf16 values (planes) of a value of A, and of one of B, where B has these lines. Three hold the 24 bits of f32, two are rounded.
    #[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
    fn planes(&self) -> [usize; 2] {
        match self {
            Self::Bf16(..) | Self::Bf16Across(..) | Self::Int8(..) | Self::Int8Across(..) => [3, 1],
            Self::Nf4(_) | Self::Nf4Across(_) => [2, 2],
            Self::F32(_) => unreachable!("the right factor is a weight in few bits"),
        }
    }
}

/// The right factor of a product: its lines are not f32.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    /// Columns of B.
    pub lines: Lines<'a>,
    /// What each column is multiplied with.
    pub column_scales: Option<&'a [f32]>,
    /// What each row is multiplied with.
    pub row_scales: Option<&'a [f32]>,
}

impl<'a> Right<'a> {
    /// Without scales.
    pub fn new(lines: Lines<'a>) -> Self {
        Self { lines, column_scales: None, row_scales: None }
    }

    /// `C = start + A B` on all threads. a `[m, k]`, b `[k, n]`, c `[m, n]`.
    ///
    /// # Safety
    /// With [`Start::Keep`], C has values.
    ///
    /// # Panics
    /// Where AMX is not [`available`]; if the sizes do not fit.
    pub unsafe fn product<'c>(self, a: Matrix, mut c: MatrixMut<'c, Place>, start: Start) -> MatrixMut<'c> {
        assert!(available(), "a machine with AMX");
        let Some(scales) = self.row_scales else {
            // SAFETY: passed on; all of C is written.
            unsafe {
                product(a, self, c.reborrow(), start);
                return c.assume_written();
            }
        };
        // The scales go to A's columns.
        assert_eq!(scales.len(), a.columns, "scales of the rows");
        let chunk = a.columns.max(1);
        let scaled = filled_chunks(a.rows * a.columns, chunk, (0..a.rows).into_par_iter(), |row, to| {
            write(to, a.row(row).iter().zip(scales).map(|(value, scale)| value * scale))
        });
        let right = Self { row_scales: None, ..self };
        // SAFETY: passed on.
        unsafe { right.product(Matrix::new(&scaled, a.rows, a.columns), c, start) }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
unsafe fn product(_: Matrix, _: Right, _: MatrixMut<Place>, _: Start) {
    unreachable!("see available");
}

/// Whether the machine and the system have AMX with bf16; asks the system for it. Not with `LLAVA_CPU_AMX=0`.
pub fn available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
    {
        static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *FOUND.get_or_init(|| crate::device::may_use_amx() && has_tiles() && permitted())
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
    false
}

/// What the processor says, leaf 7: AMX with bf16 (bit 22) and tiles (bit 24).
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid_count, __get_cpuid_max};
    const BITS: u32 = 1 << 22 | 1 << 24;
    let avx512 = super::simd::isa() == super::simd::Isa::Avx512;
    avx512 && __get_cpuid_max(0).0 >= 7 && __cpuid_count(7, 0).edx & BITS == BITS
}

/// Linux gives the tiles' registers (18) to a process that asks (`ARCH_REQ_XCOMP_PERM`), for all its threads.
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    // SAFETY: the call takes two integers and changes nothing but what the process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, 18 as libc::c_long) == 0 }
}

#[cfg(test)]
mod tests;
