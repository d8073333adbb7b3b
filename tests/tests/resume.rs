//! Checkpoints that cannot be lost: kills at random moments, damaged files, a full disk, other numbers of ranks.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use tests::program;
use tests::training::{Split, arguments, compare, copy_folder, final_weights, metrics, mpi, succeed, threads};

const fn of_ranks(ranks: usize) -> Split {
    Split { ranks, micro_batch: 4 / ranks, accumulation: 1 }
}

fn checkpoints(output: &Path) -> Vec<String> {
    let names = std::fs::read_dir(output).expect("readable").flatten();
    let mut names: Vec<String> = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.contains("checkpoint-"));
    names.sort();
    names
}

/// Saved by N ranks at step 4, continued by M: the same trajectory, and the same bits when N = M. Twelve rows a step can be
/// divided by all.
#[test]
fn a_run_of_any_number_of_ranks_goes_on_with_any_other() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let twelve = |ranks| Split { ranks, micro_batch: 12 / ranks, accumulation: 1 };
    let (mut expected, resume) = (Vec::new(), ["--resume_from_checkpoint", "true"]);
    for saved in 1..=4 {
        let whole = folder.path().join(format!("whole-{saved}"));
        succeed(&mut threads(&whole, "none", twelve(saved), &["--save_strategy", "steps", "--save_steps", "4"]));
        std::fs::remove_dir_all(whole.join("checkpoint-8")).expect("removed");
        if saved == 1 {
            expected = metrics(&whole);
        }
        for resumed in 1..=4 {
            let output = folder.path().join("resumed");
            copy_folder(&whole, &output);
            std::fs::remove_file(output.join("model.safetensors")).expect("removed");
            succeed(&mut threads(&output, "none", twelve(resumed), &resume));
            let name = format!("saved by {saved}, resumed by {resumed}");
            compare(&name, "loss", &metrics(&output), &expected, 1e-5);
            let same_bits = final_weights(&output) == final_weights(&whole);
            assert!(same_bits || resumed != saved, "{name}: the weights differ");
            std::fs::remove_dir_all(output).expect("removed");
        }
    }
}

/// Two MPI processes save, two threads go on, and the other way round: the same bits.
#[test]
fn threads_go_on_from_mpi_and_mpi_from_threads() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (whole, output) = (folder.path().join("whole"), folder.path().join("resumed"));
    let save = ["--save_strategy", "steps", "--save_steps", "4", "--save_total_limit", "1", "--max_steps", "4"];
    let resume = ["--resume_from_checkpoint", "true"];
    // The schedule ends at step 4 in the first half, so the whole run is two halves of threads.
    succeed(&mut threads(&whole, "none", of_ranks(2), &save));
    succeed(&mut threads(&whole, "none", of_ranks(2), &resume));
    for mpi_first in [true, false] {
        let Some(mut first) = mpi(&output, "none", of_ranks(2), &save) else { return };
        let Some(mut second) = mpi(&output, "none", of_ranks(2), &resume) else { return };
        if mpi_first {
            succeed(&mut first);
            succeed(&mut threads(&output, "none", of_ranks(2), &resume));
        } else {
            succeed(&mut threads(&output, "none", of_ranks(2), &save));
            succeed(&mut second);
        }
        assert!(final_weights(&output) == final_weights(&whole), "MPI first: {mpi_first}: weights differ");
        std::fs::remove_dir_all(&output).expect("removed");
    }
}

/// SIGKILL at random moments of a run that saves at every step, resumed each time; the weights in the end are those of an
/// undisturbed run. `LLAVA_KILLS` is the number of kills.
#[test]
fn kills_at_random_moments_lose_nothing() {
    let kills: u32 = std::env::var("LLAVA_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let seed = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
    println!("{kills} kills, seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let more = ["--max_steps", "24", "--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "3"];
    let more = [&more[..], &["--resume_from_checkpoint", "true"]].concat();
    let (whole, output) = (folder.path().join("whole"), folder.path().join("killed"));
    let began = Instant::now();
    succeed(&mut threads(&whole, "none", of_ranks(2), &more));
    let undisturbed = began.elapsed();
    let (mut resumed, mut midway) = (0, 0);
    // What is left of a resumed run may end before its moment comes: such a try does not count.
    for kill in 0..10 * kills {
        if midway == kills {
            break;
        }
        let mut command = threads(&output, "none", of_ranks(2), &more);
        let mut run = command.stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("the program starts");
        std::thread::sleep(undisturbed.mul_f64(random.random_range(0.05..0.9)));
        run.kill().expect("killed");
        midway += u32::from(!run.wait().expect("ended").success());
        let found = if output.exists() { checkpoints(&output) } else { Vec::new() };
        println!("kill {kill}: {found:?}");
        let newest = found.iter().filter_map(|name| name.strip_prefix("checkpoint-")?.parse::<u64>().ok()).max();
        resumed += u32::from(newest.is_some());
        if newest == Some(24) {
            std::fs::remove_dir_all(&output).expect("removed: it had come to the end");
        }
    }
    println!("{midway} kills hit a running program, {resumed} tries left a checkpoint");
    assert_eq!(midway, kills, "kills that hit a running program");
    succeed(&mut threads(&output, "none", of_ranks(2), &more));
    assert!(final_weights(&output) == final_weights(&whole), "the weights are not those of an undisturbed run");
    assert_eq!(metrics(&output).len(), 24, "a line for every step, once");
    assert_eq!(checkpoints(&output), ["checkpoint-22", "checkpoint-23", "checkpoint-24"]);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_with_the_reason() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let whole = folder.path().join("whole");
    succeed(&mut threads(&whole, "use_lora", of_ranks(2), &["--save_strategy", "steps", "--save_steps", "3"]));
    std::fs::remove_dir_all(whole.join("checkpoint-8")).expect("the last step is saved");
    let newest = |output: &Path| output.join("checkpoint-6");
    let flip = |output: &Path| {
        let path = newest(output).join("adapter_model.safetensors");
        let mut bytes = std::fs::read(&path).expect("readable");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("written");
    };
    let truncate = |output: &Path| {
        let path = newest(output).join("optimizer-00001-of-00002.safetensors");
        let len = std::fs::metadata(&path).expect("there").len();
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
        file.set_len(len - 1).expect("truncated");
    };
    let remove = |output: &Path| std::fs::remove_file(newest(output).join("trainer_state.json")).expect("removed");
    let unfinished = |output: &Path| std::fs::remove_file(newest(output).join("manifest.json")).expect("removed");
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);
    let damages: [Damage; 4] = [
        ("flipped bit", &flip, "adapter_model.safetensors"),
        ("truncated file", &truncate, "optimizer-00001-of-00002.safetensors"),
        ("missing file", &remove, "trainer_state.json"),
        ("missing manifest", &unfinished, "manifest.json"),
    ];
    for (name, damage, named) in damages {
        let output = folder.path().join("damaged");
        copy_folder(&whole, &output);
        damage(&output);
        let run = succeed(&mut threads(&output, "use_lora", of_ranks(2), &["--resume_from_checkpoint", "true"]));
        let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
        let line = stderr.lines().find(|line| line.contains("passed over")).expect("the reason is told");
        assert!(line.contains(named) && stderr.contains("checkpoint-3 at step 3"), "{name}: {stderr}");
        assert!(final_weights(&output) == final_weights(&whole), "{name}: weights differ");
        println!("{name}: {line}");
        std::fs::remove_dir_all(output).expect("removed");
    }
}

/// A file system with room for one checkpoint and a half: later ones fail, are told, and take nothing with them.
#[test]
fn a_full_disk_during_a_save_is_a_warning() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (whole, disk) = (folder.path().join("whole"), folder.path().join("disk"));
    let save = ["--save_strategy", "steps", "--save_steps", "3"];
    succeed(&mut threads(&whole, "none", of_ranks(2), &save));
    let used = |dir: PathBuf| -> u64 {
        let files = std::fs::read_dir(dir).expect("readable").flatten();
        files.map(|file| file.metadata().expect("there").len()).sum()
    };
    let checkpoint = used(whole.join("checkpoint-3"));
    let weights = std::fs::metadata(whole.join("model.safetensors")).expect("there").len();
    let room = (checkpoint + 2 * weights) / 1024 + 160;
    std::fs::create_dir(&disk).expect("created");
    // The file system is that of the script alone, so what is left on it is looked at there.
    let output = disk.join("run");
    let words =
        arguments(&output, "none", of_ranks(2), &[&save[..], &["--nproc", "2", "--force", "true"]].concat()).join(" ");
    let script = format!(
        "mount -t tmpfs -o size={room}k tmpfs {disk} || exit 77; {train} {words} 2>{log}; status=$?
         ls -a {output} >{log}.files; cp -r {output} {copy}; exit $status",
        disk = disk.display(),
        train = program("train").display(),
        log = folder.path().join("log").display(),
        output = output.display(),
        copy = folder.path().join("copy").display(),
    );
    let status = Command::new("unshare").args(["-m", "sh", "-c", &script]).status().expect("unshare starts");
    if matches!(status.code(), Some(77) | Some(1)) && !folder.path().join("log").exists() {
        println!("not run: mounting a small file system needs root");
        return;
    }
    let log = std::fs::read_to_string(folder.path().join("log")).expect("the log");
    println!("{log}");
    assert!(status.success(), "the run ended: {log}");
    assert!(log.contains("warning: checkpoint-6 is not saved") && log.contains("No space left"), "{log}");
    let copy = folder.path().join("copy");
    assert_eq!(metrics(&copy).len(), 8, "a line for every step: {log}");
    assert_eq!(checkpoints(&copy), ["checkpoint-3"], "the good one stays, halves go");
    assert!(final_weights(&copy) == final_weights(&whole), "weights differ");
    // The one that was saved before is whole.
    std::fs::remove_file(copy.join("model.safetensors")).expect("removed");
    succeed(&mut threads(&copy, "none", of_ranks(2), &["--resume_from_checkpoint", "true"]));
    assert!(final_weights(&copy) == final_weights(&whole), "weights of the resumed run differ");
}

/// The time that training is paused for a checkpoint is printed.
#[test]
fn the_stall_of_a_save_is_reported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let save = ["--save_strategy", "steps", "--save_steps", "2"];
    let run = succeed(&mut threads(folder.path(), "none", of_ranks(2), &save));
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("training was paused for")).collect();
    assert_eq!(lines.len(), 4, "{stderr}");
    println!("{}", lines.join("\n"));
    let stalls = tests::training::column(&metrics(folder.path()), "checkpoint_stall_seconds");
    assert!(stalls.iter().sum::<f64>() > 0.0, "{stalls:?}");
}

/// A log line covers the steps since the line before, also where the run was resumed between the two: the same losses and counts
/// as undisturbed, of two ranks and of several sources.
#[test]
fn log_lines_of_a_resumed_run_cover_the_steps_before_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, ranks, logging) in [("one rank", 1, "3"), ("two ranks", 2, "5"), ("two ranks, fraction", 2, "0.6")] {
        let (whole, output) = (folder.path().join("whole"), folder.path().join("resumed"));
        let words = ["--save_strategy", "steps", "--save_steps", "2", "--logging_steps", logging];
        succeed(&mut threads(&whole, "none", of_ranks(ranks), &words));
        succeed(&mut threads(&output, "none", of_ranks(ranks), &words));
        for step in [6, 8] {
            std::fs::remove_dir_all(output.join(format!("checkpoint-{step}"))).expect("saved");
        }
        let resume = [&words[..], &["--resume_from_checkpoint", "true"]].concat();
        succeed(&mut threads(&output, "none", of_ranks(ranks), &resume));
        let (expected, found) = (metrics(&whole), metrics(&output));
        assert_eq!(found.len(), expected.len(), "{name}");
        let on_boundary = expected.iter().any(|line| line["step"] == 4);
        assert!(!on_boundary, "{name}: the run must be resumed between two lines for this test");
        for (found, expected) in found.iter().zip(&expected) {
            for key in ["step", "epoch", "loss", "grad_norm", "learning_rate", "supervised_tokens"] {
                assert_eq!(found[key], expected[key], "{name}: {key}");
            }
            // The seconds of the steps before the checkpoint are in the rate.
            let rows = found["samples_per_second"].as_f64().expect("a rate");
            assert!(rows > 0.0 && rows.is_finite(), "{name}: {rows}");
        }
        for dir in [whole, output] {
            std::fs::remove_dir_all(dir).expect("removed");
        }
    }
}
