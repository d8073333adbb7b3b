//! Files beside the model that cannot be written: a warning, and training continues. Outputs that cannot be written: an error.

use std::path::Path;
use std::process::Command;
use tests::runs::{json_lines, shards_with_validation, train};
use tests::training::{fail, succeed};
use tests::{program, reference};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const OPTIONS: [&str; 10] = [
    "--train_type",
    "projector",
    "--max_steps",
    "6",
    "--eval_strategy",
    "steps",
    "--eval_steps",
    "2",
    "--report_to",
    "tensorboard",
];

/// Folders stand where the temporary files of each have to be, from before the start to the end.
#[test]
fn what_can_never_be_written_is_said_once_each_and_the_model_is_saved() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let (output, whole) = (folder.path().join("run"), folder.path().join("whole"));
    succeed(&mut train(&shards, &whole, &OPTIONS));
    for name in ["trainable.json", "metrics.jsonl", "captions-2.jsonl", "captions-4.jsonl"] {
        std::fs::create_dir_all(output.join(format!(".{name}.tmp"))).expect("created");
    }
    let log = text(&succeed(&mut train(&shards, &output, &OPTIONS)).stderr);
    for what in ["the list of trained tensors", "the metrics file", "the file of sample captions"] {
        let warning = format!("warning: {what} cannot be written: ");
        assert_eq!(log.matches(&warning).count(), 1, "{what}: {log}");
    }
    assert!(log.contains("the file of sample captions can be written again"), "{log}");
    assert!(output.join("captions-6.jsonl").is_file() && !output.join("metrics.jsonl").exists());
    let weights = |run: &Path| std::fs::read(run.join("model.safetensors")).expect("weights");
    assert!(weights(&output) == weights(&whole));
}

/// A file system that is full for a part of the run: no event and no line is lost.
#[test]
fn a_disk_that_is_full_for_a_while_loses_no_line_and_no_event() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let (disk, log) = (folder.path().join("disk"), folder.path().join("log"));
    std::fs::create_dir(&disk).expect("created");
    let steps = ["--train_type", "projector", "--max_steps", "600", "--eval_strategy", "steps", "--eval_steps", "100"];
    let command = train(&shards, &disk.join("run"), &[&steps[..], &["--report_to", "tensorboard"]].concat());
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_str().expect("UTF-8").to_string())
        .collect();
    let script = format!(
        "mount -t tmpfs -o size=20m tmpfs {disk} || exit 77
         {words} 2>{log} & train=$!
         until [ -e {run}/metrics.jsonl ] && [ $(wc -l <{run}/metrics.jsonl) -ge 20 ]; do sleep 0.02; done
         dd if=/dev/zero of={disk}/fill bs=4k 2>/dev/null
         until grep -q 'event file cannot be written' {log} && grep -q 'metrics file cannot' {log}; do sleep 0.02; done
         rm {disk}/fill; wait $train; status=$?
         cp -r {run} {copy}; exit $status",
        disk = disk.display(),
        words = words.join(" "),
        log = log.display(),
        run = disk.join("run").display(),
        copy = folder.path().join("copy").display(),
    );
    let status = Command::new("unshare").args(["-m", "sh", "-c", &script]).status().expect("unshare starts");
    if matches!(status.code(), Some(77) | Some(1)) && !log.exists() {
        println!("not run: mounting a small file system needs root");
        return;
    }
    let (log, copy) = (std::fs::read_to_string(&log).expect("the log"), folder.path().join("copy"));
    println!("{log}");
    assert!(status.success(), "the run ended: {log}");
    for what in ["the metrics file", "the event file"] {
        assert_eq!(log.matches(&format!("warning: {what} cannot be written: ")).count(), 1, "{log}");
        assert!(log.contains(&format!("{what} can be written again")), "{log}");
    }
    let lines = json_lines(&copy.join("metrics.jsonl"));
    assert_eq!(lines.len(), 600 + 6, "a line of every step and every evaluation");
    assert_eq!(records(&copy), 1 + 600 + 2 * 6, "the version, the steps, evaluations with their captions");
}

/// Whole records of a run's event file.
fn records(run: &Path) -> usize {
    let names = std::fs::read_dir(run).expect("readable").flatten().map(|entry| entry.path());
    let file = names.into_iter().find(|path| path.to_string_lossy().contains("tfevents")).expect("an event file");
    let bytes = std::fs::read(file).expect("readable");
    let (mut at, mut count) = (0, 0);
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) as usize;
        at += 8 + 4 + length + 4;
        count += 1;
    }
    assert_eq!(at, bytes.len(), "half a record");
    count
}

#[test]
fn vision_features_that_would_not_fit_are_refused_before_the_first_step() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).expect("created");
    let (output, moved) = (folder.path().join("run"), disk.join("shards"));
    let run = |shards: &Path, output: &Path| {
        let more = ["--train_type", "projector", "--max_steps", "1", "--cache_vision_features", "f16"];
        train(shards, output, &more)
    };
    let log = text(&succeed(&mut run(&shards, &folder.path().join("fits"))).stderr);
    assert!(log.contains("vision features of 24 images are kept in") && log.contains("kB when all are there"), "{log}");
    for file in std::fs::read_dir(&shards).expect("readable").flatten().map(|entry| entry.path()) {
        if file.to_string_lossy().contains("vision_features-") {
            std::fs::remove_file(file).expect("removed");
        }
    }
    let command = run(&moved, &output);
    let words: Vec<&str> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_str().expect("UTF-8"))
        .collect();
    // Room for the shards and a few pages.
    let script = format!(
        "mount -t tmpfs -o size=64m tmpfs {disk} || exit 77; cp -r {shards} {disk}/shards || exit 78
         mount -o remount,size=$(($(du -sk {disk} | cut -f1) + 16))k {disk} || exit 79; exec {words}",
        disk = disk.display(),
        shards = shards.display(),
        words = words.join(" ")
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]);
    if matches!(command.status().expect("unshare starts").code(), Some(77)) {
        println!("not run: mounting a small file system needs root");
        return;
    }
    let error = fail(&mut command);
    for part in ["cache_vision_features", "free on its file system", "for the features of 24 images", "leave --cache"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(!output.join("model.safetensors").exists());
}

/// Each program says so of its output, with the next step, on a file system that is mounted read-only.
#[test]
fn an_output_on_a_read_only_file_system_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let (disk, mounted) = (folder.path().join("disk"), folder.path().join("mounted"));
    std::fs::create_dir(&disk).expect("created");
    let output = |name: &str, subcommand: &str, file: &str, inputs: &[&Path]| {
        let mut command = Command::new(program(name));
        command.arg(subcommand).arg("--output").arg(disk.join(file)).args(inputs);
        command
    };
    let (model, pictures) = (reference("tiny/llava"), reference("pictures"));
    let inputs = [Path::new("--model"), &model, Path::new("--data"), &pictures];
    let elsewhere = "Read-only file system (os error 30); choose a folder on another file system";
    let cases = [
        (train(&shards, &disk.join("run"), &OPTIONS), "is on a read-only file system; give an --output_dir elsewhere"),
        (output("preprocess", "shards", "shards", &inputs), elsewhere),
        (output("infer", "caption", "captions.jsonl", &inputs), elsewhere),
        (output("pipelines", "quickstart", "quickstart", &[]), elsewhere),
    ];
    for (command, named) in cases {
        let words: Vec<&str> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_str().expect("UTF-8"))
            .collect();
        let script = format!(
            "mount -t tmpfs -o ro tmpfs {disk} || exit 77; touch {mounted}; exec {words}",
            disk = disk.display(),
            mounted = mounted.display(),
            words = words.join(" ")
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &script]).env_remove("CARGO").env_remove("CARGO_PKG_NAME");
        let ended = command.output().expect("unshare starts");
        if !mounted.exists() {
            println!("not run: mounting a small file system needs root");
            return;
        }
        let error = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{}: {error}", words.join(" "));
        assert!(error.contains(named) && error.contains(&disk.display().to_string()), "{}: {error}", words.join(" "));
    }
}
