//! Seeds and findings of the fuzz targets (`tests/fuzz/seeds`) through the program: a summary or an error, no panic, little memory.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tests::dataset::{Dataset, answered, question};

/// Far below what a header that lies about its size asks for.
const PEAK_KB: u64 = 300_000;
const SECONDS: u64 = 20;

fn seeds(kind: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(kind);
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("seeds").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() > 10, "{} seeds of {kind}", files.len());
    files
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8")
}

/// A row for each image, and one without, so that there is something to train on.
fn rows(images: &[&str]) -> Value {
    let row =
        |image: &&str| json!({"id": image, "image": image, "conversations": [question("<image>"), answered("A.")]});
    let mut rows: Vec<Value> = images.iter().map(row).collect();
    rows.push(json!({"id": "text", "conversations": [question("Hi."), answered("Hello.")]}));
    Value::Array(rows)
}

/// Exit code and stderr of a run over the dataset that stays within time and memory; its output is in `output`.
fn run(dataset: &Dataset, output: &Path, what: &str) -> (i32, String) {
    let mut command = dataset.command(output, &["--workers", "1", "--max-rejected", "1"]);
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let stderr = log.reopen().expect("opened");
    let mut child = command.stdout(Stdio::null()).stderr(stderr).spawn().expect("started");
    let (mut peak, started) = (0, Instant::now());
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        peak = peak.max(line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0));
        if let Some(status) = child.try_wait().expect("waited") {
            break status;
        }
        if started.elapsed() > Duration::from_secs(SECONDS) {
            child.kill().expect("killed");
            panic!("{what}: not done after {SECONDS} s");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let stderr = std::fs::read_to_string(log.path()).expect("read");
    assert!(!stderr.contains("panicked"), "{what}: {stderr}");
    assert!(peak < PEAK_KB, "{what}: {peak} kB");
    (status.code().unwrap_or_else(|| panic!("{what}: ended by a signal: {stderr}")), stderr)
}

fn accounted(output: &Path) -> (u64, u64) {
    let index: Value = serde_json::from_slice(&std::fs::read(output.join("index.json")).expect("read")).expect("JSON");
    let count = |key: &str| index["counts"][key].as_u64().expect("a number");
    (count("rows_in"), count("train") + count("rejected"))
}

#[test]
fn every_image_seed_is_a_sample_or_a_rejected_row() {
    let (dataset, images) = (Dataset::empty(), seeds("image"));
    for image in &images {
        std::fs::copy(image, dataset.data().join("images").join(name(image))).expect("copied");
    }
    dataset.write(&rows(&images.iter().map(|image| name(image)).collect::<Vec<_>>()));
    let output = tempfile::tempdir().expect("a temporary folder");
    let (code, stderr) = run(&dataset, output.path(), "image seeds");
    assert_eq!(code, 0, "{stderr}");
    let (rows, accounted) = accounted(output.path());
    assert_eq!((rows, accounted), (images.len() as u64 + 1, images.len() as u64 + 1));
    let rejected = std::fs::read_to_string(output.path().join("rejected.jsonl")).expect("read");
    for bomb in images.iter().map(|image| name(image)).filter(|name| name.starts_with("bomb")) {
        let line = rejected.lines().find(|line| line.contains(&format!("\"id\":\"{bomb}\"")));
        println!("{}", line.unwrap_or_else(|| panic!("{bomb} was accepted")));
    }
}

#[test]
fn every_zip_seed_is_read_or_refused() {
    for zip in seeds("zip") {
        let dataset = Dataset::empty();
        std::fs::copy(&zip, dataset.data().join("images.zip")).expect("copied");
        dataset.write(&rows(&["a", "b.jpg", "c.png", "d/e.jpg"]));
        let output = tempfile::tempdir().expect("a temporary folder");
        let (code, stderr) = run(&dataset, output.path(), name(&zip));
        println!("{}: exit code {code}", name(&zip));
        if code == 0 {
            assert_eq!(accounted(output.path()), (5, 5), "{}", name(&zip));
        } else {
            assert!(code == 1 && stderr.contains("images.zip"), "{}: {stderr}", name(&zip));
        }
    }
}

#[test]
fn every_json_seed_is_accounted_for_or_refused_with_its_place() {
    for json in seeds("json") {
        let dataset = Dataset::empty();
        std::fs::copy(&json, dataset.data().join("chat.json")).expect("copied");
        let output = tempfile::tempdir().expect("a temporary folder");
        let (code, stderr) = run(&dataset, output.path(), name(&json));
        println!("{}: exit code {code}: {}", name(&json), stderr.lines().last().unwrap_or_default());
        if output.path().join("index.json").exists() {
            let (rows, accounted) = accounted(output.path());
            assert_eq!(rows, accounted, "{}", name(&json));
        } else {
            assert!(code == 1 && stderr.contains("chat.json"), "{}: {stderr}", name(&json));
        }
    }
}
