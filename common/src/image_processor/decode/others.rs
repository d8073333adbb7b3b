//! WebP, BMP and TIFF through the image crate.

use super::{Layout, Raster, check_size, convert, damaged};
use crate::image_processor::ImageError;
use image::codecs::{bmp::BmpDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, Limits};
use std::io::Cursor;

/// Memory that a decoder may take beside the pixels it hands over, bytes.
const WORKING_BYTES: u64 = 1 << 30;

/// WebP, lossy or lossless; the first frame of an animation.
pub fn webp(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    read(WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?, samples)
}

/// BMP of any depth.
pub fn bmp(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    read(BmpDecoder::new(Cursor::new(bytes)).map_err(damaged)?, samples)
}

/// TIFF: the first page.
///
/// # Differs
/// From Pillow for JPEG-compressed pages (another decoder: up to 14 levels at a fifth of the values).
pub fn tiff(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    read(TiffDecoder::new(Cursor::new(bytes)).map_err(damaged)?, samples)
}

fn read(mut decoder: impl ImageDecoder, samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(WORKING_BYTES);
    decoder.set_limits(limits).map_err(damaged)?;
    let color = decoder.color_type();
    let size = usize::try_from(decoder.total_bytes()).map_err(damaged)?;
    samples.clear();
    samples.resize(size, 0);
    decoder.read_image(samples).map_err(damaged)?;
    let layout = to_rgb(samples, color)?;
    Ok(Raster { width: width as usize, height: height as usize, layout })
}

fn to_rgb(samples: &mut Vec<u8>, color: ColorType) -> Result<Layout, ImageError> {
    match color {
        ColorType::L8 => return Ok(Layout::Gray),
        ColorType::L16 => {
            let values = samples.chunks_exact(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]));
            *samples = values.map(convert::clip_gray16).collect();
            return Ok(Layout::Gray);
        }
        ColorType::Rgb8 => {}
        ColorType::Rgb16 => convert::native_high_bytes(samples),
        ColorType::La8 => *samples = convert::gray_alpha_to_rgb(samples),
        ColorType::Rgba8 => convert::rgba_to_rgb(samples),
        ColorType::Rgba16 => {
            convert::native_high_bytes(samples);
            convert::rgba_to_rgb(samples);
        }
        other => return Err(ImageError::Damaged(format!("{other:?} pixels are not supported; use 8 or 16 bits"))),
    }
    Ok(Layout::Rgb)
}
