//! A stage is one run of a program. It is skipped if its program, options, inputs and output have not changed.

use crate::fingerprint::{self, Part};
use crate::programs::Programs;
use crate::record::{Before, Record, Standing};
use crate::signals::{STOPPED, Signals, Stopped};
use anyhow::{Context, Result, bail};
use base::error::Mismatch;
use base::{Error, json};
use cli::exit::{DOES_NOT_FIT, DoesNotFit};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One run of a program.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Its name in messages.
    pub name: String,
    /// `preprocess`, `train` or `infer`.
    pub program: String,
    /// The command line behind the program.
    pub args: Vec<String>,
    /// Where the recipe gives the program's options: `line 3: [train] seed`, by the options' names.
    pub places: BTreeMap<String, String>,
    /// The recipe's table.
    pub table: String,
    /// Files and folders that are read, and what of them counts.
    pub inputs: Vec<(PathBuf, Part)>,
    /// The output: a file or a folder. The stage's record is beside it, as `<output>.stage.json`.
    pub output: PathBuf,
    /// The part of the output that shows whether it is finished and still there: the output itself, or a file in it where other
    /// programs put files into the same folder.
    pub witness: (PathBuf, Part),
    /// How an output that is there is replaced.
    pub anew: Anew,
    /// The option that makes the program continue from the checkpoints of an unfinished output, if it needs one.
    pub goes_on: Option<&'static str>,
    /// The recipe itself says that an output of unknown origin may be replaced.
    pub may_replace: bool,
    /// The output is cheap: it is made again also when the program was only rebuilt, and an old one is removed first.
    /// Otherwise the program decides what to do with an output that is there.
    pub disposable: bool,
}

/// How a stage ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing had changed.
    Skipped,
    /// The program ran for so long and succeeded.
    Ran(Duration),
}

/// How an output that is there is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anew {
    /// By the program, which needs an option for it.
    Option(&'static str),
    /// By the program, which compares it with its options.
    OwnWay,
}

/// What becomes of an output that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// It is replaced.
    Anew,
    /// The program is told to go on from its checkpoints.
    GoOn,
    /// The program is told nothing.
    AsItIs,
}

impl Stage {
    /// Runs the program unless nothing has changed since it last succeeded. `force` always runs it.
    ///
    /// # Errors
    /// A missing input, a program that fails (with its command line and the last lines of its output), one that is still at
    /// work on the output; [`Stopped`].
    pub fn run(&self, programs: &Programs, signals: &Signals, force: bool) -> Result<Outcome> {
        let lock = self.lock()?;
        let (record, record_file) = (self.record(programs)?, self.beside("", ".stage.json"));
        let output = self.fingerprint()?;
        let last = Record::read(&record_file);
        let standing = record.standing(last.as_ref(), &output, self.disposable);
        if !force && standing == Standing::Done {
            tracing::info!("[{}] nothing has changed, skipped: {}", self.name, self.output.display());
            return Ok(Outcome::Skipped);
        }
        let run_id = self.run_id();
        let own = last.as_ref().is_some_and(|last| last.made(&output, run_id.as_deref()));
        let how = self.how(&standing, last.as_ref(), own, force);
        if self.disposable {
            if last.is_none() && self.output.symlink_metadata().is_ok() {
                let (output, name) = (self.output.display(), &self.name);
                bail!("stage {name}: {output}: no stage has made this; move it away, or give another --output");
            }
            remove(&self.output)?;
        }
        let before = match (how, &last) {
            (How::GoOn, Some(last)) => last.before().clone(),
            _ => Before { run_id, may_go: how == How::Anew || own || self.output.symlink_metadata().is_err() },
        };
        let record = record.instead_of(before);
        record.write(&record_file)?;
        let started = Instant::now();
        self.execute(programs, signals, &self.options_for(how), lock)?;
        let output = self.fingerprint()?;
        if !fingerprint::is_there(&output) {
            bail!("stage {}: {} succeeded without writing {}", self.name, self.program, self.witness.0.display());
        }
        record.finished(output).write(&record_file)?;
        Ok(Outcome::Ran(started.elapsed()))
    }

    /// What the program is to do with an output that is there: an unfinished one of the same options and inputs goes on,
    /// another one that a stage has made (`own`) is replaced, and one of unknown origin is the program's own matter.
    fn how(&self, standing: &Standing, last: Option<&Record>, own: bool, force: bool) -> How {
        match standing {
            _ if self.disposable => How::AsItIs,
            _ if force => How::Anew,
            Standing::Changed(_) if !own && !self.may_replace => How::AsItIs,
            Standing::Changed(what) => {
                if self.anew != Anew::OwnWay && self.output.exists() {
                    tracing::info!("[{}] changed: {what}; run again: {} is replaced", self.name, self.output.display());
                }
                How::Anew
            }
            Standing::Unfinished if self.goes_on.is_some() => {
                let (run, before) = (self.run_id(), last.map(Record::before).cloned().unwrap_or_default());
                // Stopped before the run in its place was gone, it would go on with that one.
                if run.is_some() && run != before.run_id {
                    tracing::info!("[{}] unfinished, with the same options and inputs: continued", self.name);
                    How::GoOn
                } else if before.may_go || self.may_replace {
                    How::Anew
                } else {
                    How::AsItIs
                }
            }
            Standing::Unfinished => How::AsItIs,
            Standing::Done | Standing::Foreign | Standing::Unknown if self.may_replace => How::Anew,
            Standing::Done | Standing::Foreign | Standing::Unknown => How::AsItIs,
        }
    }

    fn options_for(&self, how: How) -> Vec<String> {
        let option = match (how, self.anew) {
            (How::Anew, Anew::Option(name)) => Some(name),
            (How::GoOn, _) => self.goes_on,
            _ => None,
        };
        option.into_iter().flat_map(|name| [format!("--{name}"), "true".to_string()]).collect()
    }

    /// The id of the training run that the output is.
    fn run_id(&self) -> Option<String> {
        const RUN_RECORD: &str = "run.json";
        let record: serde_json::Value = json::read_if_there(&self.output.join(RUN_RECORD)).ok()??;
        record.get("run_id")?.as_str().map(str::to_string)
    }

    fn fingerprint(&self) -> Result<String> {
        fingerprint::of(&self.witness.0, self.witness.1)
    }

    fn record(&self, programs: &Programs) -> Result<Record> {
        let mut version = programs.version(&self.program)?;
        if self.disposable {
            version = format!("{version} {}", fingerprint::of(&programs.path(&self.program), Part::Whole)?);
        }
        let mut inputs = BTreeMap::new();
        for (path, part) in &self.inputs {
            let found = fingerprint::of(path, *part)?;
            if found == fingerprint::ABSENT {
                bail!("stage {}: {}: no such file or folder; the stage reads it", self.name, path.display());
            }
            inputs.insert(path.clone(), found);
        }
        Ok(Record::begun(version, self.args.clone(), inputs))
    }

    /// A file beside the output, named after it.
    fn beside(&self, before: &str, after: &str) -> PathBuf {
        let name = self.output.file_name().unwrap_or_default().to_string_lossy();
        self.output.with_file_name(format!("{before}{name}{after}"))
    }

    /// Nobody else makes this output now. The program inherits the lock, so that it holds for as long as the program runs, also
    /// when this one is killed.
    fn lock(&self) -> Result<File> {
        let path = self.beside(".", ".stage.lock");
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let mut options = OpenOptions::new();
        let mut lock =
            options.read(true).write(true).create(true).truncate(false).open(&path).map_err(Error::io(&path))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            let holder = std::fs::read_to_string(&path).unwrap_or_default();
            bail!(
                "stage {}: {} is being made by {}; wait for it, or stop it (kill -TERM) and run again",
                self.name,
                self.output.display(),
                holder.trim()
            );
        }
        // Where the file system has no locks, the programs' own checks have to do; a full disk costs the holder's name.
        let _ = lock
            .set_len(0)
            .and_then(|()| writeln!(lock, "a run that process {} of pipelines has started", std::process::id()));
        Ok(lock)
    }

    /// Looks for what is read, unless a stage before this one writes it.
    ///
    /// # Errors
    /// An input that will not be there, with the stage.
    pub fn require_inputs(&self, before: &[Self]) -> Result<()> {
        let is_written = |path: &Path| before.iter().any(|stage| path.starts_with(&stage.output));
        match self.inputs.iter().find(|(path, _)| !path.exists() && !is_written(path)) {
            Some((path, _)) => bail!(
                "stage {}: {}: no such file or folder; the stage reads it, and no stage before it writes it",
                self.name,
                path.display()
            ),
            None => Ok(()),
        }
    }

    /// Lets the program check its options, before any work.
    ///
    /// # Errors
    /// The first one that is refused, at its place in the recipe.
    pub fn require_options(&self, programs: &Programs) -> Result<()> {
        let Some(refused) = programs.refused(&self.program, &self.args)? else { return Ok(()) };
        let option = refused.place.trim_start_matches("--").replace('-', "_");
        let place = match self.places.get(&option) {
            Some(place) => place.clone(),
            None if option.is_empty() => self.table.clone(),
            None => format!("{}: {}", self.table, refused.place),
        };
        Err(Error::Usage(Mismatch { place, ..refused }).into())
    }

    /// The command line, to be pasted into a shell.
    pub fn command_line(&self) -> String {
        words(&self.program, self.args.iter())
    }

    fn execute(&self, programs: &Programs, signals: &Signals, more: &[String], lock: File) -> Result<()> {
        let command_line = words(self.program.as_str(), self.args.iter().chain(more));
        tracing::info!("[{}] {command_line}", self.name);
        let path = programs.path(&self.program);
        let mut command = Command::new(&path);
        command.env(cli::options::FROM_RECIPE, "true");
        command.args(&self.args).args(more).stdin(lock).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = signals.start(&mut command);
        // This program's own copies of the lock.
        drop(command);
        let started = started.with_context(|| format!("stage {}: {}: not started", self.name, path.display()))?;
        let Some(mut child) = started else { return Err(self.stopped(signals, None)) };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        std::thread::scope(|scope| {
            scope.spawn(|| pass_on(stdout));
            scope.spawn(|| pass_on(stderr));
        });
        let status = child.wait().with_context(|| format!("stage {}: waiting for {}", self.name, self.program))?;
        signals.ended();
        if status.success() {
            return Ok(());
        }
        if signals.received().is_some() || status.code() == Some(i32::from(STOPPED)) {
            return Err(self.stopped(signals, status.code()));
        }
        let message = format!(
            "stage {}: {} ended with {status}; its messages stand above; the command alone:\n  {command_line}",
            self.name, self.program
        );
        match status.code() == Some(i32::from(DOES_NOT_FIT)) {
            true => Err(DoesNotFit(message).into()),
            false => bail!(message),
        }
    }

    fn stopped(&self, signals: &Signals, code: Option<i32>) -> anyhow::Error {
        let saved = code == Some(i32::from(STOPPED));
        let how = if saved { "has saved where it was" } else { "was ended" };
        let signal = signals.received().map_or(0, |signal| signal as u8);
        Stopped {
            message: format!(
                "stopped as requested: stage {} {how}; start the same command again to continue",
                self.name
            ),
            code: if saved { STOPPED } else { 128 + signal },
        }
        .into()
    }
}

/// A command line, to be pasted into a shell.
fn words<'a>(program: &'a str, args: impl Iterator<Item = &'a String>) -> String {
    shell_words::join(std::iter::once(program).chain(args.map(String::as_str)))
}

/// Copies a program's output to stderr line by line.
fn pass_on(source: Option<impl Read>) {
    for line in source.into_iter().flat_map(|source| BufReader::new(source).split(b'\n')).map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        match line.strip_prefix("error: ").filter(|_| !tracing::enabled!(tracing::Level::INFO)) {
            Some(error) => tracing::error!("{}", error.trim_end()),
            None => tracing::info!("  {}", line.trim_end()),
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    let Ok(about) = path.symlink_metadata() else { return Ok(()) };
    let removed = if about.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    Ok(removed.map_err(Error::io(path))?)
}
