//! Files and folders that a command line names and that are not there.

use base::Error;
use std::io::ErrorKind;
use std::path::Path;

/// An error of reading a path: of one that is not there, the content expected and the path that was perhaps meant. It stays an
/// error of the system: no wrong usage.
pub fn unread(path: &Path, expected: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |error| {
        Error::io(path)(match error.kind() {
            ErrorKind::NotFound => {
                let text = format!("found no such file or folder, expected {expected}; check the path");
                std::io::Error::new(ErrorKind::NotFound, text)
            }
            _ => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_there_is_told_with_its_content_and_its_neighbour() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("job.toml"), "").expect("written");
        let error = |name: &str| {
            let path = folder.path().join(name);
            std::fs::read(&path).map_err(unread(&path, "a recipe")).expect_err("refused").to_string()
        };
        let near = folder.path().join("job.toml");
        let text = error("job.tml");
        assert!(text.contains("found no such file or folder, expected a recipe; check the path"), "{text}");
        assert!(text.ends_with(&format!("(there is {})", near.display())), "{text}");
        assert!(error("another").ends_with("; check the path"));
        // A folder is there.
        assert!(error(".").contains("os error"));
    }
}
