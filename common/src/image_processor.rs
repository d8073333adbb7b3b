//! CLIP's image processor, equal to transformers' PIL one bit for bit where the decoder gives the same pixels.

use crate::Result;
use std::path::Path;

/// Shortest edge → bicubic → centre crop → 1/255 → normalise.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    /// Shortest edge after resizing, pixels.
    pub shortest_edge: usize,
    /// Side of the square crop, pixels (S).
    pub crop_size: usize,
    /// Per-channel mean.
    pub image_mean: [f64; 3],
    /// Per-channel standard deviation.
    pub image_std: [f64; 3],
    /// SHA-256 of the settings above in canonical form.
    pub sha256: String,
}

/// One image as the crop's codes before rescaling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessedImage {
    /// u8 planes `[3, S, S]`.
    pub codes: Vec<u8>,
    /// Width of the source, pixels.
    pub width: u32,
    /// Height of the source, pixels.
    pub height: u32,
}

/// Why an image file gives no pixels.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    /// Not an image by its first bytes.
    #[error("not an image: {0}")]
    Unidentified(String),
    /// Declares more pixels than allowed; refused before memory is taken.
    #[error("{width}×{height} is more than the {limit} pixels allowed")]
    TooLarge {
        /// Declared width.
        width: u64,
        /// Declared height.
        height: u64,
        /// Limit, pixels.
        limit: u64,
    },
    /// The data ends early or is damaged.
    #[error("damaged: {0}")]
    Damaged(String),
}

impl ImageProcessor {
    /// Reads `dir/preprocessor_config.json` in its old (integer sizes) and new spelling.
    pub fn from_dir(_dir: &Path) -> Result<Self> {
        todo!()
    }

    /// Decodes (by content, not by name), resizes and crops one image file.
    pub fn process(&self, _bytes: &[u8]) -> Result<ProcessedImage, ImageError> {
        todo!()
    }

    /// The normalised f32 of every code: `table[channel][code]`, PIL's arithmetic `(f32(v/255) − mean)/std`.
    pub fn table(&self) -> [[f32; 256]; 3] {
        todo!()
    }

    /// `pixel_values` `[3, S, S]` of codes `[3, S, S]`.
    pub fn normalize_into(&self, _codes: &[u8], _pixel_values: &mut [f32]) {
        todo!()
    }
}
