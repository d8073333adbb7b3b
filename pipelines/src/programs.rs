//! Where the programs are, which version they are, and which options they know.

use anyhow::{Context, Result, bail, ensure};
use cli::options::Options;
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
}

impl Programs {
    /// The programs in the folder of `executable`. With `cargo`, they are built there first, in the same profile.
    ///
    /// # Errors
    /// A build that fails, or a program that is not there.
    pub fn beside(executable: &Path, cargo: Option<&Cargo>) -> Result<Self> {
        let folder = executable.parent().context("the running program has no folder")?.to_path_buf();
        if let Some(cargo) = cargo {
            build(cargo, &folder)?;
        }
        let programs = Self { folder };
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

    /// What `--version` prints.
    ///
    /// # Errors
    /// A program that cannot be started or that fails.
    pub fn version(&self, name: &str) -> Result<String> {
        Ok(self.answer(name, &["--version"])?.trim().to_string())
    }

    /// The options of a (sub)command, as the program itself prints them.
    ///
    /// # Errors
    /// A program that cannot be started, that fails, or that answers with something else.
    pub fn options(&self, name: &str, subcommand: Option<&str>) -> Result<Options> {
        let words: Vec<&str> = std::iter::once("options").chain(subcommand).collect();
        let answer = self.answer(name, &words)?;
        serde_json::from_str(&answer)
            .with_context(|| format!("{name} {}: its answer is not understood", words.join(" ")))
    }

    fn answer(&self, name: &str, words: &[&str]) -> Result<String> {
        let path = self.path(name);
        let output =
            Command::new(&path).args(words).output().with_context(|| format!("{}: not started", path.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{name} {} ended with {}: {}", words.join(" "), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
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
        let error = Programs::beside(&folder.path().join("pipelines"), None).expect_err("refused").to_string();
        assert!(error.contains("preprocess: no such program"), "{error}");
    }
}
