//! Image files to RGB or gray pixels, by content and with Pillow's conversions and verdicts.

mod bmp;
mod convert;
mod gif;
mod jpeg;
mod others;
mod png;
mod size;
mod sniff;
mod tiff;

use super::ImageError;
pub use jpeg::decoder_build;
pub use size::declared_size;
use sniff::Format;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Pixels from which Pillow raises `DecompressionBombError`: twice its `MAX_IMAGE_PIXELS`.
pub const MAX_PIXELS: u64 = 2 * 89_478_485;

/// Pixels from which a header is doubted: beyond what cameras make of a scene, far below [`MAX_PIXELS`].
const DOUBTED_PIXELS: u64 = 16 << 20;

/// What a decoder left in the sample buffer: `[height, width, channels]`, 8 bits a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raster {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Channels.
    pub layout: Layout,
}

/// The two layouts that every file is brought to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One channel, standing for three equal ones.
    Gray,
    /// Red, green, blue.
    Rgb,
}

impl Layout {
    /// Bytes a pixel.
    pub fn channels(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Rgb => 3,
        }
    }
}

/// Decodes the first frame into `samples` (resized to fit, old contents overwritten).
///
/// # Errors
/// See [`ImageError`]. The declared size is checked before memory for pixels is taken.
/// # Differs
/// From Pillow: a PNG whose image data fails its checksum is refused even where the data can still be unpacked.
pub fn decode(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    let format = sniff::format(bytes)?;
    let decode = || match format {
        Format::Jpeg => jpeg::decode(bytes, samples),
        Format::Png => png::decode(bytes, samples),
        Format::Gif => gif::decode(bytes, samples),
        Format::WebP => others::webp(bytes, samples),
        Format::Bmp => bmp::decode(bytes, samples),
        Format::Tiff => tiff::decode(bytes, samples),
    };
    // Should a library panic on a file, that file is refused and the other rows go on. `samples` is overwritten next time.
    let decoded = catch_unwind(AssertUnwindSafe(decode));
    decoded.unwrap_or_else(|_| Err(damaged("its decoder panicked; please report the file")))
}

/// Refuses sizes that are empty or too large, before anything is allocated for them.
fn check_size(width: u64, height: u64) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::Damaged(format!("{width}×{height} pixels: empty")));
    }
    // Both are at most 32 bits wide in every format, so the product fits.
    if width * height > MAX_PIXELS {
        return Err(ImageError::TooLarge { width, height, limit: MAX_PIXELS });
    }
    Ok(())
}

/// Refuses a large image whose file is too short to hold it, before anything is allocated for it.
///
/// `least_bytes` is what the format needs for that many pixels at its very best.
/// # Differs
/// Pillow takes the memory first, and accepts JPEGs that end early if an end marker says so; up to [`DOUBTED_PIXELS`] so do we.
fn check_plausible(width: u64, height: u64, bytes: usize, least_bytes: u64) -> Result<(), ImageError> {
    if width * height > DOUBTED_PIXELS && (bytes as u64) < least_bytes {
        return Err(damaged(format!("{bytes} bytes cannot hold {width}×{height} pixels")));
    }
    Ok(())
}

/// Makes `samples` hold `size` samples, to be overwritten.
///
/// Large room is taken fresh: the system hands out pages as rows arrive, and none for rows that never do.
fn make_room(samples: &mut Vec<u8>, size: usize) {
    if size > samples.capacity() && size > super::KEPT_BYTES {
        *samples = vec![0; size];
    } else {
        samples.resize(size, 0);
    }
}

fn damaged(error: impl std::fmt::Display) -> ImageError {
    ImageError::Damaged(error.to_string())
}
