//! The answer of `train probe`, which `pipelines doctor` asks for.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What `train` finds on a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The program can compute on NVIDIA GPUs.
    pub cuda: bool,
    /// The driver and its GPUs, or why there are none.
    pub gpus: Result<Gpus, String>,
    /// What is missing beside the driver, and where it was looked for.
    pub missing_toolkit: Option<String>,
    /// Version and file of the MPI library, or why there is none.
    pub mpi: Result<String, String>,
    /// Memory that programs can have now, bytes.
    pub available_memory: Option<u64>,
    /// All memory, bytes.
    pub total_memory: Option<u64>,
    /// Free space of the folder that was asked about, bytes.
    pub free_disk: Option<u64>,
    /// That folder, or the nearest one above it that exists.
    pub disk_of: PathBuf,
}

/// NVIDIA GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpus {
    /// The newest CUDA that the driver serves: 12040 is 12.4.
    pub cuda_version: i32,
    /// Name, and memory in bytes.
    pub found: Vec<(String, u64)>,
}
