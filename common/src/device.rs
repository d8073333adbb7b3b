//! Where the model computes: a CPU (burn-flex) by default, CUDA with the feature `cuda`.

use burn::tensor::Device;

/// The CPU, with autodiff.
pub fn cpu_autodiff() -> Device {
    Device::flex().autodiff()
}

/// The CPU, without autodiff.
pub fn cpu() -> Device {
    Device::flex()
}
