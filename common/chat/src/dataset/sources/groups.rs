//! Numbered files of which a folder has one group for each split: `train-00000-of-00003.parquet`.

use super::{Findings, Found, Kind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const TRAIN: &str = "train";

/// One dataset for each group of files; of several groups the one named after the training split.
pub(super) fn add(kind: &'static Kind, layout: &str, files: Vec<PathBuf>, found: &mut Findings) {
    let mut groups: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    files.into_iter().for_each(|file| groups.entry(group(&file)).or_default().push(file));
    let mut dataset = |files, layout: String| found.datasets.push(Found { kind, layout, files, pictures: None });
    if groups.len() > 1
        && let Some(files) = groups.remove(TRAIN)
    {
        let others: Vec<String> = groups.into_keys().collect();
        return dataset(files, format!("{layout}, the split {TRAIN}; not read: {}", others.join(", ")));
    }
    groups.into_values().for_each(|files| dataset(files, layout.to_owned()));
}

/// A file's name without its number.
fn group(file: &Path) -> String {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let without_number = |name: &str| name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
    let name = without_number(&name);
    let name = name.strip_suffix("-of-").map(without_number).unwrap_or(name);
    name.trim_end_matches(['-', '_', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_no_part_of_a_group() {
        for (file, expected) in [
            ("data/train-00000-of-00003.parquet", "train"),
            ("00017.tar", ""),
            ("cc3m_0001.tar", "cc3m"),
            ("test.parquet", "test"),
        ] {
            assert_eq!(group(Path::new(file)), expected, "{file}");
        }
    }
}
