//! zstd frames of residuals: Huffman coding without a search for repetitions.
//!
//! Residuals of a photo have no repetitions worth finding. Leaving the search out makes frames smaller than level 1
//! (103 against 109 KB a 336-pixel photo), three times as fast to write and 1.6 times as fast to read; any zstd reads them.

use crate::{Error, Result};
use std::cell::RefCell;
use std::ffi::c_int;
use std::ptr::NonNull;
use zstd::zstd_safe::{DCtx, get_error_name};

/// The faster, the more negative; from here on nothing is searched.
const NO_SEARCH_LEVEL: c_int = -100_000;
/// `ZSTD_ps_enable`: Huffman-code literals, which the fast levels would leave as they are.
const ENABLE: c_int = 1;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// Appends a frame of `bytes`.
pub(super) fn compress(bytes: &[u8], frames: &mut Vec<u8>) -> Result<()> {
    COMPRESSOR.with_borrow_mut(|compressor| {
        let compressor = match compressor {
            Some(compressor) => compressor,
            None => compressor.insert(Compressor::new()?),
        };
        compressor.compress(bytes, frames)
    })
}

/// Fills `bytes` from one or more frames. `None` if they are damaged or hold another number of bytes.
pub(super) fn decompress(frames: &[u8], bytes: &mut [u8]) -> Option<()> {
    let written = DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.decompress(bytes, frames)).ok()?;
    (written == bytes.len()).then_some(())
}

/// A compression context. The safe wrapper does not offer the switch for literals without rebuilding zstd with its
/// experimental interface; the parameter itself is part of the library.
struct Compressor(NonNull<zstd_sys::ZSTD_CCtx>);

impl Compressor {
    fn new() -> Result<Self> {
        // SAFETY: no preconditions; a null pointer means out of memory.
        let context = NonNull::new(unsafe { zstd_sys::ZSTD_createCCtx() });
        let compressor = Self(context.ok_or_else(|| failed("out of memory"))?);
        compressor.set(zstd_sys::ZSTD_cParameter::ZSTD_c_compressionLevel, NO_SEARCH_LEVEL)?;
        compressor.set(zstd_sys::ZSTD_cParameter::ZSTD_c_experimentalParam5, ENABLE)?;
        Ok(compressor)
    }

    fn set(&self, parameter: zstd_sys::ZSTD_cParameter, value: c_int) -> Result<()> {
        // SAFETY: the context is alive; unknown parameters and values are reported.
        checked(unsafe { zstd_sys::ZSTD_CCtx_setParameter(self.0.as_ptr(), parameter, value) }).map(|_| ())
    }

    fn compress(&mut self, bytes: &[u8], frames: &mut Vec<u8>) -> Result<()> {
        // SAFETY: a function of the number alone.
        let bound = unsafe { zstd_sys::ZSTD_compressBound(bytes.len()) };
        frames.reserve(bound);
        let free = frames.spare_capacity_mut();
        // SAFETY: reads `bytes`, writes at most `free.len()` bytes into reserved memory that nobody else sees.
        let written = checked(unsafe {
            zstd_sys::ZSTD_compress2(
                self.0.as_ptr(),
                free.as_mut_ptr().cast(),
                free.len(),
                bytes.as_ptr().cast(),
                bytes.len(),
            )
        })?;
        // SAFETY: that many bytes beyond the length are initialised.
        unsafe { frames.set_len(frames.len() + written) };
        Ok(())
    }
}

impl Drop for Compressor {
    fn drop(&mut self) {
        // SAFETY: created by ZSTD_createCCtx, freed once.
        unsafe { zstd_sys::ZSTD_freeCCtx(self.0.as_ptr()) };
    }
}

fn checked(code: usize) -> Result<usize> {
    // SAFETY: a function of the number alone.
    if unsafe { zstd_sys::ZSTD_isError(code) } == 0 { Ok(code) } else { Err(failed(get_error_name(code))) }
}

fn failed(reason: &str) -> Error {
    Error::invalid("compressing pixels", reason, "a zstd frame", "report this as a bug")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_hold_their_bytes_one_after_another_and_damage_is_noticed() {
        let first: Vec<u8> = (0..100_000u32).map(|i| (i * i % 7) as u8).collect();
        let second = vec![9u8; 1000];
        let mut frames = Vec::new();
        compress(&first, &mut frames).expect("compressed");
        compress(&second, &mut frames).expect("compressed");
        assert!(frames.len() < 50_000, "Huffman codes of 7 values: {} bytes", frames.len());
        let mut found = vec![0; first.len() + second.len()];
        decompress(&frames, &mut found).expect("decompressed");
        assert_eq!(found, [first, second].concat());
        assert!(decompress(&frames, &mut vec![0; 101_001]).is_none(), "too few");
        assert!(decompress(&frames, &mut vec![0; 100_999]).is_none(), "too many");
        assert!(decompress(&frames[1..], &mut found).is_none(), "damaged");
    }
}
