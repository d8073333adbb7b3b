//! The reference models that `tests/reference/make` makes, one for each `tests/reference/NAME.json`.
//!
//! A family that the model crate learns is switched on by moving its names from [`WITHOUT_MODEL`] to [`SUPPORTED`].

use crate::reference;
use model::config::LlavaConfig;
use serde_json::Value;
use std::path::PathBuf;

/// References whose model is implemented: every test of the model runs with each.
pub const SUPPORTED: &[&str] =
    &["tiny", "siglip_qwen2", "siglip_qwen3", "siglip_llama", "clip_qwen3", "clip_llama3", "llava15"];

/// References of families that the model crate does not have: only their pixels, ids and labels are compared.
pub const WITHOUT_MODEL: &[&str] = &[];

/// All references.
pub fn all() -> impl Iterator<Item = Reference> {
    SUPPORTED.iter().chain(WITHOUT_MODEL).map(|name| Reference { name })
}

/// References whose model is implemented.
pub fn supported() -> impl Iterator<Item = Reference> {
    SUPPORTED.iter().map(|name| Reference { name })
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
