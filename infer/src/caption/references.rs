//! References of captions: a JSON list, or the answers of the source.

use super::source::Item;
use crate::args::CaptionArgs;
use anyhow::{Context, Result};
use chat::dataset;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::path::PathBuf;

/// One image's references, found by id or by file name.
#[derive(Debug, Deserialize)]
struct Entry {
    id: Option<Box<RawValue>>,
    image: Option<String>,
    captions: Vec<String>,
}

impl CaptionArgs {
    /// The file of references: the one that is given, or the one that the dataset brings.
    pub(super) fn references_file(&self) -> Option<PathBuf> {
        let beside = self.source.data.as_ref().map(|data| data.join("references.json")).filter(|path| path.exists());
        self.references.clone().or(beside)
    }
}

/// References by id and by file name.
#[derive(Default)]
pub(super) struct References(HashMap<String, Vec<String>>);

impl References {
    /// Reads `--references`, or `references.json` of `--data`; none of both is no error.
    pub fn read(args: &CaptionArgs) -> Result<Self> {
        let Some(path) = args.references_file() else { return Ok(Self::default()) };
        let expected = "a JSON list of captions, for --references";
        let text = std::fs::read(&path).map_err(cli::inputs::unread(&path, expected))?;
        let entries: Vec<Entry> = serde_json::from_slice(&text).with_context(|| {
            format!("{}: expected a list of {{\"id\" or \"image\", \"captions\": […]}}", path.display())
        })?;
        let mut references = HashMap::new();
        for entry in entries {
            // As in chat.json, an id may be a number.
            let id = entry.id.as_deref().and_then(dataset::id_text);
            for key in [id, entry.image].into_iter().flatten() {
                references.insert(key, entry.captions.clone());
            }
        }
        Ok(Self(references))
    }

    /// An item's references: the file's, else its own.
    pub fn of(&self, item: &Item) -> Vec<String> {
        let found = self.0.get(&item.id).or_else(|| self.0.get(&item.image));
        found.cloned().unwrap_or_else(|| item.references.clone())
    }
}
