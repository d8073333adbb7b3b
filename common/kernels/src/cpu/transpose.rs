//! Transposing copies: how a factor of a product that lies the wrong way round is put in order.

use super::matrix::Matrix;
use super::simd::{Isa, isa};

/// Rows and columns of a block that is transposed in registers.
const BLOCK: usize = 8;

/// `to[column · stride + row] = from[row, column]`; what else is in `to` stays.
///
/// # Panics
/// If `to` is too short or `stride` is less than the rows of `from`.
pub fn transpose(from: Matrix, to: &mut [f32], stride: usize) {
    transpose_with(isa(), from, to, stride);
}

fn transpose_with(isa: Isa, from: Matrix, to: &mut [f32], stride: usize) {
    let (rows, columns) = (from.rows, from.columns);
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(rows <= stride && (columns - 1) * stride + rows <= to.len(), "room for {columns} × {rows} values");
    // Block by block, so that source and destination stay in the cache.
    for row in (0..rows).step_by(BLOCK) {
        for column in (0..columns).step_by(BLOCK) {
            let block = from.block(row..rows.min(row + BLOCK), column..columns.min(column + BLOCK));
            let to = &mut to[column * stride + row..];
            #[cfg(target_arch = "x86_64")]
            if isa >= Isa::Avx2 && block.column_stride == 1 && (block.rows, block.columns) == (BLOCK, BLOCK) {
                // SAFETY: eight rows of eight values are there, and room for them, by the assertion above; AVX2 was detected.
                unsafe { avx2_block(block.as_ptr(), block.row_stride, to.as_mut_ptr(), stride) };
                continue;
            }
            for column in 0..block.columns {
                for (row, to) in to[column * stride..][..block.rows].iter_mut().enumerate() {
                    *to = block.at(row, column);
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
}

/// Eight rows of eight values, `from_stride` apart, become eight rows `to_stride` apart.
///
/// # Safety
/// All of them can be read and written, and the machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2_block(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller vouches for the addresses.
    let rows: [__m256; BLOCK] = std::array::from_fn(|row| unsafe { _mm256_loadu_ps(from.add(row * from_stride)) });
    // Pairs of values, then fours, then halves of vectors change places.
    let pairs = |i: usize| {
        let (a, b) = (rows[2 * i], rows[2 * i + 1]);
        (_mm256_castps_pd(_mm256_unpacklo_ps(a, b)), _mm256_castps_pd(_mm256_unpackhi_ps(a, b)))
    };
    let fours = |(a_low, a_high): (__m256d, __m256d), (b_low, b_high): (__m256d, __m256d)| {
        [
            _mm256_unpacklo_pd(a_low, b_low),
            _mm256_unpackhi_pd(a_low, b_low),
            _mm256_unpacklo_pd(a_high, b_high),
            _mm256_unpackhi_pd(a_high, b_high),
        ]
    };
    let (upper, lower) = (fours(pairs(0), pairs(1)), fours(pairs(2), pairs(3)));
    for i in 0..4 {
        let first = _mm256_castpd_ps(_mm256_permute2f128_pd::<0x20>(upper[i], lower[i]));
        let second = _mm256_castpd_ps(_mm256_permute2f128_pd::<0x31>(upper[i], lower[i]));
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(to.add(i * to_stride), first);
            _mm256_storeu_ps(to.add((i + 4) * to_stride), second);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_puts_every_value_in_its_place() {
        for (rows, columns, row_stride) in
            [(1, 1, 1), (8, 8, 8), (7, 9, 9), (9, 7, 12), (16, 384, 400), (35, 64, 64), (3, 0, 4)]
        {
            let data: Vec<f32> = (0..rows * row_stride).map(|value| value as f32).collect();
            let from = Matrix::new(&data, rows, row_stride).block(0..rows, 0..columns);
            for isa in [Isa::Base, isa()] {
                let stride = rows + 3;
                let mut to = vec![-1.0; columns * stride];
                transpose_with(isa, from, &mut to, stride);
                for (index, &value) in to.iter().enumerate() {
                    let (column, row) = (index / stride, index % stride);
                    let expected = if row < rows { (row * row_stride + column) as f32 } else { -1.0 };
                    assert_eq!(value, expected, "{isa:?}, {rows} × {columns}: row {row}, column {column}");
                }
            }
        }
    }

    #[test]
    fn a_matrix_that_is_a_transpose_itself_is_copied() {
        let data: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let mut to = vec![0.0; 12];
        transpose(Matrix::new(&data, 3, 4).transposed(), &mut to, 4);
        assert_eq!(to, data);
    }
}
