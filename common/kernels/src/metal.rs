//! Metal devices: the GPUs of Macs, by the interface of Apple's systems. There are none in builds without the feature `wgpu`, and
//! none on other systems. Type-checked for macOS, never run.

use crate::graphics::{BUILD, Gpu};
use base::{Error, Result};
use burn::tensor::Device;

/// The devices in the order of their numbers: discrete GPUs, integrated ones (those of Apple's own processors).
pub fn gpus() -> &'static [Gpu] {
    found::gpus()
}

/// Opens a device.
///
/// # Errors
/// [`Error::Invalid`] when this system or this build has no Metal, or this machine no such device; a device that does not compile
/// the language of cubecl's kernels.
pub(crate) fn open(index: usize) -> Result<Device> {
    let place = format!("device metal:{index}");
    if cfg!(not(target_os = "macos")) {
        let found = format!("a program for {}", std::env::consts::OS);
        let remedy = "use --device cuda on an NVIDIA GPU, --device vulkan on another, or --device cpu";
        return Err(Error::invalid(place, found, "macOS: Metal is the interface to the GPUs of Macs", remedy));
    }
    if cfg!(not(feature = "wgpu")) {
        return Err(Error::invalid(place, "a program built without Metal", "the feature wgpu", BUILD));
    }
    let gpus = gpus();
    let Some(gpu) = gpus.get(index) else {
        let names: Vec<&str> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
        let found = if names.is_empty() { "no Metal device".into() } else { names.join(", ") };
        return Err(Error::invalid(place, found, "an index below their number", "choose another, or --device cpu"));
    };
    found::device(index).map_err(|error| {
        let expected = "a GPU that compiles Metal 3.2 (macOS 15 or later on an Apple processor)";
        Error::invalid(place, format!("{}: {error}", gpu.name), expected, "update macOS, or use --device cpu")
    })
}

#[cfg(not(all(feature = "wgpu", target_os = "macos")))]
mod found {
    use super::Gpu;
    use burn::tensor::Device;

    pub fn gpus() -> &'static [Gpu] {
        &[]
    }

    pub fn device(_: usize) -> Result<Device, String> {
        unreachable!("there are no devices in this build")
    }
}

#[cfg(all(feature = "wgpu", target_os = "macos"))]
mod found {
    use super::Gpu;
    use crate::graphics::{Listed, list};
    use burn::tensor::Device;
    use burn::tensor::wgpu::WgpuBackend;
    use cubecl::wgpu::wgpu::Backends;
    use std::sync::OnceLock;

    type Opened = OnceLock<Result<(), String>>;

    fn listed() -> &'static (Listed, Vec<Opened>) {
        static LISTED: OnceLock<(Listed, Vec<Opened>)> = OnceLock::new();
        LISTED.get_or_init(|| {
            let listed = list(Backends::METAL, |_| true);
            let opened = listed.gpus.iter().map(|_| OnceLock::new()).collect();
            (listed, opened)
        })
    }

    pub fn gpus() -> &'static [Gpu] {
        &listed().0.gpus
    }

    /// Opened once: burn opens a device at its first tensor otherwise, and panics where that fails.
    pub fn device(index: usize) -> Result<Device, String> {
        let (listed, opened) = listed();
        let place = &listed.gpus[index].place;
        let open = || {
            let options = Device::wgpu_options().device_kind(place.clone()).graphics_api(WgpuBackend::Metal);
            options.init().map(|_| ()).map_err(|error| error.to_string())
        };
        opened[index].get_or_init(open).clone().map(|()| Device::metal(place.clone()))
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
        let remedies = ["--device vulkan", "--features wgpu", "choose another"];
        assert!(error.contains("metal:1000") && remedies.iter().any(|remedy| error.contains(remedy)), "{error}");
    }

    #[test]
    #[cfg(not(target_os = "macos"))]
    fn other_systems_are_told_what_to_use() {
        assert_eq!(gpus(), []);
        let error = open(0).expect_err("no Mac").to_string();
        for words in ["metal:0", std::env::consts::OS, "macOS", "--device cuda", "--device vulkan", "--device cpu"] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
