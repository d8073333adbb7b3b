//! Where the programs are, which version they are, and which options they know.

use anyhow::{Context, Result, bail, ensure};
use base::error::Mismatch;
use cli::check::{self, Answer};
use cli::options::{FROM_RECIPE, Options};
use cli::probe::Probe;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs that stages run.
const PROGRAMS: [&str; 3] = ["preprocess", "train", "infer"];

/// The cargo that started this program.
#[derive(Clone, Debug)]
pub struct Cargo {
    /// cargo itself.
    pub executable: PathBuf,
    /// `pipelines/Cargo.toml`.
    pub manifest: PathBuf,
}

/// A folder that holds `preprocess`, `train` and `infer`.
#[derive(Clone, Debug)]
pub struct Programs {
    folder: PathBuf,
    /// The folder that the user's command line names for this program; none where it was found by its name.
    shown: PathBuf,
}

impl Programs {
    /// The programs in the folder of `executable`, which the command line calls `called`. With `cargo`, they are built there
    /// first, in the same profile.
    ///
    /// # Errors
    /// A build that fails, or a program that is not there.
    pub fn beside(executable: &Path, called: &Path, cargo: Option<&Cargo>) -> Result<Self> {
        let folder = executable.parent().context("the running program has no folder")?.to_path_buf();
        if let Some(cargo) = cargo {
            build(cargo, &folder)?;
        }
        let shown = called.parent().filter(|folder| !is_searched(folder)).unwrap_or(Path::new("")).to_path_buf();
        let programs = Self { folder, shown };
        for name in PROGRAMS {
            let path = programs.path(name);
            ensure!(
                path.is_file(),
                "{}: no such program, expected beside {}; build it with cargo build --release -p {name}",
                path.display(),
                executable.display()
            );
        }
        Ok(programs)
    }

    /// The file of a program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
    }

    /// A program as it is written in a command line for the user: its name alone, if a shell finds it so.
    pub fn shown(&self, name: &str) -> String {
        let path = self.shown.join(name).display().to_string();
        shell_words::quote(&path).into_owned()
    }

    /// [`Self::version`] of every program.
    ///
    /// # Errors
    /// As [`Self::version`].
    pub fn versions(&self) -> Result<Vec<String>> {
        PROGRAMS.iter().map(|name| self.version(name)).collect()
    }

    /// What `train` finds on this machine, for runs in `folder`.
    ///
    /// # Errors
    /// A program that cannot be started, that fails, or that answers with something else.
    pub fn probe(&self, folder: &Path) -> Result<Probe> {
        let answer = self.answer("train", &["probe".as_ref(), folder.as_os_str()])?;
        serde_json::from_str(&answer).with_context(|| format!("train probe: its answer is not understood: {answer}"))
    }

    /// Name and version, without the commit: another commit alone is no reason to run a stage again.
    ///
    /// # Errors
    /// A program that cannot be started or that fails.
    pub fn version(&self, name: &str) -> Result<String> {
        Ok(self.answer(name, &["-V".as_ref()])?.trim().to_string())
    }

    /// The options of a (sub)command, as the program itself prints them.
    ///
    /// # Errors
    /// A program that cannot be started, that fails, or that answers with something else.
    pub fn options(&self, name: &str, subcommand: Option<&str>) -> Result<Options> {
        let words: Vec<&str> = std::iter::once("options").chain(subcommand).collect();
        let answer = self.answer(name, &words.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
        serde_json::from_str(&answer)
            .with_context(|| format!("{name} {}: its answer is not understood", words.join(" ")))
    }

    /// What a program refuses of a command line that comes from a recipe, before any work.
    ///
    /// # Errors
    /// A program that cannot be started, that fails, or that answers with something else.
    pub fn refused(&self, name: &str, args: &[String]) -> Result<Option<Mismatch>> {
        let words = [check::SUBCOMMAND, "--"].into_iter().chain(args.iter().map(String::as_str));
        let answer = self.answer(name, &words.map(AsRef::as_ref).collect::<Vec<_>>())?;
        let answer: Answer = serde_json::from_str(&answer)
            .with_context(|| format!("{name} {}: its answer is not understood: {answer}", check::SUBCOMMAND))?;
        Ok(answer.refused)
    }

    fn answer(&self, name: &str, words: &[&OsStr]) -> Result<String> {
        let path = self.path(name);
        let mut command = Command::new(&path);
        command.args(words).env(FROM_RECIPE, "true");
        let output = command.output().with_context(|| format!("{}: not started", path.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let words = words.join(OsStr::new(" "));
            bail!("{name} {} ended with {}: {}", words.display(), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Whether the shell looks for programs in a folder.
fn is_searched(folder: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|searched| searched == folder)
}

/// `cargo build` of the programs into the target folder that `folder` (`target/release`) is part of.
fn build(cargo: &Cargo, folder: &Path) -> Result<()> {
    let target = folder.parent().context("the running program is not in a target folder")?;
    let mut command = Command::new(&cargo.executable);
    command.arg("build").arg("--manifest-path").arg(&cargo.manifest).arg("--target-dir").arg(target);
    // target/debug holds the profile `dev`; every other profile's folder has its name.
    let profile = folder.file_name().and_then(|name| name.to_str()).unwrap_or("release");
    command.arg("--profile").arg(if profile == "debug" { "dev" } else { profile });
    command.args(PROGRAMS.iter().flat_map(|name| ["-p", name]));
    tracing::info!("building {} …", PROGRAMS.join(", "));
    let status = command.status().with_context(|| format!("{}: not started", cargo.executable.display()))?;
    ensure!(status.success(), "the build of {} failed ({status}); its messages stand above", PROGRAMS.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = Programs::beside(&folder.path().join("pipelines"), Path::new("pipelines"), None)
            .expect_err("refused")
            .to_string();
        assert!(error.contains("preprocess: no such program"), "{error}");
    }

    #[test]
    fn command_lines_name_the_programs_as_the_user_did() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        PROGRAMS.iter().for_each(|name| std::fs::write(folder.path().join(name), "").expect("written"));
        let executable = folder.path().join("pipelines");
        let shown =
            |called: &str| Programs::beside(&executable, Path::new(called), None).expect("all there").shown("infer");
        assert_eq!(shown("pipelines"), "infer");
        assert_eq!(shown("target/release/pipelines"), "target/release/infer");
        assert_eq!(shown("./pipelines"), "./infer");
        assert_eq!(shown("my tools/pipelines"), "'my tools/infer'");
        let searched = std::env::split_paths(&std::env::var_os("PATH").expect("a PATH")).next().expect("a folder");
        assert_eq!(shown(searched.join("pipelines").to_str().expect("UTF-8")), "infer");
    }
}
