//! How a row's pixels are stored: a format is a file, and a row of [`PixelFormat`].

mod as_f16;
mod as_f32;
mod as_u8;
mod jpeg;
mod predicted;

pub use predicted::predict;

use super::CodeTable;
use parquet::basic::{Compression, ZstdLevel};
use serde::{Deserialize, Serialize};

/// Makes the enum of a table of formats; everything that depends on the format asks its file's `SPEC`.
macro_rules! formats {
    ($(#[$doc:meta])* $name:ident { $($(#[$format_doc:meta])* $format:ident = $module:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$format_doc])* $format,)* }

        impl $name {
            /// All, the default first.
            pub const ALL: &[Self] = &[$(Self::$format),*];

            fn spec(self) -> &'static Spec {
                match self {
                    $(Self::$format => &$module::SPEC,)*
                }
            }
        }
    };
}

formats! {
    /// Form of the `pixel_values` column.
    PixelFormat {
        /// Codes as residuals of a prediction, a zstd frame an image.
        Predicted = predicted,
        /// Codes as they are, lz4.
        U8 = as_u8,
        /// Normalised f32, little-endian, zstd.
        F32 = as_f32,
        /// Normalised f16, little-endian, zstd.
        F16 = as_f16,
        /// The source files' bytes, decoded and resized when a row is read.
        Jpeg = jpeg,
    }
}

/// What a format's file says of it.
struct Spec {
    /// On the command line and in files; the enum's name in snake case.
    name: &'static str,
    /// For the help text.
    about: &'static str,
    /// Expected bytes of a 336-pixel image, measured on photos.
    bytes_at_336: u64,
    /// Largest difference of a value that is read back.
    rounding: f32,
    /// The source files are stored in place of codes.
    stores_source: bool,
    /// Parquet's compression of the column.
    compression: fn() -> Compression,
    /// See [`PixelFormat::encode`].
    encode: fn(&[u8], usize, &CodeTable, &mut Vec<u8>),
    /// See [`PixelFormat::decode`].
    decode: Decode,
}

type Decode = fn(&[u8], usize, usize, &CodeTable, &mut Vec<f32>) -> Option<()>;

impl PixelFormat {
    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Every format with its properties: `predicted (lossless, …), u8 (…), …`.
    pub fn help() -> String {
        let about = |format: &Self| format!("{format} ({})", format.spec().about);
        Self::ALL.iter().map(about).collect::<Vec<_>>().join(", ")
    }

    /// The source files are stored, so that reading needs an image processor.
    pub fn stores_source(self) -> bool {
        self.spec().stores_source
    }

    /// Largest difference of a value that is read back from the value that was stored; 0 for lossless formats.
    pub fn rounding(self) -> f32 {
        self.spec().rounding
    }

    /// Expected stored bytes of an image of `side` pixels, for forecasts: photos at 336 pixels scaled by area, unless their files
    /// are stored.
    pub fn expected_bytes(self, side: usize) -> u64 {
        let Spec { bytes_at_336, stores_source, .. } = *self.spec();
        if stores_source { bytes_at_336 } else { bytes_at_336 * (side * side) as u64 / (336 * 336) }
    }

    /// Parquet's compression of the column.
    pub(super) fn compression(self) -> Compression {
        (self.spec().compression)()
    }

    /// Appends the stored form of one image.
    ///
    /// # Shapes
    /// `payload`: codes u8 `[3, S, S]`, or the source file's bytes if [`Self::stores_source`].
    pub(super) fn encode(self, payload: &[u8], side: usize, table: &CodeTable, stored: &mut Vec<u8>) {
        (self.spec().encode)(payload, side, table, stored);
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
        (self.spec().decode)(stored, images, side, table, pixel_values)
    }
}

impl std::str::FromStr for PixelFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || Self::ALL.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
        let mut all = Self::ALL.iter().copied();
        all.find(|format| format.name() == name).ok_or_else(|| format!("found {name:?}, expected one of {}", names()))
    }
}

impl std::fmt::Display for PixelFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::default())
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

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngCore, SeedableRng, rngs::StdRng};

    pub(super) fn table() -> CodeTable {
        let channel = |scale: f32| std::array::from_fn(|code| (code as f32 / 255.0 - 0.45) / scale);
        CodeTable::new([channel(0.27), channel(0.26), channel(0.25)])
    }

    #[test]
    fn formats_of_codes_give_the_table_values_of_the_codes() {
        for side in [1, 2, 7, 8, 56, 61] {
            let mut codes = vec![0; 2 * 3 * side * side];
            StdRng::seed_from_u64(side as u64).fill_bytes(&mut codes);
            let mut expected = Vec::new();
            normalize(&codes, side, &table(), &mut expected);
            for format in PixelFormat::ALL.iter().filter(|format| !format.stores_source()) {
                let mut stored = Vec::new();
                for image in codes.chunks_exact(3 * side * side) {
                    format.encode(image, side, &table(), &mut stored);
                }
                let mut found = Vec::new();
                format.decode(&stored, 2, side, &table(), &mut found).expect("decoded");
                let difference = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert_eq!(found.len(), expected.len(), "{format} at {side}");
                assert!(difference <= format.rounding(), "{format} at {side}: largest difference {difference}");
                stored.push(0);
                assert_eq!(
                    format.decode(&stored, 2, side, &table(), &mut found),
                    None,
                    "{format} at {side}: a byte more"
                );
            }
        }
    }

    #[test]
    fn names_parse_and_a_wrong_one_gets_the_choices() {
        let error = "png".parse::<PixelFormat>().expect_err("refused");
        for format in PixelFormat::ALL {
            assert_eq!(format.name().parse().as_ref(), Ok(format));
            assert_eq!(serde_json::to_value(format).expect("JSON"), format.name());
            assert!(error.contains(format.name()), "{error}");
        }
    }
}
