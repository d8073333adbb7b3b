//! The longest row of a set of shards, without its pixels.

use super::columns::Columns;
use super::file::read_error;
use super::{ShardSet, schema};
use base::Result;

const BATCH_ROWS: usize = 4096;

/// A row and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowLength {
    /// `id` of chat.json.
    pub id: String,
    /// Tokens, every image counted as the model's features.
    pub tokens: usize,
}

impl ShardSet {
    /// The longest row of the split, the first of equals; `None` without rows. An `<image>` token, `image_token`, counts as
    /// `image_tokens`.
    ///
    /// # Errors
    /// A damaged shard.
    pub fn longest_row(&self, image_token: u32, image_tokens: usize) -> Result<Option<RowLength>> {
        let mut longest: Option<RowLength> = None;
        for (shard, file) in self.files().enumerate() {
            let place = self.dir.join(&file.file).display().to_string();
            let Some(open) = self.file_at(shard) else { break };
            for batch in open?.read_all(&[schema::ID, schema::INPUT_IDS], BATCH_ROWS)? {
                let batch = batch.map_err(|error| read_error(&place)(error.into()))?;
                let columns = Columns::new(&batch, &place);
                for row in 0..batch.num_rows() {
                    let input_ids = columns.ids(schema::INPUT_IDS, row)?;
                    let images = input_ids.iter().filter(|&&id| id as u32 == image_token).count();
                    let tokens = input_ids.len() - images + images * image_tokens;
                    if longest.as_ref().is_none_or(|longest| longest.tokens < tokens) {
                        longest = Some(RowLength { id: columns.id(row)?, tokens });
                    }
                }
            }
        }
        Ok(longest)
    }
}
