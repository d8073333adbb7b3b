//! Rows packed one after another, without padding: `<image>` expanded, sequence lengths beside.

use crate::shard::Row;
use crate::{IGNORE_INDEX, Result};

/// A micro-batch. T tokens in all, N images, P features an image.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedBatch {
    /// `[T]`, each `<image>` repeated P times.
    pub input_ids: Vec<u32>,
    /// `[T]`, not shifted.
    pub labels: Vec<i32>,
    /// Tokens of each row, in order; sums to T.
    pub seq_lens: Vec<usize>,
    /// `[N·P]` positions (in `0..T`) of image features, in order.
    pub image_positions: Vec<usize>,
    /// f32 `[N, 3, S, S]`.
    pub pixel_values: Vec<f32>,
    /// N.
    pub num_images: usize,
    /// Ids of the rows, for messages.
    pub ids: Vec<String>,
}

impl PackedBatch {
    /// Packs rows; `image_seq_length` is P.
    ///
    /// # Errors
    /// A row whose `<image>` tokens are not as many as its images.
    pub fn pack(_rows: Vec<Row>, _image_token_index: u32, _image_seq_length: usize) -> Result<Self> {
        todo!()
    }

    /// Positions whose next token is supervised, and that token: the rows of logits that a loss needs.
    pub fn supervised(&self) -> (Vec<usize>, Vec<u32>) {
        let mut positions = Vec::new();
        let mut targets = Vec::new();
        let mut start = 0;
        for &len in &self.seq_lens {
            for position in start..start + len.saturating_sub(1) {
                let label = self.labels[position + 1];
                if label != IGNORE_INDEX {
                    positions.push(position);
                    targets.push(label as u32);
                }
            }
            start += len;
        }
        (positions, targets)
    }
}
