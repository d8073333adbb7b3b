//! The dataset of shapes, in the layout of LLaVA-CC3M-Pretrain-595K: `chat.json` beside `images/`.

use super::shapes::Scene;
use anyhow::Result;
use base::{Error, json};
use chat::IMAGE_TOKEN;
use chat::dataset::chat_file;
use cli::Progress;
use image::ImageError;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};
use std::path::Path;

/// Questions about a picture. All have the same number of tokens and follow the picture, so that the answer is always
/// equally far from it: a model of this size learns where to look in minutes then.
pub const QUESTIONS: [&str; 4] = [
    "Give a caption for this picture.",
    "Describe the content of this picture.",
    "Write one line about this picture.",
    "Say briefly what this picture shows.",
];

/// How many pictures, and which.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetSettings {
    /// Pictures to train on.
    pub training_pictures: usize,
    /// Pictures held out; none of their captions occurs among the ones to train on.
    pub held_out_pictures: usize,
    /// The same seed gives the same files.
    pub seed: u64,
}

/// Most pictures that can be held out: of the 1,152 scenes there must be others to train on.
const MOST_HELD_OUT: usize = 500;

impl DatasetSettings {
    /// Checks what can be made.
    ///
    /// # Errors
    /// No held-out picture, or more than can be held out; gives their number.
    pub fn check(&self) -> Result<()> {
        if !(1..=MOST_HELD_OUT).contains(&self.held_out_pictures) {
            let expected =
                format!("1 to {MOST_HELD_OUT} pictures (there are 1,152 scenes, and others than these to train on)");
            return Err(Error::usage("--held-out", self.held_out_pictures, expected, "correct it").into());
        }
        Ok(())
    }
}

/// A row of `chat.json`.
#[derive(Serialize)]
struct Row {
    id: String,
    image: String,
    conversations: [Turn; 2],
}

#[derive(Serialize)]
struct Turn {
    from: &'static str,
    value: String,
}

/// Writes `training/` and `held_out/` datasets.
///
/// # Errors
/// As [`DatasetSettings::check`]; files that cannot be written.
pub fn write(settings: &DatasetSettings, training: &Path, held_out: &Path) -> Result<()> {
    settings.check()?;
    let mut rng = StdRng::seed_from_u64(settings.seed);
    let mut seen = HashSet::new();
    let new_scenes = std::iter::repeat_with(|| Scene::random(&mut rng)).filter(|&scene| seen.insert(scene));
    let held: Vec<Scene> = new_scenes.take(settings.held_out_pictures).collect();
    let to_train_on: Vec<Scene> = std::iter::repeat_with(|| Scene::random(&mut rng))
        .filter(|scene| !held.contains(scene))
        .take(settings.training_pictures)
        .collect();
    write_folder(&to_train_on, &mut rng, training)?;
    write_folder(&held, &mut rng, held_out)
}

fn write_folder(scenes: &[Scene], rng: &mut StdRng, folder: &Path) -> Result<()> {
    let images = folder.join("images");
    std::fs::create_dir_all(&images).map_err(Error::io(&images))?;
    let mut rows = Vec::with_capacity(scenes.len());
    let mut progress = Progress::new("pictures", 0, scenes.len() as u64);
    for (index, scene) in scenes.iter().enumerate() {
        let id = format!("{index:06}");
        let image = format!("{id}.png");
        let path = images.join(&image);
        scene.picture(rng).save(&path).map_err(|error| not_written(&path, error))?;
        let question = QUESTIONS.choose(rng).copied().unwrap_or(QUESTIONS[0]);
        let value = format!("{IMAGE_TOKEN}\n{question}");
        let conversations = [Turn { from: "human", value }, Turn { from: "gpt", value: scene.caption() }];
        rows.push(Row { id, image, conversations });
        progress.advance(1);
    }
    progress.finish();
    Ok(json::write(&chat_file(folder), &rows)?)
}

fn not_written(path: &Path, error: ImageError) -> anyhow::Error {
    match error {
        ImageError::IoError(error) => Error::io(path)(error).into(),
        error => anyhow::Error::from(error).context(format!("{}: not written", path.display())),
    }
}

/// Every text that the tokenizer has to know: all captions, questions and the system prompt.
pub fn texts() -> BTreeSet<String> {
    let mut rng = StdRng::seed_from_u64(0);
    let captions = (0..4000).map(|_| Scene::random(&mut rng).caption());
    captions.chain(QUESTIONS.map(String::from)).chain([chat::SYSTEM_PROMPT.to_string()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captions(folder: &Path) -> HashSet<String> {
        let rows: serde_json::Value = json::read(&chat_file(folder)).expect("chat.json");
        let rows = rows.as_array().expect("a list");
        rows.iter().map(|row| row["conversations"][1]["value"].as_str().expect("text").to_string()).collect()
    }

    #[test]
    fn more_than_can_be_held_out_is_refused() {
        for (held_out_pictures, is_possible) in [(0, false), (1, true), (500, true), (501, false)] {
            let checked = DatasetSettings { training_pictures: 1, held_out_pictures, seed: 0 }.check();
            assert_eq!(checked.is_ok(), is_possible, "{held_out_pictures}");
        }
    }

    #[test]
    fn held_out_captions_are_new_and_files_are_reproducible() {
        let settings = DatasetSettings { training_pictures: 300, held_out_pictures: 60, seed: 3 };
        let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
        let read = |folder: &Path, name: &str| std::fs::read(folder.join(name)).expect("readable");
        for folder in &folders {
            write(&settings, &folder.path().join("training"), &folder.path().join("held_out")).expect("written");
        }
        let [first, second] = folders.each_ref().map(tempfile::TempDir::path);
        let (trained, held) = (captions(&first.join("training")), captions(&first.join("held_out")));
        assert_eq!(held.len(), 60);
        assert!(trained.is_disjoint(&held));
        for name in ["training/chat.json", "held_out/images/000059.png"] {
            assert_eq!(read(first, name), read(second, name), "{name}");
        }
    }
}
