//! ZeRO-2 over NCCL, with a library in its place that exchanges the host's memory (`tests/gpu/stand_in_nccl.c`): the path of ranks with
//! a GPU each, from the gradients on a device to the checkpoint, on the CPU's device.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tests::project_file;
use tests::training::{Split, column, compare_log, copy_folder, fail, final_weights, metrics, mpi, succeed, threads};

const fn split(ranks: usize, micro_batch: usize, accumulation: usize) -> Split {
    Split { ranks, micro_batch, accumulation }
}

/// The library, compiled once per run of the tests.
pub fn stand_in() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let file = std::env::temp_dir().join(format!("libnccl-stand-in-{}.so", std::process::id()));
        let mut compiler = Command::new("cc");
        compiler.args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-shared", "-fPIC", "-o"]).arg(&file);
        succeed(compiler.arg(project_file("gpu/stand_in_nccl.c")));
        file
    })
}

/// Lets a run of `train` exchange through the library.
pub fn by_nccl(command: &mut Command) -> &mut Command {
    command.args(["--collective", "nccl"]).env("LLAVA_NCCL_LIBRARY", stand_in())
}

/// Files of the newest checkpoint that hold moments, and their bytes.
fn moments(output: &Path) -> Vec<(String, Vec<u8>)> {
    let newest = std::fs::read_dir(output).expect("a folder").flatten().map(|entry| entry.path());
    let newest = newest.filter(|path| path.display().to_string().contains("checkpoint-")).max().expect("a checkpoint");
    let entries = std::fs::read_dir(newest).expect("a folder").flatten();
    let named = entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()));
    let mut files: Vec<_> = named
        .filter(|(name, _)| name.starts_with("optimizer-"))
        .map(|(name, path)| (name, std::fs::read(path).expect("readable")))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no moments");
    files
}

/// Steps are 4 rows, but with 3 and 16 ranks; without clipping, because the norm of the gradient is summed in f32 on a device.
const EXACT: [&str; 6] = ["--max_grad_norm", "0", "--save_strategy", "steps", "--save_steps", "100"];

#[test]
fn any_number_of_ranks_has_the_bits_of_threads() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (train_type, division, more) in [
        ("projector", split(1, 4, 1), &[][..]),
        ("use_lora", split(2, 1, 2), &["--lora_dropout", "0.1"][..]),
        ("use_lora", split(2, 1, 2), &["--accumulate", "local"][..]),
        ("none", split(3, 1, 2), &["--max_steps", "4"][..]),
        ("freeze_vision", split(4, 1, 1), &[][..]),
        ("use_lora", split(16, 1, 1), &["--max_steps", "3"][..]),
    ] {
        let name = format!("{train_type}, {division:?}, {more:?}");
        let more = [&EXACT[..], more].concat();
        let (of_threads, of_nccl) = (folder.path().join("threads"), folder.path().join("nccl"));
        succeed(&mut threads(&of_threads, train_type, division, &more));
        let output = succeed(by_nccl(&mut threads(&of_nccl, train_type, division, &more)));
        let said = format!("NCCL: 2.23.4 ({}), {} ranks", stand_in().display(), division.ranks);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(&said), "{name}: {said:?} is not in\n{stderr}");
        let lines = [&of_threads, &of_nccl].map(|output| metrics(output));
        for key in ["loss", "bytes_sent", "supervised_tokens"] {
            assert_eq!(column(&lines[0], key), column(&lines[1], key), "{name}: {key}");
        }
        assert!(moments(&of_threads) == moments(&of_nccl), "{name}: other moments");
        assert!(final_weights(&of_threads) == final_weights(&of_nccl), "{name}: other weights");
        println!("{name}: the same losses, bytes, moments and weights");
        for output in [of_threads, of_nccl] {
            std::fs::remove_dir_all(output).expect("removed");
        }
    }
}

/// With clipping.
#[test]
fn every_train_type_follows_the_reference() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (train_type, division) in
        [("none", split(2, 1, 2)), ("freeze_vision", split(4, 1, 1)), ("use_lora", split(1, 2, 2))]
    {
        let output = folder.path().join(train_type);
        succeed(by_nccl(&mut threads(&output, train_type, division, &[])));
        compare_log(&format!("NCCL, {train_type}, {division:?}"), &output, train_type);
    }
}

#[test]
fn bf16_has_the_bits_of_threads_and_gathers_half_their_bytes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let more = [&EXACT[..], &["--device", "cpu-bf16", "--bf16", "true"]].concat();
    let (of_threads, of_nccl) = (folder.path().join("threads"), folder.path().join("nccl"));
    succeed(&mut threads(&of_threads, "use_lora", split(2, 2, 1), &more));
    succeed(by_nccl(&mut threads(&of_nccl, "use_lora", split(2, 2, 1), &more)));
    let losses = [&of_threads, &of_nccl].map(|output| column(&metrics(output), "loss"));
    assert_eq!(losses[0], losses[1]);
    assert!(moments(&of_threads) == moments(&of_nccl), "other moments or masters");
    assert!(final_weights(&of_threads) == final_weights(&of_nccl), "other weights");
    // A step sums in f32 and gathers the step before's new values: 4 + 2 bytes in place of 4 + 4.
    let bytes = [&of_threads, &of_nccl].map(|output| column(&metrics(output), "bytes_sent"));
    assert!(bytes[0].iter().zip(&bytes[1]).skip(1).all(|(f32, bf16)| f32 * 6.0 == bf16 * 8.0), "{bytes:?}");
}

#[test]
fn processes_have_the_bits_of_threads() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for division in [split(2, 2, 1), split(4, 1, 1)] {
        let (of_threads, of_mpi) = (folder.path().join("threads"), folder.path().join("mpi"));
        let Some(mut command) = mpi(&of_mpi, "use_lora", division, &EXACT) else { return };
        succeed(by_nccl(&mut command));
        succeed(&mut threads(&of_threads, "use_lora", division, &EXACT));
        let losses = [&of_threads, &of_mpi].map(|output| column(&metrics(output), "loss"));
        assert_eq!(losses[0], losses[1], "{division:?}");
        assert!(moments(&of_threads) == moments(&of_mpi), "{division:?}: other moments");
        for output in [of_threads, of_mpi] {
            std::fs::remove_dir_all(output).expect("removed");
        }
    }
}

/// Every rank calls the same exchanges in the same order: for each step, K reduce-scatters and one all-gather of each block.
#[test]
fn all_ranks_call_the_same_exchanges_in_the_same_order() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (ranks, accumulation, accumulate) in [(4, 2, "shard"), (3, 2, "local")] {
        let log = folder.path().join(format!("log-{ranks}"));
        std::fs::create_dir(&log).expect("created");
        let output = folder.path().join(format!("run-{ranks}"));
        let more = ["--max_steps", "3", "--accumulate", accumulate];
        let mut command = threads(&output, "freeze_vision", split(ranks, 1, accumulation), &more);
        succeed(by_nccl(&mut command).env("STAND_IN_NCCL_LOG", &log));
        let calls = |rank: usize| std::fs::read_to_string(log.join(rank.to_string())).expect("a rank's calls");
        let first = calls(0);
        (1..ranks).for_each(|rank| assert!(calls(rank) == first, "rank {rank} of {ranks} calls other exchanges"));
        let count = |name: &str| first.lines().filter(|line| line.starts_with(name)).count();
        let (reductions, gathers) = (count("reduce-scatter"), count("all-gather"));
        println!("{ranks} ranks, accumulate {accumulate}: {reductions} reduce-scatters, {gathers} all-gathers");
        assert!(gathers > 0 && gathers.is_multiple_of(3), "three steps gather every block");
        assert_eq!(reductions, gathers * if accumulate == "local" { 1 } else { accumulation });
    }
}

/// A checkpoint of two ranks over NCCL is resumed bit for bit, over NCCL and by threads, and by another number of ranks.
#[test]
fn checkpoints_are_resumed_by_any_ranks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (whole, part) = (folder.path().join("whole"), folder.path().join("part"));
    let (two, save) = (split(2, 2, 1), ["--max_grad_norm", "0", "--save_strategy", "steps", "--save_steps", "4"]);
    succeed(by_nccl(&mut threads(&whole, "use_lora", two, &save)));
    let losses = column(&metrics(&whole), "loss");
    for (name, division, nccl) in [("nccl", two, true), ("threads", two, false), ("four ranks", split(4, 1, 1), true)] {
        let _ = std::fs::remove_dir_all(&part);
        std::fs::create_dir(&part).expect("created");
        copy_folder(&whole.join("checkpoint-4"), &part.join("checkpoint-4"));
        std::fs::copy(whole.join("run.json"), part.join("run.json")).expect("copied");
        let more = [&save[..], &["--resume_from_checkpoint", "true"]].concat();
        let mut command = threads(&part, "use_lora", division, &more);
        let stderr = String::from_utf8_lossy(&succeed(if nccl { by_nccl(&mut command) } else { &mut command }).stderr)
            .into_owned();
        assert!(stderr.contains("at step 4"), "{name}: {stderr}");
        let resumed = column(&metrics(&part), "loss");
        let rest = &losses[losses.len() - 4..];
        match division.ranks {
            2 => assert!(resumed.ends_with(rest) && final_weights(&part) == final_weights(&whole), "{name}"),
            _ => resumed.iter().rev().zip(rest.iter().rev()).for_each(|(found, expected)| {
                assert!((found - expected).abs() <= 1e-5 * expected, "{name}: {found} where {expected} is expected");
            }),
        }
        println!("{name}: goes on");
    }
}

#[test]
fn a_library_that_cannot_be_used_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("run");
    let two = split(2, 2, 1);
    let stderr = fail(
        threads(&output, "projector", two, &["--collective", "nccl"])
            .env("LLAVA_NCCL_LIBRARY", "/nowhere/libnccl.so.2"),
    );
    for words in ["--collective nccl: rank 0: no NCCL: /nowhere/libnccl.so.2", "nvidia-nccl-cu13", "LLAVA_NCCL_LIBRARY"]
    {
        assert!(stderr.contains(words), "{words:?} is not in\n{stderr}");
    }
    let stderr = fail(by_nccl(&mut threads(&output, "projector", two, &[])).env("STAND_IN_NCCL_VERSION", "21200"));
    assert!(stderr.contains("NCCL 2.12.0, expected 2.14.0 or later"), "{stderr}");
    assert!(!output.exists(), "work has begun");
    // By itself, a CPU's ranks use the host's memory, whatever library there is.
    let command = &mut threads(&output, "projector", two, &["--max_steps", "1"]);
    let done = succeed(command.env("LLAVA_NCCL_LIBRARY", "/nowhere/libnccl.so.2"));
    assert!(!String::from_utf8_lossy(&done.stderr).contains("NCCL"));
}
