//! GPUs that a graphics interface of the system lists, [`vulkan`](crate::vulkan) or [`metal`](crate::metal), both by wgpu.

/// How to get a build that has these devices.
pub(crate) const BUILD: &str = "build it with: cargo build --release --features wgpu -p train -p infer";

/// A listed device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The driver's name for it.
    pub name: String,
    /// What it is: `discrete GPU`, `integrated GPU`, `virtual GPU` or `software on the CPU`.
    pub kind: &'static str,
    /// Whether shaders run on it. Of Vulkan: it has [`vulkan::EXTENSION`](crate::vulkan::EXTENSION), or
    /// [`vulkan::LAYER`](crate::vulkan::LAYER) is loaded. Of Metal only opening the device tells.
    pub usable: bool,
    #[cfg(feature = "wgpu")]
    pub(crate) place: burn::tensor::DeviceKind,
}

/// The devices in the order of their numbers, with the instance that listed them: Vulkan's loader crashes where instances come and
/// go on several threads.
#[cfg(feature = "wgpu")]
pub(crate) struct Listed {
    pub gpus: Vec<Gpu>,
    _instance: cubecl::wgpu::wgpu::Instance,
}

/// Asks the system for its devices.
#[cfg(feature = "wgpu")]
pub(crate) fn list(
    interface: cubecl::wgpu::wgpu::Backends,
    usable: impl Fn(&cubecl::wgpu::wgpu::Adapter) -> bool + Copy,
) -> Listed {
    use burn::tensor::DeviceKind;
    use cubecl::wgpu::wgpu::{DeviceType, Instance, InstanceDescriptor};

    let all = InstanceDescriptor::new_without_display_handle();
    let instance = Instance::new(InstanceDescriptor { backends: interface, ..all });
    let adapters = cubecl::future::block_on(instance.enumerate_adapters(interface));
    let of_type = |device_type: DeviceType, kind: &'static str, place: fn(usize) -> DeviceKind| {
        let found = adapters.iter().filter(move |adapter| adapter.get_info().device_type == device_type);
        found.enumerate().map(move |(index, adapter)| Gpu {
            name: adapter.get_info().name,
            kind,
            usable: usable(adapter),
            place: place(index),
        })
    };
    let gpus = of_type(DeviceType::DiscreteGpu, "discrete GPU", DeviceKind::DiscreteGpu)
        .chain(of_type(DeviceType::IntegratedGpu, "integrated GPU", DeviceKind::IntegratedGpu))
        .chain(of_type(DeviceType::VirtualGpu, "virtual GPU", DeviceKind::VirtualGpu))
        // burn knows one software device.
        .chain(of_type(DeviceType::Cpu, "software on the CPU", |_| DeviceKind::Cpu).take(1));
    Listed { gpus: gpus.collect(), _instance: instance }
}
