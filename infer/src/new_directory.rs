//! A directory that appears under its name when everything is in it.

use anyhow::{Result, ensure};
use base::Error;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A directory to be filled.
pub struct NewDirectory {
    output: PathBuf,
    temporary: TempDir,
}

impl NewDirectory {
    /// A temporary directory beside the output, so that a rename puts it in place; readable for whom the umask lets.
    ///
    /// # Errors
    /// An output that has something in it; what the operating system refuses.
    pub fn create(output: &Path) -> Result<Self> {
        ensure_free(output)?;
        let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix(".new-").permissions(Permissions::from_mode(0o777));
        let temporary = builder.tempdir_in(parent).map_err(Error::io(parent))?;
        Ok(Self { output: output.to_path_buf(), temporary })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Puts everything on disk, and then under its name.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn publish(self) -> Result<()> {
        if self.output.exists() {
            std::fs::remove_dir(&self.output).map_err(Error::io(&self.output))?;
        }
        Ok(base::files::publish(&self.temporary.keep(), &self.output)?)
    }
}

/// Refuses an output that has something in it.
///
/// # Errors
/// Names it.
pub fn ensure_free(output: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(output) {
        Ok(mut entries) => entries.next(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(output)(error).into()),
    };
    ensure!(entries.is_none(), "{}: not empty; give a new directory as --output", output.display());
    Ok(())
}
