//! Shell completions and man pages, from the options that clap knows.

use base::{Error, Result, files};
use clap::{Command, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;
use std::path::{Path, PathBuf};

/// Subcommands that every program has.
#[derive(Clone, Debug, Subcommand)]
pub enum Pages {
    /// Print a completion script: source <(PROGRAM completions bash).
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the man pages, one for each subcommand.
    Man {
        /// Folder for them, such as ~/.local/share/man/man1.
        folder: PathBuf,
    },
}

impl Pages {
    /// Does it for the program whose options `command` has. The text is the result for stdout.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn run(&self, command: Command) -> Result<String> {
        match self {
            Self::Completions { shell } => Ok(completions(command, *shell)),
            Self::Man { folder } => man(command, folder),
        }
    }
}

fn completions(mut command: Command, shell: Shell) -> String {
    let name = command.get_name().to_string();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    String::from_utf8_lossy(&script).trim_end().to_string()
}

fn man(command: Command, folder: &Path) -> Result<String> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut written = Vec::new();
    write_with_subcommands(&command, folder, &mut written)?;
    Ok(written.join("\n"))
}

fn write_with_subcommands(command: &Command, folder: &Path, written: &mut Vec<String>) -> Result<()> {
    let page = Man::new(command.clone());
    let path = folder.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text).map_err(Error::io(&path))?;
    files::write_atomically(&path, &text)?;
    written.push(path.display().to_string());
    let shown = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    shown.into_iter().try_for_each(|subcommand| write_with_subcommands(subcommand, folder, written))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    #[test]
    fn subcommands_have_pages_and_completions() {
        let hidden = Command::new("options").hide(true);
        let plan = Command::new("plan").arg(Arg::new("max-steps").long("max-steps").help("Most steps"));
        let command = Command::new("train").version("1.2").subcommands([plan, hidden]);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let written = man(command.clone(), folder.path()).expect("written");
        let names: Vec<&str> = written.lines().filter_map(|line| line.rsplit('/').next()).collect();
        assert_eq!(names, ["train.1", "train-plan.1"]);
        let page = std::fs::read_to_string(folder.path().join("train-plan.1")).expect("a page");
        assert!(page.contains("max\\-steps") && page.contains("Most steps"), "{page}");
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(command.clone(), shell);
            assert!(script.contains("max-steps") && script.contains("plan"), "{shell}: {script}");
        }
    }
}
