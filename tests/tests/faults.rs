//! Ranks that panic, are killed, hang or are disconnected, and gradients that are not finite.

use crate::mpi::{script, two_hosts};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tests::tiny::read_tensors_at;
use tests::training::{Split, arguments, column, final_weights, metrics, mpiexec, succeed, threads};
use tests::{program, reference};

const TWO: Split = Split { ranks: 2, micro_batch: 2, accumulation: 1 };

/// Output of a command that must fail within `limit` and leave no process running.
pub fn ends(name: &str, command: &mut Command, mark: &Path, limit: Duration) -> String {
    let began = Instant::now();
    let output = command.output().expect("the program starts");
    // MPICH's launcher tells of a killed rank on stdout.
    let text = [output.stderr, output.stdout].concat();
    let (took, stderr) = (began.elapsed(), String::from_utf8_lossy(&text).into_owned());
    println!("{name}: ended after {:.1} s\n{stderr}", took.as_secs_f64());
    assert!(!output.status.success(), "{name}: success\n{stderr}");
    assert!(took < limit, "{name}: {took:?}, limit {limit:?}");
    let patience = Instant::now();
    while !processes_with(mark).is_empty() && patience.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(processes_with(mark), Vec::<String>::new(), "{name}: left running");
    stderr
}

/// Command lines of running processes that name a path.
fn processes_with(mark: &Path) -> Vec<String> {
    let mark = mark.display().to_string();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&mark)).collect()
}

/// `train` with a fault at a chosen place.
pub fn faulty() -> &'static str {
    env!("CARGO_BIN_EXE_faulty_train")
}

#[test]
fn a_thread_that_panics_or_stands_still_ends_the_job_and_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (fault, words) in [
        ("panic:1:40", &["rank 1", "panicked while exchanging", "on purpose, before "][..]),
        ("stand_still:1:40", &["did not come within 3 s", "ranks [1]", " of "]),
    ] {
        let output = folder.path().join(fault.replace(':', "-"));
        let mut command = Command::new(faulty());
        command.args(arguments(&output, "none", TWO, &["--nproc", "2", "--collective_timeout_seconds", "3"]));
        let stderr = ends(fault, command.env("FAULT", fault), &output, Duration::from_secs(20));
        for word in words {
            assert!(stderr.contains(word), "{fault}: {word:?} is not in\n{stderr}");
        }
    }
}

#[test]
fn a_process_that_panics_is_killed_or_stands_still_ends_the_job_and_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (fault, words) in [
        ("panic:1:40", &["rank 1 panicked", "on purpose, before "][..]),
        // The launcher may name a process that it ended itself; the rank's guard names the rank.
        (
            "kill:1:40",
            &["error: rank 1 of 2, whose last exchange was all-gather of ", "signal 9 (SIGKILL", "(signal 9)"],
        ),
        ("stand_still:1:40", &["rank 0 of 2", "did not complete within 3 s", "nothing came from ranks [1]", " of "]),
    ] {
        let Some(mut command) = mpiexec(2) else { return };
        let output = folder.path().join(fault.replace(':', "-"));
        command.arg(faulty());
        command.args(arguments(&output, "none", TWO, &["--collective_timeout_seconds", "3"]));
        let stderr = ends(fault, command.env("FAULT", fault), &output, Duration::from_secs(20));
        for word in words {
            assert!(stderr.to_lowercase().contains(&word.to_lowercase()), "{fault}: {word:?} is not in\n{stderr}");
        }
    }
}

#[test]
fn a_link_that_is_cut_ends_both_hosts_at_the_deadline() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let more = ["--max_steps", "100000", "--collective_timeout_seconds", "3"];
    let words = arguments(folder.path(), "none", TWO, &more).join(" ");
    let log = folder.path().join("log");
    // The first host pulls the cable when training is under way.
    let text = format!(
        "host=$(hostname)
         [ $host = h1 ] && (until [ $(wc -l <{run}/metrics.jsonl) -ge 5 ]; do sleep 0.1; done; ip link set cable1 down) >/dev/null 2>&1 &
         exec {train} {words} >>{log}-$host 2>&1",
        run = folder.path().display(),
        log = log.display(),
        train = program("train").display()
    );
    let script = script(&folder.path().join("rank"), &text);
    let Some(mut command) = two_hosts(&script) else { return };
    ends("cut link", &mut command, folder.path(), Duration::from_secs(60));
    // Whoever comes to the deadline first ends the job; here, on one machine, the launcher then ends the other as well.
    let mut named = 0;
    for (host, rank, other) in [("h1", 0, 1), ("h2", 1, 0)] {
        let log = std::fs::read_to_string(format!("{}-{host}", log.display())).expect("the host's log");
        let line = log.lines().find(|line| line.starts_with(&format!("error: rank {rank} of 2: "))).unwrap_or_default();
        println!("{host}: {line}");
        named += usize::from(line.contains(" of ") && line.contains(&format!("[{other}]")));
    }
    assert!(named > 0, "no host names the rank that it misses");
}

/// A copy of the tiny model whose embedding of one token is infinite.
pub fn model_with_infinite_token(dir: &Path, token: usize) {
    let source = reference("tiny/llava");
    std::fs::create_dir(dir).expect("created");
    for entry in std::fs::read_dir(&source).expect("readable").flatten() {
        std::fs::copy(entry.path(), dir.join(entry.file_name())).expect("copied");
    }
    let tensors = read_tensors_at(&source.join("model.safetensors"));
    let name = tensors.keys().find(|name| name.ends_with("embed_tokens.weight")).expect("an embedding");
    let width = tensors[name].1[1];
    let bytes: BTreeMap<&String, (Vec<u8>, &Vec<usize>)> = tensors
        .iter()
        .map(|(key, (values, shape))| {
            let mut values = values.clone();
            if key == name {
                values[token * width..(token + 1) * width].fill(f32::INFINITY);
            }
            (key, (values.iter().flat_map(|value| value.to_le_bytes()).collect(), shape))
        })
        .collect();
    let views = bytes.iter().map(|(key, (bytes, shape))| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes);
        (key.as_str(), view.expect("a tensor"))
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).expect("written");
}

/// The token that only row 9 has (with 2 ranks of 2 rows: the first row of rank 0 in the third step is row 8).
fn token_of_one_row(row: usize) -> usize {
    let shards = shards::ShardSet::open(&tests::training::shards(), shards::Split::Train).expect("shards");
    let rows: Vec<Vec<i32>> = (0..12).map(|row| shards.read_row(row).expect("a row").input_ids.clone()).collect();
    let elsewhere = |token: &i32| (0..rows.len()).any(|other| other != row && rows[other].contains(token));
    *rows[row].iter().find(|token| !elsewhere(token)).expect("a token that no other row has") as usize
}

#[test]
fn a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = folder.path().join("model");
    // Rows 8 and 9 of the third step are rank 0's, rows 10 and 11 rank 1's.
    model_with_infinite_token(&model, token_of_one_row(10));
    let path = model.display().to_string();
    let more = ["--max_steps", "2", "--model_name_or_path", &path];
    let clean = folder.path().join("clean");
    succeed(&mut threads(&clean, "freeze_vision", TWO, &more));
    let (alone, together) = (folder.path().join("alone"), folder.path().join("together"));
    let more = ["--max_steps", "3", "--model_name_or_path", &path];
    let mut stderr = String::new();
    for (output, split) in [(&alone, Split { ranks: 1, micro_batch: 4, accumulation: 1 }), (&together, TWO)] {
        let run = succeed(&mut threads(output, "projector", split, &more));
        stderr = String::from_utf8_lossy(&run.stderr).into_owned();
        let lines = metrics(output);
        assert_eq!(column(&lines, "step"), [1.0, 2.0, 3.0]);
        assert_eq!(column(&lines, "skipped_steps"), [0.0, 0.0, 1.0]);
        assert!(column(&lines, "loss").iter().all(|loss| loss.is_finite()));
    }
    // Both ranks say so, each with its own rows.
    assert_eq!(stderr.matches("warning: step 3 skipped").count(), 2, "{stderr}");
    let difference = column(&metrics(&alone), "loss").into_iter().zip(column(&metrics(&together), "loss"));
    for (alone, together) in difference {
        assert!((alone - together).abs() <= 1e-5 * alone, "{alone} on one rank, {together} on two");
    }
    assert!(!final_weights(&together).is_empty());
}
