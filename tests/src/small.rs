//! A LLaVA with random weights and a few pictures, made by the test itself as the quickstart makes its own.

use crate::program;
use crate::training::succeed;
use pipelines::quickstart::dataset::{self, DatasetSettings};
use pipelines::quickstart::{backbones, tokenizer};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Model, dataset and pictures in a temporary folder.
pub struct Small {
    folder: tempfile::TempDir,
}

impl Small {
    /// Makes all of it; 48 pixels, patches of 8, ChatML, a context of 256 tokens, 8 rows.
    pub fn make() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [clip, qwen2, held_out] = ["clip", "qwen2", "held_out"].map(|name| folder.path().join(name));
        std::fs::create_dir_all(&qwen2).expect("a folder");
        let vocabulary = tokenizer::write(&dataset::texts(), &qwen2).expect("a tokenizer");
        backbones::write(vocabulary, 1, &clip, &qwen2).expect("backbones");
        let settings = DatasetSettings { training_pictures: 8, held_out_pictures: 1, seed: 1 };
        let small = Self { folder };
        dataset::write(&settings, &small.data(), &held_out).expect("a dataset");
        let mut command = Command::new(program("preprocess"));
        command.arg("model").arg("--vision-tower").arg(clip).arg("--language-model").arg(qwen2);
        succeed(command.arg("--output").arg(small.model()));
        small
    }

    /// The model directory.
    pub fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    /// The dataset, with chat.json and images/.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A PNG of the dataset, 0 to 7.
    pub fn picture(&self, number: usize) -> PathBuf {
        self.data().join(format!("images/{number:06}.png"))
    }

    /// A folder for what a test writes.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A copy of the model directory under another name.
    pub fn copy(&self, name: &str) -> PathBuf {
        let copy = self.path().join(name);
        std::fs::create_dir_all(&copy).expect("a folder");
        for entry in std::fs::read_dir(self.model()).expect("the model directory") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), copy.join(entry.file_name())).expect("copied");
        }
        copy
    }
}
