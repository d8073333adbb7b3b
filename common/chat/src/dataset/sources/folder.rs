//! The files of a data folder, and messages about folders without a dataset.

use super::{EXAMPLE, Findings, Found, Tables, groups};
use base::{Error, Result, counted};
use std::path::{Path, PathBuf};

/// Endings of pictures' files.
pub(super) const PICTURES: [&str; 8] = ["jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff"];
const CHAT_FILE: &str = "chat.json";
/// Folders that published datasets keep their tables and lists in.
const SUBFOLDERS: [&str; 2] = ["annotations", "data"];
/// What the names of COCO's files of captions begin with.
const CAPTIONS: &str = "captions";
/// Names of other files that a message lists.
const NAMED: usize = 5;

/// The files that may be a dataset.
pub(super) struct Listing {
    /// The data folder.
    pub(super) folder: PathBuf,
    /// Files of the folder, and of [`SUBFOLDERS`] in it; relative, sorted. One if the command line names a file.
    pub(super) files: Vec<PathBuf>,
    /// The command line names a file.
    pub(super) is_file: bool,
    /// Reads Parquet.
    pub(super) tables: Option<&'static Tables>,
    folders: Vec<String>,
}

/// The records' file of a dataset in LLaVA's own layout.
pub fn chat_file(dataset: &Path) -> PathBuf {
    dataset.join(CHAT_FILE)
}

impl Listing {
    pub(super) fn of(data: &Path, tables: Option<&'static Tables>) -> Result<Self> {
        if data.is_file() {
            let parent = data.parent().unwrap_or(Path::new("")).to_path_buf();
            // An annotation file names pictures beside its folder.
            let in_annotations = parent.file_name().is_some_and(|name| name == SUBFOLDERS[0]);
            let folder = if in_annotations { parent.join("..") } else { parent.clone() };
            let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
            let name = PathBuf::from(data.file_name().unwrap_or_default());
            let file = if in_annotations { Path::new(SUBFOLDERS[0]).join(name) } else { name };
            return Ok(Self { folder, files: vec![file], is_file: true, tables, folders: Vec::new() });
        }
        let mut listing =
            Self { folder: data.to_path_buf(), files: Vec::new(), is_file: false, tables, folders: Vec::new() };
        if chat_file(data).is_file() {
            listing.files.push(CHAT_FILE.into());
            return Ok(listing);
        }
        if !data.exists() {
            let remedy = format!("{}check the path, and give the dataset's folder", base::did_you_mean(data));
            return Err(Error::invalid(data.display(), "no such folder", "a folder with a dataset", remedy));
        }
        let (files, folders) = entries(data)?;
        listing.files.extend(files.into_iter().map(PathBuf::from));
        for name in SUBFOLDERS.into_iter().filter(|name| folders.iter().any(|folder| folder == name)) {
            let (files, _) = entries(&data.join(name))?;
            // COCO's other annotations are of other tasks, and large.
            let is_read = |file: &String| name != SUBFOLDERS[0] || file.starts_with(CAPTIONS);
            listing.files.extend(files.into_iter().filter(is_read).map(|file| Path::new(name).join(file)));
        }
        listing.folders = folders;
        Ok(listing)
    }

    /// The folder has a file of LLaVA's own layout.
    pub(super) fn is_chat_json(&self) -> bool {
        !self.is_file && self.files == [Path::new(CHAT_FILE)]
    }

    /// Files with one of these endings.
    pub(super) fn with_ending<'l>(&'l self, endings: &'l [&str]) -> impl Iterator<Item = &'l PathBuf> {
        self.files.iter().filter(|path| has_ending(path, endings))
    }

    /// A file's full path.
    pub(super) fn path(&self, file: &Path) -> PathBuf {
        self.folder.join(file)
    }

    /// The error of a folder without a dataset.
    pub(super) fn nothing(&self, data: &Path, findings: &Findings) -> Error {
        let expected = "chat.json or another JSON list of rows, JSON Lines, a CSV file with the columns image and caption, \
                        metadata.jsonl or metadata.csv, COCO captions, Parquet, WebDataset tars, or a .txt beside each picture";
        let below = self.below(data).map(|below| format!("give the folder of the dataset itself (there is {below})"));
        let mut remedies: Vec<String> = below.into_iter().chain(findings.renames.iter().cloned()).collect();
        remedies.push(EXAMPLE.to_owned());
        Error::invalid(data.display(), self.found(&findings.others), expected, remedies.join("; else "))
    }

    /// The error of a folder with several.
    pub(super) fn several(&self, data: &Path, found: &[Found]) -> Error {
        let shown: Vec<String> = found
            .iter()
            .map(|found| format!("{} ({})", found.files.first().unwrap_or(&self.folder).display(), found.layout))
            .collect();
        let files = groups::training_first(found.iter().filter_map(|found| found.files.first()), |file| {
            file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
        });
        let first = files.map(|file| self.path(file)).next().unwrap_or_default();
        let found = format!("{} datasets: {}", found.len(), shown.join(", "));
        let remedy = format!("give the file in place of the folder: --data {}", first.display());
        Error::invalid(data.display(), found, "one", remedy)
    }

    /// What the folder holds, in words.
    fn found(&self, others: &[String]) -> String {
        let pictures = self.with_ending(&PICTURES).count();
        let rest = self.files.iter().filter(|path| !has_ending(path, &PICTURES));
        let rest = rest.map(|path| path.display().to_string());
        let rest: Vec<String> =
            rest.filter(|name| !others.iter().any(|other| other.starts_with(name.as_str()))).collect();
        let mut parts: Vec<String> = others.to_vec();
        parts.extend((pictures > 0).then(|| counted(pictures, "picture")));
        parts.extend(rest.iter().take(NAMED).cloned());
        parts.extend((rest.len() > NAMED).then(|| counted(rest.len() - NAMED, "other file")));
        parts.extend((!self.folders.is_empty()).then(|| {
            let named: Vec<&str> = self.folders.iter().take(NAMED).map(String::as_str).collect();
            format!("{} ({})", counted(self.folders.len(), "folder"), named.join(", "))
        }));
        if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
    }

    /// A dataset one level further down; of several the one to train on.
    fn below(&self, data: &Path) -> Option<String> {
        let folders = groups::training_first(self.folders.iter(), |name| name);
        folders.map(|name| data.join(name)).find_map(|folder| {
            let source = super::Source::find_here(&folder, self.tables)?;
            Some(format!("{}: {}", folder.display(), source.describe()))
        })
    }
}

/// Whether a file has one of these endings, whatever their case.
pub(super) fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    endings.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// Names of the files and folders of a folder, sorted; hidden ones are left out.
pub(super) fn entries(folder: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        // Links are followed.
        match std::fs::metadata(entry.path()) {
            Ok(about) if about.is_dir() => folders.push(name),
            Ok(about) if about.is_file() => files.push(name),
            _ => {}
        }
    }
    files.sort_unstable();
    folders.sort_unstable();
    Ok((files, folders))
}
