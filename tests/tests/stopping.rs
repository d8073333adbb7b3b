//! SIGINT and SIGTERM: the first lets the step finish and saves, the second ends the program at once.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tests::runs::{json_file, json_lines, shards_with_validation, train};
use tests::training::succeed;
use tests::{program, reference};

fn signal(child: &Child, name: &str) {
    succeed(Command::new("kill").args(["-s", name, &child.id().to_string()]));
}

/// Starts a run and waits for its first step.
fn started(command: &mut Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut said = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    while !line.starts_with("step ") {
        line.clear();
        assert!(said.read_line(&mut line).expect("readable") > 0, "the run ended before its first step");
    }
    // The rest has to go somewhere, or the run would wait for a reader.
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    child
}

fn ended(mut child: Child) -> (Option<i32>, String) {
    let status = child.wait().expect("the program ends");
    let mut text = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut text).expect("UTF-8");
    (status.code(), text)
}

/// Weights of an undisturbed run of 60 steps.
fn weights(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("model.safetensors")).expect("weights")
}

#[test]
fn a_stopped_run_goes_on_with_the_printed_command_as_if_nothing_had_happened() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let more = |nproc| ["--train_type", "none", "--max_steps", "150", "--nproc", nproc, "--logging_steps", "50"];
    for (name, nproc) in [("INT", "1"), ("TERM", "2")] {
        let whole = folder.path().join(format!("whole-{nproc}"));
        succeed(&mut train(&shards, &whole, &more(nproc)));
        let output = folder.path().join(format!("stopped-{nproc}"));
        let child = started(&mut train(&shards, &output, &more(nproc)));
        signal(&child, name);
        let (code, text) = ended(child);
        assert_eq!(code, Some(75), "SIG{name}: {text}");
        let command = text.lines().last().expect("a command line");
        assert!(command.ends_with("--resume_from_checkpoint true"), "{text}");
        let resumed = succeed(Command::new("sh").arg("-c").arg(command));
        let steps = json_file(&output.join("trainer_state.json"))["global_step"].as_u64();
        assert_eq!(steps, Some(150), "{}", String::from_utf8_lossy(&resumed.stderr));
        assert!(weights(&output) == weights(&whole), "SIG{name}, {nproc} ranks: other weights than undisturbed");
        println!("SIG{name}, {nproc} ranks: {}, then the same bits", text.lines().next().unwrap_or_default());
        assert_eq!(json_lines(&output.join("metrics.jsonl")).len(), 3);
    }
}

/// Shards of the tiny photos, a hundred times each.
fn many_rows(folder: &Path) -> PathBuf {
    let (data, source, shards) = (folder.join("data"), reference("pictures"), folder.join("shards"));
    let mut rows = Vec::new();
    for repeat in 0..100 {
        for mut row in json_file(&source.join("chat.json")).as_array().expect("rows").clone() {
            row["id"] = format!("{repeat}-{}", row["id"].as_str().expect("an id")).into();
            rows.push(row);
        }
    }
    std::fs::create_dir(&data).expect("made");
    base::json::write(&data.join("chat.json"), &rows).expect("written");
    std::os::unix::fs::symlink(source.join("images"), data.join("images")).expect("linked");
    let mut command = Command::new(program("preprocess"));
    command.arg("shards").arg("--model").arg(reference("tiny/llava"));
    succeed(command.arg("--data").arg(&data).arg("--output").arg(&shards));
    shards
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = many_rows(folder.path());
    // One step over all of them: too long to wait for.
    let long = ["--train_type", "none", "--max_steps", "3", "--gradient_accumulation_steps", "20000"];
    let output = folder.path().join("run");
    let mut child =
        train(&shards, &output, &long).stderr(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts");
    let begin = Instant::now();
    while !output.join("trainable.json").exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "the run does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    signal(&child, "INT");
    // The same signal once more, as from a terminal and from a launcher, is no second one.
    signal(&child, "INT");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(child.try_wait().expect("a status").is_none(), "the first signal waits for the step");
    signal(&child, "INT");
    let second = Instant::now();
    let (code, _) = ended(child);
    println!("ended {:.3} s after the second signal, exit code {code:?}", second.elapsed().as_secs_f64());
    assert_eq!(code, Some(130));
    assert!(second.elapsed() < Duration::from_secs(2));
}

/// The launcher passes on rank 0's code, which is that of a run that goes on; rank 0 has spoken before.
#[test]
fn a_stopped_job_of_processes_ends_with_the_same_code() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let split = tests::training::Split { ranks: 2, micro_batch: 2, accumulation: 1 };
    let more = ["--max_steps", "100000", "--logging_steps", "1000"];
    let Some(mut job) = tests::training::mpi(folder.path(), "projector", split, &more) else { return };
    let child = started(&mut job);
    signal(&child, "TERM");
    let (code, text) = ended(child);
    assert_eq!(code, Some(75), "{text}");
    assert!(text.contains("stopped as requested at step ") && text.contains("mpirun -np 2 "), "{text}");
}
