//! What this machine can compute on, and what is missing for more.

use crate::collective::nccl;
use cli::units::bytes;
use kernels::cpu::isa;
use kernels::cuda::{self, Gpu, Toolkit};
use kernels::device::DeviceKind;
use kernels::graphics::Gpu as Listed;
use kernels::{metal, vulkan};

/// A table for people: the CPU, every GPU with the device's name, and what GPUs need beside the program.
pub fn table() -> String {
    let mut rows = vec![("cpu".to_owned(), cpu())];
    match cuda::driver() {
        Ok(driver) => {
            rows.extend(
                driver.gpus.iter().enumerate().map(|(index, of)| (DeviceKind::Cuda(index).to_string(), gpu(of))),
            );
            rows.push(("driver".into(), format!("CUDA {}", cuda::version(driver.version))));
        }
        Err(found) => rows.push(("driver".into(), format!("{found}: no NVIDIA GPU can be used"))),
    }
    rows.extend(graphics());
    let toolkit = Toolkit::find();
    let parts = toolkit.parts();
    let missing = parts.iter().any(|part| part.found.is_none());
    rows.extend(parts.into_iter().map(|part| {
        let found = part.found.as_ref().map(|path| path.display().to_string());
        let found = found.unwrap_or_else(|| format!("no {}", part.missing.join(", ")));
        (part.name.to_owned(), format!("{found} ({})", part.purpose))
    }));
    // Where it was looked for is said below.
    let nccl =
        nccl::describe().unwrap_or_else(|found| found.to_string().split(';').next().unwrap_or_default().to_owned());
    rows.push(("NCCL".into(), format!("{nccl} (exchanges between GPUs)")));
    if missing {
        rows.push(("looked in".into(), toolkit.looked()));
    }
    let build = match (cfg!(feature = "cuda"), missing) {
        (false, _) => "without CUDA; with it: cargo build --release --features cuda -p train -p infer".to_owned(),
        (true, true) => format!("with CUDA; what is missing: {}", cuda::WHEELS),
        (true, false) => "with CUDA".to_owned(),
    };
    rows.push(("this build".into(), build));
    rows.push(("--device auto".into(), DeviceKind::best().to_string()));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    rows.iter().map(|(name, what)| format!("{name:width$}  {what}")).collect::<Vec<_>>().join("\n")
}

fn cpu() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores = if cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") };
    format!("{cores}, {} kernels", isa())
}

/// What Vulkan lists, on macOS Metal, or why there is nothing.
fn graphics() -> Vec<(String, String)> {
    let is_mac = cfg!(target_os = "macos");
    let (interface, gpus) = if is_mac { ("Metal", metal::gpus()) } else { ("Vulkan", vulkan::gpus()) };
    if gpus.is_empty() {
        let found = match cfg!(feature = "wgpu") {
            false => "not in this build; with it: cargo build --release --features wgpu -p train -p infer".to_owned(),
            true if is_mac => "no device".to_owned(),
            true => format!("no device; with Mesa's software device: {}", vulkan::PACKAGES),
        };
        return vec![(interface.into(), found)];
    }
    let row = |(index, gpu): (usize, &Listed)| {
        let kind = if is_mac { DeviceKind::Metal(index) } else { DeviceKind::Vulkan(index) };
        let lacks = if gpu.usable { String::new() } else { format!(", not usable: without {}", vulkan::EXTENSION) };
        (kind.to_string(), format!("{}, {}{lacks}", gpu.name, gpu.kind))
    };
    gpus.iter().enumerate().map(row).collect()
}

fn gpu(gpu: &Gpu) -> String {
    let (major, minor) = gpu.capability;
    let bf16 = if gpu.has_bf16() { "" } else { ", no bf16" };
    format!("{}, compute capability {major}.{minor}{bf16}, {}", gpu.name, bytes(gpu.memory))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_cpu_and_what_is_missing_are_named() {
        let table = super::table();
        println!("{table}");
        for name in
            ["cpu ", "driver ", "NVRTC ", "CUDA headers ", "cuBLASLt ", "NCCL ", "this build ", "--device auto "]
        {
            assert!(table.lines().any(|line| line.starts_with(name)), "{name}");
        }
    }
}
