//! The output directory: made beside its place, moved there when it is whole.

use anyhow::{Context, Result, bail};
use base::{Error, files, names};
use std::path::{Path, PathBuf};

/// A directory under a temporary name; removed again unless published.
pub struct Output {
    temporary: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Output {
    /// Makes the temporary directory.
    ///
    /// # Errors
    /// If `path` holds anything but an assembled model: nothing else is ever replaced.
    pub fn create(path: &Path) -> Result<Self> {
        refuse_foreign(path)?;
        let name = path.file_name().with_context(|| format!("--output {}: no directory name", path.display()))?;
        let temporary = path.with_file_name(format!(".{}.tmp", name.to_string_lossy()));
        if temporary.exists() {
            // What a killed run left.
            std::fs::remove_dir_all(&temporary).map_err(Error::io(&temporary))?;
        }
        std::fs::create_dir_all(&temporary).map_err(Error::io(path))?;
        Ok(Self { temporary, path: path.to_path_buf(), published: false })
    }

    /// Where to write.
    #[allow(clippy::misnamed_getters)] // Callers write there; where it will be is nobody's business before.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Moves the finished directory into place.
    pub fn publish(mut self) -> Result<()> {
        files::sync_dir(&self.temporary)?;
        if self.path.exists() {
            std::fs::remove_dir_all(&self.path).map_err(Error::io(&self.path))?;
        }
        files::publish(&self.temporary, &self.path)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.published {
            // Best effort: the error that led here is the one to report.
            let _ = std::fs::remove_dir_all(&self.temporary);
        }
    }
}

fn refuse_foreign(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let name = entry.map_err(Error::io(path))?.file_name();
        if !names::is_model_file(&name.to_string_lossy()) {
            bail!(
                "--output {}: holds {}, which is no part of an assembled model; choose another directory or empty it",
                path.display(),
                name.to_string_lossy()
            );
        }
    }
    Ok(())
}
