//! Processor, memory, disk, programs, GPU, MPI and the server's port.

use super::{Args, Finding, hub};
use crate::programs::Programs;
use anyhow::Result;
use cli::probe::{Gpus, Probe};
use cli::units::bytes;
use kernels::cpu::{Isa, isa};
use kernels::cuda::{self, LEAST_DRIVER};
use std::net::{Ipv4Addr, TcpListener};

/// Memory that the quickstart takes, bytes.
const LEAST_MEMORY: u64 = 1 << 30;
/// Disk that the quickstart takes, with room for its intermediate files, bytes.
const LEAST_DISK: u64 = 1 << 28;

/// Everything that is looked at.
pub struct Machine {
    cores: usize,
    isa: Isa,
    processor: String,
    /// The answer of `train`.
    probe: Result<Probe>,
    /// `-V` of each program, which have to be equal.
    versions: Result<Vec<String>>,
    /// Whether files can be written where runs are to be.
    writable: std::io::Result<()>,
    port: (u16, std::io::Result<()>),
    hub: [Finding; 2],
}

impl Machine {
    /// Looks at all of it.
    pub fn look(args: &Args, programs: &Programs) -> Self {
        let probe = programs.probe(&args.output);
        let disk_of = probe.as_ref().map_or(args.output.as_path(), |probe| &probe.disk_of);
        Self {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            isa: isa(),
            processor: processor(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            versions: programs.versions(),
            writable: tempfile::tempfile_in(disk_of).map(|_| ()),
            port: (args.port, TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).map(|_| ())),
            hub: hub::look(),
            probe,
        }
    }

    /// What was found, in the order in which it is shown.
    pub fn findings(self) -> Vec<Finding> {
        let mut findings = vec![self.processor(), self.programs()];
        match &self.probe {
            Ok(probe) => findings.extend([memory(probe), self.disk(probe), graphics(probe), mpi(probe)]),
            Err(error) => findings.push(Finding::bad(
                "probe",
                format!("train probe failed: {error:#}"),
                "report this with the text above; an MPI or NVIDIA library that ends the process is a likely cause \
                 (LLAVA_MPI_LIBRARY=FILE names another MPI)",
            )),
        }
        findings.push(self.port());
        findings.extend(self.hub);
        findings
    }

    fn processor(&self) -> Finding {
        let (cores, isa, name) = (base::counted(self.cores, "core"), self.isa, &self.processor);
        let slow = match isa {
            Isa::Base if cfg!(target_arch = "x86_64") => " (slow: no AVX2 and FMA)",
            Isa::Base | Isa::Avx2 | Isa::Avx512 => "",
        };
        Finding::good("processor", format!("{name}, {cores}, {isa} kernels{slow}"))
    }

    fn programs(&self) -> Finding {
        const SUBJECT: &str = "programs";
        let next = "install all four programs from one build";
        match &self.versions {
            Err(error) => Finding::bad(SUBJECT, format!("{error:#}"), next),
            Ok(versions) => {
                let own = env!("CARGO_PKG_VERSION");
                let found = versions.join(", ");
                let is_own = |version: &String| version.ends_with(&format!(" {own}"));
                if versions.iter().all(is_own) {
                    Finding::good(SUBJECT, found)
                } else {
                    Finding::bad(SUBJECT, format!("{found}, but pipelines is {own}"), next)
                }
            }
        }
    }

    fn disk(&self, probe: &Probe) -> Finding {
        const SUBJECT: &str = "disk";
        let place = probe.disk_of.display();
        if let Err(error) = &self.writable {
            return Finding::bad(SUBJECT, format!("{place}: {error}"), "give --output a folder that you may write to");
        }
        match probe.free_disk {
            Some(free) if free < LEAST_DISK => Finding::bad(
                SUBJECT,
                format!("{} free in {place}; the quickstart takes {}", bytes(free), bytes(LEAST_DISK)),
                "free space, or give --output a folder on another disk",
            ),
            Some(free) => Finding::good(SUBJECT, format!("{} free in {place}", bytes(free))),
            None => Finding::good(SUBJECT, format!("free space of {place} is not known")),
        }
    }

    fn port(&self) -> Finding {
        const SUBJECT: &str = "port";
        match &self.port {
            (port, Ok(())) => Finding::good(SUBJECT, format!("{port} is free for infer serve")),
            (port, Err(error)) => {
                let next = "infer serve --port N with another number; --port 0 takes a free one and prints it";
                Finding::absent(SUBJECT, format!("{port}: {error}"), next)
            }
        }
    }
}

fn memory(probe: &Probe) -> Finding {
    const SUBJECT: &str = "memory";
    let of = probe.total_memory.map(|total| format!(" of {}", bytes(total))).unwrap_or_default();
    match probe.available_memory {
        None => Finding::good(SUBJECT, "not known here"),
        Some(available) if available < LEAST_MEMORY => Finding::bad(
            SUBJECT,
            format!("{}{of} available; the quickstart takes {}", bytes(available), bytes(LEAST_MEMORY)),
            "end other programs, or raise the container's limit",
        ),
        Some(available) => {
            Finding::good(SUBJECT, format!("{}{of} available (train plan says what a run needs)", bytes(available)))
        }
    }
}

fn graphics(probe: &Probe) -> Finding {
    const SUBJECT: &str = "GPU";
    let build = "cargo build --release --features cuda -p train -p infer (docs/gpu.md)";
    let Gpus { cuda_version, found } = match &probe.gpus {
        Ok(gpus) => gpus,
        Err(cause) => {
            return Finding::absent(
                SUBJECT,
                format!("none: {cause}"),
                format!("a machine with an NVIDIA GPU and its driver; then {build}"),
            );
        }
    };
    let names = found.iter().map(|(name, memory)| format!("{name} ({})", bytes(*memory))).collect::<Vec<_>>();
    let driver = format!("driver of CUDA {}", cuda::version(*cuda_version));
    match () {
        () if found.is_empty() => Finding::absent(
            SUBJECT,
            format!("none, {driver}"),
            "make a GPU visible: CUDA_VISIBLE_DEVICES, docker run --gpus all, Slurm's --gres=gpu:1",
        ),
        () if *cuda_version < LEAST_DRIVER => {
            Finding::absent(SUBJECT, format!("{}, {driver}: too old", names.join(", ")), cuda::UPDATE_DRIVER)
        }
        () if !probe.cuda => Finding::absent(
            SUBJECT,
            format!("{}, {driver}; train is built without CUDA", names.join(", ")),
            build.to_string(),
        ),
        () => match &probe.missing_toolkit {
            Some(missing) => {
                Finding::absent(SUBJECT, format!("{}, {driver}; {missing}", names.join(", ")), cuda::WHEELS)
            }
            None => Finding::good(SUBJECT, format!("{}, {driver}", names.join(", "))),
        },
    }
}

fn mpi(probe: &Probe) -> Finding {
    match &probe.mpi {
        Ok(library) => Finding::good("MPI", library.as_str()),
        Err(_) => Finding::absent(
            "MPI",
            "no library",
            "apt-get install openmpi-bin, or the cluster's own: module load …; LLAVA_MPI_LIBRARY=FILE names a library elsewhere",
        ),
    }
}

/// The processor's name.
fn processor(cpuinfo: &str) -> String {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn probe() -> Probe {
        Probe {
            cuda: false,
            gpus: Err("no libcuda.so.1".into()),
            missing_toolkit: None,
            mpi: Ok("Open MPI v4.1.4 (libmpi.so.40)".into()),
            available_memory: Some(8 << 30),
            total_memory: Some(16 << 30),
            free_disk: Some(1 << 40),
            disk_of: ".".into(),
        }
    }

    #[test]
    fn a_gpu_needs_a_driver_that_is_new_enough_and_a_build_with_cuda() {
        let with = |cuda: bool, cuda_version: i32, count: usize| {
            let card = ("NVIDIA H200".to_string(), 150 << 30);
            graphics(&Probe { cuda, gpus: Ok(Gpus { cuda_version, found: vec![card; count] }), ..probe() })
        };
        let next = |finding: Finding| finding.next.unwrap_or_default();
        assert_eq!(with(true, 13_010, 1).state, State::Good);
        assert!(with(true, 13_010, 1).found.contains("CUDA 13.1"));
        assert!(next(with(true, 12_040, 1)).contains("update the NVIDIA driver"));
        assert!(next(with(true, 13_010, 0)).contains("CUDA_VISIBLE_DEVICES"));
        assert!(next(with(false, 13_010, 1)).contains("--features cuda"));
        assert!(next(graphics(&probe())).contains("NVIDIA GPU and its driver"));
    }

    #[test]
    fn little_memory_is_bad_and_no_mpi_is_not() {
        assert_eq!(memory(&probe()).state, State::Good);
        let little = memory(&Probe { available_memory: Some(1 << 20), ..probe() });
        assert_eq!(little.state, State::Bad);
        assert!(little.found.contains("1.0 MB of 17.2 GB"), "{}", little.found);
        assert_eq!(mpi(&probe()).state, State::Good);
        assert_eq!(mpi(&Probe { mpi: Err("none".into()), ..probe() }).state, State::Absent);
    }

    #[test]
    fn the_processor_has_a_name() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: AMD EPYC 9B14\n"), "AMD EPYC 9B14");
        assert_eq!(processor(""), std::env::consts::ARCH);
    }
}
