//! PNG: all colour types, depths and interlacing, transparency over white.

use super::{Layout, Raster, check_plausible, check_size, convert, damaged, make_room};
use crate::image_processor::ImageError;
use png::{BitDepth, ColorType, DecodeOptions, Decoder, Info};
use std::io::Cursor;

/// Bytes that a decoder may take for anything but pixels (Pillow's limit on text chunks).
const METADATA_BYTES: usize = 64 << 20;

/// More than deflate can ever shrink anything (1,032).
const DEFLATE_RATIO: u64 = 1100;

/// Ends every PNG.
const END_CHUNK: [u8; 12] = [0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xAE, 0x42, 0x60, 0x82];

/// Decodes into `samples`.
///
/// # Errors
/// `Damaged` for broken chunks, checksums and data that ends early. A file that lacks only what follows the image data is whole.
/// # Source
/// Pillow `PngImagePlugin.py` (`_MODES`, `chunk_tRNS`) and transformers `convert_to_rgb`.
pub fn decode(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    decode_whole(bytes, samples).or_else(|error| match after_image_data(bytes) {
        Some(end) if matches!(error, ImageError::Damaged(_)) && !bytes[end..].starts_with(&END_CHUNK) => {
            decode_whole(&[&bytes[..end], &END_CHUNK].concat(), samples).map_err(|_| error)
        }
        _ => Err(error),
    })
}

/// Where the last complete chunk of image data ends.
fn after_image_data(bytes: &[u8]) -> Option<usize> {
    let (mut position, mut end) = (8, None);
    while let Some((length, kind)) =
        bytes.get(position..).and_then(|chunk| Some((chunk.first_chunk()?, chunk.get(4..8)?)))
    {
        position = position.checked_add(u32::from_be_bytes(*length) as usize)?.checked_add(12)?;
        if kind == b"IDAT" && position <= bytes.len() {
            end = Some(position);
        }
    }
    end
}

fn decode_whole(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    let mut options = DecodeOptions::default();
    options.set_ignore_text_chunk(true);
    options.set_ignore_iccp_chunk(true);
    options.set_skip_ancillary_crc_failures(false);
    let mut decoder = Decoder::new_with_options(Cursor::new(bytes), options);
    decoder.set_limits(png::Limits { bytes: METADATA_BYTES });
    let header = decoder.read_header_info().map_err(damaged)?;
    let (width, height) = (header.width as usize, header.height as usize);
    check_size(width as u64, height as u64)?;
    let bits = width as u64 * height as u64 * (header.bit_depth as u64 * header.color_type.samples() as u64);
    check_plausible(width as u64, height as u64, bytes.len(), bits / 8 / DEFLATE_RATIO)?;
    let mut reader = decoder.read_info().map_err(damaged)?;
    let size = reader.output_buffer_size().ok_or_else(|| damaged("row length overflows"))?;
    // Interlaced rows of small samples are or-ed into the buffer.
    samples.clear();
    make_room(samples, size);
    let frame = reader.next_frame(samples).map_err(damaged)?;
    if (frame.width as usize, frame.height as usize) != (width, height) {
        return Err(damaged("the first frame of the animation is smaller than the image"));
    }
    let layout = to_rgb(samples, width, reader.info());
    Ok(Raster { width, height, layout })
}

fn to_rgb(samples: &mut Vec<u8>, width: usize, info: &Info) -> Layout {
    let transparent = info.trns.as_deref();
    match (info.color_type, info.bit_depth) {
        (ColorType::Indexed, depth) => {
            unpack(samples, width, depth);
            let palette = Palette::new(info.palette.as_deref().unwrap_or_default(), transparent.unwrap_or_default());
            *samples = samples.iter().flat_map(|&index| palette.0[usize::from(index)]).collect();
            Layout::Rgb
        }
        (ColorType::Grayscale, BitDepth::Sixteen) => gray16(samples, transparent),
        (ColorType::Grayscale, depth) => {
            unpack(samples, width, depth);
            gray(samples, depth, transparent)
        }
        (ColorType::Rgb, depth) => {
            if depth == BitDepth::Sixteen {
                convert::high_bytes(samples);
            }
            // Pillow compares the low byte of each key with the 8-bit sample, whatever the depth.
            if let Some(&[_, red, _, green, _, blue]) = transparent {
                whiten(samples, [red, green, blue]);
            }
            Layout::Rgb
        }
        (ColorType::GrayscaleAlpha, depth) => {
            if depth == BitDepth::Sixteen {
                convert::high_bytes(samples);
            }
            *samples = convert::gray_alpha_to_rgb(samples);
            Layout::Rgb
        }
        (ColorType::Rgba, depth) => {
            if depth == BitDepth::Sixteen {
                convert::high_bytes(samples);
            }
            convert::rgba_to_rgb(samples);
            Layout::Rgb
        }
    }
}

/// Palette colours with their alpha already over white. Entries that the file lacks are black, as Pillow's are.
struct Palette([[u8; 3]; 256]);

impl Palette {
    fn new(colors: &[u8], alphas: &[u8]) -> Self {
        let mut palette = [[0; 3]; 256];
        for (entry, color) in palette.iter_mut().zip(colors.chunks_exact(3)) {
            entry.copy_from_slice(color);
        }
        for (entry, &alpha) in palette.iter_mut().zip(alphas) {
            *entry = convert::over_white(*entry, alpha);
        }
        Self(palette)
    }
}

/// Samples of 1, 2 or 4 bits to one byte each, rows being padded to whole bytes.
fn unpack(samples: &mut Vec<u8>, width: usize, depth: BitDepth) {
    let bits = depth as usize;
    if bits >= 8 {
        return;
    }
    let row_bytes = (width * bits).div_ceil(8);
    let mask = (1u8 << bits) - 1;
    let mut unpacked = Vec::with_capacity(samples.len() / row_bytes * width);
    for row in samples.chunks_exact(row_bytes) {
        unpacked.extend((0..width).map(|column| {
            let bit = column * bits;
            row[bit / 8] >> (8 - bits - bit % 8) & mask
        }));
    }
    *samples = unpacked;
}

/// Gray of at most 8 bits, scaled to 8. Pillow compares the transparent value with the scaled sample, except for 1 bit.
fn gray(samples: &mut [u8], depth: BitDepth, transparent: Option<&[u8]>) -> Layout {
    let scale = match depth {
        BitDepth::One => 255,
        BitDepth::Two => 85,
        BitDepth::Four => 17,
        BitDepth::Eight | BitDepth::Sixteen => 1,
    };
    let key = match transparent {
        Some(&[high, low]) if depth == BitDepth::One => Some(if high | low == 0 { 0 } else { 255 }),
        Some(&[_, low]) => Some(low),
        _ => None,
    };
    for sample in samples {
        let scaled = *sample * scale;
        *sample = if key == Some(scaled) { 255 } else { scaled };
    }
    Layout::Gray
}

/// Gray of 16 bits: clipped, and where it is transparent compared with the low byte of the key, as Pillow does.
fn gray16(samples: &mut Vec<u8>, transparent: Option<&[u8]>) -> Layout {
    let values = samples.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    *samples = match transparent {
        Some(&[_, key]) => values.map(|value| whiten_gray(convert::clip_gray16(value), key)).collect(),
        _ => values.map(convert::clip_gray16).collect(),
    };
    Layout::Gray
}

fn whiten_gray(value: u8, key: u8) -> u8 {
    if value == key { 255 } else { value }
}

fn whiten(samples: &mut [u8], key: [u8; 3]) {
    for pixel in samples.chunks_exact_mut(3).filter(|pixel| *pixel == key) {
        pixel.fill(255);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_samples_unpack_from_the_high_bits_and_rows_start_on_bytes() {
        let mut samples = vec![0b1010_0000, 0b0100_0000];
        unpack(&mut samples, 3, BitDepth::One);
        assert_eq!(samples, [1, 0, 1, 0, 1, 0]);
        let mut samples = vec![0x1F, 0x70];
        unpack(&mut samples, 3, BitDepth::Four);
        assert_eq!(samples, [1, 15, 7]);
    }
}
