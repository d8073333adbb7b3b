//! Ranks on several hosts: sums within hosts first, messages and bytes between them, faults. Hosts are `--ranks_per_host` consecutive
//! ranks here, but in the test with network namespaces.

use crate::faults::{ends, faulty};
use crate::mpi::{script, two_hosts};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tests::training::{
    Split, arguments, column, compare_log, copy_folder, fail, final_weights, metrics, mpi, mpi_prefix, mpiexec,
    succeed, threads,
};
use tests::{program, project_file};

const fn split(ranks: usize, micro_batch: usize, accumulation: usize) -> Split {
    Split { ranks, micro_batch, accumulation }
}

/// Two runs have the same bits.
fn assert_same(name: &str, a: &Path, b: &Path) {
    for key in ["loss", "grad_norm"] {
        let of = |output| column(&metrics(output), key);
        assert_eq!(of(a), of(b), "{name}: {key}");
    }
    assert!(final_weights(a) == final_weights(b), "{name}: weights differ");
}

/// Losses differ by f32's rounding at most.
fn assert_close(name: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * expected, "{name}: {found} where {expected} is expected");
    }
}

#[test]
fn threads_and_mpi_of_the_same_hosts_give_identical_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let paths = ["direct", "threads", "mpi", "again"].map(|name| folder.path().join(name));
    let [direct, of_threads, of_mpi, again] = &paths;
    for (train_type, division, per_host, more) in [
        ("none", split(4, 1, 1), "2", &[][..]),
        ("none", split(4, 1, 2), "2", &["--max_steps", "3", "--accumulate", "shard"][..]),
        ("none", split(4, 1, 2), "2", &["--max_steps", "3", "--accumulate", "local"][..]),
        ("use_lora", split(8, 1, 1), "4", &["--max_steps", "3"][..]),
        ("freeze_vision", split(8, 1, 1), "2", &["--max_steps", "3"][..]),
        // The second host has one rank.
        ("none", split(3, 1, 1), "2", &["--max_steps", "3"][..]),
    ] {
        let name = format!("{train_type}, {division:?}, {per_host} ranks a host, {more:?}");
        let by_hosts = [more, &["--ranks_per_host", per_host]].concat();
        let Some(mut command) = mpi(of_mpi, train_type, division, &by_hosts) else { return };
        let said = succeed(&mut command).stderr;
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("exchanges: within each host first, then between "), "{name}: {said}");
        succeed(&mut threads(of_threads, train_type, division, &by_hosts));
        succeed(&mut threads(again, train_type, division, &by_hosts));
        succeed(&mut threads(direct, train_type, division, more));
        assert_same(&name, of_threads, of_mpi);
        assert_same(&name, of_threads, again);
        let [found, expected] = [of_mpi, direct].map(|output| metrics(output));
        assert_close(&name, &column(&found, "loss"), &column(&expected, "loss"));
        // A host with fewer ranks than another has more to do for each.
        if division.ranks != 3 {
            assert_eq!(column(&found, "bytes_sent"), column(&expected, "bytes_sent"), "{name}: bytes");
        }
        if more.is_empty() {
            compare_log(&name, of_mpi, train_type);
        }
        println!("{name}: threads and MPI: same bits");
        paths.iter().for_each(|output| std::fs::remove_dir_all(output).expect("removed"));
    }
}

/// One host, or one rank on each: the sums and messages of ranks without hosts.
#[test]
fn hosts_without_two_levels_change_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [without, with] = ["without", "with"].map(|name| folder.path().join(name));
    succeed(&mut threads(&without, "none", split(4, 1, 1), &["--max_steps", "3"]));
    for per_host in ["1", "4"] {
        let Some(mut command) = mpi(&with, "none", split(4, 1, 1), &["--max_steps", "3", "--ranks_per_host", per_host])
        else {
            return;
        };
        let said = succeed(&mut command).stderr;
        assert!(!String::from_utf8_lossy(&said).contains("exchanges: within"), "{per_host} ranks a host");
        assert_same(per_host, &without, &with);
        std::fs::remove_dir_all(&with).expect("removed");
    }
}

/// Where a step's blocks are exchanged: of rank 0, (messages, bytes to its host, bytes to other hosts).
fn traffic(log: &Path, per_host: usize) -> (usize, usize, usize) {
    // What ranks agree on is shorter than any block's slice.
    const SHORT: usize = 300;
    let lines = std::fs::read_to_string(log.join("0")).expect("a rank's messages");
    let (mut messages, mut within, mut between) = (0, 0, 0);
    for line in lines.lines() {
        let (receiver, bytes) = line.split_once(' ').expect("two numbers");
        let [receiver, bytes]: [usize; 2] = [receiver, bytes].map(|number| number.parse().expect("a number"));
        if bytes < SHORT {
            continue;
        }
        messages += 1;
        *(if receiver < per_host { &mut within } else { &mut between }) += bytes;
    }
    (messages, within, between)
}

/// Directly a slice goes to each rank, by hosts once to each host: bytes to other hosts are divided by the ranks of a host.
#[test]
fn messages_and_bytes_between_hosts_are_those_of_the_formula() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(prefix) = mpi_prefix() else { return };
    let library = folder.path().join("libmpi_counting.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]).arg(&library);
    compiler.arg(project_file("hosts/counting_mpi.c")).arg(prefix.join("lib/libmpi.so.12"));
    succeed(compiler.arg(format!("-Wl,-rpath,{}", prefix.join("lib").display())));
    for (ranks, per_host) in [(4, 2), (8, 4), (8, 2)] {
        let mut found = BTreeMap::new();
        for (name, given) in [("direct", ranks), ("by hosts", per_host)] {
            let log = folder.path().join(format!("{ranks}-{per_host}-{name}"));
            std::fs::create_dir(&log).expect("created");
            let more = ["--max_steps", "2", "--ranks_per_host", &given.to_string()];
            let Some(mut command) = mpi(&folder.path().join("run"), "none", split(ranks, 1, 1), &more) else { return };
            succeed(command.env("LLAVA_MPI_LIBRARY", &library).env("COUNTING_MPI", &log));
            std::fs::remove_dir_all(folder.path().join("run")).expect("removed");
            found.insert(name, traffic(&log, per_host));
        }
        println!("{ranks} ranks, {per_host} a host: (messages, bytes within, between) {found:?}");
        let ((messages, within, between), (of_direct, _, between_of_direct)) = (found["by hosts"], found["direct"]);
        assert_eq!(messages * (ranks - 1), of_direct * (per_host - 1 + ranks / per_host - 1), "messages");
        assert_eq!(between * per_host, between_of_direct, "bytes between hosts");
        assert_eq!(within * (ranks / per_host - 1), between * (ranks / per_host) * (per_host - 1), "bytes within");
    }
}

/// Checkpoints of ranks with hosts are resumed by ranks without, and the other way round.
#[test]
fn checkpoints_are_resumed_with_and_without_hosts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [with, without, part] = ["with", "without", "part"].map(|name| folder.path().join(name));
    let save = ["--save_strategy", "steps", "--save_steps", "4"];
    let hosts = [&save[..], &["--ranks_per_host", "2"]].concat();
    let four = split(4, 1, 1);
    succeed(&mut threads(&with, "use_lora", four, &hosts));
    succeed(&mut threads(&without, "use_lora", four, &save));
    let cases: [(&str, &PathBuf, bool, bool); 3] = [
        ("with by MPI", &with, true, true),
        ("with, then without", &with, false, false),
        ("without, then with", &without, true, false),
    ];
    for (name, whole, by_hosts, is_exact) in cases {
        let _ = std::fs::remove_dir_all(&part);
        std::fs::create_dir(&part).expect("created");
        copy_folder(&whole.join("checkpoint-4"), &part.join("checkpoint-4"));
        std::fs::copy(whole.join("run.json"), part.join("run.json")).expect("copied");
        let more = [if by_hosts { &hosts[..] } else { &save[..] }, &["--resume_from_checkpoint", "true"]].concat();
        let Some(mut command) = mpi(&part, "use_lora", four, &more) else { return };
        let said = succeed(&mut command).stderr;
        assert!(String::from_utf8_lossy(&said).contains("at step 4"), "{name}");
        let (resumed, losses) = (column(&metrics(&part), "loss"), column(&metrics(whole), "loss"));
        let (resumed, losses) = (&resumed[resumed.len() - 4..], &losses[losses.len() - 4..]);
        assert_close(name, resumed, losses);
        if is_exact {
            assert!(resumed == losses && final_weights(&part) == final_weights(whole), "{name}: other bits");
        }
        println!("{name}: goes on");
    }
}

/// A rank may wait for a rank of its host or another one that itself waits: named is the rank that is missing.
#[test]
fn a_rank_that_fails_between_hosts_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (fault, words) in [
        ("panic:1:40", &["rank 1 panicked", "on purpose, before "][..]),
        ("kill:3:40", &["error: rank 3 of 4, whose last exchange was ", " of ", "signal 9 (SIGKILL"]),
        ("stand_still:1:40", &["of 4: ", " of ", "did not complete within 3 s: ranks [1] did not come"]),
        ("stand_still:2:41", &["of 4: ", " of ", "did not complete within 3 s: ranks [2] did not come"]),
    ] {
        let Some(mut command) = mpiexec(4) else { return };
        let output = folder.path().join(fault.replace(':', "-"));
        command.arg(faulty());
        let more = ["--collective_timeout_seconds", "3", "--ranks_per_host", "2"];
        command.args(arguments(&output, "none", split(4, 1, 1), &more));
        let stderr = ends(fault, command.env("FAULT", fault), &output, Duration::from_secs(20));
        for word in words {
            assert!(stderr.contains(word), "{fault}: {word:?} is not in\n{stderr}");
        }
    }
}

#[test]
fn ranks_with_other_hosts_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("run");
    let Some(mut command) = mpiexec(2) else { return };
    command.arg(program("train")).args(arguments(&output, "none", split(4, 1, 1), &["--ranks_per_host", "2"]));
    command.args([":", "-n", "2"]).arg(program("train"));
    let stderr = fail(command.args(arguments(&output, "none", split(4, 1, 1), &[])));
    assert!(stderr.contains("--ranks_per_host: that of ranks [2, 3] differs") && !output.exists(), "{stderr}");
    let stderr = fail(&mut threads(&output, "none", split(4, 1, 1), &["--ranks_per_host", "0"]));
    assert!(stderr.contains("ranks_per_host: found 0"), "{stderr}");
}

/// Hosts are found by their names.
#[test]
fn two_hosts_of_two_ranks_give_the_bits_of_threads_with_such_hosts() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (of_hosts, of_threads) = (folder.path().join("hosts"), folder.path().join("threads"));
    let words = arguments(&of_hosts, "none", split(4, 1, 1), &[]).join(" ");
    let script = script(&folder.path().join("rank"), &format!("exec {} {words}", program("train").display()));
    let Some(mut command) = two_hosts(&script) else { return };
    let said = succeed(command.env("RANKS_PER_HOST", "2")).stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("exchanges: within each host first, then between 2 hosts of 2 ranks"), "{said}");
    succeed(&mut threads(&of_threads, "none", split(4, 1, 1), &["--ranks_per_host", "2"]));
    assert_same("two hosts", &of_hosts, &of_threads);
}
