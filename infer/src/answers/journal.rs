//! The JSONL file: line k is question k, so the number of complete lines is the next question.

use anyhow::{Context, Result, bail};
use base::{Error, files};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// A line of a journal.
pub trait Line: Serialize + DeserializeOwned {
    /// The program whose lines they are, for messages.
    const PROGRAM: &str;

    /// Position in the source, from 0.
    fn index(&self) -> usize;
}

/// A setting that must not change when a file is continued.
#[derive(Clone, Debug)]
pub struct Compared {
    name: &'static str,
    value: Value,
    /// Where it was; its contents are compared.
    place: Option<PathBuf>,
    /// Files of earlier versions do not have it.
    may_be_missing: bool,
}

/// Key in the settings file of a setting that is compared by its content.
const SHA256: &str = "sha256";

impl Compared {
    /// A value, compared as it is.
    pub fn value(name: &'static str, value: Value) -> Self {
        Self { name, value, place: None, may_be_missing: false }
    }

    /// Files, compared by their hash.
    pub fn contents(name: &'static str, place: &Path, sha256: String) -> Self {
        Self { name, value: json!(sha256), place: Some(place.to_path_buf()), may_be_missing: false }
    }

    /// The same, of a setting that files of earlier versions do not have.
    pub fn later(name: &'static str, place: &Path, sha256: String) -> Self {
        Self { may_be_missing: true, ..Self::contents(name, place, sha256) }
    }

    fn recorded(&self) -> Value {
        match &self.place {
            Some(place) => json!({"path": place, SHA256: self.value}),
            None => self.value.clone(),
        }
    }

    /// The difference from a record, in words.
    fn difference(&self, found: &Value) -> Option<String> {
        let name = self.name;
        match &self.place {
            _ if found.is_null() && self.may_be_missing => None,
            None if *found == self.value => None,
            None if self.value.is_null() => Some(format!("{name} {}, not without one", recorded_text(found))),
            None => Some(format!("{name} {}, not {}", recorded_text(found), recorded_text(&self.value))),
            Some(_) if found.get(SHA256) == Some(&self.value) => None,
            Some(place) if found.is_null() => Some(format!("no {name}, not {}", place.display())),
            Some(place) => {
                let was = recorded_text(found);
                let (then, now) = (found.get(SHA256).map_or("not recorded".to_string(), short), short(&self.value));
                Some(format!("another {name}: {was} (SHA-256 {then}), not {} ({now})", place.display()))
            }
        }
    }
}

/// A recorded value: of a model its path, a text without quotes.
fn recorded_text(value: &Value) -> String {
    let value = value.get("path").unwrap_or(value);
    value.as_str().map_or_else(|| value.to_string(), String::from)
}

/// The first digits of a hash.
fn short(value: &Value) -> String {
    value.as_str().unwrap_or_default().chars().take(12).collect()
}

/// The open file, locked against a second run.
pub struct Journal<L> {
    path: PathBuf,
    file: File,
    lines: usize,
    kind: PhantomData<L>,
}

impl<L: Line> Journal<L> {
    /// Opens or creates the file; a last line that a kill cut off is removed, and with `overwrite` every line is.
    ///
    /// # Errors
    /// A file of other settings, of another model, of another program, or in use by another run.
    pub fn open(path: &Path, settings: &[Compared], overwrite: bool) -> Result<Self> {
        let mut options = OpenOptions::new();
        let mut file =
            options.create(true).read(true).write(true).truncate(false).open(path).map_err(Error::io(path))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!("{}: another run is writing it; wait for it or give another --output", path.display());
        }
        if overwrite {
            file.set_len(0).map_err(Error::io(path))?;
        }
        check_settings(path, settings, file.metadata().map_err(Error::io(path))?.len() == 0)?;
        let (lines, end) = whole_lines::<L>(path, &file)?;
        file.set_len(end).map_err(Error::io(path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file, lines, kind: PhantomData })
    }

    /// Lines written.
    pub fn len(&self) -> usize {
        self.lines
    }

    /// Whether none is written.
    pub fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// Writes the next line in one piece.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn append(&mut self, line: &L) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))?;
        self.lines += 1;
        Ok(())
    }

    /// Everything written.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn lines(&self) -> Result<Vec<L>> {
        let text = std::fs::read_to_string(&self.path).map_err(Error::io(&self.path))?;
        text.lines().enumerate().map(|(number, line)| parse(&self.path, number, line)).collect()
    }
}

/// Refuses a file of other settings without writing anything.
///
/// # Errors
/// As [`Journal::open`].
pub fn check(path: &Path, settings: &[Compared], overwrite: bool) -> Result<()> {
    // Lines have their settings beside them.
    cli::outputs::require_replaceable(path, |_| settings_file(path).exists(), Some(overwrite), "--output")?;
    // Answers are read again at the end.
    files::require_no_device(path)?;
    match std::fs::metadata(path) {
        Ok(file) if file.len() > 0 && !overwrite => compare_settings(path, settings),
        _ => Ok(()),
    }
}

/// Refuses to replace files beside the answers that no run has written: a run's own have its settings beside them.
///
/// # Errors
/// Such a file, unless `overwrite` is set.
pub fn check_beside(path: &Path, beside: &[PathBuf], overwrite: bool) -> Result<()> {
    let settings = settings_file(path);
    let text = std::fs::read(&settings).unwrap_or_default();
    let is_own = serde_json::from_slice::<Map<String, Value>>(&text).is_ok_and(|found| found.contains_key("model"));
    for file in beside.iter().chain([&settings]) {
        cli::outputs::require_replaceable(file, |_| is_own, Some(overwrite), "--output")?;
    }
    Ok(())
}

/// Refuses a file of a folder that is read, unless it has settings beside it: no option says that this is wanted.
///
/// # Errors
/// Such a file, naming both options.
pub fn require_no_file_of(path: &Path, folders: &[(&str, &Path)]) -> Result<()> {
    let Ok(file) = path.canonicalize() else { return Ok(()) };
    if !file.is_file() || settings_file(path).exists() {
        return Ok(());
    }
    let holds_it = |folder: &Path| folder.canonicalize().is_ok_and(|folder| file.starts_with(folder));
    match folders.iter().find(|(_, folder)| holds_it(folder)) {
        None => Ok(()),
        Some((input, _)) => {
            let found = format!("a file in the folder of {input}");
            let expected = "a new file, or one that this program wrote";
            Err(Error::invalid(path.display(), found, expected, "give another --output").into())
        }
    }
}

fn settings_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".settings.json");
    PathBuf::from(name)
}

/// The settings are on disk before the first line is, so that no line is without them.
fn check_settings(path: &Path, settings: &[Compared], empty: bool) -> Result<()> {
    if !empty {
        return compare_settings(path, settings);
    }
    let recorded: Map<String, Value> =
        settings.iter().map(|setting| (setting.name.to_string(), setting.recorded())).collect();
    Ok(base::json::write(&settings_file(path), &recorded)?)
}

fn compare_settings(path: &Path, settings: &[Compared]) -> Result<()> {
    let beside = settings_file(path);
    const REMEDY: &str = "give another --output, or --overwrite true to start a new file";
    let text = std::fs::read(&beside)
        .map_err(Error::io(&beside))
        .with_context(|| format!("{} has lines, but not the settings they were made with; {REMEDY}", path.display()))?;
    let found: Map<String, Value> = serde_json::from_slice(&text).with_context(|| beside.display().to_string())?;
    let differs = |setting: &Compared| setting.difference(found.get(setting.name).unwrap_or(&Value::Null));
    match settings.iter().find_map(differs) {
        Some(what) => bail!("{}: was begun with {what}; give the same again, {REMEDY}", path.display()),
        None => Ok(()),
    }
}

/// Number of whole lines, and the byte after them.
fn whole_lines<L: Line>(path: &Path, file: &File) -> Result<(usize, u64)> {
    let mut reader = BufReader::new(file);
    let (mut lines, mut end, mut text) = (0, 0, String::new());
    loop {
        text.clear();
        let bytes = reader.read_line(&mut text).map_err(Error::io(path))?;
        if bytes == 0 || !text.ends_with('\n') {
            return Ok((lines, end));
        }
        let line: L = parse(path, lines, &text)?;
        let index = line.index();
        if index != lines {
            let (place, expected) = (
                format!("{}: line {}: index", path.display(), lines + 1),
                format!("{lines}: no line missing, none twice"),
            );
            return Err(Error::invalid(place, index, expected, FROM_HERE).into());
        }
        lines += 1;
        end += bytes as u64;
    }
}

/// What to do about a line that is not what it should be.
const FROM_HERE: &str =
    "remove this line and all after it, give another --output, or --overwrite true to start a new file";

fn parse<L: Line>(path: &Path, number: usize, line: &str) -> Result<L> {
    serde_json::from_str(line).map_err(|error| {
        let place = format!("{}: line {}", path.display(), number + 1);
        Error::invalid(place, error, format!("a line of {}", L::PROGRAM), FROM_HERE).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(seed: u64, model: &str) -> Vec<Compared> {
        vec![
            Compared::contents("model", Path::new("runs/a"), model.to_string()),
            Compared::value("adapter", json!(null)),
            Compared::value("seed", json!(seed)),
        ]
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Row {
        index: usize,
        text: String,
    }

    impl Line for Row {
        const PROGRAM: &str = "the test";

        fn index(&self) -> usize {
            self.index
        }
    }

    fn line(index: usize) -> Row {
        Row { index, text: format!("é{index}") }
    }

    #[test]
    fn a_cut_line_is_written_again() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("captions.jsonl");
        let open = || Journal::<Row>::open(&path, &settings(1, "m"), false);
        let mut journal = open().expect("opened");
        journal.append(&line(0)).expect("appended");
        journal.append(&line(1)).expect("appended");
        assert!(open().is_err(), "two runs at once");
        drop(journal);

        let text = std::fs::read(&path).expect("readable");
        std::fs::write(&path, &text[..text.len() - 3]).expect("written");
        let mut journal = open().expect("opened");
        assert_eq!(journal.len(), 1);
        journal.append(&line(1)).expect("appended");
        assert_eq!(journal.lines().expect("readable"), [line(0), line(1)]);
        drop(journal);

        std::fs::write(&path, "{}\n").expect("written");
        assert!(open().is_err());
    }

    #[test]
    fn lines_of_another_model_or_of_other_settings_are_not_continued() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("captions.jsonl");
        Journal::<Row>::open(&path, &settings(1, "m"), false).expect("opened").append(&line(0)).expect("appended");
        let text = std::fs::read(&path).expect("readable");

        let mut moved = settings(1, "m");
        moved[0].place = Some(PathBuf::from("runs/b"));
        assert_eq!(Journal::<Row>::open(&path, &moved, false).expect("opened").len(), 1, "the same model elsewhere");
        let adapter = [&settings(1, "m")[..1], &[Compared::contents("adapter", Path::new("x"), "y".into())]].concat();
        let no_model = settings(1, "m").into_iter().map(|setting| match setting.name {
            "model" => Compared::value("model", Value::Null),
            _ => setting,
        });
        let no_model: Vec<Compared> = no_model.collect();
        for (other, expected) in [
            (settings(2, "m"), "was begun with seed 1, not 2"),
            (settings(1, "n"), "was begun with another model: runs/a (SHA-256 m), not runs/a (n)"),
            (adapter, "was begun with no adapter, not x"),
            (no_model, "was begun with model runs/a, not without one"),
        ] {
            let error = Journal::<Row>::open(&path, &other, false).err().expect("refused").to_string();
            assert!(error.contains(expected) && error.contains("--overwrite true"), "{error}");
            assert_eq!(std::fs::read(&path).expect("readable"), text, "as it was");
        }
        // As versions before this one wrote them.
        let beside = dir.path().join("captions.jsonl.settings.json");
        std::fs::write(&beside, "{\"model\": \"runs/a\", \"adapter\": null, \"seed\": 1}").expect("written");
        let error = Journal::<Row>::open(&path, &settings(1, "m"), false).err().expect("refused").to_string();
        assert!(error.contains("another model: runs/a (SHA-256 not recorded)"), "{error}");

        assert_eq!(Journal::<Row>::open(&path, &settings(1, "n"), true).expect("opened").len(), 0, "anew");
        assert_eq!(Journal::<Row>::open(&path, &settings(1, "n"), false).expect("opened").len(), 0);
        std::fs::remove_file(&beside).expect("removed");
        std::fs::write(&path, text).expect("written");
        assert!(Journal::<Row>::open(&path, &settings(1, "n"), false).is_err(), "lines without settings");
    }
}
