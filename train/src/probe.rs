//! What this program finds on the machine: an MPI library, GPUs, memory, disk. `pipelines doctor` asks for it with
//! `train probe`, in a process of its own, because loading those libraries may end the process.

use crate::collective::mpi;
use crate::plan::Machine;
use cli::probe::{Gpus, Probe};
use kernels::cuda::{self, Toolkit};
use std::path::Path;

/// Looks around; `folder` is where a run would be.
pub fn look(folder: &Path) -> Probe {
    let gpus = cuda::driver().map(|driver| {
        let found = driver.gpus.into_iter().map(|gpu| (gpu.name, gpu.memory));
        Gpus { cuda_version: driver.version, found: found.collect() }
    });
    let toolkit = Toolkit::find();
    let missing = toolkit.parts().into_iter().find(|part| part.required && part.found.is_none());
    let Machine { available_memory, total_memory, free_disk, disk_of, .. } = Machine::look(folder);
    let mpi = mpi::describe().map_err(|error| error.to_string());
    Probe {
        cuda: cfg!(feature = "cuda"),
        gpus,
        missing_toolkit: missing.map(|part| format!("no {} in {}", part.missing.join(" or "), toolkit.looked())),
        mpi,
        available_memory,
        total_memory,
        free_disk,
        disk_of,
    }
}
