//! Whether the ranks exchange through NCCL: decided together, from what each of them has.

use super::super::background::Communicator;
use super::super::{CollectiveError, Result, guard};
use super::library::{Nccl, version};
use crate::config::CollectiveChoice;
use kernels::cuda::{self, Gpu};
use kernels::device::DeviceKind;
use std::collections::BTreeMap;

/// What exchanges gradients and parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// Threads or MPI, through the host's memory; and why, where NCCL was looked for.
    Host(Option<String>),
    /// NCCL, on the ranks' devices.
    Nccl,
}

/// What a rank has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct RankDevice {
    /// Its machine.
    host: String,
    /// Its GPU's name and compute capability.
    kind: String,
    /// Where the GPU is on the machine.
    place: String,
    /// NCCL's version.
    version: String,
    /// Why NCCL cannot be used; empty, if it can.
    missing: String,
}

/// Decides for all ranks, which give each other what they have; every rank comes to the same.
///
/// # Errors
/// A choice that cannot be followed, two ranks on one GPU, GPUs of different kinds, versions of NCCL that differ.
pub fn choose(choice: CollectiveChoice, device: DeviceKind, communicator: &mut Communicator) -> Result<Chosen> {
    let ranks = communicator.world_size();
    let is_asked = match choice {
        CollectiveChoice::Host => false,
        CollectiveChoice::Nccl => true,
        CollectiveChoice::Auto => ranks > 1 && matches!(device, DeviceKind::Cuda(_)),
    };
    if !is_asked {
        return Ok(Chosen::Host(None));
    }
    let own = of_this_rank(device, communicator.rank());
    let RankDevice { host, kind, place, version, missing } = own;
    let all = communicator.all_gather_texts("NCCL", vec![host, kind, place, version, missing])?;
    let all: Vec<RankDevice> = all.into_iter().filter_map(|texts| texts.try_into().ok().map(RankDevice::of)).collect();
    decide(choice, &all)
}

fn of_this_rank(device: DeviceKind, rank: usize) -> RankDevice {
    let gpu = match device {
        DeviceKind::Cuda(index) => cuda::driver().map(|driver| driver.gpus.into_iter().nth(index)),
        _ => Ok(None),
    };
    let (kind, place) = match &gpu {
        Ok(Some(Gpu { name, capability: (major, minor), bus, .. })) => {
            (format!("{name}, compute capability {major}.{minor}"), bus.clone())
        }
        // Memory of the host, which ranks share.
        _ => (device.to_string(), format!("rank {rank}")),
    };
    let nccl = Nccl::get();
    let is_gpu = matches!(device, DeviceKind::Cuda(_));
    let missing = match &nccl {
        Err(error) => error.to_string(),
        Ok(nccl) if nccl.is_stand_in == is_gpu => {
            let what = if is_gpu { "takes no memory of GPUs" } else { "takes memory of CUDA GPUs alone" };
            format!("{} {what}, and the device is {device}", nccl.file)
        }
        Ok(_) => gpu.err().unwrap_or_default(),
    };
    let version = nccl.map_or_else(|_| String::new(), |nccl| version(nccl.version));
    RankDevice { host: guard::host(), kind, place, version, missing }
}

impl RankDevice {
    fn of([host, kind, place, version, missing]: [String; 5]) -> Self {
        Self { host, kind, place, version, missing }
    }
}

fn decide(choice: CollectiveChoice, ranks: &[RankDevice]) -> Result<Chosen> {
    let refused = |found: String, remedy| Err(CollectiveError::Gpus { found, remedy });
    let mut gpus: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (rank, RankDevice { host, kind, place, .. }) in ranks.iter().enumerate() {
        if let Some(other) = gpus.insert((host, place), rank) {
            return refused(
                format!("ranks {other} and {rank} share a GPU: {kind} at {place} of {host}"),
                "start as many ranks as there are GPUs, or choose --collective host",
            );
        }
    }
    if let Some(other) = ranks.iter().position(|rank| rank.kind != ranks[0].kind) {
        return refused(
            format!("ranks have different GPUs: rank 0 {}, rank {other} {}", ranks[0].kind, ranks[other].kind),
            "choose GPUs of one kind (CUDA_VISIBLE_DEVICES), or --collective host",
        );
    }
    if let Some(rank) = ranks.iter().position(|rank| !rank.missing.is_empty()) {
        let reason = match ranks.len() {
            1 => ranks[rank].missing.clone(),
            _ => format!("rank {rank}: {}", ranks[rank].missing),
        };
        return match choice {
            CollectiveChoice::Nccl => Err(CollectiveError::NoNccl { reason: format!("--collective nccl: {reason}") }),
            _ => Ok(Chosen::Host(Some(reason))),
        };
    }
    if let Some(other) = ranks.iter().position(|rank| rank.version != ranks[0].version) {
        return refused(
            format!(
                "ranks have different versions of NCCL: rank 0 {}, rank {other} {}",
                ranks[0].version, ranks[other].version
            ),
            "install one version everywhere, or choose --collective host",
        );
    }
    Ok(Chosen::Nccl)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(host: &str, place: &str) -> RankDevice {
        RankDevice::of([host, "H200, compute capability 9.0", place, "2.23.4", ""].map(String::from))
    }

    #[test]
    fn ranks_with_gpus_of_their_own_use_nccl() {
        let ranks = [rank("a", "01:00"), rank("a", "02:00"), rank("b", "01:00")];
        for choice in [CollectiveChoice::Auto, CollectiveChoice::Nccl] {
            assert_eq!(decide(choice, &ranks), Ok(Chosen::Nccl));
        }
    }

    #[test]
    fn two_ranks_on_a_gpu_and_gpus_of_two_kinds_are_refused() {
        let kind = RankDevice { kind: "A100, compute capability 8.0".into(), ..rank("b", "01:00") };
        let version = RankDevice { version: "2.18.1".into(), ..rank("b", "01:00") };
        for (second, words) in [
            (rank("a", "01:00"), ["ranks 0 and 1 share a GPU: H200", "--collective host"]),
            (kind, ["rank 0 H200, compute capability 9.0, rank 1 A100", "CUDA_VISIBLE_DEVICES"]),
            (version, ["rank 0 2.23.4, rank 1 2.18.1", "install one version"]),
        ] {
            for choice in [CollectiveChoice::Auto, CollectiveChoice::Nccl] {
                let error = decide(choice, &[rank("a", "01:00"), second.clone()]).expect_err("refused").to_string();
                assert!(words.iter().all(|word| error.contains(word)), "{error}");
            }
        }
    }

    #[test]
    fn without_nccl_the_host_exchanges_unless_nccl_was_asked_for() {
        let missing = RankDevice { missing: "no NCCL".into(), version: String::new(), ..rank("b", "01:00") };
        let ranks = [rank("a", "01:00"), missing];
        let said = "rank 1: no NCCL".to_string();
        assert_eq!(decide(CollectiveChoice::Auto, &ranks), Ok(Chosen::Host(Some(said))));
        let error = decide(CollectiveChoice::Nccl, &ranks).expect_err("refused").to_string();
        assert_eq!(error, "--collective nccl: rank 1: no NCCL");
    }
}
