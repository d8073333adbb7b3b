//! Shards that were damaged after they were written: training and scoring end with file, row group and row.

use std::path::{Path, PathBuf};
use std::process::Command;
use tests::runs::train;
use tests::training::{fail, succeed};
use tests::{program, reference};

fn shards(folder: &Path, pixels: &str) -> PathBuf {
    let shards = folder.join(pixels);
    let mut command = Command::new(program("preprocess"));
    command.arg("shards").arg("--model").arg(reference("tiny/llava")).arg("--data").arg(reference("pictures"));
    succeed(command.arg("--output").arg(&shards).args(["--pixels", pixels, "--max-row-group-rows", "8"]));
    shards
}

fn score(folder: &Path, shards: &Path) -> Command {
    let mut command = Command::new(program("infer"));
    command.arg("score").arg("--model").arg(reference("tiny/llava")).arg("--shards").arg(shards);
    command.arg("--output").arg(folder.join("scores.jsonl"));
    command
}

/// A bit of the pixels, whose pages are most of a file, changes: no length and no footer shows it.
#[test]
fn a_changed_bit_ends_the_run_with_its_place() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for pixels in ["predicted", "u8", "f32", "jpeg"] {
        let shards = shards(folder.path(), pixels);
        let file = shards.join("shard-00000.parquet");
        let whole = std::fs::read(&file).expect("readable");
        succeed(&mut score(folder.path(), &shards));
        let (mut by_checksum, mut tried) = (0, 0);
        for part in 1..8 {
            let mut damaged = whole.clone();
            damaged[whole.len() * part / 9] ^= 0x10;
            std::fs::write(&file, &damaged).expect("written");
            let scored = fail(&mut score(folder.path(), &shards));
            assert!(
                scored.contains("shard-00000.parquet: row group ") && scored.contains(", row "),
                "{pixels}: {scored}"
            );
            assert!(scored.contains("preprocess verify"), "{pixels}: {scored}");
            by_checksum += usize::from(scored.contains("CRC-32"));
            tried += 1;
        }
        let output = folder.path().join(format!("run-{pixels}"));
        let mut run = train(&shards, &output, &["--train_type", "projector", "--max_steps", "16"]);
        let trained = fail(&mut run);
        assert!(
            trained.contains("shard-00000.parquet: row group ") && trained.contains(", row "),
            "{pixels}: {trained}"
        );
        println!("{pixels}: {tried} changed bits found, {by_checksum} of them by the row's checksum alone");
        println!("{}", trained.lines().last().unwrap_or_default());
        assert!(by_checksum > 0, "{pixels}");
    }
}

/// A file that is cut, or whose footer is not the one that was written, ends the run before its first row.
#[test]
fn size_and_footer_are_compared_at_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards(folder.path(), "predicted");
    let file = shards.join("shard-00000.parquet");
    let whole = std::fs::read(&file).expect("readable");
    let mut footer = whole.clone();
    let end = whole.len() - 40;
    footer[end] ^= 0xff;
    for (name, damaged) in [("cut", &whole[..whole.len() - 1]), ("footer", &footer[..])] {
        std::fs::write(&file, damaged).expect("written");
        let scored = fail(&mut score(folder.path(), &shards));
        let output = folder.path().join(name);
        let trained = fail(&mut train(&shards, &output, &["--train_type", "projector", "--max_steps", "1"]));
        for words in [&scored, &trained] {
            assert!(words.contains("shard-00000.parquet"), "{name}: {words}");
        }
        assert!(!output.join("metrics.jsonl").exists() && !folder.path().join("scores.jsonl").exists(), "{name}");
        println!("{name}: {}", scored.trim());
    }
}
