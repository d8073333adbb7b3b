//! Files that a command line names as outputs: what is there may be something else.

use base::{Error, Result};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes at a file's beginning that show what wrote it.
const HEAD_BYTES: u64 = 64 << 10;

/// Refuses an output that would replace a file of another origin: a dataset, say, that a command line names twice. `is_own` looks at
/// the file's beginning; `overwrite` is the user's word that the file may go, `None` where there is no such option.
///
/// # Errors
/// Such a file; a folder of this name; a path in a folder that is not there; a file that cannot be read.
pub fn require_replaceable(
    path: &Path,
    is_own: impl FnOnce(&[u8]) -> bool,
    overwrite: Option<bool>,
    option: &str,
) -> Result<()> {
    let about = match path.metadata() {
        Ok(about) => about,
        // Whatever else is wrong with the path is said when it is written.
        Err(_) => return require_folder_of(path, option),
    };
    let refused = |found: &str, remedy: String| {
        Err(Error::invalid(path.display(), found, "a new file, or one that this program wrote", remedy))
    };
    if about.is_dir() {
        return refused("a folder", format!("give another {option}"));
    }
    // Devices and pipes hold nothing that could be lost; what /dev/stdout is was opened by the shell.
    if path.starts_with("/dev")
        || path.starts_with("/proc")
        || !about.is_file()
        || about.len() == 0
        || overwrite == Some(true)
    {
        return Ok(());
    }
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head)).map_err(Error::io(path))?;
    if is_own(&head) {
        return Ok(());
    }
    let or = if overwrite.is_some() { ", or --overwrite true to replace it" } else { "" };
    refused("a file of something else", format!("give another {option}{or}"))
}

/// Refuses an output in a folder that is not there: its name may be a slip.
///
/// # Errors
/// Such a folder, with the command that makes it.
pub fn require_folder_of(path: &Path, option: &str) -> Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()) {
        None => Ok(()),
        Some(folder) => {
            let remedy =
                format!("{}mkdir -p {1}, or give another {option}", base::did_you_mean(folder), folder.display());
            Err(Error::invalid(
                path.display(),
                format!("no folder {}", folder.display()),
                "a folder that is there",
                remedy,
            ))
        }
    }
}

/// Refuses an output that is one of the inputs, under whatever name: no option says that this is wanted.
///
/// # Errors
/// Such a file, naming both options.
pub fn require_no_input(path: &Path, option: &str, inputs: &[(&str, &Path)]) -> Result<()> {
    let Some(output) = identity(path) else { return Ok(()) };
    let is_output = |input: &Path| identity(input).is_some_and(|input| input == output);
    match inputs.iter().find(|(_, input)| is_output(input)) {
        Some((input, _)) => Err(Error::invalid(
            path.display(),
            format!("the file of {input}"),
            "a new file, or one that this program wrote",
            format!("give another {option}"),
        )),
        None => Ok(()),
    }
}

/// Tells a file from others, whatever its name; `None` where there is none.
#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    path.metadata().ok().filter(std::fs::Metadata::is_file).map(|about| (about.dev(), about.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> Option<std::path::PathBuf> {
    path.canonicalize().ok()
}

/// The first line of a file's beginning.
pub fn first_line(head: &[u8]) -> &[u8] {
    head.split(|byte| *byte == b'\n').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_is_an_input_is_refused_under_any_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [questions, link, other] = ["questions.jsonl", "link", "other"].map(|name| folder.path().join(name));
        std::fs::write(&questions, "{}\n").expect("written");
        std::fs::write(&other, "").expect("written");
        std::fs::hard_link(&questions, &link).expect("linked");
        let inputs = [("--annotations", other.as_path()), ("--questions", questions.as_path())];
        let around = folder.path().join(".").join("questions.jsonl");
        for output in [&questions, &link, &around] {
            let error = require_no_input(output, "--output", &inputs).expect_err("an input").to_string();
            assert!(error.contains("the file of --questions") && error.contains("give another --output"), "{error}");
        }
        for output in [folder.path().join("new"), folder.path().to_path_buf()] {
            require_no_input(&output, "--output", &inputs).expect("no input");
        }
    }

    #[test]
    fn only_files_of_another_origin_are_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("out");
        let check =
            |overwrite| require_replaceable(&path, |head| first_line(head) == b"ours", Some(overwrite), "--output");
        check(false).expect("nothing is there");
        for (text, overwrite, is_refused) in
            [("", false, false), ("ours\n1\n", false, false), ("theirs\n", false, true), ("theirs\n", true, false)]
        {
            std::fs::write(&path, text).expect("written");
            let found = check(overwrite);
            assert_eq!(found.is_err(), is_refused, "{text:?}, {overwrite}");
            let words = found.map_or_else(|error| error.to_string(), |()| String::new());
            assert!(!is_refused || words.contains("give another --output, or --overwrite true"), "{words}");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
        }
        let found =
            require_replaceable(folder.path(), |_| true, Some(true), "--html").expect_err("a folder").to_string();
        assert!(found.contains("found a folder") && found.contains("--html"), "{found}");
        require_replaceable(Path::new("/dev/stdout"), |_| false, None, "--output").expect("nothing is lost");
        let lost = folder.path().join("none/out");
        let found = require_replaceable(&lost, |_| true, None, "--html").expect_err("no folder").to_string();
        assert!(found.contains("found no folder") && found.contains("mkdir -p") && found.contains("--html"), "{found}");
        require_replaceable(Path::new("out-of-this-test"), |_| true, None, "--html").expect("in the folder of work");
    }
}
