//! `index.json`: which files belong to a set of shards, and the numbers of its rows.

use super::{FORMAT_VERSION, ShardMetadata, Split};
use base::{Error, Result, files};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the index in a folder of shards; written last.
pub const INDEX_FILE: &str = "index.json";

/// Name of the settings of the run that makes a folder of shards; written first.
pub const PLAN_FILE: &str = "plan.json";

/// One file of shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFile {
    /// File name in the folder.
    pub file: String,
    /// Which part of the rows it holds.
    pub split: Split,
    /// Rows.
    pub rows: usize,
    /// Size, bytes.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

impl ShardFile {
    /// The file in `dir`; `source` is what names it.
    ///
    /// # Errors
    /// A name that leads out of the folder.
    pub fn path(&self, dir: &Path, source: &Path) -> Result<PathBuf> {
        files::in_folder(dir, &self.file, source.display())
    }

    /// Its error in `dir` from the system's: one that is not there can be made again.
    pub fn unreadable(&self, dir: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = dir.join(&self.file);
        move |error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                let expected = format!("a file that {INDEX_FILE} lists");
                let remedy = "copy it again, or run the same preprocess shards again, which makes missing files";
                Error::invalid(path.display(), "no such file", expected, remedy)
            }
            _ => Error::io(path)(error),
        }
    }
}

/// The account: `rows_in` = `train` + `validation` + `rejected`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows of chat.json.
    pub rows_in: usize,
    /// Rows to train on.
    pub train: usize,
    /// Rows held out.
    pub validation: usize,
    /// Rows in rejected.jsonl.
    pub rejected: usize,
    /// Rejected rows by cause.
    pub rejected_by_cause: BTreeMap<String, usize>,
}

/// `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardIndex {
    /// What the shards were made with.
    pub metadata: ShardMetadata,
    /// SHA-256 over the files' hashes: identifies the data.
    pub fingerprint: String,
    /// The account.
    pub counts: Counts,
    /// The files, in the order of their rows.
    pub shards: Vec<ShardFile>,
}

impl ShardIndex {
    /// An index of finished files.
    pub fn new(metadata: ShardMetadata, counts: Counts, shards: Vec<ShardFile>) -> Self {
        let fingerprint = fingerprint(&shards);
        Self { metadata, fingerprint, counts, shards }
    }

    /// Reads `dir/index.json`.
    ///
    /// # Errors
    /// A missing or foreign index, one of another format version, or one that contradicts itself.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(INDEX_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(missing(dir));
            }
            Err(error) => return Err(Error::io(&path)(error)),
        };
        let invalid = |found: String, expected: String| {
            Error::invalid(path.display(), found, expected, "run preprocess shards of this version again")
        };
        let index: Self = serde_json::from_slice(&text)
            .map_err(|error| invalid(error.to_string(), "the index that preprocess shards writes".to_owned()))?;
        let version = index.metadata.format_version;
        if version != FORMAT_VERSION {
            return Err(invalid(format!("format version {version}"), format!("version {FORMAT_VERSION}")));
        }
        let fingerprint = fingerprint(&index.shards);
        if fingerprint != index.fingerprint {
            return Err(invalid(format!("fingerprint {}", index.fingerprint), format!("{fingerprint} of its files")));
        }
        index.shards.iter().try_for_each(|shard| shard.path(dir, &path).map(drop))?;
        Ok(index)
    }

    /// SHA-256 of `dir/index.json`: identifies the folder.
    ///
    /// # Errors
    /// As [`Self::read`] for a folder without an index.
    pub fn sha256(dir: &Path) -> Result<String> {
        let path = dir.join(INDEX_FILE);
        if path.exists() { files::sha256_of_file(&path) } else { Err(missing(dir)) }
    }

    /// Writes `dir/index.json`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(INDEX_FILE);
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| Error::io(&path)(error.into()))?;
        text.push(b'\n');
        files::write_atomically(&path, &text)
    }
}

/// The error of a folder without an index: one that is not there, that a run has not finished, or that holds something else.
fn missing(dir: &Path) -> Error {
    let expected = "a folder of finished shards";
    if !dir.exists() {
        let neighbour = neighbour(dir).map(|path| format!("did you mean {}? ", path.display())).unwrap_or_default();
        let remedy =
            format!("{neighbour}check the path; preprocess shards --output {} makes shards there", dir.display());
        return Error::invalid(dir.display(), "no such folder", expected, remedy);
    }
    let found = format!("no {INDEX_FILE}");
    if dir.join(PLAN_FILE).exists() {
        let remedy =
            "let preprocess shards finish there: the same command goes on (preprocess index after all --part runs)";
        return Error::invalid(dir.display(), found, expected, remedy);
    }
    let remedy = match below(dir) {
        Some(folder) => format!("give the folder itself, {}", folder.display()),
        None => format!("preprocess shards --data {} --output FOLDER makes shards of a dataset", dir.display()),
    };
    Error::invalid(dir.display(), found, expected, remedy)
}

/// A folder of shards beside `dir` whose name is nearly the same.
fn neighbour(dir: &Path) -> Option<PathBuf> {
    let folder = dir.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names = with_shards(folder);
    let nearest = base::nearest(dir.file_name()?.to_str()?, names.iter().map(String::as_str))?;
    Some(dir.with_file_name(nearest))
}

/// The first folder of shards in `dir`.
fn below(dir: &Path) -> Option<PathBuf> {
    with_shards(dir).into_iter().min().map(|name| dir.join(name))
}

/// Names of the folders in `folder` that hold an index.
fn with_shards(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.path().join(INDEX_FILE).exists());
    folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The share of a dataset's rows that is nearly certain to hold some out: rows are drawn by their picture's name, and it stands for
/// ten of them. At least 1 %, at most half; `None` where half of the rows may be none.
///
/// # Units
/// Share from 0 to 1, in hundredths.
pub fn validation_share(rows: usize) -> Option<f64> {
    let share = (1000.0 / rows as f64).ceil() / 100.0;
    (rows >= 10).then_some(share.clamp(0.01, 0.5))
}

/// SHA-256 over the hashes of files, in order.
pub(super) fn fingerprint<'a>(shards: impl IntoIterator<Item = &'a ShardFile>) -> String {
    let hashes: Vec<&str> = shards.into_iter().map(|shard| shard.sha256.as_str()).collect();
    files::sha256_hex(hashes.join("\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_on_held_out_rows_holds_some_out() {
        let shares: Vec<Option<f64>> =
            [0, 9, 10, 20, 50, 300, 1000, 595_375].into_iter().map(validation_share).collect();
        let expected = [None, None, Some(0.5), Some(0.5), Some(0.2), Some(0.04), Some(0.01), Some(0.01)];
        assert_eq!(shares, expected);
        // The chance that none of the rows is drawn.
        for rows in 10..5000 {
            let none = (1.0 - validation_share(rows).expect("a share")).powi(rows as i32);
            assert!(none < 1e-3, "{rows}: {none}");
        }
    }

    #[test]
    fn a_folder_without_index_says_what_it_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        for (file, name) in [(INDEX_FILE, "cc3m"), (PLAN_FILE, "unfinished"), ("a.jpg", "pictures")] {
            std::fs::create_dir(at(name)).expect("made");
            std::fs::write(at(name).join(file), "").expect("written");
        }
        for (name, found, remedy) in [
            ("cc3n", "no such folder", format!("did you mean {}?", at("cc3m").display())),
            (
                "other",
                "no such folder",
                format!("check the path; preprocess shards --output {}", at("other").display()),
            ),
            ("unfinished", "no index.json", "the same command goes on".to_string()),
            ("pictures", "no index.json", format!("preprocess shards --data {}", at("pictures").display())),
            ("", "no index.json", format!("give the folder itself, {}", at("cc3m").display())),
        ] {
            let error = ShardIndex::read(&at(name)).expect_err(name).to_string();
            assert!(error.contains(&format!("found {found}, expected a folder of finished shards")), "{error}");
            assert!(error.contains(&remedy), "{error}");
        }
    }
}
