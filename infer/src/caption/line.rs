//! A line of the file of captions.

use crate::answers::journal;
use serde::{Deserialize, Serialize};

/// One picture's line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Position in the source, from 0.
    pub index: usize,
    /// `id` of the dataset, or the file's path in the folder without ending (with it where two would be the same).
    pub id: String,
    /// The file's path in the folder.
    pub image: String,
    /// The caption, trimmed; absent for a bad picture.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub caption: Option<String>,
    /// `stop` or `length`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finish_reason: Option<String>,
    /// Tokens of the caption, end included.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_tokens: Option<usize>,
    /// Why there is no caption.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    /// What the caption is compared with.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub references: Vec<String>,
}

impl journal::Line for Line {
    const PROGRAM: &str = "infer caption";

    fn index(&self) -> usize {
        self.index
    }
}
