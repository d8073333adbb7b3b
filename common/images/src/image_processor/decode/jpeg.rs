//! JPEG through libjpeg (mozjpeg's), set up as Pillow sets it up, so that pixels and verdicts are Pillow's.

use super::{Layout, Raster, check_plausible, check_size, convert, make_room};
use crate::image_processor::ImageError;
use mozjpeg_sys::*;
use std::ffi::{c_int, c_long};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;

/// Rows asked of libjpeg at once.
const ROWS_AT_ONCE: usize = 16;

/// Scans after which a progressive file is taken for an attack: real ones have about ten, and each costs a pass over the image.
const MAX_SCANS: c_int = 500;

/// What the components of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// As the file's markers say.
    AsMarked,
    /// Gray.
    Gray,
    /// RGB without a transform.
    Rgb,
    /// Luma and two colour differences.
    YCbCr,
}

/// The library, pinned in Cargo.toml.
const LIBRARY: &str = "mozjpeg-sys 2.2.3";

unsafe extern "C" {
    /// libjpeg's own question before it takes the vectorised inverse DCT; 0 in builds without nasm and on processors without AVX2 or SSE2.
    fn jsimd_can_idct_islow() -> c_int;
}

/// The decoder and whether it computes with SIMD instructions.
///
/// Undamaged files decode alike with and without; damaged entropy data gives coefficients out of range, on which the two inverse DCTs differ.
pub fn decoder_build() -> String {
    // SAFETY: takes nothing and reads the processor's features.
    let simd = unsafe { jsimd_can_idct_islow() } != 0;
    format!("{LIBRARY}, {}", if simd { "SIMD" } else { "no SIMD" })
}

/// What libjpeg's error handler throws through the C code.
struct LibjpegError(String);

/// Decodes into `samples`.
///
/// # Errors
/// `Damaged` for whatever libjpeg calls an error, and for data that ends before the last row is complete. What libjpeg only
/// warns about (damaged entropy data, garbage between markers) passes, and so does anything after the image, as in Pillow.
/// # Source
/// Pillow `JpegDecode.c`, `ImagingJpegDecode`: the input is "suspended" at its end, and a suspended decoder is a truncated file.
pub fn decode(bytes: &[u8], samples: &mut Vec<u8>) -> Result<Raster, ImageError> {
    decode_stored(bytes, samples, Stored::AsMarked)
}

/// As [`decode`], where another file says what the components are.
pub fn decode_stored(bytes: &[u8], samples: &mut Vec<u8>, stored: Stored) -> Result<Raster, ImageError> {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut decoder = Decoder::new(bytes);
        decoder.decode(samples, stored)
    }));
    match result {
        Ok(result) => result,
        Err(payload) => match payload.downcast::<LibjpegError>() {
            Ok(error) => Err(ImageError::Damaged(error.0)),
            Err(payload) => resume_unwind(payload),
        },
    }
}

/// libjpeg's structures, which point at each other and therefore stay where they are.
struct Decoder<'a> {
    info: Box<jpeg_decompress_struct>,
    error: Box<jpeg_error_mgr>,
    source: Box<jpeg_source_mgr>,
    progress: Box<jpeg_progress_mgr>,
    bytes: &'a [u8],
}

impl<'a> Decoder<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        // SAFETY: the structures are C's: numbers, nullable pointers and nullable functions, for all of which zero is valid.
        let (error, info): (jpeg_error_mgr, jpeg_decompress_struct) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let progress = jpeg_progress_mgr {
            progress_monitor: Some(count_scans),
            pass_counter: 0,
            pass_limit: 0,
            completed_passes: 0,
            total_passes: 0,
        };
        let source = jpeg_source_mgr {
            next_input_byte: bytes.as_ptr(),
            bytes_in_buffer: bytes.len(),
            init_source: Some(nothing),
            fill_input_buffer: Some(suspend),
            skip_input_data: Some(skip),
            resync_to_restart: Some(jpeg_resync_to_restart),
            term_source: Some(nothing),
        };
        let mut decoder = Self {
            info: Box::new(info),
            error: Box::new(error),
            source: Box::new(source),
            progress: Box::new(progress),
            bytes,
        };
        // SAFETY: the boxes outlive the decompressor, which `drop` destroys first, and do not move; `bytes` lives for 'a.
        unsafe {
            jpeg_std_error(&mut decoder.error);
            decoder.error.error_exit = Some(throw);
            decoder.error.emit_message = Some(ignore_warning);
            decoder.info.common.err = &raw mut *decoder.error;
            jpeg_create_decompress(&raw mut *decoder.info);
            decoder.info.src = &raw mut *decoder.source;
            decoder.info.common.progress = &raw mut *decoder.progress;
        }
        decoder
    }

    fn decode(&mut self, samples: &mut Vec<u8>, stored: Stored) -> Result<Raster, ImageError> {
        // SAFETY: called in libjpeg's order on an initialized decompressor; errors unwind to `catch_unwind`.
        let status = unsafe { jpeg_read_header(&mut self.info, 1) };
        if status != JPEG_HEADER_OK {
            return Err(ends_early("header"));
        }
        let (width, height) = (self.info.image_width as usize, self.info.image_height as usize);
        check_size(width as u64, height as u64)?;
        // Huffman codes: at least one bit a block of 8 × 8 pixels.
        check_plausible(width as u64, height as u64, self.bytes.len(), (width * height / 512) as u64)
            .or_else(|refused| if is_arithmetic(self.bytes) { Ok(()) } else { Err(refused) })?;
        let (color_space, channels) = match self.info.num_components {
            1 => (J_COLOR_SPACE::JCS_GRAYSCALE, 1),
            3 => (J_COLOR_SPACE::JCS_RGB, 3),
            4 => (J_COLOR_SPACE::JCS_CMYK, 4),
            other => return Err(ImageError::Damaged(format!("{other} colour components; 1, 3 or 4 are supported"))),
        };
        self.info.out_color_space = color_space;
        self.info.jpeg_color_space = match stored {
            Stored::AsMarked => self.info.jpeg_color_space,
            Stored::Gray => J_COLOR_SPACE::JCS_GRAYSCALE,
            Stored::Rgb => J_COLOR_SPACE::JCS_RGB,
            Stored::YCbCr => J_COLOR_SPACE::JCS_YCbCr,
        };
        // SAFETY: as above.
        if unsafe { jpeg_start_decompress(&mut self.info) } == 0 {
            return Err(ends_early("coefficients"));
        }
        make_room(samples, width * height * channels);
        self.read_rows(samples, width * channels, height)?;
        // SAFETY: as above. A file that stops right after its last row is complete enough, for Pillow too.
        unsafe { jpeg_finish_decompress(&mut self.info) };
        let layout = match channels {
            1 => Layout::Gray,
            3 => Layout::Rgb,
            _ => {
                convert::inverted_cmyk_to_rgb(samples);
                Layout::Rgb
            }
        };
        Ok(Raster { width, height, layout })
    }

    fn read_rows(&mut self, samples: &mut [u8], row_bytes: usize, height: usize) -> Result<(), ImageError> {
        let mut done = 0;
        while done < height {
            let mut rows = [ptr::null_mut(); ROWS_AT_ONCE];
            let wanted = ROWS_AT_ONCE.min(height - done);
            for (row, line) in rows.iter_mut().zip(samples[done * row_bytes..].chunks_exact_mut(row_bytes)) {
                *row = line.as_mut_ptr();
            }
            // SAFETY: `wanted` rows of `row_bytes` bytes each, which is the decompressor's output width × components.
            let read = unsafe { jpeg_read_scanlines(&mut self.info, rows.as_mut_ptr(), wanted as JDIMENSION) };
            if read == 0 {
                return Err(ends_early(&format!("row {} of {height}", done + 1)));
            }
            done += read as usize;
        }
        Ok(())
    }
}

impl Drop for Decoder<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `new`; destroying is allowed in every state.
        unsafe { jpeg_destroy_decompress(&mut self.info) }
    }
}

const JPEG_HEADER_OK: c_int = 1;

/// Whether the frame may be coded arithmetically (SOF9 to SOF15), which has no least size.
fn is_arithmetic(bytes: &[u8]) -> bool {
    bytes.array_windows().any(|&[first, second]| first == 0xFF && matches!(second, 0xC9..=0xCB | 0xCD..=0xCF))
}

fn ends_early(place: &str) -> ImageError {
    ImageError::Damaged(format!("the file ends inside its {place}"))
}

/// Turns a libjpeg error into a Rust unwinding that ends in [`decode`] (without the panic hook: nothing is printed).
unsafe extern "C-unwind" fn throw(info: &mut jpeg_common_struct) {
    type Format = unsafe extern "C-unwind" fn(*mut jpeg_common_struct, *mut u8);
    let mut text = [0u8; 80];
    // SAFETY: libjpeg set `err`; its formatter writes at most 80 bytes, the size that its interface prescribes.
    unsafe {
        if let Some(format) = (*info.err).format_message {
            #[allow(clippy::missing_transmute_annotations)]
            // The source type cannot be named: it has lifetimes of its own.
            mem::transmute::<_, Format>(format)(info, text.as_mut_ptr());
        }
    }
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    resume_unwind(Box::new(LibjpegError(String::from_utf8_lossy(text).into_owned())))
}

unsafe extern "C-unwind" fn ignore_warning(_info: &mut jpeg_common_struct, _level: c_int) {}

/// Called between passes and rows: refuses a file made of thousands of scans.
unsafe extern "C-unwind" fn count_scans(info: &mut jpeg_common_struct) {
    // SAFETY: the monitor belongs to a decompressor, whose structure begins with the common part.
    let scans = unsafe { (*ptr::from_mut(info).cast::<jpeg_decompress_struct>()).input_scan_number };
    if scans > MAX_SCANS {
        resume_unwind(Box::new(LibjpegError(format!("more than {MAX_SCANS} scans"))));
    }
}

unsafe extern "C-unwind" fn nothing(_info: &mut jpeg_decompress_struct) {}

/// There is no more input than the one buffer.
unsafe extern "C-unwind" fn suspend(_info: &mut jpeg_decompress_struct) -> boolean {
    0
}

/// Skips a marker segment; one that reaches beyond the end leaves nothing to read.
unsafe extern "C-unwind" fn skip(info: &mut jpeg_decompress_struct, count: c_long) {
    // SAFETY: libjpeg passes the decompressor that `new` gave a source with `bytes_in_buffer` bytes at `next_input_byte`.
    unsafe {
        let source = &mut *info.src;
        let count = usize::try_from(count).unwrap_or(0).min(source.bytes_in_buffer);
        source.next_input_byte = source.next_input_byte.add(count);
        source.bytes_in_buffer -= count;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_library_is_the_pinned_one() {
        let pinned = super::LIBRARY.replace("mozjpeg-sys ", "mozjpeg-sys = { version = \"=");
        assert!(include_str!("../../../../../Cargo.toml").contains(&pinned), "{}", super::decoder_build());
    }
}
