//! Reading the `config.json` of a vision tower's or a language model's own directory.

use super::reader::{At, Fields};
use super::{TextConfig, VisionConfig, WeightDtype};
use base::{Result, json, names};
use serde_json::{Map, Value};
use std::path::Path;

impl VisionConfig {
    /// Reads the directory of a vision tower, or of a model with a text tower beside it, and the dtype of its weights.
    ///
    /// # Errors
    /// A model of another kind, and values that do not fit each other; the key is named.
    pub fn read(dir: &Path) -> Result<(Self, WeightDtype)> {
        read(dir, Self::of_directory)
    }
}

impl TextConfig {
    /// Reads the directory of a language model, and the dtype of its weights.
    ///
    /// # Errors
    /// A model of another kind, and values that do not fit each other; the key is named.
    pub fn read(dir: &Path) -> Result<(Self, WeightDtype)> {
        read(dir, Self::of_directory)
    }
}

fn read<T>(dir: &Path, from: impl FnOnce(&Fields<'_>) -> Result<T>) -> Result<T> {
    let path = dir.join(names::CONFIG_FILE);
    let object: Map<String, Value> = json::read(&path)?;
    from(&Fields::new(&object, At::file(&path)))
}
