//! A stage is one run of a program. It is skipped while its program, options, inputs and outputs are as they were.

use crate::fingerprint;
use crate::programs::Programs;
use anyhow::{Context, Result, bail};
use common::{Error, json};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Lines of a failed program's output that the error repeats.
const LAST_LINES: usize = 12;

/// One run of a program.
#[derive(Clone, Debug)]
pub struct Stage {
    /// What it is called in messages.
    pub name: String,
    /// `preprocess`, `train` or `infer`.
    pub program: String,
    /// The command line behind the program.
    pub args: Vec<String>,
    /// Files and folders that are read.
    pub inputs: Vec<PathBuf>,
    /// What is written: a file or a folder. The stage's record lies beside it, as `<output>.stage.json`.
    pub output: PathBuf,
    /// The part of the output that shows whether it is still there: the output itself, or a file in it where other programs
    /// put files into the same folder.
    pub witness: PathBuf,
    /// The output is cheap: it is made again also when the program was only rebuilt, and an old one is removed first.
    /// Otherwise the program's version counts, and the program decides what to do with an output that is there.
    pub disposable: bool,
}

/// What a finished stage was made from, and what it made.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    version: String,
    args: Vec<String>,
    inputs: BTreeMap<PathBuf, String>,
    output: String,
}

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing had changed.
    Skipped,
    /// The program ran for so long and succeeded.
    Ran(Duration),
}

impl Stage {
    /// Runs the program unless nothing has changed since it last succeeded. `force` runs it in any case.
    ///
    /// # Errors
    /// A missing input, or a program that fails: with its command line and the last lines of its output.
    pub fn run(&self, programs: &Programs, force: bool) -> Result<Outcome> {
        let mut version = programs.version(&self.program)?;
        if self.disposable {
            version = format!("{version} {}", fingerprint::of(&programs.path(&self.program))?);
        }
        let before = self.record(version)?;
        let record_file = self.record_file();
        // An unreadable record is as good as none: the stage runs again.
        let last: Option<Record> = json::read_if_there(&record_file).unwrap_or_default();
        if !force && last.is_some_and(|last| last == before && last.output != fingerprint::ABSENT) {
            common::tell!("[{}] nothing has changed, skipped: {}", self.name, self.output.display());
            return Ok(Outcome::Skipped);
        }
        remove(&record_file)?;
        if self.disposable {
            remove(&self.output)?;
        }
        if let Some(folder) = self.output.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let started = Instant::now();
        self.execute(programs)?;
        let output = fingerprint::of(&self.witness)?;
        if output == fingerprint::ABSENT {
            bail!("stage {}: {} succeeded without writing {}", self.name, self.program, self.witness.display());
        }
        json::write(&record_file, &Record { output, ..before })?;
        Ok(Outcome::Ran(started.elapsed()))
    }

    fn record(&self, version: String) -> Result<Record> {
        let mut inputs = BTreeMap::new();
        for path in &self.inputs {
            let found = fingerprint::of(path)?;
            if found == fingerprint::ABSENT {
                bail!("stage {}: {}: no such file or folder; the stage reads it", self.name, path.display());
            }
            inputs.insert(path.clone(), found);
        }
        Ok(Record { version, args: self.args.clone(), inputs, output: fingerprint::of(&self.witness)? })
    }

    fn record_file(&self) -> PathBuf {
        let mut name = self.output.as_os_str().to_os_string();
        name.push(".stage.json");
        PathBuf::from(name)
    }

    /// The command line, to be pasted into a shell.
    pub fn command_line(&self) -> String {
        let words = std::iter::once(self.program.as_str()).chain(self.args.iter().map(String::as_str));
        words.map(quoted).collect::<Vec<_>>().join(" ")
    }

    fn execute(&self, programs: &Programs) -> Result<()> {
        let command_line = self.command_line();
        common::tell!("[{}] {command_line}", self.name);
        let path = programs.path(&self.program);
        let mut child = Command::new(&path)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("stage {}: {}: not started", self.name, path.display()))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (said, complained) = std::thread::scope(|scope| {
            let said = scope.spawn(|| pass_on(stdout));
            let complained = scope.spawn(|| pass_on(stderr));
            (said.join().unwrap_or_default(), complained.join().unwrap_or_default())
        });
        let status = child.wait().with_context(|| format!("stage {}: waiting for {}", self.name, self.program))?;
        if !status.success() {
            let lines = if complained.is_empty() { said } else { complained };
            bail!(
                "stage {}: {} ended with {status}\n  {command_line}\n  its last lines:\n{}",
                self.name,
                self.program,
                lines.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
            );
        }
        Ok(())
    }
}

/// Copies a program's output to stderr line by line; the last lines are returned.
fn pass_on(source: Option<impl Read>) -> VecDeque<String> {
    let mut last = VecDeque::new();
    let Some(source) = source else { return last };
    for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_string();
        common::tell!("  {line}");
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    last
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn remove(path: &Path) -> Result<()> {
    let Ok(about) = path.symlink_metadata() else { return Ok(()) };
    let removed = if about.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    Ok(removed.map_err(Error::io(path))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_survive_a_shell() {
        assert_eq!(quoted("--learning_rate=1e-3"), "--learning_rate=1e-3");
        assert_eq!(quoted("it's a test"), r"'it'\''s a test'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn the_last_lines_are_kept() {
        let text = (0..40).map(|i| format!("line {i}\n")).collect::<String>();
        let last = pass_on(Some(text.as_bytes()));
        assert_eq!((last.len(), last.back().map(String::as_str)), (LAST_LINES, Some("line 39")));
    }
}
