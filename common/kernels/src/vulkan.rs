//! Vulkan devices: GPUs of any maker, and Mesa's software device, on which kernels for GPUs are tested without a GPU. There are
//! none in builds without the feature `wgpu`, and none on macOS, which has [`metal`](crate::metal).

use crate::graphics::{BUILD, Gpu};
use base::{Error, Result};
use burn::tensor::Device;

/// What installs a loader and Mesa's drivers, among them the software device.
pub const PACKAGES: &str = "apt-get install libvulkan1 mesa-vulkan-drivers";

/// An extension of Vulkan without which cubecl-spirv 0.11.3 (`lower_shared_implicit`) declares shared memory with a wrong type:
/// drivers crash on such shaders.
pub const EXTENSION: &str = "VK_KHR_workgroup_memory_explicit_layout";

/// The layer of `tests/gpu/vulkan`, which corrects these shaders.
pub const LAYER: &str = "VK_LAYER_correct_shared_memory";

/// The devices in the order of their numbers: discrete GPUs, integrated ones, virtual ones, the software device.
pub fn gpus() -> &'static [Gpu] {
    found::gpus()
}

/// Opens a device.
///
/// # Errors
/// [`Error::Invalid`] when this system or this build has no Vulkan, or this machine no such device; says what to install. A device
/// whose driver would crash.
pub(crate) fn open(index: usize) -> Result<Device> {
    let place = format!("device vulkan:{index}");
    if cfg!(target_os = "macos") {
        let remedy = "use --device metal, Apple's own, or --device cpu";
        return Err(Error::invalid(place, "a program for macOS", "a system with Vulkan (Linux, Windows)", remedy));
    }
    if cfg!(not(feature = "wgpu")) {
        return Err(Error::invalid(place, "a program built without Vulkan", "the feature wgpu", BUILD));
    }
    let gpus = gpus();
    match gpus.get(index) {
        Some(gpu) if gpu.usable => Ok(found::device(gpu)),
        Some(gpu) => {
            let found = format!("{} without {EXTENSION}", gpu.name);
            let remedy = "start the program by tests/gpu/vulkan, which corrects its shaders, or choose another device";
            Err(Error::invalid(place, found, "a device that has it", remedy))
        }
        None if gpus.is_empty() => {
            let remedy = format!("{PACKAGES}, or compute on the CPU: --device cpu");
            Err(Error::invalid(place, "no Vulkan device", "libvulkan.so.1 and a driver (VK_DRIVER_FILES)", remedy))
        }
        None => {
            let names: Vec<&str> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
            let remedy = "choose another, or --device cpu";
            Err(Error::invalid(place, names.join(", "), "an index below their number", remedy))
        }
    }
}

#[cfg(not(all(feature = "wgpu", not(target_os = "macos"))))]
mod found {
    use super::Gpu;
    use burn::tensor::Device;

    pub fn gpus() -> &'static [Gpu] {
        &[]
    }

    pub fn device(_: &Gpu) -> Device {
        unreachable!("there are no devices in this build")
    }
}

#[cfg(all(feature = "wgpu", not(target_os = "macos")))]
mod found {
    use super::Gpu;
    use crate::graphics::{Listed, list};
    use burn::tensor::Device;
    use cubecl::wgpu::wgpu::{Adapter, Backends};
    use std::sync::OnceLock;

    pub fn gpus() -> &'static [Gpu] {
        static LISTED: OnceLock<Listed> = OnceLock::new();
        &LISTED.get_or_init(|| list(Backends::VULKAN, runs_shaders)).gpus
    }

    /// See [`Gpu::usable`].
    fn runs_shaders(adapter: &Adapter) -> bool {
        let corrected = std::env::var("VK_INSTANCE_LAYERS").is_ok_and(|layers| layers.contains(super::LAYER));
        let extension = std::ffi::CString::new(super::EXTENSION).unwrap_or_default();
        // SAFETY: the adapter is only asked for its properties.
        let adapter = unsafe { adapter.as_hal::<cubecl::wgpu::wgpu::hal::api::Vulkan>() };
        corrected
            || adapter.is_some_and(|adapter| adapter.physical_device_capabilities().supports_extension(&extension))
    }

    pub fn device(gpu: &Gpu) -> Device {
        Device::vulkan(gpu.place.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        println!("{:?}", gpus());
        let error = open(1000).expect_err("no machine has so many").to_string();
        println!("{error}");
        let remedies = ["--device metal", "--features wgpu", PACKAGES, "choose another"];
        assert!(error.contains("vulkan:1000") && remedies.iter().any(|remedy| error.contains(remedy)), "{error}");
        for (index, _) in gpus().iter().enumerate().filter(|(_, gpu)| !gpu.usable) {
            let error = open(index).expect_err("its driver would crash").to_string();
            assert!(error.contains(EXTENSION) && error.contains("tests/gpu/vulkan"), "{error}");
        }
    }
}
