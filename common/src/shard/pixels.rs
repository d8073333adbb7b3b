//! How a row's pixels are stored: codes (u8 planes), floats, or the source file.

use super::CodeTable;
use half::f16;
use serde::{Deserialize, Serialize};

/// Form of the `pixel_values` column.
///
/// # Units
/// Sizes are bytes a 336-pixel image, measured on photos.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PixelFormat {
    /// Codes as residuals of a prediction from neighbours and the green channel, zstd. Lossless, about 114 KB.
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
            Self::Predicted => 114_000,
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
    pub(super) fn encode(self, payload: &[u8], side: usize, table: &CodeTable, stored: &mut Vec<u8>) {
        match self {
            Self::U8 | Self::Jpeg => stored.extend_from_slice(payload),
            Self::Predicted => predict(payload, side, stored),
            Self::F32 => each_value(payload, side, table, |value| stored.extend_from_slice(&value.to_le_bytes())),
            Self::F16 => {
                each_value(payload, side, table, |value| {
                    stored.extend_from_slice(&f16::from_f32(value).to_le_bytes());
                });
            }
        }
    }

    /// Bytes that one image of `side` pixels takes before compression; `None` where it varies.
    pub(super) fn stored_bytes(self, side: usize) -> Option<usize> {
        let values = 3 * side * side;
        match self {
            Self::Predicted | Self::U8 => Some(values),
            Self::F16 => Some(2 * values),
            Self::F32 => Some(4 * values),
            Self::Jpeg => None,
        }
    }

    /// Appends the normalised f32 `[N, 3, S, S]` of N stored images. `stored` has N times [`Self::stored_bytes`];
    /// source files are not decoded here.
    pub(super) fn decode(self, stored: &[u8], side: usize, table: &CodeTable, pixel_values: &mut Vec<f32>) {
        match self {
            Self::Predicted => {
                let mut codes = vec![0; 3 * side * side];
                for image in stored.chunks_exact(3 * side * side) {
                    restore(image, side, &mut codes);
                    normalize(&codes, side, table, pixel_values);
                }
            }
            Self::U8 => normalize(stored, side, table, pixel_values),
            Self::F32 => {
                pixel_values.extend(stored.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            Self::F16 => {
                pixel_values.extend(stored.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()));
            }
            Self::Jpeg => {}
        }
    }
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
fn predict(codes: &[u8], side: usize, stored: &mut Vec<u8>) {
    let (red, rest) = codes.split_at(side * side);
    let (green, blue) = rest.split_at(side * side);
    let mut plane = vec![0; side * side];
    for (index, source) in [red, green, blue].into_iter().enumerate() {
        if index == 1 {
            plane.copy_from_slice(green);
        } else {
            for ((value, &code), &green) in plane.iter_mut().zip(source).zip(green) {
                *value = code.wrapping_sub(green);
            }
        }
        predict_plane(&plane, side, stored);
    }
}

fn predict_plane(plane: &[u8], side: usize, stored: &mut Vec<u8>) {
    let mut vertical = vec![0u8; side];
    let zeros = vec![0u8; side];
    let mut above = &zeros[..];
    for row in plane.chunks_exact(side.max(1)) {
        for ((difference, &code), &above) in vertical.iter_mut().zip(row).zip(above) {
            *difference = code.wrapping_sub(above);
        }
        stored.push(vertical[0]);
        stored.extend(vertical.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])));
        above = row;
    }
}

/// Undoes [`predict`] of one image: sums along rows and columns, then adds green back.
fn restore(stored: &[u8], side: usize, codes: &mut [u8]) {
    let area = side * side;
    for (residuals, plane) in stored.chunks_exact(area.max(1)).zip(codes.chunks_exact_mut(area.max(1))) {
        restore_plane(residuals, side, plane);
    }
    let (red, rest) = codes.split_at_mut(area);
    let (green, blue) = rest.split_at_mut(area);
    for plane in [red, blue] {
        plane.iter_mut().zip(&*green).for_each(|(code, &green)| *code = code.wrapping_add(green));
    }
}

fn restore_plane(residuals: &[u8], side: usize, plane: &mut [u8]) {
    let mut above = &vec![0u8; side][..];
    let mut below = plane;
    for residuals in residuals.chunks_exact(side.max(1)) {
        let (row, rest) = below.split_at_mut(side);
        let mut sum = 0u8;
        for ((code, &residual), &above) in row.iter_mut().zip(residuals).zip(above) {
            sum = sum.wrapping_add(residual);
            *code = sum.wrapping_add(above);
        }
        (above, below) = (row, rest);
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
        for side in [1, 2, 7, 56] {
            let mut codes = vec![0; 2 * 3 * side * side];
            StdRng::seed_from_u64(side as u64).fill_bytes(&mut codes);
            let mut expected = Vec::new();
            normalize(&codes, side, &table(), &mut expected);
            for format in [PixelFormat::Predicted, PixelFormat::U8, PixelFormat::F32] {
                let mut stored = Vec::new();
                for image in codes.chunks_exact(3 * side * side) {
                    format.encode(image, side, &table(), &mut stored);
                }
                assert_eq!(Some(stored.len()), format.stored_bytes(side).map(|bytes| 2 * bytes));
                let mut found = Vec::new();
                format.decode(&stored, side, &table(), &mut found);
                assert_eq!(found, expected, "{format} at {side}");
            }
        }
    }

    #[test]
    fn f16_is_the_rounded_value() {
        let codes: Vec<u8> = (0..12).collect();
        let (mut stored, mut found) = (Vec::new(), Vec::new());
        PixelFormat::F16.encode(&codes, 2, &table(), &mut stored);
        PixelFormat::F16.decode(&stored, 2, &table(), &mut found);
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
        PixelFormat::Predicted.encode(&codes, side, &table(), &mut stored);
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
