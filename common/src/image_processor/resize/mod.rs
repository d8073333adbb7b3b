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
/// Bits of a coefficient's low part: 16-bit products of two taps are summed by one instruction.
const LOW_BITS: u32 = 15;
/// Outputs computed together: two vectors of `i32`.
const LANES: usize = 16;

/// Samples that are weighed alike, each in a lane, and the outputs.
type Bytes = [u8; LANES];
/// Such samples beside those that come after them: what two taps weigh. Which lane is where is the kernel's affair.
type Line = [[i16; 2]; LANES];

/// The coefficients of two taps, `high · 2¹⁵ + low`; zero for a second tap that is not there. Two 16-bit numbers each, the
/// first tap's the lower, as vectors take them.
#[derive(Clone, Copy)]
struct Pair {
    low: i32,
    high: i32,
}

/// Buffers and coefficients that survive from one image to the next.
#[derive(Default)]
pub struct Resizer {
    columns: AxisTaps,
    rows: AxisTaps,
    /// A strip of the source, transposed: a column of [`LANES`] rows each.
    strip: Vec<Bytes>,
    /// What a pass weighs: a line a column of [`LANES`] rows, or a line a row of [`LANES`] columns. Wide from the start, because
    /// each is weighed several times.
    lines: Vec<Line>,
    /// The horizontal pass's result, `[channels, blocks of columns, needed rows]`.
    narrow: Vec<Bytes>,
}

/// Which source samples an output sample is made of, for every output sample of a window.
#[derive(Default)]
struct AxisTaps {
    key: Option<(usize, usize, usize, usize)>,
    /// First source sample and its first coefficients, per output sample; one more entry closes the last range.
    first: Vec<usize>,
    offset: Vec<usize>,
    pairs: Vec<Pair>,
    /// One past the last source sample that the window needs.
    end: usize,
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
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { self.passes_avx2(source, columns, rows, crop_size, planes) };
        }
        self.passes(source, columns, rows, crop_size, planes, weigh, widen);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn passes_avx2(
        &mut self,
        source: Source,
        columns: AxisWindow,
        rows: AxisWindow,
        crop_size: usize,
        planes: &mut [u8],
    ) {
        let weigh = |lines: &[Line], step: usize, pairs: &[Pair]| weigh_avx2(lines, step, pairs);
        let widen = |narrow: &[Bytes], step: usize, lines: &mut [Line]| widen_avx2(narrow, step, lines);
        self.passes(source, columns, rows, crop_size, planes, weigh, widen);
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn passes(
        &mut self,
        source: Source,
        columns: AxisWindow,
        rows: AxisWindow,
        crop_size: usize,
        planes: &mut [u8],
        weigh: impl Fn(&[Line], usize, &[Pair]) -> Bytes,
        widen: impl Fn(&[Bytes], usize, &mut [Line]),
    ) {
        let first_row = self.rows.first[0];
        let needed_rows = self.rows.end - first_row;
        let blocks = columns.len.div_ceil(LANES);
        self.narrow.resize(source.channels * blocks * needed_rows, [0; LANES]);
        for top in (0..needed_rows).step_by(LANES) {
            self.horizontal(source, first_row + top, top, needed_rows, &weigh, &widen);
        }
        for (channel, plane) in planes.chunks_exact_mut(crop_size * crop_size).take(source.channels).enumerate() {
            let plane = &mut plane[rows.pad * crop_size + columns.pad..];
            for block in 0..blocks {
                let narrow = &self.narrow[(channel * blocks + block) * needed_rows..][..needed_rows];
                self.lines.resize(needed_rows, Line::default());
                widen(narrow, 1, &mut self.lines);
                let width = LANES.min(columns.len - block * LANES);
                for row in 0..rows.len {
                    let (first, pairs) = self.rows.taps(row);
                    let out = weigh(&self.lines[first - first_row..], 1, pairs);
                    let line = &mut plane[row * crop_size + block * LANES..];
                    match line.first_chunk_mut() {
                        Some(line) if width == LANES => *line = out,
                        _ => line[..width].copy_from_slice(&out[..width]),
                    }
                }
            }
        }
    }

    /// The horizontal pass over up to [`LANES`] source rows from `row` on, which are the rows from `top` on of what is needed.
    #[inline(always)]
    fn horizontal(
        &mut self,
        source: Source,
        row: usize,
        top: usize,
        needed_rows: usize,
        weigh: &impl Fn(&[Line], usize, &[Pair]) -> Bytes,
        widen: &impl Fn(&[Bytes], usize, &mut [Line]),
    ) {
        let Source { channels, .. } = source;
        let (first_column, end_column) = (self.columns.first[0], self.columns.end);
        let (stride, height) = (source.width * channels, LANES.min(needed_rows - top));
        let begin = row * stride + first_column * channels;
        transpose_strip(
            &source.samples[begin..],
            stride,
            height,
            (end_column - first_column) * channels,
            &mut self.strip,
        );
        self.lines.resize(self.strip.len(), Line::default());
        widen(&self.strip, channels, &mut self.lines);
        let width = self.columns.first.len();
        let blocks = width.div_ceil(LANES);
        // Channels of a block together: their lines are the same cache lines' neighbours.
        for block in 0..blocks {
            for channel in 0..channels {
                let mut out = [[0; LANES]; LANES];
                for (column, out) in out[..LANES.min(width - block * LANES)].iter_mut().enumerate() {
                    let (first, pairs) = self.columns.taps(block * LANES + column);
                    let lines = &self.lines[(first - first_column) * channels + channel..];
                    *out = weigh(lines, channels, pairs);
                }
                let narrow = &mut self.narrow[(channel * blocks + block) * needed_rows + top..];
                narrow[..height].copy_from_slice(&transposed(out)[..height]);
            }
        }
    }

    /// Gives memory back after an unusually large image.
    pub fn shrink(&mut self, bytes: usize) {
        if size_of_val(&*self.lines) + size_of_val(&*self.narrow) > bytes {
            (self.strip, self.lines, self.narrow) = (Vec::new(), Vec::new(), Vec::new());
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
        self.pairs.clear();
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
            self.offset.push(self.pairs.len());
            self.pairs.extend(weights.chunks(2).map(|weights| {
                Pair::new(
                    fixed_point(weights[0], total),
                    weights.get(1).map_or(0, |&weight| fixed_point(weight, total)),
                )
            }));
            self.end = end;
        }
        self.offset.push(self.pairs.len());
    }

    /// First source sample and coefficients of output sample `index` of the window.
    #[inline(always)]
    fn taps(&self, index: usize) -> (usize, &[Pair]) {
        (self.first[index], &self.pairs[self.offset[index]..self.offset[index + 1]])
    }
}

impl Pair {
    fn new(first: i32, second: i32) -> Self {
        const HALF: i32 = 1 << (LOW_BITS - 1);
        // Weights sum to one and the kernel's negative lobes are small, so none comes near the 256 that high parts can hold.
        let high = [first, second].map(|coefficient| ((coefficient + HALF) >> LOW_BITS) as i16);
        let low = [0, 1].map(|tap| ([first, second][tap] - (i32::from(high[tap]) << LOW_BITS)) as i16);
        let packed = |[first, second]: [i16; 2]| i32::from(first) & 0xffff | i32::from(second) << 16;
        Self { low: packed(low), high: packed(high) }
    }

    fn coefficients(self) -> [i32; 2] {
        let unpacked = |packed: i32| [i32::from(packed as i16), packed >> 16];
        let (low, high) = (unpacked(self.low), unpacked(self.high));
        [0, 1].map(|tap| (high[tap] << LOW_BITS) + low[tap])
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

/// `Σ lines[2 · step · tap] · pairs[tap]` in every lane, rounded to samples.
#[inline(always)]
fn weigh(lines: &[Line], step: usize, pairs: &[Pair]) -> Bytes {
    let mut sums = [ROUND; LANES];
    for (line, pair) in lines.iter().step_by(2 * step).zip(pairs) {
        let [first, second] = pair.coefficients();
        for (sum, samples) in sums.iter_mut().zip(line) {
            *sum += i32::from(samples[0]) * first + i32::from(samples[1]) * second;
        }
    }
    sums.map(|sum| (sum >> PRECISION_BITS).clamp(0, 255) as u8)
}

/// [`weigh`] of lines that [`widen_avx2`] made: the sums of high and low products are joined at the end.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn weigh_avx2(lines: &[Line], step: usize, pairs: &[Pair]) -> Bytes {
    use std::arch::x86_64::*;
    let (mut low, mut high) = ([_mm256_set1_epi32(ROUND); 2], [_mm256_setzero_si256(); 2]);
    let mut add = |line: &Line, pair: &Pair| {
        let (low_pair, high_pair) = (_mm256_set1_epi32(pair.low), _mm256_set1_epi32(pair.high));
        for half in 0..2 {
            // SAFETY: reads eight of the line's sixteen lanes.
            let samples = unsafe { _mm256_loadu_si256(line.as_ptr().add(8 * half).cast()) };
            low[half] = _mm256_add_epi32(low[half], _mm256_madd_epi16(samples, low_pair));
            high[half] = _mm256_add_epi32(high[half], _mm256_madd_epi16(samples, high_pair));
        }
    };
    match (pairs, lines.get(..2 * step + 1)) {
        // What enlarging needs everywhere but at the edges.
        ([first, second], Some(lines)) => {
            add(&lines[0], first);
            add(&lines[2 * step], second);
        }
        _ => pairs.iter().enumerate().for_each(|(index, pair)| add(&lines[2 * step * index], pair)),
    }
    const SHIFT: i32 = PRECISION_BITS as i32;
    let [a, b] = [0, 1].map(|half| {
        let sum = _mm256_add_epi32(low[half], _mm256_slli_epi32::<{ LOW_BITS as i32 }>(high[half]));
        _mm256_srai_epi32::<SHIFT>(sum)
    });
    // Packing works on halves, as the unpacking did, which it undoes. It saturates, as clamping does.
    let words = _mm256_packs_epi32(a, b);
    let bytes = _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    let mut out = [0; LANES];
    // SAFETY: writes the sixteen bytes.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
    out
}

/// Puts every line beside the one `step` lines on; beside nothing, the weight is zero.
#[inline(always)]
fn widen(narrow: &[Bytes], step: usize, lines: &mut [Line]) {
    for (index, line) in lines.iter_mut().enumerate() {
        let next = narrow.get(index + step).unwrap_or(&narrow[index]);
        *line = std::array::from_fn(|lane| [i16::from(narrow[index][lane]), i16::from(next[lane])]);
    }
}

/// [`widen`] for [`weigh_avx2`]: lanes 0 to 3, 8 to 11, 4 to 7 and 12 to 15, as halves of vectors are interleaved.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
fn widen_avx2(narrow: &[Bytes], step: usize, lines: &mut [Line]) {
    use std::arch::x86_64::*;
    // SAFETY: reads sixteen bytes.
    let wide = |bytes: &Bytes| _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) });
    for (index, line) in lines.iter_mut().enumerate() {
        let (here, next) = (wide(&narrow[index]), wide(narrow.get(index + step).unwrap_or(&narrow[index])));
        // SAFETY: writes the line's halves.
        unsafe {
            _mm256_storeu_si256(line.as_mut_ptr().cast(), _mm256_unpacklo_epi16(here, next));
            _mm256_storeu_si256(line.as_mut_ptr().add(8).cast(), _mm256_unpackhi_epi16(here, next));
        }
    }
}

/// Makes a strip of every column of up to [`LANES`] rows.
#[inline(always)]
fn transpose_strip(samples: &[u8], stride: usize, height: usize, row_bytes: usize, strip: &mut Vec<Bytes>) {
    strip.resize(row_bytes, [0; LANES]);
    for left in (0..row_bytes).step_by(LANES) {
        let columns = LANES.min(row_bytes - left);
        let mut block = [[0u8; LANES]; LANES];
        for (row, line) in block[..height].iter_mut().enumerate() {
            let samples = &samples[row * stride + left..];
            match samples.first_chunk() {
                Some(samples) if columns == LANES => *line = *samples,
                _ => line[..columns].copy_from_slice(&samples[..columns]),
            }
        }
        strip[left..][..columns].copy_from_slice(&transposed(block)[..columns]);
    }
}

/// The transpose of a block: interleaving the lines of its halves four times.
#[inline(always)]
fn transposed(mut block: [Bytes; LANES]) -> [Bytes; LANES] {
    for _ in 0..LANES.ilog2() {
        let mut next = [[0; LANES]; LANES];
        for line in 0..LANES / 2 {
            [next[2 * line], next[2 * line + 1]] = interleaved(block[line], block[line + LANES / 2]);
        }
        block = next;
    }
    block
}

/// `a0 b0 a1 b1 …`, in two halves.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn interleaved(a: [u8; LANES], b: [u8; LANES]) -> [[u8; LANES]; 2] {
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
#[inline(always)]
fn interleaved(a: [u8; LANES], b: [u8; LANES]) -> [[u8; LANES]; 2] {
    let both: [u8; 2 * LANES] = std::array::from_fn(|i| if i % 2 == 0 { a[i / 2] } else { b[i / 2] });
    let (low, high) = both.split_at(LANES);
    [low.try_into().unwrap_or([0; LANES]), high.try_into().unwrap_or([0; LANES])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_of_every_output_sum_to_one() {
        let mut taps = AxisTaps::default();
        for (source, resized) in [(224, 336), (640, 336), (1, 336), (5000, 7), (336, 336)] {
            taps.prepare(source, AxisWindow { resized, start: 0, len: resized, pad: 0 });
            for index in 0..resized {
                let (first, pairs) = taps.taps(index);
                let coefficients: Vec<i32> = pairs.iter().flat_map(|pair| pair.coefficients()).collect();
                let sum: i64 = coefficients.iter().map(|&c| i64::from(c)).sum();
                let deviation = (sum - (1 << PRECISION_BITS)).unsigned_abs() as usize;
                assert!(deviation <= coefficients.len(), "{source} -> {resized}, output {index}: off by {deviation}");
                let taps = coefficients.len() - usize::from(coefficients.ends_with(&[0]));
                assert!(first + taps <= source);
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

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn vectors_give_the_same_samples() {
        use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
        let mut random = StdRng::seed_from_u64(5);
        for _ in 0..40 {
            let (width, height, channels) =
                (random.random_range(1..90), random.random_range(1..90), [1, 3][random.random_range(0..2)]);
            let mut samples = vec![0; width * height * channels];
            random.fill_bytes(&mut samples);
            // Extremes overshoot.
            samples
                .iter_mut()
                .for_each(|sample| *sample = if *sample % 4 == 0 { *sample } else { *sample / 128 * 255 });
            let source = Source { samples: &samples, width, height, channels };
            let mut window = || {
                let resized = random.random_range(1..90);
                AxisWindow { resized, start: 0, len: resized.min(50), pad: (50 - resized.min(50)) / 2 }
            };
            let (columns, rows) = (window(), window());
            let [mut found, mut expected] = [(); 2].map(|()| vec![7; channels * 50 * 50]);
            let mut resizer = Resizer::default();
            resizer.resize(source, columns, rows, 50, &mut found);
            resizer.passes(source, columns, rows, 50, &mut expected, weigh, widen);
            assert!(found == expected, "{width} × {height} × {channels}, {columns:?}, {rows:?}");
        }
    }
}
