//! The model away from the CPU's kernels, on burn's ndarray backend and with the kernels for GPUs on a Vulkan device: the trainer
//! against transformers' Trainer. (Features, logits, loss, every gradient and greedy text on these devices are in `forward` and
//! `generation`.)

use burn::tensor::Device;
use kernels::device::DeviceKind;
use tests::training::{compare_with_reference, in_process};

fn eight_steps(name: &str, device: &Device) {
    let device = device.clone().autodiff();
    compare_with_reference(name, |output, train_type, split| {
        in_process(output, train_type, split, &device, &["--device", name]);
    });
}

#[test]
#[cfg(feature = "ndarray")]
fn eight_steps_on_ndarray_equal_transformers_trainer() {
    eight_steps("ndarray", &DeviceKind::Ndarray.open().expect("a build with the feature ndarray"));
}

#[test]
#[cfg(feature = "wgpu")]
fn eight_steps_on_vulkan_equal_transformers_trainer() {
    if let Some(device) = tests::vulkan() {
        eight_steps("vulkan", &device);
    }
}
