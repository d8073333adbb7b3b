//! Codes as residuals of a prediction from neighbours and the green channel, a zstd frame an image.

use super::{Spec, normalize};
use crate::entropy;
use parquet::basic::Compression;
use std::cell::RefCell;

pub(super) const SPEC: Spec = Spec {
    name: "predicted",
    about: "lossless, about 114 KB a 336-pixel photo",
    bytes_at_336: 103_000,
    rounding: 0.0,
    stores_source: false,
    // Compressed already, image by image.
    compression: || Compression::UNCOMPRESSED,
    encode: |codes, side, _, stored| {
        CODES.with_borrow_mut(|residuals| {
            predict(codes, side, residuals);
            entropy::compress(residuals, side * side, stored);
        });
    },
    decode: |stored, images, side, table, pixel_values| {
        CODES.with_borrow_mut(|codes| {
            codes.resize(images * 3 * side * side, 0);
            if images > 0 || !stored.is_empty() {
                entropy::decompress(stored, codes)?;
            }
            codes.chunks_exact_mut((3 * side * side).max(1)).for_each(|image| restore(image, side));
            normalize(codes, side, table, pixel_values);
            Some(())
        })
    },
};

thread_local! {
    /// Scratch of encoding and decoding: fresh memory for every row would cost as much as the arithmetic.
    static CODES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Residuals of R−G, G, B−G against left + above − above-left, all modulo 256, zero outside.
///
/// The residual is linear: that of R−G is R's less G's.
pub fn predict(codes: &[u8], side: usize, residuals: &mut Vec<u8>) {
    residuals.resize(codes.len(), 0);
    let zeros = vec![0u8; side];
    let area = side * side;
    for begin in (0..area).step_by(side.max(1)) {
        let mut rows = residuals.chunks_exact_mut(area).map(|plane| &mut plane[begin..][..side]);
        let (Some(red), Some(green), Some(blue)) = (rows.next(), rows.next(), rows.next()) else { return };
        for (plane, row) in [&mut *red, &mut *green, &mut *blue].into_iter().enumerate() {
            let here = &codes[plane * area + begin..][..side];
            let above = if begin == 0 { &zeros[..] } else { &codes[plane * area + begin - side..][..side] };
            residuals_of_row(here, above, row);
        }
        for row in [red, blue] {
            row.iter_mut().zip(&*green).for_each(|(residual, &green)| *residual = residual.wrapping_sub(green));
        }
    }
}

fn residuals_of_row(row: &[u8], above: &[u8], residuals: &mut [u8]) {
    residuals[0] = row[0].wrapping_sub(above[0]);
    let (here, left) = (row[1..].iter().zip(&above[1..]), row.iter().zip(above));
    for ((residual, (&here, &above)), (&left, &above_left)) in residuals[1..].iter_mut().zip(here).zip(left) {
        *residual = here.wrapping_sub(above).wrapping_sub(left.wrapping_sub(above_left));
    }
}

/// Undoes [`predict`] of one image in place: sums along rows and columns, then adds green back.
fn restore(image: &mut [u8], side: usize) {
    let area = side * side;
    for plane in image.chunks_exact_mut(area.max(1)) {
        let (first, rest) = plane.split_at_mut(side);
        sum_along_row(first, &vec![0; side]);
        let mut above = first;
        for row in rest.chunks_exact_mut(side.max(1)) {
            sum_along_row(row, above);
            above = row;
        }
    }
    let (red, rest) = image.split_at_mut(area);
    let (green, blue) = rest.split_at_mut(area);
    for plane in [red, blue] {
        plane.iter_mut().zip(&*green).for_each(|(code, &green)| *code = code.wrapping_add(green));
    }
}

/// `row[i] = above[i] + row[0] + … + row[i]`, modulo 256; eight values at a time in the 16-bit lanes of two words.
fn sum_along_row(row: &mut [u8], above: &[u8]) {
    const LOW_BYTES: u64 = 0x00ff_00ff_00ff_00ff;
    const ONES: u64 = 0x0001_0001_0001_0001;
    let (words, rest) = row.as_chunks_mut::<8>();
    let (words_above, rest_above) = above.as_chunks::<8>();
    let mut sum = 0u64;
    for (word, above) in words.iter_mut().zip(words_above) {
        let (residuals, above) = (u64::from_le_bytes(*word), u64::from_le_bytes(*above));
        // Multiplying by ones puts the sum of the lanes below and itself into each lane: at most 4 · 255, no carry.
        let even = (residuals & LOW_BYTES).wrapping_mul(ONES);
        let odd = (residuals >> 8 & LOW_BYTES).wrapping_mul(ONES);
        let before = sum * ONES;
        let evens = (even + (odd << 16) + before + (above & LOW_BYTES)) & LOW_BYTES;
        let odds = (even + odd + before + (above >> 8 & LOW_BYTES)) & LOW_BYTES;
        *word = (evens | odds << 8).to_le_bytes();
        sum = (sum + ((even + odd) >> 48)) & 0xff;
    }
    let mut sum = sum as u8;
    for (value, &above) in rest.iter_mut().zip(rest_above) {
        sum = sum.wrapping_add(*value);
        *value = sum.wrapping_add(above);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smooth_picture_has_small_residuals() {
        let side = 8;
        let codes: Vec<u8> = (0..3 * side * side).map(|i| (10 + i % side + 2 * (i / side % side)) as u8).collect();
        let mut stored = Vec::new();
        predict(&codes, side, &mut stored);
        assert!(stored[..64].iter().all(|&residual| residual == 0), "red equals green");
        assert!(stored[64 + 8..128].iter().enumerate().all(|(i, &residual)| i % 8 == 0 || residual == 0));
    }
}
