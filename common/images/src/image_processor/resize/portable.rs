//! The passes for any processor.

use super::Kernels;
use super::taps::{AxisTaps, PRECISION_BITS};

/// Half a unit, so that the final shift rounds.
const ROUND: i32 = 1 << (PRECISION_BITS - 1);
/// Columns weighed together.
const LANES: usize = 64;

/// Coefficients as they are.
pub(super) struct Portable<'a> {
    pub(super) columns: &'a AxisTaps,
    pub(super) rows: &'a AxisTaps,
}

impl Kernels for Portable<'_> {
    fn reach(&self) -> usize {
        0
    }

    fn separate(&self, pixels: &[u8], planes: [&mut [u8]; 3]) {
        separate(pixels, planes);
    }

    fn horizontal(&self, samples: &[u8], out: &mut [u8]) {
        for (index, out) in out[..self.columns.len()].iter_mut().enumerate() {
            let (first, coefficients) = self.columns.of(index);
            let weighed = samples[first..].iter().zip(coefficients).map(|(&sample, weight)| i32::from(sample) * weight);
            *out = rounded(ROUND + weighed.sum::<i32>());
        }
    }

    fn vertical(&self, index: usize, narrow: &[u8], stride: usize, out: &mut [u8]) {
        let (first, coefficients) = self.rows.of(index);
        for (block, out) in out.chunks_mut(LANES).enumerate() {
            let mut sums = [ROUND; LANES];
            for (row, weight) in narrow.chunks_exact(stride).skip(first).zip(coefficients) {
                for (sum, &sample) in sums.iter_mut().zip(&row[block * LANES..]) {
                    *sum += i32::from(sample) * weight;
                }
            }
            out.iter_mut().zip(sums).for_each(|(out, sum)| *out = rounded(sum));
        }
    }
}

/// The channels of interleaved pixels.
pub(super) fn separate(pixels: &[u8], [red, green, blue]: [&mut [u8]; 3]) {
    let planes = red.iter_mut().zip(green).zip(blue);
    for (pixel, ((red, green), blue)) in pixels.as_chunks::<3>().0.iter().zip(planes) {
        [*red, *green, *blue] = *pixel;
    }
}

fn rounded(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}
