//! How a row's pixels are stored: codes (u8 planes), floats, or the source file.

use super::{CodeTable, entropy};
use base::Result;
use half::f16;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;

/// Form of the `pixel_values` column.
///
/// # Units
/// Sizes are bytes a 336-pixel image, measured on photos.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelFormat {
    /// Codes as residuals of a prediction from neighbours and the green channel, a zstd frame an image. Lossless, about
    /// 103 KB.
    Predicted,
    /// Codes as they are, lz4. Lossless, about 298 KB, fastest to read.
    U8,
    /// Normalised f32, zstd. About 466 KB.
    F32,
    /// Normalised f16, zstd. Rounded to f16.
    F16,
    /// The source files' bytes, decoded and resized when a row is read. About 14 KB.
    Jpeg,
}

impl PixelFormat {
    /// All, the default first.
    pub const ALL: [Self; 5] = [Self::Predicted, Self::U8, Self::F32, Self::F16, Self::Jpeg];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Predicted => "predicted",
            Self::U8 => "u8",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Jpeg => "jpeg",
        }
    }

    /// The source files are stored, so that reading needs an image processor.
    pub fn stores_source(self) -> bool {
        self == Self::Jpeg
    }

    /// Expected stored bytes of an image of `side` pixels, for forecasts: photos at 336 pixels scaled by area.
    pub fn expected_bytes(self, side: usize) -> u64 {
        let at_336: u64 = match self {
            Self::Predicted => 103_000,
            Self::U8 => 298_000,
            Self::F32 => 466_000,
            Self::F16 => 400_000,
            Self::Jpeg => return 14_000,
        };
        at_336 * (side * side) as u64 / (336 * 336)
    }

    /// Appends the stored form of one image.
    ///
    /// # Shapes
    /// `payload`: codes u8 `[3, S, S]`, or the source file's bytes if [`Self::stores_source`].
    pub(super) fn encode(self, payload: &[u8], side: usize, table: &CodeTable, stored: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::U8 | Self::Jpeg => stored.extend_from_slice(payload),
            Self::Predicted => CODES.with_borrow_mut(|residuals| {
                predict(payload, side, residuals);
                entropy::compress(residuals, side * side, stored);
            }),
            Self::F32 => each_value(payload, side, table, |value| stored.extend_from_slice(&value.to_le_bytes())),
            Self::F16 => {
                each_value(payload, side, table, |value| {
                    stored.extend_from_slice(&f16::from_f32(value).to_le_bytes());
                });
            }
        }
        Ok(())
    }

    /// Appends the normalised f32 `[images, 3, S, S]` of stored images. Source files are not decoded here.
    ///
    /// `None` if they are damaged or another number of images.
    pub(super) fn decode(
        self,
        stored: &[u8],
        images: usize,
        side: usize,
        table: &CodeTable,
        pixel_values: &mut Vec<f32>,
    ) -> Option<()> {
        let values = images * 3 * side * side;
        match self {
            Self::Predicted => CODES.with_borrow_mut(|codes| {
                codes.resize(values, 0);
                if images > 0 || !stored.is_empty() {
                    entropy::decompress(stored, codes)?;
                }
                codes.chunks_exact_mut((3 * side * side).max(1)).for_each(|image| restore(image, side));
                normalize(codes, side, table, pixel_values);
                Some(())
            })?,
            Self::U8 if stored.len() == values => normalize(stored, side, table, pixel_values),
            Self::F32 if stored.len() == 4 * values => {
                pixel_values.extend(stored.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            Self::F16 if stored.len() == 2 * values => {
                pixel_values.extend(stored.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()));
            }
            Self::U8 | Self::F32 | Self::F16 | Self::Jpeg => return None,
        }
        Some(())
    }
}

thread_local! {
    /// Scratch of encoding and decoding: fresh memory for every row would cost as much as the arithmetic.
    static CODES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl std::str::FromStr for PixelFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| format!("found {name:?}, expected one of {}", names()))
    }
}

impl std::fmt::Display for PixelFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn each_value(codes: &[u8], side: usize, table: &CodeTable, mut take: impl FnMut(f32)) {
    for (plane, values) in codes.chunks_exact((side * side).max(1)).zip(table.channels().iter().cycle()) {
        plane.iter().for_each(|&code| take(values[usize::from(code)]));
    }
}

fn normalize(codes: &[u8], side: usize, table: &CodeTable, pixel_values: &mut Vec<f32>) {
    for (plane, values) in codes.chunks_exact((side * side).max(1)).zip(table.channels().iter().cycle()) {
        pixel_values.extend(plane.iter().map(|&code| values[usize::from(code)]));
    }
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
    use rand::{RngCore, SeedableRng, rngs::StdRng};

    fn table() -> CodeTable {
        let channel = |scale: f32| std::array::from_fn(|code| (code as f32 / 255.0 - 0.45) / scale);
        CodeTable::new([channel(0.27), channel(0.26), channel(0.25)])
    }

    #[test]
    fn lossless_formats_give_the_table_values_of_the_codes() {
        for side in [1, 2, 7, 8, 56, 61] {
            let mut codes = vec![0; 2 * 3 * side * side];
            StdRng::seed_from_u64(side as u64).fill_bytes(&mut codes);
            let mut expected = Vec::new();
            normalize(&codes, side, &table(), &mut expected);
            for format in [PixelFormat::Predicted, PixelFormat::U8, PixelFormat::F32] {
                let mut stored = Vec::new();
                for image in codes.chunks_exact(3 * side * side) {
                    format.encode(image, side, &table(), &mut stored).expect("encoded");
                }
                let mut found = Vec::new();
                format.decode(&stored, 2, side, &table(), &mut found).expect("decoded");
                assert_eq!(found, expected, "{format} at {side}");
            }
        }
    }

    #[test]
    fn f16_is_the_rounded_value() {
        let codes: Vec<u8> = (0..12).collect();
        let (mut stored, mut found) = (Vec::new(), Vec::new());
        PixelFormat::F16.encode(&codes, 2, &table(), &mut stored).expect("encoded");
        PixelFormat::F16.decode(&stored, 1, 2, &table(), &mut found).expect("decoded");
        let expected: Vec<f32> = codes
            .iter()
            .enumerate()
            .map(|(index, &code)| f16::from_f32(table().channels()[index / 4][usize::from(code)]).to_f32())
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_smooth_picture_has_small_residuals() {
        let side = 8;
        let codes: Vec<u8> = (0..3 * side * side).map(|i| (10 + i % side + 2 * (i / side % side)) as u8).collect();
        let mut stored = Vec::new();
        predict(&codes, side, &mut stored);
        assert!(stored[..64].iter().all(|&residual| residual == 0), "red equals green");
        assert!(stored[64 + 8..128].iter().enumerate().all(|(i, &residual)| i % 8 == 0 || residual == 0));
    }

    #[test]
    fn names_parse_and_a_wrong_one_gets_the_choices() {
        for format in PixelFormat::ALL {
            assert_eq!(format.name().parse(), Ok(format));
        }
        let error = "png".parse::<PixelFormat>().expect_err("refused");
        assert!(error.contains("predicted, u8, f32, f16, jpeg"), "{error}");
    }
}
