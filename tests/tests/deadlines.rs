//! Timeouts count time without progress: work that progresses may take longer, on any rank.

use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use tests::runs::json_file;
use tests::training::{Split, final_weights, mpi, succeed, threads};

const TWO: Split = Split { ranks: 2, micro_batch: 2, accumulation: 1 };

/// Bytes that take longer to hash than the deadline; a hole in the file system.
const LARGE: u64 = 6 << 30;

/// Puts a large file into the newest checkpoint, as a part of it.
fn add_large_file(checkpoint: &Path) {
    File::create(checkpoint.join("large.bin")).expect("created").set_len(LARGE).expect("a hole");
    let sha256 = base::files::sha256_of_file(&checkpoint.join("large.bin")).expect("hashed");
    let path = checkpoint.join("manifest.json");
    let mut manifest = json_file(&path);
    manifest["files"]["large.bin"] = Value::from(sha256);
    base::json::write(&path, &manifest).expect("written");
}

/// Rank 0 hashes the checkpoint for longer than the others would wait for it.
#[test]
fn hashing_a_large_checkpoint_is_no_reason_to_end_a_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (whole, output) = (folder.path().join("whole"), folder.path().join("run"));
    let save = ["--save_strategy", "steps", "--save_steps", "4"];
    succeed(&mut threads(&whole, "projector", TWO, &save));
    succeed(&mut threads(&output, "projector", TWO, &save));
    std::fs::remove_dir_all(output.join("checkpoint-8")).expect("removed");
    std::fs::remove_file(output.join("model.safetensors")).expect("removed");
    add_large_file(&output.join("checkpoint-4"));
    let more = ["--resume_from_checkpoint", "true", "--collective_timeout_seconds", "1"];
    let goes_on = |name: &str, command: &mut Command| {
        let begin = Instant::now();
        succeed(command);
        println!("{name}: {:.1} s", begin.elapsed().as_secs_f64());
        assert!(begin.elapsed().as_secs_f64() > 2.0, "{name}: too quick to be a test of the deadline");
        assert!(final_weights(&output) == final_weights(&whole), "{name}: other weights");
        std::fs::remove_file(output.join("model.safetensors")).expect("removed");
        let _ = std::fs::remove_dir_all(output.join("checkpoint-8"));
    };
    goes_on("threads", &mut threads(&output, "projector", TWO, &more));
    if let Some(mut command) = mpi(&output, "projector", TWO, &more) {
        goes_on("MPI", &mut command);
    }
}
