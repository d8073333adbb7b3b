//! WebP, and other formats that the image crate decodes.

use super::{Layout, Raster, check_size, convert, damaged, make_room};
use crate::image_processor::ImageError;
use image::codecs::webp::WebPDecoder;
use image::{ColorType, ImageDecoder, Limits};
use std::io::Cursor;

/// Memory that a decoder may take beside the pixels it hands over, bytes.
pub const WORKING_BYTES: u64 = 1 << 30;

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

/// Whatever the image crate decodes.
pub fn read(decoder: impl ImageDecoder, samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    let (width, height, color) = read_samples(decoder, samples)?;
    Ok(Raster { width, height, layout: to_rgb(samples, color)? })
}

/// Width, height and the samples as the file has them, after checking the size.
pub fn read_samples(
    mut decoder: impl ImageDecoder,
    samples: &mut Vec<u8>,
) -> Result<(usize, usize, ColorType), ImageError> {
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
    Ok((width as usize, height as usize, color))
}

/// Brings samples of a layout to gray or RGB of 8 bits.
pub fn to_rgb(samples: &mut Vec<u8>, color: ColorType) -> Result<Layout, ImageError> {
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
