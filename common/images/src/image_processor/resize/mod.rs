//! Pillow's bicubic and bilinear resize, bit for bit, restricted to the window that the centre crop keeps.
//!
//! Pillow resizes a `u8` image in two passes, horizontal and vertical, with coefficients in 22-bit fixed point and rounding
//! to `u8` between the passes; which one is first depends on the sizes. Every output pixel depends on its own coefficients alone, so leaving out what the crop
//! discards changes no bit, and keeps an image of 1000×1 pixels (336,000 wide once resized) as cheap as any other.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;
mod resample;
mod taps;

use super::geometry::AxisWindow;
use portable::Portable;
pub use resample::Resample;
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
    /// Pillow `Resample.c`, `ImagingResample`.
    pub fn resize(
        &mut self,
        source: Source,
        resample: Resample,
        columns: AxisWindow,
        rows: AxisWindow,
        crop_size: usize,
        planes: &mut [u8],
    ) {
        self.columns.prepare(source.width, columns, resample);
        self.rows.prepare(source.height, rows, resample);
        let first = Pass::first([source.width, columns.resized], [source.height, rows.resized]);
        let place = Place { first, crop_size, left: columns.pad, top: rows.pad };
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

/// A pass over the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pass {
    Horizontal,
    Vertical,
}

impl Pass {
    /// The pass that Pillow makes first, for lengths of each axis before and after.
    ///
    /// # Source
    /// Pillow 13, whose vertical pass is first where it takes more than twice as many rows away as the horizontal one takes
    /// columns (found by comparing results at 6,000 sizes; earlier versions began with the horizontal pass always).
    fn first([width, columns]: [usize; 2], [height, rows]: [usize; 2]) -> Self {
        let removed = |before: usize, after: usize| before as i64 - after as i64;
        let (columns, rows) = (removed(width, columns), removed(height, rows));
        if rows > 0 && rows > 2 * columns { Self::Vertical } else { Self::Horizontal }
    }
}

/// Which pass is first, and where in the crop the window is.
#[derive(Clone, Copy)]
struct Place {
    first: Pass,
    crop_size: usize,
    left: usize,
    top: usize,
}

impl Buffers {
    fn passes(
        &mut self,
        kernels: &impl Kernels,
        source: Source,
        axes: [&AxisTaps; 2],
        place: Place,
        planes: &mut [u8],
    ) {
        match place.first {
            Pass::Horizontal => self.columns_first(kernels, source, axes, place, planes),
            Pass::Vertical => self.rows_first(kernels, source, axes, place, planes),
        }
    }

    fn columns_first(
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
        let narrow = self.narrow.chunks_exact(needed_rows * stride);
        for (narrow, plane) in narrow.zip(planes.chunks_exact_mut(place.crop_size * place.crop_size)) {
            for (index, line) in place.lines(plane, columns, rows).enumerate() {
                kernels.vertical(index, narrow, stride, line);
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
        let (needed, needed_rows) = (columns.needed(), rows.needed());
        let plane = needed.len().max(kernels.reach());
        self.row.resize(source.channels * plane, 0);
        for (index, row) in needed_rows.clone().enumerate() {
            source.separate(kernels, row, needed.clone(), &mut self.row, plane);
            for (channel, samples) in self.row.chunks_exact(plane).enumerate() {
                let out = &mut self.narrow[(channel * needed_rows.len() + index) * stride..][..stride];
                kernels.horizontal(samples, out);
            }
        }
    }

    /// `narrow` holds the source's samples then, and `row` a row between the passes and one behind them.
    fn rows_first(
        &mut self,
        kernels: &impl Kernels,
        source: Source,
        [columns, rows]: [&AxisTaps; 2],
        place: Place,
        planes: &mut [u8],
    ) {
        let (needed, needed_rows) = (columns.needed(), rows.needed());
        let stride = needed.len().max(kernels.reach()).next_multiple_of(WIDTH);
        let samples = needed_rows.len() * stride;
        self.narrow.resize(source.channels * samples, 0);
        for (index, row) in needed_rows.enumerate() {
            source.separate(kernels, row, needed.clone(), &mut self.narrow[index * stride..], samples);
        }
        self.row.resize(stride + columns.len().next_multiple_of(WIDTH), 0);
        let (weighed, out) = self.row.split_at_mut(stride);
        let narrow = self.narrow.chunks_exact(samples);
        for (narrow, plane) in narrow.zip(planes.chunks_exact_mut(place.crop_size * place.crop_size)) {
            for (index, line) in place.lines(plane, columns, rows).enumerate() {
                kernels.vertical(index, narrow, stride, &mut weighed[..needed.len()]);
                kernels.horizontal(weighed, out);
                line.copy_from_slice(&out[..columns.len()]);
            }
        }
    }
}

impl Source<'_> {
    /// Puts each channel of some pixels of a row where its plane begins, `plane` samples from the last one's.
    fn separate(
        &self,
        kernels: &impl Kernels,
        row: usize,
        columns: std::ops::Range<usize>,
        planes: &mut [u8],
        plane: usize,
    ) {
        let row = &self.samples[row * self.width * self.channels..];
        let pixels = &row[columns.start * self.channels..columns.end * self.channels];
        if self.channels == 1 {
            return planes[..pixels.len()].copy_from_slice(pixels);
        }
        let (red, others) = planes.split_at_mut(plane);
        let (green, blue) = others.split_at_mut(plane);
        kernels.separate(pixels, [red, green, blue]);
    }
}

impl Place {
    /// The window's lines in a plane of the crop.
    fn lines<'a>(
        self,
        plane: &'a mut [u8],
        columns: &AxisTaps,
        rows: &AxisTaps,
    ) -> impl Iterator<Item = &'a mut [u8]> + use<'a> {
        let (left, len) = (self.left, columns.len());
        let lines = plane.chunks_exact_mut(self.crop_size).skip(self.top).take(rows.len());
        lines.map(move |line| &mut line[left..left + len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_equals_the_same_part_of_the_whole() {
        const RESIZED: usize = 60;
        let crop = 30;
        // Columns first, then rows first.
        for (width, height) in [(50, 41), (61, 200)] {
            let samples: Vec<u8> = (0..width * height * 3).map(|i| (i * 7919 % 251) as u8).collect();
            let source = Source { samples: &samples, width, height, channels: 3 };
            let whole = AxisWindow { resized: RESIZED, start: 0, len: RESIZED, pad: 0 };
            let mut all = vec![0; 3 * RESIZED * RESIZED];
            Resizer::default().resize(source, Resample::Bicubic, whole, whole, RESIZED, &mut all);
            let mut part = vec![0; 3 * crop * crop];
            let window = |start| AxisWindow { resized: RESIZED, start, len: crop, pad: 0 };
            Resizer::default().resize(source, Resample::Bicubic, window(17), window(3), crop, &mut part);
            for (channel, plane) in part.chunks_exact(crop * crop).enumerate() {
                for (row, line) in plane.chunks_exact(crop).enumerate() {
                    let begin = channel * RESIZED * RESIZED + (row + 3) * RESIZED + 17;
                    assert_eq!(line, &all[begin..begin + crop], "{width} × {height}: channel {channel}, row {row}");
                }
            }
        }
    }

    /// Results of Pillow 13.0.0.
    #[test]
    fn the_first_pass_is_pillows() {
        for ((width, height), side, expected) in [
            ((214, 320), 224, Pass::Vertical),
            ((214, 320), 384, Pass::Horizontal),
            ((480, 640), 384, Pass::Vertical),
            ((480, 640), 224, Pass::Horizontal),
            ((640, 480), 384, Pass::Horizontal),
            ((120, 140), 100, Pass::Horizontal),
            ((120, 141), 100, Pass::Vertical),
        ] {
            assert_eq!(Pass::first([width, side], [height, side]), expected, "{width} × {height} to {side}");
        }
    }

    #[test]
    fn resizing_to_the_same_size_changes_nothing() {
        let samples: Vec<u8> = (0..20 * 20).map(|i| (i * 31 % 256) as u8).collect();
        let window = AxisWindow { resized: 20, start: 0, len: 20, pad: 0 };
        let source = Source { samples: &samples, width: 20, height: 20, channels: 1 };
        for resample in [Resample::Bicubic, Resample::Bilinear] {
            let mut out = vec![0; 400];
            Resizer::default().resize(source, resample, window, window, 20, &mut out);
            assert_eq!(out, samples, "{resample:?}");
        }
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
            let resample = [Resample::Bicubic, Resample::Bilinear][round / 3 % 2];
            let mut resizer = Resizer::default();
            resizer.resize(source, resample, columns, rows, 50, &mut found);
            let first = Pass::first([width, columns.resized], [height, rows.resized]);
            let place = Place { first, crop_size: 50, left: columns.pad, top: rows.pad };
            resizer.resize_portably(source, place, &mut expected);
            assert!(found == expected, "{resample:?}: {width} × {height} × {channels}, {columns:?}, {rows:?}");
        }
    }
}
