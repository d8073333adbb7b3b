//! What an NVIDIA GPU needs on this machine beside the program: the driver, NVRTC with the CUDA headers, and cuBLASLt. Everything
//! here works in builds without CUDA too: it says what there is before anything is computed.
//!
//! cubecl compiles kernels by NVRTC at run time and finds it and its headers only in a CUDA toolkit; without headers its device
//! thread panics and later reads return whatever memory held. So [`prepare`] finds them wherever they are, and a device is only
//! given out after a product on it was right.

pub mod cublas_lt;
mod driver;
mod headers;
mod stream;
mod toolkit;

pub use driver::{Driver, Gpu, driver};
pub use stream::{Event, Stream};
pub use toolkit::{Part, Toolkit};

use base::{Error, Result};
use std::sync::LazyLock;

/// What `pip` installs of what a program needs beside the driver. Of the driver's CUDA version: an older driver does not load what a
/// newer NVRTC compiles.
pub const WHEELS: &str = "pip install nvidia-cuda-nvrtc==13.0.* nvidia-cuda-runtime==13.0.* nvidia-cuda-crt==13.0.* \
                          nvidia-cuda-cccl==13.0.* nvidia-cublas==13.*";

/// The oldest CUDA that the driver has to run: the one whose interface is compiled in (`CUDARC_CUDA_VERSION`).
pub const LEAST_DRIVER: i32 = 13_000;
/// What helps with an older one.
pub const UPDATE_DRIVER: &str = "update the NVIDIA driver: 580 or later, which runs CUDA 13.0";

/// Turns products by cuBLASLt off with the value 0.
const CUBLAS_LT: &str = "LLAVA_CUDA_CUBLASLT";

/// Whether matrix products on a CUDA device may use cuBLASLt: not with `LLAVA_CUDA_CUBLASLT=0`.
pub fn may_use_cublas_lt() -> bool {
    static MAY: LazyLock<bool> = LazyLock::new(|| std::env::var_os(CUBLAS_LT).is_none_or(|value| value != "0"));
    *MAY
}

/// A version as the driver numbers it: 12040 is `12.4`.
pub fn version(number: i32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// Finds NVRTC and the headers and makes them known to cubecl: opens NVRTC, so that it is found by name afterwards, and sets
/// `CUDA_PATH` where the headers are elsewhere. Does nothing in a build without CUDA.
///
/// # Safety
/// No other thread runs: the environment is changed. A program's first statement.
pub unsafe fn prepare() {
    if cfg!(feature = "cuda") {
        let toolkit = Toolkit::find();
        toolkit.open_nvrtc();
        if let Some(path) = toolkit.cuda_path() {
            // SAFETY: the caller's promise.
            unsafe { std::env::set_var("CUDA_PATH", path) };
        }
    }
}

/// Refuses a GPU that cannot be computed on: no driver, no such GPU, no compiler for its kernels.
///
/// # Errors
/// [`Error::Invalid`] with what was found, where it was looked for and what to install.
pub fn require(index: usize) -> Result<()> {
    let place = format!("device cuda:{index}");
    let Driver { version: runs, gpus } = driver().map_err(|found| {
        Error::invalid(&place, found, "a working NVIDIA driver", "install it, or compute on the CPU: --device cpu")
    })?;
    if runs < LEAST_DRIVER {
        let (found, expected) = (format!("a driver of CUDA {}", version(runs)), version(LEAST_DRIVER));
        let remedy = format!("{UPDATE_DRIVER}; or compute on the CPU: --device cpu");
        return Err(Error::invalid(place, found, format!("one of CUDA {expected} or later"), remedy));
    }
    if index >= gpus.len() {
        let found = match gpus.len() {
            1 => "1 GPU".to_owned(),
            n => format!("{n} GPUs"),
        };
        return Err(Error::invalid(place, found, "an index below that", "choose another, or --device cpu"));
    }
    let toolkit = Toolkit::find();
    match toolkit.parts().into_iter().find(|part| part.required && part.found.is_none()) {
        None => Ok(()),
        Some(part) => {
            let remedy = format!("{WHEELS} (in the active environment), or set CUDA_PATH to a CUDA toolkit");
            let found = format!("no {} in {}", part.missing.join(" or "), toolkit.looked());
            Err(Error::invalid(place, found, format!("{} ({})", part.name, part.purpose), remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where there is a driver, an index that no GPU has.
    #[test]
    fn what_a_gpu_needs_and_is_missing_is_said() {
        let error = require(1000).expect_err("no machine has so many").to_string();
        println!("{error}");
        let says = |words: &[&str]| words.iter().all(|word| error.contains(word));
        assert!(says(&["cuda:1000"]) && (says(&["libcuda.so.1", "--device cpu"]) || says(&["GPU"])), "{error}");
    }
}
