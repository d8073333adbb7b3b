//! WebP, BMP and TIFF through the image crate.

use super::{Layout, Raster, check_size, convert, damaged, make_room};
use crate::image_processor::ImageError;
use image::codecs::{bmp::BmpDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder, Limits};
use std::io::Cursor;

/// Memory that a decoder may take beside the pixels it hands over, bytes.
const WORKING_BYTES: u64 = 1 << 30;

/// WebP, lossy or lossless; the first frame of an animation.
pub fn webp(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    let mut chunks = Chunks(bytes.get(12..).unwrap_or_default());
    if let Some((_, frame)) = chunks.find(|(kind, _)| kind == b"ANMF") {
        check_frame(frame)?;
    }
    read(WebPDecoder::new(Cursor::new(bytes)).map_err(damaged)?, samples)
}

/// Refuses a frame of an animation whose bitstream has another size: the decoder relies on that and would panic.
fn check_frame(frame: &[u8]) -> Result<(), ImageError> {
    let of_frame =
        |at: usize| Some(1 + u32::from_le_bytes([*frame.get(at)?, *frame.get(at + 1)?, *frame.get(at + 2)?, 0]));
    let declared = (of_frame(6), of_frame(9));
    for (_, stream) in Chunks(frame.get(16..).unwrap_or_default()).filter(|(kind, _)| kind == b"VP8 ") {
        let of_stream =
            |at: usize| Some(u32::from(u16::from_le_bytes([*stream.get(at)?, *stream.get(at + 1)?]) & 0x3FFF));
        if (of_stream(6), of_stream(8)) != declared {
            return Err(damaged("a frame's size is not that of its picture"));
        }
    }
    Ok(())
}

/// Kinds and contents of RIFF chunks; the last may be cut.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = ([u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, rest) = self.0.split_first_chunk::<4>()?;
        let (size, rest) = rest.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*size) as usize;
        let content = &rest[..size.min(rest.len())];
        self.0 = rest.get(size + size % 2..).unwrap_or_default();
        Some((*kind, content))
    }
}

/// BMP of any depth.
pub fn bmp(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    let raster = read(BmpDecoder::new(Cursor::new(bytes)).map_err(damaged)?, samples)?;
    let number = |at: usize| bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    let bits = number(28).map(|number| number & 0xFFFF);
    if bits == Some(16) && raster.layout == Layout::Rgb {
        // Masks are there with compression 3 only; a green one of six bits is the one other layout than 5-5-5.
        let six_bit_green = number(30) == Some(3) && number(58) == Some(0x07E0);
        let tables = [31, if six_bit_green { 63 } else { 31 }, 31].map(truncating_table);
        for pixel in samples.chunks_exact_mut(3) {
            pixel.iter_mut().zip(&tables).for_each(|(sample, table)| *sample = table[usize::from(*sample)]);
        }
    }
    Ok(raster)
}

/// From samples of 0 to `largest` that were rounded to 8 bits to the same truncated, as Pillow's `Unpack.c` does.
fn truncating_table(largest: usize) -> [u8; 256] {
    std::array::from_fn(|rounded| ((rounded * largest + 127) / 255 * 255 / largest) as u8)
}

/// TIFF: the first page.
///
/// # Differs
/// From Pillow for JPEG-compressed pages (another decoder: up to 14 levels at a fifth of the values), and refuses palettes,
/// gray with alpha, YCbCr without JPEG, CIELab, and samples of 32 bits.
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
    make_room(samples, size);
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
