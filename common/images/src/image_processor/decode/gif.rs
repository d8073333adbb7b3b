//! GIF: the first frame on its canvas.

use super::{Layout, Raster, check_plausible, check_size, damaged};
use crate::image_processor::ImageError;
use gif::{DecodeOptions, MemoryLimit};
use std::num::NonZeroU64;

/// More than LZW with 12-bit codes can ever shrink anything.
const LZW_RATIO: u64 = 4096;

/// Flag of the header: a palette for all frames follows it.
const GLOBAL_PALETTE: u8 = 0x80;

/// Decodes into `samples`.
///
/// The canvas grows to hold a frame that reaches beyond it, and what the frame leaves free has the transparent colour or,
/// without one, the first of the palette, as in Pillow.
/// # Errors
/// `Damaged` for a file without a complete first frame.
/// # Source
/// Pillow `GifImagePlugin.py`, `_seek` and `load_prepare`.
pub fn decode(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    match *bytes {
        // The decoder wants a palette; Pillow reads a file without one as gray.
        [_, _, _, _, _, _, _, _, _, _, flags, background, aspect, ref rest @ ..] if flags & GLOBAL_PALETTE == 0 => {
            let gray = (0..=255).flat_map(|gray| [gray; 3]);
            let start = bytes[..10].iter().copied().chain([flags | GLOBAL_PALETTE | 7, background, aspect]);
            decode_with_palette(&start.chain(gray).chain(rest.iter().copied()).collect::<Vec<u8>>(), samples)
        }
        _ => decode_with_palette(bytes, samples),
    }
}

fn decode_with_palette(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    let mut options = DecodeOptions::new();
    options.set_memory_limit(NonZeroU64::new(super::MAX_PIXELS).map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes));
    let mut decoder = options.read_info(bytes).map_err(damaged)?;
    let canvas = [decoder.width(), decoder.height()].map(usize::from);
    let frame = decoder.next_frame_info().map_err(damaged)?.ok_or_else(|| damaged("no picture in the file"))?;
    let [left, top, width, height] = [frame.left, frame.top, frame.width, frame.height].map(usize::from);
    let (transparent, local) = (frame.transparent, frame.palette.clone());
    let [canvas_width, canvas_height] = [canvas[0].max(left + width), canvas[1].max(top + height)];
    check_size(canvas_width as u64, canvas_height as u64)?;
    check_size(width as u64, height as u64)?;
    check_plausible(width as u64, height as u64, bytes.len(), (width * height) as u64 / LZW_RATIO)?;
    let mut indices = vec![0; width * height];
    decoder.read_into_buffer(&mut indices).map_err(damaged)?;
    let colors = palette(local.as_deref().or(decoder.global_palette()), transparent);

    samples.clear();
    let fill = colors[usize::from(transparent.unwrap_or(0))];
    samples.extend(std::iter::repeat_n(fill, canvas_width * canvas_height).flatten());
    for (row, line) in indices.chunks_exact(width).enumerate() {
        let begin = 3 * ((top + row) * canvas_width + left);
        for (pixel, &index) in samples[begin..begin + 3 * width].chunks_exact_mut(3).zip(line) {
            pixel.copy_from_slice(&colors[usize::from(index)]);
        }
    }
    Ok(Raster { width: canvas_width, height: canvas_height, layout: Layout::Rgb })
}

/// The colours of all indices: black where a palette is short; the transparent one is white.
fn palette(colors: Option<&[u8]>, transparent: Option<u8>) -> [[u8; 3]; 256] {
    let mut palette = [[0; 3]; 256];
    for (entry, color) in palette.iter_mut().zip(colors.unwrap_or_default().chunks_exact(3)) {
        entry.copy_from_slice(color);
    }
    if let Some(index) = transparent {
        palette[usize::from(index)] = [255; 3];
    }
    palette
}
