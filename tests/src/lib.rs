//! Helpers of the integration tests: paths of reference material and programs, comparison of tensors.

pub mod adapters;
pub mod browser;
pub mod byte_model;
pub mod chat_models;
pub mod connections;
pub mod conversations;
pub mod dataset;
pub mod documents;
pub mod inference;
pub mod published;
pub mod references;
pub mod runs;
pub mod server;
pub mod small;
pub mod tiny;
pub mod training;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use burn::tensor::Device;
use kernels::device::DeviceKind;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file that `tests/reference/make` made: pictures, a tiny LLaVA and transformers' values for it.
///
/// # Panics
/// It is missing.
pub fn reference(path: &str) -> PathBuf {
    let root = std::env::var_os("LLAVA_REFERENCE").map(PathBuf::from);
    let root =
        root.expect("LLAVA_REFERENCE is not set: start the tests with tests/run, or set the variables that it prints");
    let found = root.join(path);
    assert!(found.exists(), "{} is missing: make it with tests/reference/make", found.display());
    found
}

/// Real photos, tokenizers and fixtures beside the project, for additional tests; `None`, said on stdout, where they are not.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("LLAVA_SHARED").filter(|root| !root.is_empty()).map(PathBuf::from);
    let Some(root) = root else {
        println!("not run: {path} is not here (LLAVA_SHARED)");
        return None;
    };
    let found = root.join(path);
    assert!(found.exists(), "{} is missing", found.display());
    Some(found)
}

/// A program of this workspace, built beside the test binary (`cargo build --release --workspace --bins --examples`).
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test binary has a path");
    let folder = test.parent().and_then(Path::parent).expect("target/release/deps/<test>");
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is missing: run cargo build --release --workspace --bins --examples",
        program.display()
    );
    program
}

/// The Python interpreter with transformers and peft, from the environment variable `LLAVA_PYTHON`; `None`, said on stdout,
/// where it is not set. Panics when it names something that does not run.
pub fn python() -> Option<Command> {
    let Some(interpreter) = std::env::var_os("LLAVA_PYTHON") else {
        println!("not run: LLAVA_PYTHON is not set");
        return None;
    };
    let runs = Command::new(&interpreter).arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(runs, "LLAVA_PYTHON = {} does not run", interpreter.display());
    Some(Command::new(interpreter))
}

/// A file of the tests' folder.
pub fn project_file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A Python script of the tests.
pub fn python_script(name: &str) -> PathBuf {
    project_file("python").join(name)
}

/// Bytes as base64.
pub fn to_base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// Bytes of base64 text.
pub fn from_base64(text: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text).expect("base64")
}

/// Largest |a − b| and where. Panics with the first bad index when it is above `tolerance` (absolute) or lengths differ.
pub fn assert_close(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}: number of values");
    let (mut largest, mut first_bad) = (0f32, None);
    for (index, (&a, &b)) in found.iter().zip(expected).enumerate() {
        let difference = (a - b).abs();
        // NaN must count as bad, so the comparison is the negated one.
        let within = difference <= tolerance;
        if !within && first_bad.is_none() {
            first_bad = Some(index);
        }
        largest = if difference.is_nan() { f32::NAN } else { largest.max(difference) };
    }
    println!("{name}: largest difference {largest:e} (tolerance {tolerance:e}, {} values)", found.len());
    if let Some(index) = first_bad {
        panic!(
            "{name}: first bad index {index}: {} where {} is expected (tolerance {tolerance:e})",
            found[index], expected[index]
        );
    }
}

/// ‖a − b‖ ≤ tolerance · ‖b‖. Prints the ratio.
pub fn assert_norm_close(name: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}: number of values");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    let reference = norm(&mut expected.iter().map(|&b| f64::from(b)));
    println!(
        "{name}: ‖difference‖/‖reference‖ {:e} (tolerance {tolerance:e})",
        difference / reference.max(f64::MIN_POSITIVE)
    );
    assert!(
        difference <= tolerance * reference,
        "{name}: ‖difference‖ {difference:e}, ‖reference‖ {reference:e}, tolerance {tolerance:e}"
    );
}

/// Compares to `tolerance` times the reference's largest value.
pub fn assert_relative(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    assert_close(name, found, expected, tolerance * largest);
}

/// Every burn backend that this build has: the model must give the same values on all of them.
#[allow(deprecated)] // burn advises against its ndarray backend for use; here it is the second opinion.
pub fn devices() -> Vec<(&'static str, Device)> {
    vec![
        ("flex", Device::flex()),
        #[cfg(feature = "ndarray")]
        ("ndarray", Device::ndarray()),
    ]
    .into_iter()
    .chain(vulkan().map(|device| ("vulkan", device)))
    .collect()
}

/// The first Vulkan device in builds with the feature `wgpu`; says so where there is none.
pub fn vulkan() -> Option<Device> {
    if cfg!(not(feature = "wgpu")) {
        return None;
    }
    let opened = DeviceKind::Vulkan(0).open();
    opened.inspect_err(|error| println!("not run: {error}")).ok()
}
