//! README.md and docs/: their code blocks, the commands in them, and the options that exist.

use crate::program;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs of this project.
pub const PROGRAMS: [&str; 4] = ["preprocess", "train", "infer", "pipelines"];
/// First words of other commands that documents show.
const OTHER_COMMANDS: [&str; 18] = [
    "cargo",
    "hf",
    "mpirun",
    "mpiexec",
    "srun",
    "sbatch",
    "curl",
    "pip",
    "python",
    "python3",
    "ollama",
    "docker",
    "nginx",
    "mkdir",
    "cp",
    "cat",
    "tests/run",
    "llava",
];
/// A line of a block that says why the tests do not run it. Its options are checked all the same.
pub const NOT_RUN: &str = "# not run by the tests: ";

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the project's folder")
}

/// A page of the documents.
pub struct Page {
    /// Path below the project's folder.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// README.md and every page of docs/, sorted.
pub fn pages() -> Vec<Page> {
    let mut files = vec![root().join("README.md")];
    collect(&root().join("docs"), &mut files);
    files.sort();
    let page = |path: PathBuf| Page {
        name: path.strip_prefix(root()).expect("inside").display().to_string(),
        text: std::fs::read_to_string(&path).expect("readable"),
    };
    files.into_iter().map(page).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("docs/") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
}

/// A code block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// First line of its text, from 1.
    pub line: usize,
    /// Language behind the fence; empty for an indented block.
    pub language: String,
    /// Its text, without indentation.
    pub text: String,
}

impl Block {
    /// Whether a shell is to run it.
    pub fn is_commands(&self) -> bool {
        match self.language.as_str() {
            "sh" | "bash" => true,
            "" => {
                let first = self
                    .text
                    .lines()
                    .find(|line| !line.starts_with('#'))
                    .and_then(|line| line.split_whitespace().next());
                first.is_some_and(|word| is_program(word).is_some() || OTHER_COMMANDS.contains(&word))
            }
            _ => false,
        }
    }

    /// Whether it is Python.
    pub fn is_python(&self) -> bool {
        ["py", "python"].contains(&self.language.as_str())
    }

    /// The reason why it is not run.
    pub fn not_run(&self) -> Option<&str> {
        self.text.lines().find_map(|line| line.trim_start().strip_prefix(NOT_RUN))
    }
}

/// The program that a word starts: `train`, `target/release/train`.
fn is_program(word: &str) -> Option<&'static str> {
    let name = word.rsplit('/').next()?;
    PROGRAMS
        .into_iter()
        .find(|program| *program == name && (word == name || word.ends_with(&format!("release/{name}"))))
}

/// The code blocks of a page: between fences, or indented by four spaces after an empty line.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(Block, bool)> = None;
    let mut after_empty = true;
    for (index, line) in text.lines().enumerate() {
        let fence = line.trim_start().strip_prefix("```");
        match &mut open {
            Some((_, true)) if fence.is_some() => blocks.extend(open.take().map(|(block, _)| block)),
            Some((block, true)) => block.text += &format!("{line}\n"),
            Some((block, false)) if line.starts_with("    ") || line.trim().is_empty() => {
                block.text += &format!("{}\n", line.strip_prefix("    ").unwrap_or_default());
            }
            Some((_, false)) => blocks.extend(open.take().map(|(block, _)| block)),
            None => {}
        }
        if open.is_none() {
            let begin = |language: &str, text: String, line| Block { line, language: language.to_string(), text };
            match fence {
                Some(language)
                    if blocks
                        .last()
                        .is_none_or(|block: &Block| block.line + block.text.lines().count() != index + 1) =>
                {
                    open = Some((begin(language.trim(), String::new(), index + 2), true));
                }
                None if after_empty && line.starts_with("    ") => {
                    open = Some((begin("", format!("{}\n", &line[4..]), index + 1), false));
                }
                _ => {}
            }
        }
        after_empty = line.trim().is_empty();
    }
    blocks.extend(open.map(|(block, _)| block));
    blocks
}

/// A command of one of the programs, with its options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `preprocess shards`, `train`.
    pub command: String,
    /// Names behind `--`, with underscores.
    pub options: Vec<String>,
}

/// The programs' commands in a block of shell.
pub fn calls(text: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for line in text.replace("\\\n", " ").lines() {
        let line = line.split(" #").next().unwrap_or_default();
        let mut current: Option<Call> = None;
        let mut may_be_subcommand = false;
        for word in line.split_whitespace().map(|word| word.trim_matches(['[', ']', '"', '\'', '`', '(', ')'])) {
            if ["|", "&&", ";", "&", "||"].contains(&word) || line.trim_start().starts_with('#') {
                calls.extend(current.take());
            } else if let Some(program) = is_program(word).filter(|_| current.is_none()) {
                current = Some(Call { command: program.to_string(), options: Vec::new() });
                may_be_subcommand = true;
                continue;
            } else if let Some(call) = &mut current {
                if let Some(option) = word.strip_prefix("--").filter(|option| !option.is_empty()) {
                    let name = option.split(['=', ']', ';', ',']).next().unwrap_or_default();
                    call.options.push(name.replace('-', "_"));
                } else if may_be_subcommand && subcommands(&call.command).contains(word) {
                    call.command += &format!(" {word}");
                }
            }
            may_be_subcommand = false;
        }
        calls.extend(current);
    }
    calls
}

fn help(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(program(words.next().expect("a program"))).args(words).arg("--help").output();
    String::from_utf8(output.expect("the program starts").stdout).expect("UTF-8")
}

fn subcommands(name: &str) -> BTreeSet<String> {
    let help = help(name);
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    lines
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| Some(line.split_whitespace().next()?.to_string()))
        .collect()
}

/// The options of every command, with underscores; `train` and `train plan` also take the Trainer's names.
pub struct Options(BTreeMap<String, BTreeSet<String>>);

impl Options {
    /// Asks the programs.
    pub fn read() -> Self {
        let mut all = BTreeMap::new();
        for name in PROGRAMS {
            let subcommands = subcommands(name).into_iter().filter(|subcommand| subcommand != "help");
            for command in subcommands.map(|subcommand| format!("{name} {subcommand}")).chain([name.to_string()]) {
                let mut options = declared(&help(&command));
                if name == "train" {
                    options.extend(of_the_trainer());
                }
                all.insert(command, options);
            }
        }
        Self(all)
    }

    /// The first option of a call that its command does not have.
    pub fn unknown<'a>(&self, call: &'a Call) -> Option<&'a str> {
        let known = self.0.get(&call.command);
        call.options.iter().map(String::as_str).find(|option| known.is_none_or(|known| !known.contains(*option)))
    }

    /// Whether any command has an option.
    pub fn any(&self, option: &str) -> bool {
        self.0.values().any(|options| options.contains(option))
    }

    /// Whether a command has an option.
    pub fn has(&self, command: &str, option: &str) -> bool {
        self.0.get(command).is_some_and(|options| options.contains(option))
    }
}

/// Options that a help text declares: `  -V, --version`, `      --max-steps <N>`, and names after `alias`.
fn declared(help: &str) -> BTreeSet<String> {
    let mut options = BTreeSet::new();
    for line in help.lines() {
        let line = line.trim_start();
        let line = line
            .strip_prefix('-')
            .and_then(|rest| rest.split_once(", --"))
            .map_or(line.to_string(), |(_, rest)| format!("--{rest}"));
        if let Some(option) = line.strip_prefix("--") {
            let name: String =
                option.chars().take_while(|letter| letter.is_ascii_alphanumeric() || "-_".contains(*letter)).collect();
            options.insert(name.replace('-', "_"));
        }
    }
    options
}

/// Names that `train options` lists: its own and those of the Trainer.
fn of_the_trainer() -> BTreeSet<String> {
    let output = Command::new(program("train")).arg("options").output().expect("train starts");
    let options: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    options["options"].as_object().expect("options").keys().cloned().collect()
}
