//! Devices: a CPU (burn-flex) by default, CUDA with the feature `cuda`, Vulkan (on macOS: Metal) with the
//! feature `wgpu`.

use crate::{cuda, metal, vulkan};
use base::{Error, Result};
use burn::tensor::{Device, DeviceConfig, FloatDType};
use std::fmt;
use std::str::FromStr;
use std::sync::Once;

/// The CPU, with autodiff.
pub fn cpu_autodiff() -> Device {
    cpu().autodiff()
}

/// The CPU, without autodiff.
pub fn cpu() -> Device {
    Device::flex()
}

/// Whether new activations on a device are bf16 ([`DeviceKind::open_in_bf16`]).
pub fn computes_in_bf16(device: &Device) -> bool {
    device.settings().float_dtype == FloatDType::BF16
}

/// Whether products on a CPU may use AMX: not with `LLAVA_CPU_AMX=0`.
#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux")), allow(dead_code))]
pub(crate) fn may_use_amx() -> bool {
    std::env::var_os("LLAVA_CPU_AMX").is_none_or(|value| value != "0")
}

/// What `--device` names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// The CPU, with this project's own kernels.
    #[default]
    Cpu,
    /// The CPU in bf16, with the plain operations: slower than f32, to test the path that a GPU takes.
    CpuBf16,
    /// An NVIDIA GPU by index.
    Cuda(usize),
    /// A device that Vulkan lists, by index: see [`vulkan::gpus`].
    Vulkan(usize),
    /// A GPU of a Mac, by index: see [`metal::gpus`].
    Metal(usize),
    /// burn's ndarray backend: the plain operations on a CPU, to test the path that a GPU takes.
    Ndarray,
}

impl DeviceKind {
    /// The device, without autodiff.
    ///
    /// # Errors
    /// [`Error::Invalid`] when this build has no such devices, or this machine has no driver; a device that computes wrongly.
    pub fn open(self) -> Result<Device> {
        let device = self.found()?;
        self.require_right(&device)?;
        Ok(device)
    }

    /// The best device of this machine that this build can use: the first CUDA GPU that has all it needs, a Mac's first GPU, else
    /// the CPU.
    pub fn best() -> Self {
        if cfg!(feature = "cuda") {
            match cuda::require(0) {
                Ok(()) => return Self::Cuda(0),
                Err(missing) if cuda::driver().is_ok_and(|driver| !driver.gpus.is_empty()) => {
                    static SAID: Once = Once::new();
                    SAID.call_once(|| tracing::warn!("a GPU is left out: {missing}"));
                }
                Err(_) => {}
            }
        }
        if metal::open(0).is_ok() { Self::Metal(0) } else { Self::Cpu }
    }

    fn found(self) -> Result<Device> {
        match self {
            Self::Cpu | Self::CpuBf16 => Ok(cpu()),
            Self::Cuda(index) => gpu(index),
            Self::Vulkan(index) => vulkan::open(index),
            Self::Metal(index) => metal::open(index),
            Self::Ndarray => ndarray(),
        }
    }

    /// Refuses a GPU that computes wrongly.
    fn require_right(self, device: &Device) -> Result<()> {
        match self {
            #[cfg(any(feature = "cuda", feature = "wgpu"))]
            Self::Cuda(_) | Self::Vulkan(_) | Self::Metal(_) => {
                crate::self_test::self_test(device, &format!("device {self}"))
            }
            _ => {
                let _ = device;
                Ok(())
            }
        }
    }

    /// The device with bf16 as the dtype of computation, for the rest of the process; `None` where it has no
    /// bf16. Must come before the first use of the device.
    ///
    /// # Errors
    /// As [`DeviceKind::open`]; a device that has been used in another format.
    pub fn open_in_bf16(self) -> Result<Option<Device>> {
        let mut device = self.found()?;
        if !device.supports_dtype(FloatDType::BF16) {
            return Ok(None);
        }
        let configured = device.configure(DeviceConfig::default().float_dtype(FloatDType::BF16));
        match configured {
            Err(error) if !computes_in_bf16(&device) => {
                Err(Error::invalid(format!("device {self}"), error, "one not used before", "report this"))
            }
            // Another rank of this process has done it.
            _ => {
                self.require_right(&device)?;
                Ok(Some(device))
            }
        }
    }

    /// Whether it is a GPU, with memory of its own.
    pub fn is_gpu(self) -> bool {
        matches!(self, Self::Cuda(_))
    }

    /// The device of a rank: GPUs are dealt out from the named one on, a CPU is shared.
    pub fn of_rank(self, local_rank: usize) -> Self {
        match self {
            Self::Cuda(first) => Self::Cuda(first + local_rank),
            Self::Vulkan(first) => Self::Vulkan(first + local_rank),
            Self::Metal(first) => Self::Metal(first + local_rank),
            other => other,
        }
    }
}

/// Names of devices, for messages.
const DEVICES: &str = "auto, cpu, cuda, cuda:N, vulkan, vulkan:N, metal or metal:N";

impl FromStr for DeviceKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("device", format!("\"{text}\""), DEVICES, "name one of them");
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::best()),
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "cpu-bf16" => Ok(Self::CpuBf16),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            None if text == "vulkan" => Ok(Self::Vulkan(0)),
            None if text == "metal" => Ok(Self::Metal(0)),
            None if text == "ndarray" => Ok(Self::Ndarray),
            Some(("cuda", index)) => Ok(Self::Cuda(index.parse().map_err(|_| wrong())?)),
            Some(("vulkan", index)) => Ok(Self::Vulkan(index.parse().map_err(|_| wrong())?)),
            Some(("metal", index)) => Ok(Self::Metal(index.parse().map_err(|_| wrong())?)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::CpuBf16 => f.write_str("cpu-bf16"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Vulkan(index) => write!(f, "vulkan:{index}"),
            Self::Metal(index) => write!(f, "metal:{index}"),
            Self::Ndarray => f.write_str("ndarray"),
        }
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // burn advises against this backend for use; here it is the second opinion.
fn ndarray() -> Result<Device> {
    Ok(Device::ndarray())
}

#[cfg(not(feature = "ndarray"))]
fn ndarray() -> Result<Device> {
    let found = "a program built without it";
    Err(Error::invalid("device ndarray", found, "the feature ndarray", "build with --features ndarray, or use cpu"))
}

#[cfg(not(feature = "cuda"))]
fn gpu(index: usize) -> Result<Device> {
    let found = "a program built without CUDA";
    let remedy = "build it with: cargo build --release --features cuda -p train -p infer";
    Err(Error::invalid(format!("device cuda:{index}"), found, "the feature cuda", remedy))
}

#[cfg(feature = "cuda")]
fn gpu(index: usize) -> Result<Device> {
    cuda::require(index)?;
    Ok(Device::cuda(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for (text, kind) in [
            ("cpu", DeviceKind::Cpu),
            ("cpu-bf16", DeviceKind::CpuBf16),
            ("cuda:0", DeviceKind::Cuda(0)),
            ("vulkan:1", DeviceKind::Vulkan(1)),
            ("metal:2", DeviceKind::Metal(2)),
            ("ndarray", DeviceKind::Ndarray),
        ] {
            assert_eq!(text.parse::<DeviceKind>().expect("a device"), kind);
            assert_eq!(kind.to_string(), text);
        }
        assert_eq!("cuda".parse::<DeviceKind>().expect("a device"), DeviceKind::Cuda(0));
        assert_eq!("metal".parse::<DeviceKind>().expect("a device"), DeviceKind::Metal(0));
        assert!("auto".parse::<DeviceKind>().is_ok());
        for wrong in ["", "gpu", "cuda:", "cuda:x", "vulkan:", "metal:", "metal:a", "cpu:0"] {
            assert!(wrong.parse::<DeviceKind>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ranks_get_gpus_of_their_own() {
        assert_eq!(DeviceKind::Cuda(2).of_rank(3), DeviceKind::Cuda(5));
        assert_eq!(DeviceKind::Vulkan(0).of_rank(1), DeviceKind::Vulkan(1));
        assert_eq!(DeviceKind::Metal(0).of_rank(1), DeviceKind::Metal(1));
        assert_eq!(DeviceKind::Cpu.of_rank(3), DeviceKind::Cpu);
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn without_the_feature_the_remedy_is_named() {
        let error = DeviceKind::Cuda(1).open().expect_err("no CUDA in this build").to_string();
        assert!(error.contains("cuda:1") && error.contains("--features cuda"), "{error}");
    }

    #[test]
    #[cfg(all(not(feature = "wgpu"), not(target_os = "macos")))]
    fn without_vulkan_the_remedy_is_named() {
        let error = DeviceKind::Vulkan(1).open().expect_err("no Vulkan in this build").to_string();
        assert!(error.contains("vulkan:1") && error.contains("--features wgpu"), "{error}");
    }
}
