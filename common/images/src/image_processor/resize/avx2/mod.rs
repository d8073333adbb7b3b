//! The passes with AVX2: sixteen outputs at a time, in 16-bit numbers but for the low halves of products.
//!
//! A coefficient is `high · 2¹⁶ + low`. High parts are below 128, so that one instruction multiplies them with samples as they
//! are, two taps of sixteen outputs; low parts take a vector of even and one of odd outputs, of 32 bits each. Whatever is
//! below 2¹⁶ of the sum of low products cannot change the result, so that their upper halves are all that is added.

mod columns;
mod rows;
mod runs;

use super::portable;
use super::taps::{AxisKey, AxisTaps, PRECISION_BITS};
use super::{Kernels, WIDTH};
use columns::Columns;
use rows::Rows;
use runs::Runs;
use std::arch::x86_64::*;

/// Bits of a coefficient's low part.
const LOW_BITS: u32 = 16;
/// What a shuffle makes zero.
const NOTHING: u8 = 0x80;

/// Coefficients as vectors take them.
#[derive(Default)]
pub(super) struct Tables {
    keys: [AxisKey; 2],
    /// Outputs are so near to each other that `columns` holds them, else `runs` does.
    near: bool,
    columns: Columns,
    runs: Runs,
    rows: Rows,
}

/// Tables on a processor that has AVX2.
pub(super) struct Avx2<'a>(&'a Tables);

/// Two taps: the first's high and low part below the second's, which are zero if there is none.
#[derive(Clone, Copy)]
struct Pair {
    /// Two bytes.
    high: i16,
    /// Two 16-bit numbers.
    low: i32,
}

impl Tables {
    /// Tables of these axes. `None` if the processor lacks AVX2.
    pub(super) fn prepare(&mut self, columns: &AxisTaps, rows: &AxisTaps) -> Option<Avx2<'_>> {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return None;
        }
        let keys = [columns.key(), rows.key()];
        if self.keys[0] != keys[0] {
            self.near = self.columns.fill(columns);
            if !self.near {
                self.runs.fill(columns);
            }
        }
        if self.keys[1] != keys[1] {
            self.rows.fill(rows);
        }
        self.keys = keys;
        Some(Avx2(self))
    }
}

/// High and low part of a coefficient.
///
/// Weights sum to one, 64 in high parts, and the kernel's negative lobes are small: two high parts, each times 255, fit into
/// the 16 bits of their sum.
fn parts(coefficient: i32) -> (i8, i16) {
    let high = (coefficient + (1 << (LOW_BITS - 1))) >> LOW_BITS;
    (high as i8, (coefficient - (high << LOW_BITS)) as i16)
}

impl Pair {
    fn new(taps: &[i32]) -> Self {
        let [(first_high, first_low), (second_high, second_low)] =
            [taps.first(), taps.get(1)].map(|tap| parts(tap.copied().unwrap_or(0)));
        let high = i16::from_le_bytes([first_high, second_high].map(i8::cast_unsigned));
        let packed = |low: i16, high: i16| i32::from(low) & 0xffff | i32::from(high) << 16;
        Self { high, low: packed(first_low, second_low) }
    }
}

/// Sums of products of sixteen outputs.
#[derive(Clone, Copy)]
struct Sums {
    /// 16 bits each.
    high: __m256i,
    /// 32 bits each: of every other output.
    even: __m256i,
    odd: __m256i,
}

impl Sums {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn zero() -> Self {
        let zero = _mm256_setzero_si256();
        Self { high: zero, even: zero, odd: zero }
    }

    /// Adds two samples of each output, beside each other, with their weights.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn add(&mut self, samples: __m256i, high: __m256i, even: __m256i, odd: __m256i) {
        const N: i8 = NOTHING as i8;
        let shuffle_even = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, N, 1, N, 4, N, 5, N, 8, N, 9, N, 12, N, 13, N));
        let shuffle_odd =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(2, N, 3, N, 6, N, 7, N, 10, N, 11, N, 14, N, 15, N));
        self.high = _mm256_add_epi16(self.high, _mm256_maddubs_epi16(samples, high));
        let product = _mm256_madd_epi16(_mm256_shuffle_epi8(samples, shuffle_even), even);
        self.even = _mm256_add_epi32(self.even, product);
        let product = _mm256_madd_epi16(_mm256_shuffle_epi8(samples, shuffle_odd), odd);
        self.odd = _mm256_add_epi32(self.odd, product);
    }

    /// The outputs before clamping, 16 bits each.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn rounded(self) -> __m256i {
        let low = _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<{ LOW_BITS as i32 }>(self.even), self.odd);
        // (x · 2⁹ + 2¹⁴) >> 15 is (x + 2⁵) >> 6: the shift by what is left of the precision, rounding.
        const SHIFT: u32 = PRECISION_BITS - LOW_BITS;
        _mm256_mulhrs_epi16(_mm256_add_epi16(self.high, low), _mm256_set1_epi16(1 << (15 - SHIFT)))
    }
}

impl Kernels for Avx2<'_> {
    fn reach(&self) -> usize {
        if self.0.near { self.0.columns.reach() } else { self.0.runs.reach() }
    }

    fn separate(&self, pixels: &[u8], planes: [&mut [u8]; 3]) {
        // SAFETY: the processor has AVX2, or there would be no `Avx2`.
        unsafe { separate(pixels, planes) }
    }

    fn horizontal(&self, samples: &[u8], out: &mut [u8]) {
        let Tables { near, columns, runs, .. } = self.0;
        // SAFETY: as above.
        unsafe { if *near { columns.weigh(samples, out) } else { runs.weigh(samples, out) } }
    }

    fn vertical(&self, index: usize, narrow: &[u8], stride: usize, out: &mut [u8]) {
        // SAFETY: as above.
        unsafe { self.0.rows.weigh(index, narrow, stride, out) }
    }
}

/// Sixteen pixels at a time: every third byte of three vectors, wherever it is, is blended into one and put in order.
#[target_feature(enable = "avx2")]
fn separate(pixels: &[u8], [red, green, blue]: [&mut [u8]; 3]) {
    let first = _mm_setr_epi8(-1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1);
    let second = _mm_setr_epi8(0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0, -1, 0, 0);
    // Byte `i` of the vectors `a`, `b` and `c` is of channel `i`, `i + 1` and `i + 2`, modulo 3.
    let order = [0, 1, 2].map(|channel| {
        let order: [u8; 16] = std::array::from_fn(|pixel| ((3 * pixel + channel) % 16) as u8);
        load(&order)
    });
    let blocks = pixels.as_chunks::<48>().0.iter();
    let planes =
        red.as_chunks_mut::<16>().0.iter_mut().zip(green.as_chunks_mut::<16>().0).zip(blue.as_chunks_mut::<16>().0);
    for (block, ((red, green), blue)) in blocks.zip(planes) {
        let [a, b, c] = [0, 1, 2].map(|part| load(block[16 * part..].first_chunk().unwrap_or(&[0; 16])));
        let blend = |x, y, z| _mm_blendv_epi8(_mm_blendv_epi8(z, y, second), x, first);
        let channels = [blend(a, c, b), blend(b, a, c), blend(c, b, a)];
        for ((out, channel), order) in [red, green, blue].into_iter().zip(channels).zip(order) {
            // SAFETY: writes sixteen bytes.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_shuffle_epi8(channel, order)) };
        }
    }
    let done = pixels.len() / 48;
    portable::separate(&pixels[48 * done..], [red, green, blue].map(|plane| &mut plane[16 * done..]));
}

/// Thirty-two bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn vector<T: Copy, const N: usize>(numbers: &[T; N]) -> __m256i {
    const { assert!(size_of::<[T; N]>() == WIDTH) };
    // SAFETY: reads the numbers.
    unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
}

/// Sixteen bytes.
#[target_feature(enable = "avx2")]
#[inline]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: reads the bytes.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(vector: __m256i, bytes: &mut [u8; WIDTH]) {
    // SAFETY: writes the bytes.
    unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) }
}
