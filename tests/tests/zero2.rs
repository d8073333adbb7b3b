//! ZeRO-2: the same trajectory on any number of ranks and for any division of the batch, the bytes that it moves, and how it
//! is started.

use std::process::Command;
use tests::tiny::read_tensors_at;
use tests::training::{
    Split, column, compare, compare_log, compare_weights, fail, final_weights, metrics, mpi, succeed, threads,
};
use tests::{program, reference};

const fn split(ranks: usize, micro_batch: usize, accumulation: usize) -> Split {
    Split { ranks, micro_batch, accumulation }
}

/// Every division of the reference's four rows a step.
const DIVISIONS: [Split; 6] =
    [split(1, 4, 1), split(1, 2, 2), split(1, 1, 4), split(2, 2, 1), split(2, 1, 2), split(4, 1, 1)];

#[test]
fn any_division_of_the_batch_follows_the_reference() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (index, division) in DIVISIONS.into_iter().enumerate() {
        for accumulate in ["shard", "local"] {
            if accumulate == "local" && division.accumulation * division.ranks == division.ranks {
                continue;
            }
            let output = folder.path().join(format!("{index}-{accumulate}"));
            succeed(&mut threads(&output, "none", division, &["--accumulate", accumulate]));
            let name = format!("{division:?}, accumulate {accumulate}");
            compare_log(&name, &output, "none");
            compare_weights(&name, &output.join("model.safetensors"), "tiny/train_none/model.safetensors");
        }
    }
}

/// Four rows cannot be divided among three ranks: twelve rows a step, held against one rank with twelve rows.
#[test]
fn three_ranks_follow_one_rank() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let more = ["--num_train_epochs", "3"];
    let alone = folder.path().join("alone");
    succeed(&mut threads(&alone, "none", split(1, 12, 1), &more));
    let expected = metrics(&alone);
    for division in [split(3, 4, 1), split(3, 2, 2), split(3, 1, 4)] {
        let output = folder.path().join(format!("{}", division.micro_batch));
        succeed(&mut threads(&output, "none", division, &more));
        let (name, found) = (format!("{division:?}"), metrics(&output));
        compare(&name, "loss", &found, &expected, 1e-5);
        compare(&name, "grad_norm", &found, &expected, 1e-4);
        compare(&name, "supervised_tokens", &found, &expected, 0.0);
    }
}

#[test]
fn threads_and_mpi_of_the_same_size_give_identical_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (train_type, division) in [
        ("none", split(2, 1, 2)),
        ("none", split(3, 1, 1)),
        ("none", split(4, 1, 1)),
        ("use_lora", split(2, 2, 1)),
        ("freeze_vision", split(4, 1, 1)),
    ] {
        let (of_threads, of_mpi) = (folder.path().join("threads"), folder.path().join("mpi"));
        let Some(mut command) = mpi(&of_mpi, train_type, division, &[]) else { return };
        succeed(&mut command);
        succeed(&mut threads(&of_threads, train_type, division, &[]));
        let name = format!("{train_type}, {division:?}");
        if division.ranks != 3 {
            compare_log(&name, &of_mpi, train_type);
        }
        for key in ["loss", "grad_norm", "bytes_sent"] {
            let of = |output| column(&metrics(output), key);
            assert_eq!(of(&of_threads), of(&of_mpi), "{name}: {key} of threads and of MPI");
        }
        assert!(final_weights(&of_threads) == final_weights(&of_mpi), "{name}: weights differ");
        println!("{name}: threads and MPI: same bits");
        for output in [of_threads, of_mpi] {
            std::fs::remove_dir_all(output).expect("removed");
        }
    }
}

/// Per step and rank (K + 1)·P·(N−1)/N with `accumulate = shard`, 2·P·(N−1)/N with `local`, P in bytes.
#[test]
fn the_bytes_that_are_moved_are_those_of_the_formula() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let values: usize =
        read_tensors_at(&reference("tiny/train_none/model.safetensors")).values().map(|(v, _)| v.len()).sum();
    for (ranks, accumulation, accumulate) in
        [(2, 1, "shard"), (2, 4, "shard"), (2, 4, "local"), (3, 2, "shard"), (4, 2, "local")]
    {
        let output = folder.path().join(format!("{ranks}-{accumulation}-{accumulate}"));
        let more = ["--max_steps", "3", "--accumulate", accumulate];
        let output_of_run = succeed(&mut threads(&output, "none", split(ranks, 1, accumulation), &more));
        let trained = trained_values(&String::from_utf8_lossy(&output_of_run.stderr));
        assert!(trained <= values, "{trained} of {values} values are trained");
        let exchanges = if accumulate == "local" { 2 } else { accumulation + 1 };
        let expected = (exchanges * trained * 4 * (ranks - 1)) as f64 / ranks as f64;
        // The parameters of a step travel with the next one; each of 9 blocks may be padded by up to N − 1 values.
        let found = column(&metrics(&output), "bytes_sent");
        let padding = (9 * exchanges * 4 * (ranks - 1)) as f64;
        for found in &found[1..] {
            assert!(
                *found >= expected && *found <= expected + padding,
                "{ranks} ranks, {accumulation} micro-steps, {accumulate}: {found} bytes where {expected} are expected"
            );
        }
        println!("{ranks} ranks, K = {accumulation}, {accumulate}: {found:?} bytes, formula {expected}");
    }
}

/// From the line `training N values in …`.
fn trained_values(stderr: &str) -> usize {
    let line = stderr.lines().find_map(|line| line.strip_prefix("training ")).expect("the line about what is trained");
    line.split(' ').next().and_then(|word| word.parse().ok()).expect("a number")
}

/// The line that a run begins with has the numbers of its plan.
#[test]
fn memory_is_reported_by_part_as_it_was_planned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut run = threads(folder.path(), "none", split(2, 2, 1), &["--max_steps", "1"]);
    let mut plan = Command::new(program("train"));
    plan.arg("plan").args(run.get_args());
    let plan = String::from_utf8(succeed(&mut plan).stdout).expect("UTF-8");
    let output = succeed(&mut run);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = stderr.lines().find(|line| line.starts_with("memory of each of 2 ranks")).expect("a line about memory");
    let planned = plan.split_once("memory of each of 2 ranks\n").expect("the plan's table").1;
    let planned: Vec<&str> = planned.lines().take_while(|line| !line.is_empty()).collect();
    assert!(planned.len() >= 7 && planned.last().is_some_and(|line| line.trim().starts_with("peak")), "{plan}");
    for part in planned {
        let words: Vec<&str> = part.split_whitespace().collect();
        assert!(line.contains(&words.join(" ")), "{part:?} in {line}");
    }
}

#[test]
fn a_deepspeed_file_is_honoured() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("ds_zero2.json");
    let text = r#"{"bf16": {"enabled": "auto"}, "gradient_clipping": 0.25, "train_batch_size": "auto",
        "zero_optimization": {"stage": 2, "overlap_comm": true, "reduce_bucket_size": 5e8, "contiguous_gradients": true},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.95], "eps": "auto"}}}"#;
    std::fs::write(&file, text).expect("written");
    let (by_file, by_flags) = (folder.path().join("file"), folder.path().join("flags"));
    let path = file.display().to_string();
    succeed(&mut threads(&by_file, "none", split(2, 2, 1), &["--deepspeed", &path]));
    succeed(&mut threads(&by_flags, "none", split(2, 2, 1), &["--max_grad_norm", "0.25", "--adam_beta2", "0.95"]));
    assert!(final_weights(&by_file) == final_weights(&by_flags), "the file's values are not those of the flags");
    std::fs::write(&file, r#"{"zero_optimization": {"stage": 3}}"#).expect("written");
    let stderr = fail(&mut threads(&folder.path().join("refused"), "none", split(2, 2, 1), &["--deepspeed", &path]));
    assert!(stderr.contains("stage") && stderr.contains("shards them"), "{stderr}");
}

#[test]
fn several_processes_without_mpi_are_an_error_and_not_several_runs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("run");
    let mut command = threads(&output, "none", split(1, 4, 1), &[]);
    let stderr = fail(command.env("PMI_SIZE", "2").env("LLAVA_MPI_LIBRARY", "/nowhere/libmpi.so.40"));
    assert!(stderr.contains("no MPI library") && stderr.contains("LLAVA_MPI_LIBRARY"), "{stderr}");
    assert!(!output.exists(), "work has begun");
    let mut command = std::process::Command::new(program("train"));
    command.args(tests::training::arguments(&output, "none", split(1, 4, 1), &["--nproc", "2"]));
    let stderr = fail(command.env("OMPI_COMM_WORLD_SIZE", "2"));
    assert!(stderr.contains("--nproc: found 2") && !output.exists(), "{stderr}");
}
