//! Ranks that exchange through NCCL and fail, hang or are killed, and exchanges that NCCL does not complete.

use crate::faults::ends;
use crate::nccl::by_nccl;
use std::time::Duration;
use tests::training::{Split, mpi, threads};

const THREE: Split = Split { ranks: 3, micro_batch: 1, accumulation: 1 };
const TWO: Split = Split { ranks: 2, micro_batch: 2, accumulation: 1 };
const DEADLINE: [&str; 2] = ["--collective_timeout_seconds", "3"];

#[test]
fn threads_end_within_the_deadline_and_name_the_rank_and_the_exchange() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (fault, words) in [
        ("fail:1:40", &["rank 1: reduce-scatter of ", "ncclReduceScatter: NCCL error 2: unhandled system error"][..]),
        ("async:1:40", &["rank 1", " of ", "ncclCommGetAsyncError: NCCL error 6: remote process exited"]),
        ("hang:1:40", &["ranks [1] did not come within 3 s", " of ", "does not come to its end"]),
        ("stuck:2:40", &[" of ", "did not complete within 3 s though every rank takes part", "NCCL_DEBUG"]),
        ("fail:0:init", &["rank 0", "connection of GPUs", "ncclCommInitRankConfig: NCCL error 2"]),
        ("hang:2:init", &["connection of GPUs", "ranks [2] did not come within 3 s"]),
    ] {
        let output = folder.path().join(fault.replace(':', "-"));
        let mut command = threads(&output, "none", THREE, &DEADLINE);
        let command = by_nccl(&mut command).env("STAND_IN_NCCL_FAULT", fault);
        let stderr = ends(fault, command, &output, Duration::from_secs(20));
        for word in words {
            assert!(stderr.contains(word), "{fault}: {word:?} is not in\n{stderr}");
        }
    }
}

#[test]
fn processes_end_within_the_deadline_and_name_the_rank_and_the_exchange() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (fault, words) in [
        ("fail:1:40", &["rank 1 of 2: ", " of ", "NCCL error 2: unhandled system error"][..]),
        ("kill:1:40", &["error: rank 1 of 2, whose last exchange was ", " of ", "signal 9 (SIGKILL"]),
        ("hang:1:40", &["rank 0 of 2: ", " of ", "ranks [1] did not come within 3 s"]),
        ("stuck:1:40", &[" of ", "though every rank takes part"]),
    ] {
        let output = folder.path().join(fault.replace(':', "-"));
        let Some(mut command) = mpi(&output, "none", TWO, &DEADLINE) else { return };
        let command = by_nccl(&mut command).env("STAND_IN_NCCL_FAULT", fault);
        let stderr = ends(fault, command, &output, Duration::from_secs(20));
        for word in words {
            assert!(stderr.contains(word), "{fault}: {word:?} is not in\n{stderr}");
        }
    }
}

/// Ranks that wait in NCCL end at once, not at their deadline, when another rank fails outside of it.
#[test]
fn a_rank_that_fails_elsewhere_ends_those_that_wait() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("run");
    let mut command = threads(&output, "none", TWO, &["--collective_timeout_seconds", "60"]);
    let command = by_nccl(&mut command).env("STAND_IN_NCCL_FAULT", "fail:1:60");
    let stderr = ends("fails", command, &output, Duration::from_secs(20));
    assert!(stderr.contains("rank 1: ") && stderr.contains("NCCL error 2"), "{stderr}");
}
