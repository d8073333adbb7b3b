//! Pillow's bicubic resize, bit for bit, restricted to the window that the centre crop keeps.
//!
//! Pillow resizes a `u8` image in two passes, horizontal then vertical, with coefficients in 22-bit fixed point and rounding
//! to `u8` between the passes. Every output pixel depends on its own coefficients alone, so leaving out what the crop
//! discards changes no bit, and keeps an image of 1000×1 pixels (336,000 wide once resized) as cheap as any other.

use super::geometry::AxisWindow;

/// Fixed-point bits of a coefficient: 32, less 8 for the sample and 2 for overshoot.
const PRECISION_BITS: u32 = 32 - 8 - 2;
/// Half a unit, so that the final shift rounds.
const ROUND: i32 = 1 << (PRECISION_BITS - 1);
/// Source rows handled together by the horizontal pass: one or two vectors of `i32`.
const STRIP: usize = 16;
/// Columns handled together by the vertical pass.
const TILE: usize = 32;

/// Buffers and coefficients that survive from one image to the next.
#[derive(Default)]
pub struct Resizer {
    columns: AxisTaps,
    rows: AxisTaps,
    strip: Vec<u8>,
    /// The horizontal pass's result, planes `[channels, needed rows, width of the window]`.
    narrow: Vec<u8>,
}

/// Which source samples an output sample is made of, for every output sample of a window.
#[derive(Default)]
struct AxisTaps {
    key: Option<(usize, usize, usize, usize)>,
    /// First source sample and its first coefficient, per output sample; one more entry closes the last range.
    first: Vec<usize>,
    offset: Vec<usize>,
    coefficients: Vec<i32>,
}

/// An image of 8-bit samples, channels interleaved.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// `[height, width, channels]`.
    pub samples: &'a [u8],
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// 1 or 3.
    pub channels: usize,
}

impl Resizer {
    /// Resizes and writes the window `columns` × `rows` of the result into `planes`.
    ///
    /// # Shapes  (S crop size)
    /// - `planes`: u8 `[channels, S, S]`; what lies outside the windows is left as it is.
    /// # Source
    /// Pillow `Resample.c`, `ImagingResample` with the bicubic filter.
    pub fn resize(
        &mut self,
        source: Source,
        columns: AxisWindow,
        rows: AxisWindow,
        crop_size: usize,
        planes: &mut [u8],
    ) {
        self.columns.prepare(source.width, columns);
        self.rows.prepare(source.height, rows);
        self.horizontal(source);
        let first_row = self.rows.first[0];
        let needed_rows = self.rows.end() - first_row;
        for channel in 0..source.channels {
            let narrow = &self.narrow[channel * needed_rows * columns.len..][..needed_rows * columns.len];
            let plane = &mut planes[channel * crop_size * crop_size..][..crop_size * crop_size];
            for row in 0..rows.len {
                let (first, coefficients) = self.rows.taps(row);
                let taps = &narrow[(first - first_row) * columns.len..][..coefficients.len() * columns.len];
                let out = &mut plane[(rows.pad + row) * crop_size + columns.pad..][..columns.len];
                vertical_row(taps, columns.len, coefficients, out);
            }
        }
    }

    /// The horizontal pass over the rows that the vertical one will need.
    fn horizontal(&mut self, source: Source) {
        let Source { channels, .. } = source;
        let (first_row, end_row) = (self.rows.first[0], self.rows.end());
        let (first_column, end_column) = (self.columns.first[0], self.columns.end());
        let needed_rows = end_row - first_row;
        let width = self.columns.first.len();
        self.narrow.resize(channels * needed_rows * width, 0);
        self.strip.resize((end_column - first_column) * channels * STRIP, 0);
        let stride = source.width * channels;
        for top in (first_row..end_row).step_by(STRIP) {
            let height = STRIP.min(end_row - top);
            let begin = top * stride + first_column * channels;
            let row_bytes = (end_column - first_column) * channels;
            // Rows missing in the last strip repeat stale data: their results are not written.
            transpose_strip(&source.samples[begin..], stride, height, row_bytes, &mut self.strip);
            for channel in 0..channels {
                let plane = &mut self.narrow[channel * needed_rows * width..][..needed_rows * width];
                let rows = &mut plane[(top - first_row) * width..][..height * width];
                for left in (0..width).step_by(STRIP) {
                    let columns = STRIP.min(width - left);
                    let mut block = [[0u8; STRIP]; STRIP];
                    let strip = &self.strip[channel * STRIP..];
                    strip_columns(strip, channels, &self.columns, left, &mut block[..columns]);
                    for (row, line) in transposed(block)[..height].iter().enumerate() {
                        rows[row * width + left..][..columns].copy_from_slice(&line[..columns]);
                    }
                }
            }
        }
    }

    /// Gives memory back after an unusually large image.
    pub fn shrink(&mut self, bytes: usize) {
        if self.strip.capacity() + self.narrow.capacity() > bytes {
            (self.strip, self.narrow) = (Vec::new(), Vec::new());
        }
    }
}

impl AxisTaps {
    /// Computes the coefficients of a window, unless they are the ones of the image before.
    ///
    /// # Source
    /// Pillow `Resample.c`, `precompute_coeffs` and `normalize_coeffs_8bpc`; the order of operations is theirs, in f64.
    fn prepare(&mut self, source_len: usize, window: AxisWindow) {
        let key = Some((source_len, window.resized, window.start, window.len));
        if self.key == key {
            return;
        }
        self.key = key;
        self.first.clear();
        self.offset.clear();
        self.coefficients.clear();
        // Pillow hands the box over as C floats.
        let scale = f64::from(source_len as f32) / window.resized as f64;
        let filter_scale = scale.max(1.0);
        let support = 2.0 * filter_scale;
        let inverse = 1.0 / filter_scale;
        let mut weights = Vec::with_capacity(2 * support.ceil() as usize + 1);
        for out in window.start..window.start + window.len {
            let center = (out as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(source_len);
            weights.clear();
            weights.extend((first..end).map(|sample| bicubic((sample as f64 - center + 0.5) * inverse)));
            let mut total = 0.0;
            weights.iter().for_each(|weight| total += weight);
            self.first.push(first);
            self.offset.push(self.coefficients.len());
            self.coefficients.extend(weights.iter().map(|&weight| fixed_point(weight, total)));
        }
        self.offset.push(self.coefficients.len());
    }

    /// First source sample and coefficients of output sample `index` of the window.
    fn taps(&self, index: usize) -> (usize, &[i32]) {
        (self.first[index], &self.coefficients[self.offset[index]..self.offset[index + 1]])
    }

    /// One past the last source sample that the window needs.
    fn end(&self) -> usize {
        let last = self.first.len() - 1;
        self.first[last] + self.offset[last + 1] - self.offset[last]
    }
}

/// The bicubic kernel with a = −0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Normalises by the sum and rounds half away from zero, as C's `(int)(±0.5 + x)` does.
fn fixed_point(weight: f64, total: f64) -> i32 {
    let normalized = if total == 0.0 { weight } else { weight / total };
    let scaled = normalized * f64::from(1 << PRECISION_BITS);
    if normalized < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
}

/// Rounds fixed-point sums to samples.
#[inline(always)]
fn clip_all(sums: &[i32], out: &mut [u8]) {
    for (out, &sum) in out.iter_mut().zip(sums) {
        *out = (sum >> PRECISION_BITS).clamp(0, 255) as u8;
    }
}

/// Copies up to [`STRIP`] rows so that the rows of one column lie side by side: `strip[column][row]`.
fn transpose_strip(samples: &[u8], stride: usize, height: usize, row_bytes: usize, strip: &mut [u8]) {
    for left in (0..row_bytes).step_by(STRIP) {
        let columns = STRIP.min(row_bytes - left);
        let mut block = [[0u8; STRIP]; STRIP];
        for (row, line) in block[..height].iter_mut().enumerate() {
            let samples = &samples[row * stride + left..];
            match samples.first_chunk() {
                Some(samples) if columns == STRIP => *line = *samples,
                _ => line[..columns].copy_from_slice(&samples[..columns]),
            }
        }
        let block = transposed(block);
        strip[left * STRIP..][..columns * STRIP].copy_from_slice(block[..columns].as_flattened());
    }
}

/// The transpose of a block: interleaving the lines of its halves four times.
#[inline]
fn transposed(mut block: [[u8; STRIP]; STRIP]) -> [[u8; STRIP]; STRIP] {
    for _ in 0..STRIP.ilog2() {
        let mut next = [[0; STRIP]; STRIP];
        for line in 0..STRIP / 2 {
            [next[2 * line], next[2 * line + 1]] = interleaved(block[line], block[line + STRIP / 2]);
        }
        block = next;
    }
    block
}

/// `a0 b0 a1 b1 …`, in two halves.
#[cfg(target_arch = "x86_64")]
#[inline]
fn interleaved(a: [u8; STRIP], b: [u8; STRIP]) -> [[u8; STRIP]; 2] {
    use std::arch::x86_64::{__m128i, _mm_unpackhi_epi8, _mm_unpacklo_epi8};
    // SAFETY: every bit pattern is valid for both types, of equal size; SSE2 is a part of x86_64.
    unsafe {
        let a = std::mem::transmute::<[u8; 16], __m128i>(a);
        let b = std::mem::transmute::<[u8; 16], __m128i>(b);
        std::mem::transmute([_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)])
    }
}

/// `a0 b0 a1 b1 …`, in two halves.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn interleaved(a: [u8; STRIP], b: [u8; STRIP]) -> [[u8; STRIP]; 2] {
    let both: [u8; 2 * STRIP] = std::array::from_fn(|i| if i % 2 == 0 { a[i / 2] } else { b[i / 2] });
    let (low, high) = both.split_at(STRIP);
    [low.try_into().unwrap_or([0; STRIP]), high.try_into().unwrap_or([0; STRIP])]
}

/// Defines `$name`, which runs `$generic` compiled for AVX2 where the processor has it.
macro_rules! vectorized {
    ($name:ident, $wide:ident, $generic:ident, ($($arg:ident: $type:ty),*)) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2")]
        fn $wide($($arg: $type),*) {
            $generic($($arg),*)
        }

        #[inline]
        fn $name($($arg: $type),*) {
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2, the only requirement of the function.
                return unsafe { $wide($($arg),*) };
            }
            $generic($($arg),*)
        }
    };
}

/// Output columns from `left` on of the horizontal pass, for [`STRIP`] rows and one channel of `step`.
#[inline(always)]
fn strip_columns_generic(strip: &[u8], step: usize, axis: &AxisTaps, left: usize, out: &mut [[u8; STRIP]]) {
    for (column, out) in out.iter_mut().enumerate() {
        let (first, coefficients) = axis.taps(left + column);
        let taps = strip[(first - axis.first[0]) * step * STRIP..].chunks(step * STRIP);
        let mut sums = [ROUND; STRIP];
        for (column, &coefficient) in taps.zip(coefficients) {
            let Some(column) = column.first_chunk::<STRIP>() else { break };
            for (sum, &sample) in sums.iter_mut().zip(column) {
                *sum += i32::from(sample) * coefficient;
            }
        }
        clip_all(&sums, out);
    }
}

/// One output row of the vertical pass; `taps` holds one source row after the other.
#[inline(always)]
fn vertical_row_generic(taps: &[u8], width: usize, coefficients: &[i32], out: &mut [u8]) {
    let tiles = out.chunks_exact_mut(TILE);
    for (tile, out) in tiles.enumerate() {
        vertical_tile::<TILE>(&taps[tile * TILE..], width, coefficients, out);
    }
    for column in width / TILE * TILE..width {
        vertical_tile::<1>(&taps[column..], width, coefficients, &mut out[column..=column]);
    }
}

#[inline(always)]
fn vertical_tile<const N: usize>(taps: &[u8], width: usize, coefficients: &[i32], out: &mut [u8]) {
    let mut sums = [ROUND; N];
    for (tap, &coefficient) in coefficients.iter().enumerate() {
        let Some(line) = taps[tap * width..].first_chunk::<N>() else { break };
        for (sum, &sample) in sums.iter_mut().zip(line) {
            *sum += i32::from(sample) * coefficient;
        }
    }
    clip_all(&sums, out);
}

vectorized!(strip_columns, strip_columns_avx2, strip_columns_generic,
    (strip: &[u8], step: usize, axis: &AxisTaps, left: usize, out: &mut [[u8; STRIP]]));
vectorized!(vertical_row, vertical_row_avx2, vertical_row_generic,
    (taps: &[u8], width: usize, coefficients: &[i32], out: &mut [u8]));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_of_every_output_sum_to_one() {
        let mut taps = AxisTaps::default();
        for (source, resized) in [(224, 336), (640, 336), (1, 336), (5000, 7), (336, 336)] {
            taps.prepare(source, AxisWindow { resized, start: 0, len: resized, pad: 0 });
            for index in 0..resized {
                let (first, coefficients) = taps.taps(index);
                let sum: i64 = coefficients.iter().map(|&c| i64::from(c)).sum();
                let deviation = (sum - (1 << PRECISION_BITS)).unsigned_abs() as usize;
                assert!(deviation <= coefficients.len(), "{source} -> {resized}, output {index}: off by {deviation}");
                assert!(first + coefficients.len() <= source);
            }
        }
    }

    #[test]
    fn a_window_equals_the_same_part_of_the_whole() {
        let (width, height, crop) = (50, 41, 30);
        let samples: Vec<u8> = (0..width * height * 3).map(|i| (i * 7919 % 251) as u8).collect();
        let source = Source { samples: &samples, width, height, channels: 3 };
        let whole = |len| AxisWindow { resized: len, start: 0, len, pad: 0 };
        let mut all = vec![0; 3 * 60 * 60];
        Resizer::default().resize(source, whole(60), whole(60), 60, &mut all);
        let mut part = vec![0; 3 * crop * crop];
        let window = |start| AxisWindow { resized: 60, start, len: crop, pad: 0 };
        Resizer::default().resize(source, window(17), window(3), crop, &mut part);
        for (channel, plane) in part.chunks_exact(crop * crop).enumerate() {
            for (row, line) in plane.chunks_exact(crop).enumerate() {
                let begin = channel * 3600 + (row + 3) * 60 + 17;
                assert_eq!(line, &all[begin..begin + crop], "channel {channel}, row {row}");
            }
        }
    }

    #[test]
    fn resizing_to_the_same_size_changes_nothing() {
        let samples: Vec<u8> = (0..20 * 20).map(|i| (i * 31 % 256) as u8).collect();
        let window = AxisWindow { resized: 20, start: 0, len: 20, pad: 0 };
        let mut out = vec![0; 400];
        let source = Source { samples: &samples, width: 20, height: 20, channels: 1 };
        Resizer::default().resize(source, window, window, 20, &mut out);
        assert_eq!(out, samples);
    }
}
