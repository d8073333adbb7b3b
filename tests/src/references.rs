//! The reference models that `tests/reference/make` makes, one for each `tests/reference/NAME.json`.

use crate::reference;
use model::config::LlavaConfig;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Names of the specifications, sorted.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("reference");
    let files = std::fs::read_dir(&folder).expect("tests/reference").map(|entry| entry.expect("a file").path());
    let specs = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let mut names: Vec<_> =
        specs.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(names.len() > 1, "{}: no specifications", folder.display());
    names
});

/// All references: every test of the model runs with each.
pub fn all() -> impl Iterator<Item = Reference> {
    NAMES.iter().map(|name| Reference { name })
}

/// The tiny model that tests of one model use: a CLIP and a Qwen2.
pub const TINY: Reference = Reference { name: "tiny" };

/// A reference model: its folder, and what `make_reference.py` says of it.
#[derive(Clone, Copy, Debug)]
pub struct Reference {
    /// Name of its folder and of its specification.
    pub name: &'static str,
}

impl Reference {
    /// A file or folder of it.
    pub fn path(self, file: &str) -> PathBuf {
        reference(&format!("{}/{file}", self.name))
    }

    /// A JSON file of it.
    pub fn json(self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).expect("readable")).expect("JSON")
    }

    /// What it was made from.
    pub fn spec(self) -> Value {
        self.json("spec.json")
    }

    /// Its families as its specification names them: the vision tower's and the language model's.
    pub fn families(self) -> [String; 2] {
        let spec = self.spec();
        [("vision_family", "clip"), ("text_family", "qwen2")]
            .map(|(key, default)| spec[key].as_str().unwrap_or(default).to_string())
    }

    /// The assembled model's directory.
    pub fn llava(self) -> PathBuf {
        self.path("llava")
    }

    /// The vision tower's directory: `clip` or `siglip`.
    pub fn vision_tower(self) -> PathBuf {
        let [family, _] = self.families();
        self.path(&family)
    }

    /// The language model's directory.
    pub fn language_model(self) -> PathBuf {
        self.path("text")
    }

    /// The assembled model's config.
    pub fn config(self) -> LlavaConfig {
        LlavaConfig::read(&self.llava()).expect("the reference's config is readable")
    }
}
