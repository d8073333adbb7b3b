//! Vulkan devices: GPUs of any maker, and Mesa's software device, on which kernels for GPUs are tested without a GPU. In builds
//! without the feature `wgpu` there are none.

use base::{Error, Result};
use burn::tensor::Device;

/// What installs a loader and Mesa's drivers, among them the software device.
pub const PACKAGES: &str = "apt-get install libvulkan1 mesa-vulkan-drivers";

/// An extension of Vulkan without which cubecl-spirv 0.11.3 (`lower_shared_implicit`) declares shared memory with a wrong type:
/// drivers crash on such shaders.
pub const EXTENSION: &str = "VK_KHR_workgroup_memory_explicit_layout";

/// The layer of `tests/gpu/vulkan`, which corrects these shaders.
pub const LAYER: &str = "VK_LAYER_correct_shared_memory";

/// A device that Vulkan lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The driver's name for it.
    pub name: String,
    /// What it is: `discrete GPU`, `integrated GPU`, `virtual GPU` or `software on the CPU`.
    pub kind: &'static str,
    /// Whether shaders run on it: it has [`EXTENSION`], or [`LAYER`] is loaded.
    pub usable: bool,
    #[cfg(feature = "wgpu")]
    place: burn::tensor::DeviceKind,
}

/// The devices in the order of their numbers: discrete GPUs, integrated ones, virtual ones, the software device.
pub fn gpus() -> &'static [Gpu] {
    found::gpus()
}

/// Opens a device.
///
/// # Errors
/// [`Error::Invalid`] when this build has no Vulkan, or this machine no such device; says what to install. A device whose driver
/// would crash.
pub(crate) fn open(index: usize) -> Result<Device> {
    let place = format!("device vulkan:{index}");
    if cfg!(not(feature = "wgpu")) {
        let remedy = "build it with: cargo build --release --features wgpu -p train -p infer";
        return Err(Error::invalid(place, "a program built without Vulkan", "the feature wgpu", remedy));
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

#[cfg(not(feature = "wgpu"))]
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

#[cfg(feature = "wgpu")]
mod found {
    use super::Gpu;
    use burn::tensor::{Device, DeviceKind};
    use cubecl::wgpu::wgpu::{Adapter, Backends, DeviceType, Instance, InstanceDescriptor};
    use std::sync::OnceLock;

    /// With the instance that listed them: Vulkan's loader crashes where instances come and go on several threads.
    static GPUS: OnceLock<(Instance, Vec<Gpu>)> = OnceLock::new();

    pub fn gpus() -> &'static [Gpu] {
        let (_, gpus) = GPUS.get_or_init(|| {
            let all = InstanceDescriptor::new_without_display_handle();
            let instance = Instance::new(InstanceDescriptor { backends: Backends::VULKAN, ..all });
            let adapters = cubecl::future::block_on(instance.enumerate_adapters(Backends::VULKAN));
            let of_type = |device_type: DeviceType, kind: &'static str, place: fn(usize) -> DeviceKind| {
                let found = adapters.iter().filter(move |adapter| adapter.get_info().device_type == device_type);
                found.enumerate().map(move |(index, adapter)| Gpu {
                    name: adapter.get_info().name,
                    kind,
                    usable: runs_shaders(adapter),
                    place: place(index),
                })
            };
            let gpus = of_type(DeviceType::DiscreteGpu, "discrete GPU", DeviceKind::DiscreteGpu)
                .chain(of_type(DeviceType::IntegratedGpu, "integrated GPU", DeviceKind::IntegratedGpu))
                .chain(of_type(DeviceType::VirtualGpu, "virtual GPU", DeviceKind::VirtualGpu))
                // burn knows one software device.
                .chain(of_type(DeviceType::Cpu, "software on the CPU", |_| DeviceKind::Cpu).take(1));
            let gpus = gpus.collect();
            (instance, gpus)
        });
        gpus
    }

    /// See [`Gpu::usable`].
    #[cfg(not(target_vendor = "apple"))]
    fn runs_shaders(adapter: &Adapter) -> bool {
        let corrected = std::env::var("VK_INSTANCE_LAYERS").is_ok_and(|layers| layers.contains(super::LAYER));
        let extension = std::ffi::CString::new(super::EXTENSION).unwrap_or_default();
        // SAFETY: the adapter is only asked for its properties.
        let adapter = unsafe { adapter.as_hal::<cubecl::wgpu::wgpu::hal::api::Vulkan>() };
        corrected
            || adapter.is_some_and(|adapter| adapter.physical_device_capabilities().supports_extension(&extension))
    }

    #[cfg(target_vendor = "apple")]
    fn runs_shaders(_: &Adapter) -> bool {
        true
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
        let remedies = ["--features wgpu", PACKAGES, "choose another"];
        assert!(error.contains("vulkan:1000") && remedies.iter().any(|remedy| error.contains(remedy)), "{error}");
        for (index, _) in gpus().iter().enumerate().filter(|(_, gpu)| !gpu.usable) {
            let error = open(index).expect_err("its driver would crash").to_string();
            assert!(error.contains(EXTENSION) && error.contains("tests/gpu/vulkan"), "{error}");
        }
    }
}
