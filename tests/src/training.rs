//! Helpers of the tests of training: the reference's job on the tiny model, under threads and under MPI, and its comparison
//! with transformers' log and weights.

use crate::references::{Reference, TINY};
use crate::tiny::read_tensors_at;
use crate::{assert_norm_close, program, reference};
use burn::tensor::Device;
use clap::{Args, FromArgMatches};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::time::Duration;
use train::collective::launch::run_ranks;
use train::config::Config;
use train::signals::StopRequest;
use train::{recipe, trainer};

/// Runs a program and demands success; its stderr is shown otherwise.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// stderr of a program that must fail.
pub fn fail(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{command:?} succeeded\n{stderr}");
    stderr
}

/// Makes the reference's shards in `dir`.
pub fn make_shards(dir: &Path) {
    make_shards_of(TINY, dir);
}

/// Makes shards of the reference pictures for a model in `dir`.
pub fn make_shards_of(model: Reference, dir: &Path) {
    let mut command = Command::new(program("preprocess"));
    command.arg("shards").arg("--model").arg(model.llava()).arg("--data").arg(reference("pictures"));
    // The rows that the reference trains on, which are fewer than there are.
    command.args(["--limit", &model.spec()["rows"].to_string()]);
    succeed(command.arg("--output").arg(dir));
}

/// The reference's shards, made once per run of the tests, in the target folder.
pub fn shards() -> PathBuf {
    shards_of(TINY)
}

/// The shards of a reference model, made once per run of the tests, in the target folder.
pub fn shards_of(model: Reference) -> PathBuf {
    static FOLDERS: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut folders = FOLDERS.lock().expect("shards that could be made");
    let make = || {
        let folder = program("train").with_file_name(format!("test-shards-{}", model.name));
        let _ = std::fs::remove_dir_all(&folder);
        make_shards_of(model, &folder);
        folder
    };
    folders.entry(model.name).or_insert_with(make).clone()
}

/// How a global batch is divided.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// Ranks.
    pub ranks: usize,
    /// Rows of a micro-batch.
    pub micro_batch: usize,
    /// Micro-batches of a step, per rank.
    pub accumulation: usize,
}

/// Arguments of the tiny model's job: file order, 8 steps.
pub fn arguments(output: &Path, train_type: &str, split: Split, more: &[&str]) -> Vec<String> {
    arguments_of(TINY, output, train_type, split, more)
}

/// Arguments of a reference model's job, as its specification has them.
pub fn arguments_of(model: Reference, output: &Path, train_type: &str, split: Split, more: &[&str]) -> Vec<String> {
    let job = model.spec()["train"].clone();
    let text = |key: &str| job[key].as_str().map_or_else(|| job[key].to_string(), str::to_string);
    let path = |path: &Path| path.display().to_string();
    let mut arguments = Vec::new();
    let mut add = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    add("model_name_or_path", path(&model.llava()));
    add("data_path", path(&shards_of(model)));
    add("output_dir", path(output));
    add("train_type", train_type.to_string());
    add("per_device_train_batch_size", split.micro_batch.to_string());
    add("gradient_accumulation_steps", split.accumulation.to_string());
    add("learning_rate", text("lr"));
    add("weight_decay", text("weight_decay"));
    add("max_steps", text("steps"));
    add("warmup_steps", text("warmup_steps"));
    add("logging_steps", "1".into());
    add("shuffle", "false".into());
    add("save_strategy", "no".into());
    if text("schedule") != "linear" {
        add("lr_scheduler_type", text("schedule"));
    }
    if train_type == "use_lora" {
        add("init_adapter", path(&model.path("train_use_lora_init")));
        add("lora_dropout", "0".into());
    }
    arguments.extend(more.iter().map(|word| word.to_string()));
    arguments
}

/// The tiny model's job with ranks as threads.
pub fn threads(output: &Path, train_type: &str, split: Split, more: &[&str]) -> Command {
    threads_of(TINY, output, train_type, split, more)
}

/// A reference model's job with ranks as threads.
pub fn threads_of(model: Reference, output: &Path, train_type: &str, split: Split, more: &[&str]) -> Command {
    let mut command = Command::new(program("train"));
    command.args(arguments_of(model, output, train_type, split, more)).args(["--nproc", &split.ranks.to_string()]);
    command
}

/// `mpiexec` beside the tests' Python, with its folder on the path; `None`, said on stdout, where there is none.
pub fn mpiexec(ranks: usize) -> Option<Command> {
    let mut command = Command::new(mpi_prefix()?.join("bin/mpiexec"));
    command.env("PATH", with_mpi_on_path()?).args(["-n", &ranks.to_string()]);
    Some(command)
}

/// Folder with `bin/mpiexec` and `lib/libmpi*`; `None`, said on stdout, where there is none.
pub fn mpi_prefix() -> Option<PathBuf> {
    let python = std::env::var_os("LLAVA_PYTHON").map(PathBuf::from);
    let prefix = python.as_deref().and_then(Path::parent).and_then(Path::parent).map(Path::to_path_buf);
    let found = prefix.filter(|prefix| prefix.join("bin/mpiexec").exists());
    if found.is_none() {
        println!("not run: no mpiexec beside LLAVA_PYTHON");
    }
    found
}

fn with_mpi_on_path() -> Option<std::ffi::OsString> {
    let mut folders = vec![mpi_prefix()?.join("bin")];
    folders.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    std::env::join_paths(folders).ok()
}

/// The job with ranks as MPI processes.
pub fn mpi(output: &Path, train_type: &str, split: Split, more: &[&str]) -> Option<Command> {
    let mut command = mpiexec(split.ranks)?;
    command.arg(program("train")).args(arguments(output, train_type, split, more));
    Some(command)
}

/// A reference model's job in this process, with ranks as threads that compute on one device.
pub fn in_process_of(model: Reference, output: &Path, train_type: &str, split: Split, device: &Device, more: &[&str]) {
    let words = std::iter::once("train".to_string()).chain(arguments_of(model, output, train_type, split, more));
    let words = cli::args::with_dashes(words.map(std::ffi::OsString::from));
    let matches = Config::augment_args(clap::Command::new("train")).get_matches_from(words);
    let config = Config::from_arg_matches(&matches).expect("options of train");
    let config = recipe::resolve(config, &matches, None).expect("valid options");
    let run = |rank| trainer::run(&config, rank, device, &StopRequest::default());
    run_ranks(split.ranks, None, Duration::from_secs(60), run).expect("the run succeeds");
}

/// Runs the tiny model's jobs, each on one and on two ranks (micro-batch 2, four rows a step), and compares the whole log and
/// every weight with transformers'.
pub fn compare_with_reference(name: &str, train: impl Fn(&Path, &str, Split)) {
    for ranks in [1, 2] {
        compare_jobs(TINY, name, ranks, &train);
    }
}

/// Runs a reference model's jobs on some ranks, and compares the whole log and every weight with transformers'.
pub fn compare_jobs(model: Reference, name: &str, ranks: usize, train: impl Fn(&Path, &str, Split)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cases = [
        ("none", "model.safetensors"),
        ("freeze_vision", "model.safetensors"),
        ("use_lora", "adapter_model.safetensors"),
    ];
    for (train_type, weights) in cases {
        let name = format!("{name}: {}: {train_type}, {ranks} ranks", model.name);
        let output = folder.path().join(train_type);
        train(&output, train_type, Split { ranks, micro_batch: 2, accumulation: 2 / ranks });
        compare_log_of(model, &name, &output, train_type);
        compare_weights(&name, &output.join(weights), &format!("{}/train_{train_type}/{weights}", model.name));
    }
}

/// The lines of a run's metrics.
pub fn metrics(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output.join("metrics.jsonl")).expect("metrics were written");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

/// A number of every logged step.
pub fn column(lines: &[Value], key: &str) -> Vec<f64> {
    lines.iter().map(|line| line[key].as_f64().unwrap_or_else(|| panic!("{key} is a number in {line}"))).collect()
}

/// The steps of the tiny model's log.
pub fn reference_log(train_type: &str) -> Vec<Value> {
    reference_log_of(TINY, train_type)
}

/// The steps of a reference model's log.
pub fn reference_log_of(model: Reference, train_type: &str) -> Vec<Value> {
    model.json(&format!("train_{train_type}.json"))["steps_log"].as_array().expect("a list of steps").clone()
}

/// Largest relative difference of a number over all steps; fails above the tolerance, naming the step.
pub fn compare(name: &str, key: &str, found: &[Value], expected: &[Value], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{name}: logged steps");
    let mut largest = 0f64;
    for (index, (a, b)) in column(found, key).into_iter().zip(column(expected, key)).enumerate() {
        let difference = if a == b { 0.0 } else { (a - b).abs() / b.abs() };
        assert!(difference <= tolerance, "{name}: step {}: {key} {a} where {b} is expected", index + 1);
        largest = largest.max(difference);
    }
    println!("{name}: {key}: largest relative difference {largest:e} (tolerance {tolerance:e})");
}

/// Losses, gradient norms and learning rates of a run of the tiny model against transformers'.
pub fn compare_log(name: &str, output: &Path, train_type: &str) {
    compare_log_of(TINY, name, output, train_type);
}

/// Losses, gradient norms and learning rates of a run against transformers'.
pub fn compare_log_of(model: Reference, name: &str, output: &Path, train_type: &str) {
    let (found, expected) = (metrics(output), reference_log_of(model, train_type));
    compare(name, "loss", &found, &expected, 1e-4);
    compare(name, "grad_norm", &found, &expected, 1e-3);
    compare(name, "learning_rate", &found, &expected, 0.0);
}

/// Every tensor of the reference's file against the same name in ours, relative to its own norm.
pub fn compare_weights(name: &str, found: &Path, expected: &str) {
    let found = read_tensors_at(found);
    for (tensor, (expected, _)) in read_tensors_at(&reference(expected)) {
        let (values, _) = found.get(&tensor).unwrap_or_else(|| panic!("{name}: no tensor {tensor}"));
        assert_norm_close(&format!("{name}: {tensor}"), values, &expected, 1e-3);
    }
}

/// Bytes of a run's final weights.
pub fn final_weights(output: &Path) -> Vec<u8> {
    let names = ["model.safetensors", "adapter_model.safetensors"];
    let path = names.iter().map(|name| output.join(name)).find(|path| path.exists()).expect("final weights");
    std::fs::read(path).expect("readable")
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("created");
    for entry in std::fs::read_dir(from).expect("readable").flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_folder(&source, &target);
        } else {
            std::fs::copy(&source, &target).expect("copied");
        }
    }
}
