//! Fingerprints of files: names, sizes and modification times.

use anyhow::Result;
use base::{Error, files, names};
use std::fs::Metadata;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// Fingerprint of what does not exist.
pub const ABSENT: &str = "absent";
/// Fingerprint of a folder with nothing in it that counts.
const EMPTY: &str = "empty";

/// What counts of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything below it.
    Whole,
    /// The files of a model or an adapter in the folder itself: in a run's folder that is its final model, without
    /// checkpoints and logs.
    Model,
}

/// Whether a fingerprint is that of something.
pub fn is_there(fingerprint: &str) -> bool {
    fingerprint != ABSENT && fingerprint != EMPTY
}

/// SHA-256 over the names, sizes and modification times of a file, or of all files below a folder that count.
///
/// Contents are not read: the picture folder of the real job has 595,375 files.
///
/// # Errors
/// A folder that cannot be listed.
pub fn of(path: &Path, part: Part) -> Result<String> {
    let Ok(about) = path.metadata() else { return Ok(ABSENT.to_string()) };
    let mut lines = Vec::new();
    if about.is_dir() {
        list(path, path, part, &mut lines)?;
        if lines.is_empty() {
            return Ok(EMPTY.to_string());
        }
        lines.sort_unstable();
    } else {
        lines.push(line(Path::new(""), &about));
    }
    Ok(files::sha256_hex(lines.join("\n").as_bytes()))
}

fn list(root: &Path, folder: &Path, part: Part, lines: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if part == Part::Model && !names::is_part_of_model(&name) {
            continue;
        }
        let about = path.metadata().map_err(Error::io(&path))?;
        if about.is_dir() {
            list(root, &path, part, lines)?;
        } else {
            lines.push(line(path.strip_prefix(root).unwrap_or(&path), &about));
        }
    }
    Ok(())
}

fn line(name: &Path, about: &Metadata) -> String {
    let changed = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    format!("{} {} {}", name.display(), about.len(), changed.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_below_a_folder_shows() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path();
        std::fs::create_dir(root.join("images")).expect("created");
        std::fs::write(root.join("images/a"), "1").expect("written");
        let of = |path: &Path| of(path, Part::Whole);
        let first = of(root).expect("listed");
        assert_eq!(of(root).expect("listed"), first);
        std::fs::write(root.join("images/a"), "22").expect("written");
        let longer = of(root).expect("listed");
        std::fs::rename(root.join("images/a"), root.join("images/b")).expect("renamed");
        let renamed = of(root).expect("listed");
        assert!(first != longer && longer != renamed);
        assert_eq!(of(&root.join("nothing")).expect("no error"), ABSENT);
    }

    #[test]
    fn of_a_run_the_final_model_counts_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path();
        let fingerprint = || of(root, Part::Model).expect("listed");
        assert!(!is_there(&fingerprint()) && !is_there(&of(&root.join("nothing"), Part::Model).expect("no error")));
        std::fs::create_dir(root.join("checkpoint-5")).expect("created");
        std::fs::write(root.join("checkpoint-5/model.safetensors"), "1").expect("written");
        std::fs::write(root.join("metrics.jsonl"), "1").expect("written");
        assert!(!is_there(&fingerprint()));
        std::fs::write(root.join("adapter_model.safetensors"), "1").expect("written");
        let model = fingerprint();
        assert!(is_there(&model));
        std::fs::write(root.join("metrics.jsonl"), "22").expect("written");
        assert_eq!(fingerprint(), model);
        std::fs::write(root.join("adapter_model.safetensors"), "22").expect("written");
        assert_ne!(fingerprint(), model);
    }
}
