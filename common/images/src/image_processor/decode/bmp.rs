//! Windows bitmaps: the image crate decodes them; run-length coding and 16-bit samples are Pillow's.

use super::{Layout, Raster, check_size, convert, damaged, others};
use crate::image_processor::ImageError;
use image::codecs::bmp::BmpDecoder;
use std::io::Cursor;

const FILE_HEADER: usize = 14;
const INFO_HEADER: usize = 40;

/// BMP of any depth.
///
/// # Source
/// Pillow `BmpImagePlugin.py`; `Unpack.c` for 16-bit samples.
pub fn decode(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    let header = Header::read(bytes);
    let unpacked = match &header {
        Some(header) if matches!((header.compression, header.bits), (1, 8) | (2, 4)) => Some(header.unpack(bytes)?),
        _ => None,
    };
    let bytes = unpacked.as_deref().unwrap_or(bytes);
    let raster = others::read(BmpDecoder::new(Cursor::new(bytes)).map_err(damaged)?, samples)?;
    if let Some(header) = header.filter(|header| header.bits == 16 && raster.layout == Layout::Rgb) {
        // Masks are there with compression 3 only; a green one of six bits is the one other layout than 5-5-5.
        let six_bit_green = header.compression == 3 && u32_at(bytes, 58) == Some(0x07E0);
        let tables = [31, if six_bit_green { 63 } else { 31 }, 31].map(convert::truncating_table);
        for pixel in samples.chunks_exact_mut(3) {
            pixel.iter_mut().zip(&tables).for_each(|(sample, table)| *sample = table[usize::from(*sample)]);
        }
    }
    Ok(raster)
}

/// What Pillow reads of a header of at least 40 bytes.
struct Header {
    /// Where the pixels start, bytes from the start of the file.
    offset: usize,
    /// Bytes of the header after the file header.
    size: usize,
    width: i32,
    /// Negative: the first row is the top one.
    height: i32,
    bits: u16,
    compression: u32,
    colors: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| u32_at(bytes, at);
        let size = number(FILE_HEADER)? as usize;
        if size < INFO_HEADER {
            return None;
        }
        let bits = (number(28)? & 0xFFFF) as u16;
        let colors = match number(46)? as usize {
            0 if bits <= 8 => 1 << bits,
            colors => colors,
        };
        let mut offset = number(10)? as usize;
        if offset == FILE_HEADER + size && bits <= 8 {
            // Some writers forget the palette.
            offset = offset.saturating_add(colors.saturating_mul(4));
        }
        let (width, height) = (number(18)? as i32, number(22)? as i32);
        Some(Self { offset, size, width, height, bits, compression: number(30)?, colors })
    }

    /// The same picture without run-length coding, eight bits a pixel.
    fn unpack(&self, bytes: &[u8]) -> Result<Vec<u8>, ImageError> {
        let (width, height) = (self.width.max(0) as usize, self.height.unsigned_abs() as usize);
        check_size(width as u64, height as u64)?;
        let indices =
            Runs { bytes, at: self.offset, four_bits: self.compression == 2 }.unpack(width, width * height)?;
        let palette = bytes.get(FILE_HEADER + self.size..).unwrap_or_default();
        let palette = &palette[..palette.len().min(4 * self.colors.min(256))];
        let row_bytes = width.next_multiple_of(4);
        let offset = FILE_HEADER + INFO_HEADER + palette.len();
        let mut plain = Vec::with_capacity(offset + row_bytes * height);
        plain.extend_from_slice(b"BM");
        let file_bytes = (offset + row_bytes * height) as u32;
        [
            file_bytes,
            0,
            offset as u32,
            INFO_HEADER as u32,
            self.width as u32,
            self.height as u32,
            8 << 16 | 1,
            0,
            0,
            0,
            0,
        ]
        .iter()
        .for_each(|number| plain.extend_from_slice(&number.to_le_bytes()));
        [(palette.len() / 4) as u32, 0].iter().for_each(|number| plain.extend_from_slice(&number.to_le_bytes()));
        plain.extend_from_slice(palette);
        for row in indices.chunks_exact(width) {
            plain.extend_from_slice(row);
            plain.resize(plain.len() + row_bytes - width, 0);
        }
        Ok(plain)
    }
}

/// Run-length coded palette indices. What the runs leave out has index 0.
///
/// # Source
/// Pillow `BmpImagePlugin.py`, `BmpRleDecoder`.
struct Runs<'a> {
    bytes: &'a [u8],
    at: usize,
    four_bits: bool,
}

impl Runs<'_> {
    fn unpack(mut self, width: usize, pixels: usize) -> Result<Vec<u8>, ImageError> {
        let mut indices = Vec::new();
        let mut column = 0;
        while indices.len() < pixels {
            let Some([count, value]) = self.pair() else { break };
            match (count, value) {
                (0, 0) => {
                    indices.resize(indices.len().next_multiple_of(width), 0);
                    column = 0;
                }
                (0, 1) => break,
                (0, 2) => {
                    let Some([right, up]) = self.pair() else { break };
                    let skipped = usize::from(right) + usize::from(up) * width;
                    indices.resize(pixels.min(indices.len() + skipped), 0);
                    column = indices.len() % width;
                }
                (0, count) => {
                    if !self.literal(usize::from(count).min(pixels - indices.len()), &mut indices) {
                        break;
                    }
                    column += usize::from(count);
                    self.at = self.at.next_multiple_of(2);
                }
                (count, value) => {
                    let count = usize::from(count).min(width.saturating_sub(column));
                    let both = if self.four_bits { [value >> 4, value & 15] } else { [value; 2] };
                    indices.extend(both.iter().cycle().take(count));
                    column += count;
                }
            }
        }
        // The last run may have filled a row beyond the last one.
        indices.truncate(pixels);
        match indices.len() == pixels {
            true => Ok(indices),
            false => Err(damaged(format!("run-length codes give {} of {pixels} pixels", indices.len()))),
        }
    }

    fn pair(&mut self) -> Option<[u8; 2]> {
        let pair = *self.bytes.get(self.at..)?.first_chunk()?;
        self.at += 2;
        Some(pair)
    }

    /// Copies `count` indices; false where the file ends first.
    fn literal(&mut self, count: usize, indices: &mut Vec<u8>) -> bool {
        let size = if self.four_bits { count.div_ceil(2) } else { count };
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let found = &rest[..size.min(rest.len())];
        self.at += found.len();
        if self.four_bits {
            indices.extend(found.iter().flat_map(|&byte| [byte >> 4, byte & 15]).take(count));
        } else {
            indices.extend_from_slice(found);
        }
        found.len() == size
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}
