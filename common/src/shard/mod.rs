//! Parquet shards: the one place that opens Parquet. One row is one sample; single rows read at random.

use crate::Result;
use std::path::Path;

/// Which part of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Rows to train on.
    Train,
    /// Rows held out by `--validation-fraction`.
    Validation,
}

/// One sample as training takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `id` of chat.json.
    pub id: String,
    /// File names of its images, in the order of their `<image>` tokens.
    pub images: Vec<String>,
    /// Token ids, each image as one `<image>`.
    pub input_ids: Vec<i32>,
    /// Labels, not shifted, [`crate::IGNORE_INDEX`] where unsupervised.
    pub labels: Vec<i32>,
    /// f32 `[images, 3, S, S]`, normalised.
    pub pixel_values: Vec<f32>,
}

/// What the shards were made with; a consumer refuses another tokenizer or processor.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardMetadata {
    /// SHA-256 of tokenizer.json.
    pub tokenizer_sha256: String,
    /// SHA-256 of the chat template.
    pub chat_template_sha256: String,
    /// SHA-256 of the image processor's settings.
    pub image_processor_sha256: String,
    /// Side of an image (S), pixels.
    pub crop_size: usize,
}

/// The finished shards of a folder (its `index.json`), for reading. `Sync`: loader workers share one.
pub struct ShardSet {
    metadata: ShardMetadata,
}

impl ShardSet {
    /// Opens `dir/index.json` and the shards of one split.
    pub fn open(_dir: &Path, _split: Split) -> Result<Self> {
        todo!()
    }

    /// What the shards were made with.
    pub fn metadata(&self) -> &ShardMetadata {
        &self.metadata
    }

    /// Rows of the split.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        todo!()
    }

    /// SHA-256 over the shards' hashes: identifies the data in run states.
    pub fn fingerprint(&self) -> String {
        todo!()
    }

    /// Row `index` (0 ≤ index < len), read alone (page index), decoded. Thread-safe.
    pub fn read_row(&self, _index: usize) -> Result<Row> {
        todo!()
    }
}
