//! How this process was started: alone, to run ranks as threads, or as one of several processes.

use super::guard::{self, Note};
use super::hosts::Hosts;
use super::mpi::{self, MpiRank, abort_all};
use super::{Collective, CollectiveError, threads};
use anyhow::{Result, anyhow};
use std::time::Duration;

/// Variables in which launchers say how many processes they started.
const SIZE_VARIABLES: [&str; 5] =
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS"];

/// Processes that the launcher says it started; 1 without a launcher.
pub fn launched_processes() -> usize {
    processes_in(|name| std::env::var(name).ok())
}

fn processes_in(variable: impl Fn(&str) -> Option<String>) -> usize {
    SIZE_VARIABLES.iter().filter_map(|name| variable(name)?.trim().parse().ok()).max().unwrap_or(1)
}

/// Variables in which launchers number the processes of one machine.
const LOCAL_RANK_VARIABLES: [&str; 4] =
    ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"];

/// The number of a rank on its own machine. Threads of one process are all on one.
pub fn local_rank(rank: usize) -> usize {
    let of_launcher = || LOCAL_RANK_VARIABLES.iter().find_map(|name| std::env::var(name).ok()?.trim().parse().ok());
    if launched_processes() > 1 { of_launcher().unwrap_or(rank) } else { rank }
}

/// Runs every rank of this process: `nproc` threads, or this process as one MPI rank under a launcher. Threads sum in the order
/// of as many MPI ranks on hosts of `ranks_per_host`, if that is given.
///
/// # Errors
/// The first failure; under MPI a failure of any rank ends all of them.
pub fn run_ranks<T: Send>(
    nproc: usize,
    ranks_per_host: Option<usize>,
    timeout: Duration,
    rank_main: impl Fn(Box<dyn Collective>) -> Result<T> + Sync,
) -> Result<T> {
    match launched_processes() {
        0 | 1 => run_threads(Hosts::of_size(nproc, ranks_per_host.unwrap_or(nproc)), timeout, rank_main),
        launched => run_mpi(launched, ranks_per_host, timeout, rank_main),
    }
}

fn run_threads<T: Send>(
    hosts: Hosts,
    timeout: Duration,
    rank_main: impl Fn(Box<dyn Collective>) -> Result<T> + Sync,
) -> Result<T> {
    let nproc = hosts.ranks();
    let results = threads::run_as_on(hosts, timeout, |rank| rank_main(Box::new(rank)));
    let mut first = None;
    let mut failures = Vec::new();
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Ok(value) => first = first.or(Some(value)),
            Err(error) if nproc > 1 => failures.push(error.context(format!("rank {rank}"))),
            Err(error) => failures.push(error),
        }
    }
    // The error of the rank that failed first says more than the errors of the ranks it ended.
    let ended = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(CollectiveError::RankFailed { .. }));
    let cause = failures.iter().position(|error| !ended(error)).unwrap_or(0);
    if !failures.is_empty() {
        return Err(failures.swap_remove(cause));
    }
    first.ok_or_else(|| anyhow!("no rank ran"))
}

/// Variables in which launchers say how many of the processes are on this machine.
const LOCAL_SIZE_VARIABLES: [&str; 3] = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_TASKS_PER_NODE"];

/// Processes on this machine, for sharing its cores; `SLURM_TASKS_PER_NODE` looks like `4(x2),3`.
fn local_processes(variable: impl Fn(&str) -> Option<String>) -> usize {
    let leading_digits = |text: String| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    LOCAL_SIZE_VARIABLES.iter().find_map(|name| leading_digits(variable(name)?.trim().to_string())).unwrap_or(1)
}

/// Ranks of a run with `nproc` threads, or of the launcher's processes; and how many of them are on this machine.
pub fn ranks(nproc: usize) -> (usize, usize) {
    match launched_processes() {
        0 | 1 => (nproc, nproc),
        launched => (launched, local_processes(|name| std::env::var(name).ok()).min(launched)),
    }
}

/// Gives each process of a machine its share of the cores. `RAYON_NUM_THREADS` and a launcher that binds processes to cores
/// have decided already.
fn share_cores() -> Result<()> {
    if std::env::var_os("RAYON_NUM_THREADS").is_some() {
        return Ok(());
    }
    let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let processes = local_processes(|name| std::env::var(name).ok());
    let bound = allowed * processes <= cores;
    let threads = if bound { allowed } else { (allowed / processes).max(1) };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    Ok(())
}

fn run_mpi<T>(
    launched: usize,
    ranks_per_host: Option<usize>,
    timeout: Duration,
    rank_main: impl Fn(Box<dyn Collective>) -> Result<T>,
) -> Result<T> {
    let note = Note::of_this_rank()?;
    share_cores()?;
    let mut rank = MpiRank::start(timeout, note)?;
    let (index, world_size) = (rank.rank(), rank.world_size());
    if world_size != launched {
        return Err(CollectiveError::OtherMpi { launched, found: world_size }.into());
    }
    tracing::info!("rank {index} of {world_size}: process {} on {}", std::process::id(), guard::host());
    let run = rank.find_hosts(ranks_per_host).map_err(anyhow::Error::from).and_then(|()| rank_main(Box::new(rank)));
    match run {
        Ok(value) => Ok(mpi::finalize().map(|()| value)?),
        Err(error) => {
            tracing::error!("rank {index} of {world_size}: {error:#}");
            abort_all()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_recognised() {
        for (variables, expected) in
            [(vec![], 1), (vec![("PMI_SIZE", "4")], 4), (vec![("OMPI_COMM_WORLD_SIZE", "2"), ("PMI_SIZE", "x")], 2)]
        {
            let lookup =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
            assert_eq!(processes_in(lookup), expected);
        }
    }

    #[test]
    fn cores_are_shared_by_the_processes_of_a_machine() {
        for (name, value, expected) in [
            ("MPI_LOCALNRANKS", "2", 2),
            ("SLURM_TASKS_PER_NODE", "4(x2),3", 4),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "8", 8),
            ("HOME", "9", 1),
        ] {
            let lookup = |asked: &str| (asked == name).then(|| value.to_string());
            assert_eq!(local_processes(lookup), expected, "{name}={value}");
        }
    }

    #[test]
    fn the_failing_rank_is_reported_not_those_it_ended() {
        let result: Result<()> = run_ranks(2, None, Duration::from_secs(5), |mut rank| {
            if rank.rank() == 1 {
                anyhow::bail!("disk full");
            }
            super::super::all_reduce(&mut *rank, "test", [0.0])?;
            Ok(())
        });
        assert_eq!(format!("{:#}", result.expect_err("rank 1 fails")), "rank 1: disk full");
    }
}
