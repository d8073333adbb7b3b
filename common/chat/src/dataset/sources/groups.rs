//! Numbered files of which a folder has one group for each split: `train-00000-of-00003.parquet`.

use super::{Findings, Found, Kind};
use base::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const TRAIN: &str = "train";

/// One dataset for each group of files; of several groups the one named after the training split.
///
/// # Errors
/// A group of `…-of-N` that is not all of its N files.
pub(super) fn add(kind: &'static Kind, layout: &str, files: Vec<PathBuf>, found: &mut Findings) -> Result<()> {
    let mut groups: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    files.into_iter().for_each(|file| groups.entry(group(&file)).or_default().push(file));
    let is_read = |name: &String| groups.len() == 1 || name == TRAIN || !groups.contains_key(TRAIN);
    groups.iter().filter(|(name, _)| is_read(name)).try_for_each(|(_, files)| require_all(files))?;
    let mut dataset = |files, layout: String| found.datasets.push(Found { kind, layout, files, pictures: None });
    if groups.len() > 1
        && let Some(files) = groups.remove(TRAIN)
    {
        let others: Vec<String> = groups.into_keys().collect();
        dataset(files, format!("{layout}, the split {TRAIN}; not read: {}", others.join(", ")));
        return Ok(());
    }
    groups.into_values().for_each(|files| dataset(files, layout.to_owned()));
    Ok(())
}

/// Those first whose name begins with that of the training split.
pub(super) fn training_first<T>(all: impl Iterator<Item = T>, name: impl Fn(&T) -> &str) -> impl Iterator<Item = T> {
    let mut all: Vec<T> = all.collect();
    all.sort_by_key(|one| !name(one).to_ascii_lowercase().starts_with(TRAIN));
    all.into_iter()
}

/// Number and total of `train-00001-of-00003.parquet`.
fn part(file: &Path) -> Option<(usize, usize)> {
    let name = file.file_stem()?.to_str()?;
    let (before, total) = name.rsplit_once("-of-")?;
    let start = before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    Some((before[start..].parse().ok()?, total.parse().ok()?))
}

fn require_all(files: &[PathBuf]) -> Result<()> {
    let parts: Vec<(usize, usize)> = files.iter().filter_map(|file| part(file)).collect();
    let Some(&(_, total)) = parts.first() else { return Ok(()) };
    let place = || files.first().map(|file| file.display().to_string()).unwrap_or_default();
    if parts.len() < files.len() || parts.iter().any(|&(_, other)| other != total) {
        let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        let remedy = "move the files of other downloads away, or give one file";
        return Err(Error::invalid(
            place(),
            names.join(", "),
            format!("parts of one whole, as …-of-{total:05}"),
            remedy,
        ));
    }
    // Some number from 0, others from 1.
    let first = usize::from(!parts.iter().any(|&(number, _)| number == 0));
    let missing: Vec<String> = (first..first + total)
        .filter(|number| !parts.iter().any(|(part, _)| part == number))
        .map(|n| n.to_string())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let found = format!("{} of {total} parts; missing: {}", parts.len(), missing.join(", "));
    Err(Error::invalid(place(), found, "all of them", "download the others too, or give the files one by one"))
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
    fn parts_of_a_whole_are_all_there() {
        let files = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let whole = files(&["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]);
        require_all(&whole).expect("all");
        require_all(&files(&["chaîné00000-of-00001.parquet"])).expect("letters of several bytes");
        require_all(&files(&["cc3m_0001.tar", "cc3m_0003.tar"])).expect("numbers without a total");
        for (names, words) in [
            (files(&["train-00001-of-00002.parquet"]), "missing"),
            ([whole, files(&["train-00000-of-00001.parquet"])].concat(), "of one whole"),
        ] {
            let error = require_all(&names).expect_err("refused").to_string();
            assert!(error.contains(words), "{error}");
        }
    }

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
