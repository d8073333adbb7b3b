//! Pillow's bicubic resize, bit for bit, restricted to the window that the centre crop keeps.
//!
//! Pillow resizes a `u8` image in two passes, horizontal then vertical, with coefficients in 22-bit fixed point and rounding
//! to `u8` between the passes. Every output pixel depends on its own coefficients alone, so leaving out what the crop
//! discards changes no bit, and keeps an image of 1000×1 pixels (336,000 wide once resized) as cheap as any other.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
mod taps;

use super::geometry::AxisWindow;
use portable::Portable;
use taps::AxisTaps;

/// Rows of the horizontal pass's result begin and end at multiples of this: what vectors take at once.
const WIDTH: usize = 32;

/// Buffers and coefficients that survive from one image to the next.
#[derive(Default)]
pub struct Resizer {
    columns: AxisTaps,
    rows: AxisTaps,
    #[cfg(target_arch = "x86_64")]
    vectors: avx2::Tables,
    buffers: Buffers,
}

#[derive(Default)]
struct Buffers {
    /// One row of the source, `[channels, needed columns and some more]`.
    row: Vec<u8>,
    /// The horizontal pass's result, `[channels, needed rows, columns]`.
    narrow: Vec<u8>,
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

/// The work on the needed part of one row.
trait Kernels {
    /// Samples of a row that [`Self::horizontal`] may read; samples that are not needed have weight 0.
    fn reach(&self) -> usize;

    /// Splits pixels of three channels.
    fn separate(&self, pixels: &[u8], planes: [&mut [u8]; 3]);

    /// Weighs the samples of one row: `out` is a row of the window, rounded up to whole [`WIDTH`]s.
    fn horizontal(&self, samples: &[u8], out: &mut [u8]);

    /// Weighs whole rows: `out` is the window's row `index`, and `narrow` a plane of rows with `stride` samples each.
    fn vertical(&self, index: usize, narrow: &[u8], stride: usize, out: &mut [u8]);
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
        let place = Place { crop_size, left: columns.pad, top: rows.pad };
        #[cfg(target_arch = "x86_64")]
        if let Some(vectors) = self.vectors.prepare(&self.columns, &self.rows) {
            return self.buffers.passes(&vectors, source, [&self.columns, &self.rows], place, planes);
        }
        self.resize_portably(source, place, planes);
    }

    fn resize_portably(&mut self, source: Source, place: Place, planes: &mut [u8]) {
        let (columns, rows) = (&self.columns, &self.rows);
        self.buffers.passes(&Portable { columns, rows }, source, [columns, rows], place, planes);
    }

    /// Gives memory back after an unusually large image.
    pub fn shrink(&mut self, bytes: usize) {
        if self.buffers.row.capacity() + self.buffers.narrow.capacity() > bytes {
            self.buffers = Buffers::default();
        }
    }
}

/// Where in the crop the window is.
#[derive(Clone, Copy)]
struct Place {
    crop_size: usize,
    left: usize,
    top: usize,
}

impl Buffers {
    fn passes(
        &mut self,
        kernels: &impl Kernels,
        source: Source,
        [columns, rows]: [&AxisTaps; 2],
        place: Place,
        planes: &mut [u8],
    ) {
        let stride = columns.len().next_multiple_of(WIDTH);
        let needed_rows = rows.needed().len();
        self.narrow.resize(source.channels * needed_rows * stride, 0);
        self.horizontal(kernels, source, columns, rows, stride);
        let Place { crop_size, left, top } = place;
        let narrow = self.narrow.chunks_exact(needed_rows * stride);
        for (narrow, plane) in narrow.zip(planes.chunks_exact_mut(crop_size * crop_size)) {
            let lines = plane.chunks_exact_mut(crop_size).skip(top).take(rows.len());
            for (index, line) in lines.enumerate() {
                kernels.vertical(index, narrow, stride, &mut line[left..left + columns.len()]);
            }
        }
    }

    /// The horizontal pass over the rows that are needed.
    fn horizontal(
        &mut self,
        kernels: &impl Kernels,
        source: Source,
        columns: &AxisTaps,
        rows: &AxisTaps,
        stride: usize,
    ) {
        let Source { samples, width, channels, .. } = source;
        let (needed, needed_rows) = (columns.needed(), rows.needed());
        let plane = needed.len().max(kernels.reach());
        self.row.resize(channels * plane, 0);
        for (index, row) in needed_rows.clone().enumerate() {
            let pixels = &samples[row * width * channels..][needed.start * channels..needed.end * channels];
            if channels == 3 {
                let (red, others) = self.row.split_at_mut(plane);
                let (green, blue) = others.split_at_mut(plane);
                kernels.separate(pixels, [red, green, blue]);
            } else {
                self.row[..pixels.len()].copy_from_slice(pixels);
            }
            for (channel, samples) in self.row.chunks_exact(plane).enumerate() {
                let out = &mut self.narrow[(channel * needed_rows.len() + index) * stride..][..stride];
                kernels.horizontal(samples, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for round in 0..300 {
            // From enlarging to shrinking by far: each way of the horizontal pass.
            let widest = [90, 200, 3000][round % 3];
            let (width, height, channels) =
                (random.random_range(1..widest), random.random_range(1..90), [1, 3][random.random_range(0..2)]);
            let mut samples = vec![0; width * height * channels];
            random.fill_bytes(&mut samples);
            // Extremes overshoot.
            samples
                .iter_mut()
                .for_each(|sample| *sample = if *sample % 4 == 0 { *sample } else { *sample / 128 * 255 });
            let source = Source { samples: &samples, width, height, channels };
            let mut window = || {
                let (resized, len) = (random.random_range(1..120), random.random_range(1..=50));
                let len = len.min(resized);
                AxisWindow { resized, start: random.random_range(0..=resized - len), len, pad: (50 - len) / 2 }
            };
            let (columns, rows) = (window(), window());
            let [mut found, mut expected] = [(); 2].map(|()| vec![7; channels * 50 * 50]);
            let mut resizer = Resizer::default();
            resizer.resize(source, columns, rows, 50, &mut found);
            let place = Place { crop_size: 50, left: columns.pad, top: rows.pad };
            resizer.resize_portably(source, place, &mut expected);
            assert!(found == expected, "{width} × {height} × {channels}, {columns:?}, {rows:?}");
        }
    }
}
