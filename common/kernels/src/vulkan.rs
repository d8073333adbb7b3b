//! Vulkan devices: GPUs of any maker, and Mesa's software device, on which kernels for GPUs are tested without a GPU. In builds
//! without the feature `wgpu` there are none.

use base::{Error, Result};
use burn::tensor::Device;

/// What installs a loader and Mesa's drivers, among them the software device.
pub const PACKAGES: &str = "apt-get install libvulkan1 mesa-vulkan-drivers";

/// A device that Vulkan lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The driver's name for it.
    pub name: String,
    /// What it is: `discrete GPU`, `integrated GPU`, `virtual GPU` or `software on the CPU`.
    pub kind: &'static str,
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
/// [`Error::Invalid`] when this build has no Vulkan, or this machine no such device; says what to install.
pub(crate) fn open(index: usize) -> Result<Device> {
    let place = format!("device vulkan:{index}");
    if cfg!(not(feature = "wgpu")) {
        let remedy = "build it with: cargo build --release --features wgpu -p train -p infer";
        return Err(Error::invalid(place, "a program built without Vulkan", "the feature wgpu", remedy));
    }
    let gpus = gpus();
    match gpus.get(index) {
        Some(gpu) => Ok(found::device(gpu)),
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
            let found: Vec<_> = adapters.iter().map(Adapter::get_info).collect();
            let of_type = |kind: DeviceType| {
                let names = found.iter().filter(move |info| info.device_type == kind).map(|info| info.name.clone());
                names.enumerate()
            };
            let gpu = |name, kind, place| Gpu { name, kind, place };
            let discrete = of_type(DeviceType::DiscreteGpu)
                .map(|(index, name)| gpu(name, "discrete GPU", DeviceKind::DiscreteGpu(index)));
            let integrated = of_type(DeviceType::IntegratedGpu)
                .map(|(index, name)| gpu(name, "integrated GPU", DeviceKind::IntegratedGpu(index)));
            let virtual_gpus = of_type(DeviceType::VirtualGpu)
                .map(|(index, name)| gpu(name, "virtual GPU", DeviceKind::VirtualGpu(index)));
            // burn knows one software device.
            let software =
                of_type(DeviceType::Cpu).take(1).map(|(_, name)| gpu(name, "software on the CPU", DeviceKind::Cpu));
            let gpus = discrete.chain(integrated).chain(virtual_gpus).chain(software).collect();
            (instance, gpus)
        });
        gpus
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
    }
}
