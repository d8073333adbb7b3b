//! The source samples of each output sample, with their weights.

use super::super::geometry::AxisWindow;
use super::Resample;

/// Fixed-point bits of a coefficient: 32, less 8 for the sample and 2 for overshoot.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// What the coefficients depend on: source length, resized length, start and length of the window, filter.
pub(super) type AxisKey = Option<(usize, usize, usize, usize, Resample)>;

/// The source samples and coefficients of every output sample of a window.
#[derive(Default)]
pub(super) struct AxisTaps {
    key: AxisKey,
    /// First source sample and first coefficient, per output sample; one more entry closes the last range.
    first: Vec<usize>,
    offset: Vec<usize>,
    coefficients: Vec<i32>,
    /// One past the last source sample that the window needs.
    end: usize,
}

impl AxisTaps {
    /// Computes the coefficients of a window, unless they are the ones of the image before.
    ///
    /// # Source
    /// Pillow `Resample.c`, `precompute_coeffs` and `normalize_coeffs_8bpc`; the order of operations is theirs, in f64.
    pub(super) fn prepare(&mut self, source_len: usize, window: AxisWindow, resample: Resample) {
        let key = Some((source_len, window.resized, window.start, window.len, resample));
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
        let support = resample.support() * filter_scale;
        let inverse = 1.0 / filter_scale;
        let mut weights = Vec::with_capacity(2 * support.ceil() as usize + 1);
        for out in window.start..window.start + window.len {
            let center = (out as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(source_len);
            weights.clear();
            weights.extend((first..end).map(|sample| resample.weight((sample as f64 - center + 0.5) * inverse)));
            let mut total = 0.0;
            weights.iter().for_each(|weight| total += weight);
            self.first.push(first);
            self.offset.push(self.coefficients.len());
            self.coefficients.extend(weights.iter().map(|&weight| fixed_point(weight, total)));
            self.end = end;
        }
        self.offset.push(self.coefficients.len());
    }

    /// Changes when the coefficients do.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn key(&self) -> AxisKey {
        self.key
    }

    /// Output samples.
    pub(super) fn len(&self) -> usize {
        self.first.len()
    }

    /// The source samples that the window needs.
    pub(super) fn needed(&self) -> std::ops::Range<usize> {
        self.first[0]..self.end
    }

    /// The first source sample, counted from the first needed one, and the coefficients of output sample `index`.
    #[inline(always)]
    pub(super) fn of(&self, index: usize) -> (usize, &[i32]) {
        let coefficients = &self.coefficients[self.offset[index]..self.offset[index + 1]];
        (self.first[index] - self.first[0], coefficients)
    }

    /// The most coefficients of any output sample.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) fn longest(&self) -> usize {
        self.offset.windows(2).map(|range| range[1] - range[0]).max().unwrap_or(0)
    }
}

/// Normalises by the sum and rounds half away from zero, as C's `(int)(±0.5 + x)` does.
fn fixed_point(weight: f64, total: f64) -> i32 {
    let normalized = if total == 0.0 { weight } else { weight / total };
    let scaled = normalized * f64::from(1 << PRECISION_BITS);
    if normalized < 0.0 { (scaled - 0.5) as i32 } else { (scaled + 0.5) as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_of_every_output_sum_to_one() {
        let mut taps = AxisTaps::default();
        let lengths = [(224, 336), (640, 336), (1, 336), (5000, 7), (336, 336)];
        let filters = [Resample::Bicubic, Resample::Bilinear];
        for ((source, resized), resample) in lengths.into_iter().flat_map(|pair| filters.map(|filter| (pair, filter))) {
            taps.prepare(source, AxisWindow { resized, start: 0, len: resized, pad: 0 }, resample);
            for index in 0..resized {
                let (first, coefficients) = taps.of(index);
                let sum: i64 = coefficients.iter().map(|&c| i64::from(c)).sum();
                let deviation = (sum - (1 << PRECISION_BITS)).unsigned_abs() as usize;
                assert!(deviation <= coefficients.len(), "{source} -> {resized}, output {index}: off by {deviation}");
                assert!(first + coefficients.len() <= source);
            }
        }
    }
}
