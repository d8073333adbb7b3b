//! f32 values as sums of bf16 values (planes), in the order in which tiles hold them.

use super::Lines;
use super::tiles::{DEPTH, LINES, PAIRS};
use crate::cpu::matrix::Matrix;
use crate::cpu::nf4::Nf4Rows;
use crate::nf4::VALUES;
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// How a tile holds its lines.
#[derive(Clone, Copy, PartialEq)]
pub enum Side {
    /// Line by line.
    A,
    /// Pair by pair of values, each of all lines.
    B,
}

/// Some of the lines, from `first` on, and of these the values `inner`, as tiles: [`PAIRS`] pairs a plane and step; zeros fill up.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn pack(from: Lines, planes: usize, first: usize, inner: Range<usize>, side: Side, strip: &mut [u32]) {
    let (lines, depth) = from.sizes();
    let count = LINES.min(lines - first);
    assert!(inner.end <= depth && strip.len() == inner.len().div_ceil(DEPTH) * planes * PAIRS);
    for (step, tiles) in strip.chunks_exact_mut(planes * PAIRS).enumerate() {
        let k = inner.start + step * DEPTH;
        let here = DEPTH.min(inner.end - k);
        // The `here` values of a line from k on.
        let range = |line: usize| (first + line) * depth + k..(first + line) * depth + k + here;
        match from {
            Lines::F32(matrix) => {
                let block = matrix.block(first..first + count, k..k + here);
                match planes {
                    2 => pack_block::<2>(block, side, tiles),
                    _ => pack_block::<3>(block, side, tiles),
                }
            }
            Lines::Bf16(values, ..) => along::<1>(count, side, tiles, |line| load_bf16(&values[range(line)])),
            Lines::Bf16Across(values, ..) => {
                across::<1>(here, side, tiles, |row| load_bf16(&values[(k + row) * lines + first..][..count])[0])
            }
            Lines::Int8(codes, ..) => along::<1>(count, side, tiles, |line| load_int8(&codes[range(line)])),
            Lines::Int8Across(codes, ..) => {
                across::<1>(here, side, tiles, |row| load_int8(&codes[(k + row) * lines + first..][..count])[0])
            }
            Lines::Nf4(rows) => along::<2>(count, side, tiles, |line| load_nf4(&rows, first + line, k..k + here)),
            Lines::Nf4Across(rows) => {
                across::<2>(here, side, tiles, |row| load_nf4(&rows, k + row, first..first + count)[0])
            }
        }
    }
}

/// The lines are the rows of a block.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn pack_block<const PLANES: usize>(block: Matrix, side: Side, tiles: &mut [u32]) {
    if block.column_stride == 1 {
        return along::<PLANES>(block.rows, side, tiles, |line| load_f32(block.row(line)));
    }
    let values = block.transposed();
    across::<PLANES>(values.rows, side, tiles, |k| load_f32(values.row(k))[0]);
}

/// The first `count` of 32 lanes in two halves.
fn lanes(count: usize) -> (__mmask16, __mmask16) {
    let mask = if count >= DEPTH { u32::MAX } else { (1 << count) - 1 };
    (mask as u16, (mask >> 16) as u16)
}

/// Up to 32 values in two vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn load_f32(from: &[f32]) -> [__m512; 2] {
    let ((low, high), from) = (lanes(from.len()), from.as_ptr());
    // SAFETY: masked lanes are not read.
    unsafe { [_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from.wrapping_add(LINES))] }
}

/// Up to 32 values in two vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn load_bf16(from: &[bf16]) -> [__m512; 2] {
    let ((low, high), from) = (lanes(from.len()), from.as_ptr());
    let widen = |halves| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)));
    // SAFETY: masked lanes are not read.
    unsafe {
        [
            widen(_mm256_maskz_loadu_epi16(low, from.cast())),
            widen(_mm256_maskz_loadu_epi16(high, from.wrapping_add(LINES).cast())),
        ]
    }
}

/// Up to 32 values in two vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn load_int8(from: &[i8]) -> [__m512; 2] {
    let ((low, high), from) = (lanes(from.len()), from.as_ptr());
    let widen = |codes| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
    // SAFETY: masked lanes are not read.
    unsafe { [widen(_mm_maskz_loadu_epi8(low, from)), widen(_mm_maskz_loadu_epi8(high, from.wrapping_add(LINES)))] }
}

/// Up to 32 values of a row in two vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn load_nf4(from: &Nf4Rows, row: usize, columns: Range<usize>) -> [__m512; 2] {
    let len = columns.len();
    let Some((codes, absmax)) = from.codes(row, columns.clone()) else {
        let mut values = [0.0; DEPTH];
        values.iter_mut().zip(from.values(row, columns)).for_each(|(to, value)| *to = value);
        return load_f32(&values[..len]);
    };
    let (low, high) = lanes(len);
    let (bytes, _) = lanes(codes.len());
    // Two codes a byte, the first in the high half; of an index only the low four bits count.
    let shifts = _mm512_set1_epi64(4);
    let widen = |codes: __m128i, lanes: __mmask16| {
        let twice = _mm512_shuffle_epi32::<0b10_10_00_00>(_mm512_cvtepu8_epi64(codes));
        // SAFETY: sixteen values are there.
        let values = unsafe { _mm512_loadu_ps(VALUES.as_ptr()) };
        let values = _mm512_permutexvar_ps(_mm512_srlv_epi32(twice, shifts), values);
        _mm512_maskz_mul_ps(lanes, values, _mm512_set1_ps(absmax))
    };
    // SAFETY: masked bytes are not read.
    let codes = unsafe { _mm_maskz_loadu_epi8(bytes, codes.as_ptr().cast()) };
    [widen(codes, low), widen(_mm_unpackhi_epi64(codes, codes), high)]
}

/// Lines whose values are neighbours: `load` gives 32 of a line.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn along<const PLANES: usize>(count: usize, side: Side, tiles: &mut [u32], load: impl Fn(usize) -> [__m512; 2]) {
    let mut planes = [[_mm512_setzero_si512(); LINES]; PLANES];
    for line in 0..count {
        let [low, high] = load(line);
        let (low, high) = (split::<PLANES>(low), split::<PLANES>(high));
        for (plane, (low, high)) in planes.iter_mut().zip(low.into_iter().zip(high)) {
            plane[line] = high_halves([low, high]);
        }
    }
    write(planes, side == Side::B, tiles);
}

/// Lines side by side: `load` gives a value of each, one of `depth`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn across<const PLANES: usize>(depth: usize, side: Side, tiles: &mut [u32], load: impl Fn(usize) -> __m512) {
    let mut planes = [[_mm512_setzero_si512(); LINES]; PLANES];
    let row = |k: usize| if k < depth { load(k) } else { _mm512_setzero_ps() };
    for pair in 0..DEPTH / 2 {
        let (even, odd) = (split::<PLANES>(row(2 * pair)), split::<PLANES>(row(2 * pair + 1)));
        for (plane, (even, odd)) in planes.iter_mut().zip(even.into_iter().zip(odd)) {
            plane[pair] = _mm512_mask_blend_epi16(0xAAAA_AAAA, _mm512_srli_epi32::<16>(even), odd);
        }
    }
    write(planes, side == Side::A, tiles);
}

/// The planes of sixteen values, in the high halves: of two each is rounded to the nearest, other numbers hold all bits that there are.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn split<const PLANES: usize>(values: __m512) -> [__m512i; PLANES] {
    let nudge = if PLANES == 2 { half_of_a_step(values) } else { _mm512_setzero_si512() };
    let mut planes = [_mm512_setzero_si512(); PLANES];
    let mut left = values;
    for plane in &mut planes {
        *plane = _mm512_add_epi32(_mm512_castps_si512(left), nudge);
        left = rest(left, *plane);
    }
    planes
}

/// What is added to the bits of a value before its low half is cut off, so that it is rounded to the nearest. From 2^127 on nothing: f32's
/// largest values would become infinite, and NaN another value.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn half_of_a_step(values: __m512) -> __m512i {
    const LARGE: f32 = f32::from_bits(0x7F00_0000);
    let rounded = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(values), _mm512_set1_ps(LARGE));
    _mm512_maskz_set1_epi32(rounded, 0x8000)
}

/// The high halves of 32 values, one after another.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn high_halves([low, high]: [__m512i; 2]) -> __m512i {
    let order: [u16; 32] = std::array::from_fn(|word| 2 * word as u16 + 1);
    // SAFETY: 64 bytes are 64 bytes.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    _mm512_permutex2var_epi16(low, order, high)
}

/// What the high halves of a plane leave of the values, exactly; of an infinity nothing, and NaN of NaN.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn rest(values: __m512, plane: __m512i) -> __m512 {
    let high = _mm512_castsi512_ps(_mm512_and_si512(plane, _mm512_set1_epi32(0xFFFF_0000u32 as i32)));
    let infinite = _mm512_fpclass_ps_mask::<0x18>(values);
    _mm512_maskz_sub_ps(!infinite, values, high)
}

/// Writes a tile for each plane, transposed if wanted.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn write<const PLANES: usize>(planes: [[__m512i; LINES]; PLANES], transposed: bool, tiles: &mut [u32]) {
    for (rows, tile) in planes.into_iter().zip(tiles.chunks_exact_mut(PAIRS)) {
        let rows = if transposed { transpose(rows) } else { rows };
        for (row, to) in rows.into_iter().zip(tile.chunks_exact_mut(LINES)) {
            // SAFETY: a row has sixteen pairs.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), row) };
        }
    }
}

/// Rows and columns exchanged.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[inline]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = rows;
    for i in (0..16).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // Four rows of a column in each quarter: column 4q + j of rows 4g… is quarter q of fours[4g + j].
    let mut fours = pairs;
    for i in (0..16).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = fours;
    for j in 0..4 {
        let (a, b, c, d) = (fours[j], fours[4 + j], fours[8 + j], fours[12 + j]);
        let (ab_even, ab_odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b));
        let (cd_even, cd_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xDD>(c, d));
        columns[j] = _mm512_shuffle_i32x4::<0x88>(ab_even, cd_even);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xDD>(ab_even, cd_even);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_odd, cd_odd);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xDD>(ab_odd, cd_odd);
    }
    columns
}
