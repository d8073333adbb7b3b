//! The JSONL file: line k is picture k, so the number of whole lines says where to go on.

use anyhow::{Context, Result, bail, ensure};
use common::Error;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// One picture's line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Position in the source, from 0.
    pub index: usize,
    /// `id` of the dataset, or the file's name without ending.
    pub id: String,
    /// File name.
    pub image: String,
    /// The caption, trimmed; absent for a bad picture.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub caption: Option<String>,
    /// `stop` or `length`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finish_reason: Option<String>,
    /// Tokens of the caption, end included.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_tokens: Option<usize>,
    /// Why there is no caption.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// What the caption is compared with.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub references: Vec<String>,
}

/// The open file, locked against a second run.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    lines: usize,
}

impl Journal {
    /// Opens or creates the file; a last line that a kill cut off is removed.
    ///
    /// # Errors
    /// A file of other settings, of another program, or in use by another run.
    pub fn open(path: &Path, settings: &serde_json::Value) -> Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io(path))?;
        if file.try_lock().is_err() {
            bail!("{}: another run is writing it; wait for it or give another --output", path.display());
        }
        check_settings(path, settings, file.metadata().map_err(Error::io(path))?.len() == 0)?;
        let (lines, end) = whole_lines(path, &file)?;
        file.set_len(end).map_err(Error::io(path))?;
        file.seek(SeekFrom::End(0)).map_err(Error::io(path))?;
        Ok(Self { path: path.to_path_buf(), file, lines })
    }

    /// Lines written.
    pub fn len(&self) -> usize {
        self.lines
    }

    /// Writes the next line in one piece.
    pub fn append(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(Error::io(&self.path))?;
        self.lines += 1;
        Ok(())
    }

    /// Everything written.
    pub fn lines(&self) -> Result<Vec<Line>> {
        let text = std::fs::read_to_string(&self.path).map_err(Error::io(&self.path))?;
        text.lines().enumerate().map(|(number, line)| parse(&self.path, number, line)).collect()
    }
}

fn check_settings(path: &Path, settings: &serde_json::Value, empty: bool) -> Result<()> {
    let mut name = path.as_os_str().to_os_string();
    name.push(".settings.json");
    let beside = PathBuf::from(name);
    if empty {
        return Ok(common::files::write_atomically(&beside, serde_json::to_string_pretty(settings)?.as_bytes())?);
    }
    let text = std::fs::read(&beside).map_err(Error::io(&beside)).with_context(|| {
        format!("{} has lines, but not the settings they were made with; give another --output", path.display())
    })?;
    let found: serde_json::Value = serde_json::from_slice(&text).with_context(|| beside.display().to_string())?;
    let Some(keys) = settings.as_object() else { return Ok(()) };
    if let Some((key, value)) = keys.iter().find(|(key, value)| found.get(key.as_str()) != Some(value)) {
        let was = found.get(key).cloned().unwrap_or_default();
        bail!("{}: was begun with {key} {was}, not {value}; repeat that or give another --output", path.display());
    }
    Ok(())
}

/// Number of whole lines, and the byte after them.
fn whole_lines(path: &Path, file: &File) -> Result<(usize, u64)> {
    let mut reader = BufReader::new(file);
    let (mut lines, mut end, mut text) = (0, 0, String::new());
    loop {
        text.clear();
        let bytes = reader.read_line(&mut text).map_err(Error::io(path))?;
        if bytes == 0 || !text.ends_with('\n') {
            return Ok((lines, end));
        }
        let line = parse(path, lines, &text)?;
        ensure!(line.index == lines, "{}: line {}: index {} is out of order", path.display(), lines + 1, line.index);
        lines += 1;
        end += bytes as u64;
    }
}

fn parse(path: &Path, number: usize, line: &str) -> Result<Line> {
    serde_json::from_str(line)
        .with_context(|| format!("{}: line {}: not a caption of infer caption", path.display(), number + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cut_line_is_written_again_and_other_settings_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("captions.jsonl");
        let settings = json!({"model": "m", "seed": 1});
        let mut journal = Journal::open(&path, &settings).unwrap();
        let line = |index| Line { index, id: format!("é{index}"), caption: Some("a".into()), ..Line::default() };
        journal.append(&line(0)).unwrap();
        journal.append(&line(1)).unwrap();
        assert!(Journal::open(&path, &settings).is_err(), "two runs at once");
        drop(journal);

        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 3]).unwrap();
        let mut journal = Journal::open(&path, &settings).unwrap();
        assert_eq!(journal.len(), 1);
        journal.append(&line(1)).unwrap();
        assert_eq!(journal.lines().unwrap(), [line(0), line(1)]);
        drop(journal);

        let error = Journal::open(&path, &json!({"model": "m", "seed": 2})).err().unwrap().to_string();
        assert!(error.contains("seed 1, not 2"), "{error}");
        std::fs::write(&path, "{}\n").unwrap();
        assert!(Journal::open(&path, &settings).is_err());
    }
}
