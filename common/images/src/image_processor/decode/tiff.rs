//! TIFF: the first page, with Pillow's reading of the tags that change pixels. Files that Pillow reads in another way are refused.

use super::jpeg::{self, Stored};
use super::{Layout, Raster, check_size, convert, damaged, make_room, others};
use crate::image_processor::ImageError;
use image::ColorType;
use image::codecs::tiff::TiffDecoder;
use std::io::Cursor;
use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;

const WHITE_IS_ZERO: u64 = 0;
const BLACK_IS_ZERO: u64 = 1;
const RGB: u64 = 2;
const CMYK: u64 = 5;
const YCBCR: u64 = 6;
const COMPRESSION_JPEG: u64 = 7;
const CHUNKY: u64 = 1;
const UPRIGHT: u64 = 1;
const XMP: u16 = 700;

/// Extra samples: the fourth one of RGB is nothing, alpha by which colours are multiplied already, or alpha.
const UNSPECIFIED: u64 = 0;
const ASSOCIATED_ALPHA: u64 = 1;
const UNASSOCIATED_ALPHA: u64 = 2;

/// TIFF: the first page, upright.
///
/// # Errors
/// `Damaged` for what Pillow refuses, and for palettes, gray with alpha, YCbCr without JPEG, CIELab, bits in reversed order, more than four
/// samples a pixel, and samples of 2, 4, 12 or 32 bits.
/// # Source
/// Pillow `TiffImagePlugin.py`: `OPEN_INFO`, `_setup`, `load_end`; libtiff `tif_jpeg.c` for JPEG-compressed pages.
pub fn decode(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(damaged)?;
    let page = Page::read(&mut decoder)?;
    page.check(bytes.starts_with(b"II"))?;
    let raster = match (page.compression, page.photometric) {
        (COMPRESSION_JPEG, _) => page.jpeg(&mut decoder, bytes, samples)?,
        (_, CMYK) => page.cmyk(decoder, samples)?,
        _ => page.plain(bytes, samples)?,
    };
    Ok(upright(samples, raster, page.orientation))
}

/// The tags that decide what samples mean.
struct Page {
    width: u64,
    height: u64,
    photometric: u64,
    compression: u64,
    planar: u64,
    fill_order: u64,
    bits: u64,
    samples: u64,
    extra_samples: Vec<u64>,
    orientation: u64,
}

impl Page {
    fn read(decoder: &mut Decoder<Cursor<&[u8]>>) -> Result<Self, ImageError> {
        let (width, height) = decoder.dimensions().map_err(damaged)?;
        check_size(width.into(), height.into())?;
        let mut numbers =
            |tag| decoder.find_tag_unsigned_vec::<u64>(tag).map_err(damaged).map(Option::unwrap_or_default);
        let mut first = |tag, default| numbers(tag).map(|values| values.first().copied().unwrap_or(default));
        Ok(Self {
            width: width.into(),
            height: height.into(),
            photometric: first(Tag::PhotometricInterpretation, 0)?,
            compression: first(Tag::Compression, 1)?,
            planar: first(Tag::PlanarConfiguration, CHUNKY)?,
            fill_order: first(Tag::FillOrder, 1)?,
            bits: first(Tag::BitsPerSample, 1)?,
            samples: first(Tag::SamplesPerPixel, 1)?,
            extra_samples: numbers(Tag::ExtraSamples)?,
            orientation: orientation(decoder)?,
        })
    }

    /// Refuses what the decoder below would read otherwise than Pillow does.
    fn check(&self, little_endian: bool) -> Result<(), ImageError> {
        let refuse = |what: String| Err(damaged(format!("TIFF with {what} is not supported; save it as PNG")));
        if self.fill_order != 1 {
            return refuse(format!("bits in reversed order (FillOrder {})", self.fill_order));
        }
        if self.photometric == WHITE_IS_ZERO && self.bits == 16 && !little_endian {
            return refuse("big-endian 16-bit samples of which 0 is white".into());
        }
        let known = match self.photometric {
            RGB => matches!(
                (self.samples, &self.extra_samples[..]),
                (3 | 4, []) | (4, [UNSPECIFIED | ASSOCIATED_ALPHA | UNASSOCIATED_ALPHA])
            ),
            CMYK => self.samples == 4 && self.extra_samples.is_empty() && self.planar == CHUNKY,
            _ => self.extra_samples.is_empty(),
        };
        if !known {
            return refuse(format!("{} samples a pixel and extra samples {:?}", self.samples, self.extra_samples));
        }
        if self.planar != CHUNKY && !self.extra_samples.is_empty() {
            return refuse("extra samples in planes of their own".into());
        }
        Ok(())
    }

    /// Gray and RGB through the image crate.
    fn plain(&self, bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
        let decoder = TiffDecoder::new(Cursor::new(bytes)).map_err(damaged)?;
        let (width, height, mut color) = others::read_samples(decoder, samples)?;
        if color == ColorType::L16 && self.photometric == WHITE_IS_ZERO {
            // Pillow reads these samples as if 0 were black; the decoder has inverted them.
            samples.iter_mut().for_each(|byte| *byte = !*byte);
        }
        if self.extra_samples == [ASSOCIATED_ALPHA] {
            if color == ColorType::Rgba16 {
                convert::native_high_bytes(samples);
                color = ColorType::Rgba8;
            }
            convert::divide_by_alpha(samples);
        }
        Ok(Raster { width, height, layout: others::to_rgb(samples, color)? })
    }

    /// Four inks, which the image crate would convert by another formula.
    fn cmyk(&self, decoder: Decoder<Cursor<&[u8]>>, samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
        let mut limits = Limits::default();
        limits.decoding_buffer_size = others::WORKING_BYTES as usize;
        limits.intermediate_buffer_size = others::WORKING_BYTES as usize;
        let (width, height) = (self.width as usize, self.height as usize);
        match decoder.with_limits(limits).read_image().map_err(damaged)? {
            DecodingResult::U8(values) => *samples = values,
            DecodingResult::U16(values) => *samples = values.iter().map(|value| (value >> 8) as u8).collect(),
            _ => return Err(damaged("CMYK samples that are neither 8 nor 16 bits are not supported")),
        }
        if samples.len() != 4 * width * height {
            return Err(damaged(format!("{} CMYK samples of {width}×{height} pixels", samples.len())));
        }
        convert::cmyk_to_rgb(samples);
        Ok(Raster { width, height, layout: Layout::Rgb })
    }

    /// Strips or tiles that are JPEG files without tables, decoded as all JPEG files are.
    fn jpeg(
        &self,
        decoder: &mut Decoder<Cursor<&[u8]>>,
        bytes: &[u8],
        samples: &mut Vec<u8>,
    ) -> Result<Raster, ImageError> {
        let (stored, layout) = match (self.photometric, self.samples) {
            (YCBCR, 3) => (Stored::YCbCr, Layout::Rgb),
            (RGB, 3) => (Stored::Rgb, Layout::Rgb),
            (BLACK_IS_ZERO, 1) => (Stored::Gray, Layout::Gray),
            (photometric, samples) => {
                return Err(damaged(format!(
                    "JPEG-compressed TIFF of photometric interpretation {photometric} with {samples} samples a pixel is not \
                     supported; save it as PNG"
                )));
            }
        };
        if self.planar != CHUNKY || self.bits != 8 {
            return Err(damaged(
                "JPEG-compressed TIFF in planes or of more than 8 bits is not supported; save it as PNG",
            ));
        }
        let tables = decoder.find_tag(Tag::JPEGTables).map_err(damaged)?;
        let tables = tables.map(|value| value.into_u8_vec()).transpose().map_err(damaged)?.unwrap_or_default();
        let (width, height, channels) = (self.width as usize, self.height as usize, layout.channels());
        make_room(samples, width * height * channels);
        let (mut file, mut part) = (Vec::new(), Vec::new());
        for chunk in Chunks::read(decoder, width, height)? {
            let (offset, size) = (chunk.offset as usize, chunk.bytes as usize);
            let data = bytes.get(offset..).and_then(|rest| rest.get(..size));
            let data = data.ok_or_else(|| damaged("a strip or tile reaches beyond the end of the file"))?;
            file.clear();
            // The tables' file without its end marker, the part's without its start marker.
            file.extend_from_slice(tables.get(..tables.len().saturating_sub(2)).unwrap_or_default());
            file.extend_from_slice(if file.is_empty() { data } else { data.get(2..).unwrap_or_default() });
            let decoded = jpeg::decode_stored(&file, &mut part, stored)?;
            let rows = chunk.height.min(height - chunk.y);
            let columns = chunk.width.min(width - chunk.x);
            if decoded.layout != layout || decoded.width < columns || decoded.height < rows {
                return Err(damaged(format!(
                    "a strip or tile of {}×{} pixels where {columns}×{rows} are declared",
                    decoded.width, decoded.height
                )));
            }
            for row in 0..rows {
                let from = &part[row * decoded.width * channels..][..columns * channels];
                let start = ((chunk.y + row) * width + chunk.x) * channels;
                samples[start..start + from.len()].copy_from_slice(from);
            }
        }
        Ok(Raster { width, height, layout })
    }
}

/// One strip or tile: where its bytes and its pixels are.
struct Chunk {
    offset: u64,
    bytes: u64,
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

/// Strips or tiles, row by row.
struct Chunks;

impl Chunks {
    fn read(decoder: &mut Decoder<Cursor<&[u8]>>, width: usize, height: usize) -> Result<Vec<Chunk>, ImageError> {
        let mut numbers =
            |tag| decoder.find_tag_unsigned_vec::<u64>(tag).map_err(damaged).map(Option::unwrap_or_default);
        let tile = (numbers(Tag::TileWidth)?, numbers(Tag::TileLength)?);
        let (chunk_width, chunk_height, offsets, sizes) = match (&tile.0[..], &tile.1[..]) {
            (&[tile_width], &[tile_height]) => {
                (tile_width as usize, tile_height as usize, Tag::TileOffsets, Tag::TileByteCounts)
            }
            _ => {
                let rows = numbers(Tag::RowsPerStrip)?.first().map_or(height, |&rows| rows as usize);
                (width, rows.min(height), Tag::StripOffsets, Tag::StripByteCounts)
            }
        };
        if chunk_width == 0 || chunk_height == 0 {
            return Err(damaged("strips or tiles without pixels"));
        }
        let across = width.div_ceil(chunk_width);
        let places = numbers(offsets)?.into_iter().zip(numbers(sizes)?);
        let chunks: Vec<Chunk> = places
            .take(across * height.div_ceil(chunk_height))
            .enumerate()
            .map(|(index, (offset, bytes))| Chunk {
                offset,
                bytes,
                x: index % across * chunk_width,
                y: index / across * chunk_height,
                width: chunk_width,
                height: chunk_height,
            })
            .collect();
        match chunks.len() == across * height.div_ceil(chunk_height) {
            true => Ok(chunks),
            false => Err(damaged(format!("{} strips or tiles, which do not cover the image", chunks.len()))),
        }
    }
}

/// The orientation tag, or what the XMP packet says where there is none, as Pillow's `getexif` reads them.
fn orientation(decoder: &mut Decoder<Cursor<&[u8]>>) -> Result<u64, ImageError> {
    if let Some(orientation) = decoder.find_tag_unsigned::<u64>(Tag::Orientation).map_err(damaged)? {
        return Ok(orientation);
    }
    let xmp = decoder.find_tag(Tag::Unknown(XMP)).map_err(damaged)?.and_then(|value| value.into_u8_vec().ok());
    let xmp = xmp.unwrap_or_default();
    const NAME: &[u8] = b"tiff:Orientation";
    let rest = xmp.windows(NAME.len()).position(|window| window == NAME).map(|at| &xmp[at + NAME.len()..]);
    Ok(match rest {
        Some([b'=', b'"', digit @ b'0'..=b'9', ..] | [b'>', digit @ b'0'..=b'9', ..]) => u64::from(digit - b'0'),
        _ => UPRIGHT,
    })
}

/// Turns and mirrors the pixels as Pillow's `ImageOps.exif_transpose` does while it loads a TIFF file.
fn upright(samples: &mut Vec<u8>, raster: Raster, orientation: u64) -> Raster {
    let Raster { width, height, layout } = raster;
    let (last_x, last_y) = (width.saturating_sub(1), height.saturating_sub(1));
    let (swaps, source): (bool, &dyn Fn(usize, usize) -> (usize, usize)) = match orientation {
        2 => (false, &|x, y| (last_x - x, y)),
        3 => (false, &|x, y| (last_x - x, last_y - y)),
        4 => (false, &|x, y| (x, last_y - y)),
        5 => (true, &|x, y| (y, x)),
        6 => (true, &|x, y| (y, last_y - x)),
        7 => (true, &|x, y| (last_x - y, last_y - x)),
        8 => (true, &|x, y| (last_x - y, x)),
        _ => return raster,
    };
    let (new_width, new_height) = if swaps { (height, width) } else { (width, height) };
    let channels = layout.channels();
    let mut turned = Vec::with_capacity(samples.len());
    for y in 0..new_height {
        for x in 0..new_width {
            let (source_x, source_y) = source(x, y);
            turned.extend_from_slice(&samples[(source_y * width + source_x) * channels..][..channels]);
        }
    }
    *samples = turned;
    Raster { width: new_width, height: new_height, layout }
}
