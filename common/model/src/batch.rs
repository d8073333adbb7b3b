//! Rows packed one after another, without padding: `<image>` expanded, sequence lengths beside.

use base::Row;
use base::{Error, IGNORE_INDEX, Result};

/// A micro-batch. T tokens in all, N images, P features an image.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// A row whose `<image>` tokens are not as many as its images, or whose ids, labels or pixels do not fit one another.
    pub fn pack(rows: Vec<Row>, image_token_index: u32, image_seq_length: usize) -> Result<Self> {
        let mut batch = Self::default();
        for row in rows {
            batch.push(row, image_token_index, image_seq_length)?;
        }
        Ok(batch)
    }

    /// Appends a row, and its pixel values unless they are in this batch already (`ShardSet::read_row_into`).
    ///
    /// # Errors
    /// As [`Self::pack`].
    pub fn push(&mut self, row: Row, image_token_index: u32, image_seq_length: usize) -> Result<()> {
        check(&row, image_token_index)?;
        let start = self.input_ids.len();
        for (&id, &label) in row.input_ids.iter().zip(&row.labels) {
            let id = id as u32;
            let copies = if id == image_token_index { image_seq_length } else { 1 };
            if id == image_token_index {
                self.image_positions.extend(self.input_ids.len()..self.input_ids.len() + copies);
            }
            self.input_ids.extend(std::iter::repeat_n(id, copies));
            self.labels.extend(std::iter::repeat_n(label, copies));
        }
        self.seq_lens.push(self.input_ids.len() - start);
        self.num_images += row.images.len();
        self.ids.push(row.id);
        if self.pixel_values.capacity() == 0 {
            self.pixel_values = row.pixel_values;
        } else {
            self.pixel_values.extend_from_slice(&row.pixel_values);
        }
        Ok(())
    }

    /// Supervised tokens of each row; they sum to those of [`Self::supervised`].
    pub fn supervised_per_row(&self) -> Vec<usize> {
        let mut rest = &self.labels[..];
        let of_row = |&len: &usize| {
            let (row, after) = rest.split_at(len);
            rest = after;
            row.iter().skip(1).filter(|&&label| label != IGNORE_INDEX).count()
        };
        self.seq_lens.iter().map(of_row).collect()
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

fn check(row: &Row, image_token_index: u32) -> Result<()> {
    let place = || format!("row \"{}\"", row.id);
    let markers = row.input_ids.iter().filter(|&&id| id as u32 == image_token_index).count();
    if markers != row.images.len() {
        let found = format!("{markers} <image> tokens, {} images", row.images.len());
        return Err(Error::invalid(place(), found, "as many of one as of the other", "run preprocess again"));
    }
    if row.labels.len() != row.input_ids.len() {
        let found = format!("{} labels for {} tokens", row.labels.len(), row.input_ids.len());
        return Err(Error::invalid(place(), found, "one label for each token", "run preprocess again"));
    }
    if let Some(id) = row.input_ids.iter().find(|&&id| id < 0) {
        return Err(Error::invalid(place(), format!("token id {id}"), "ids from 0 up", "run preprocess again"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: u32 = 9;

    fn row(id: &str, input_ids: &[i32], labels: &[i32], images: usize) -> Row {
        let images = (0..images).map(|image| image.to_string()).collect::<Vec<_>>();
        let pixel_values = vec![images.len() as f32; images.len() * 3];
        Row { id: id.into(), images, input_ids: input_ids.into(), labels: labels.into(), pixel_values }
    }

    #[test]
    fn images_expand_and_rows_follow_one_another() {
        let rows = vec![
            row("a", &[1, 9, 2, 3], &[-100, -100, -100, 3], 1), //
            row("b", &[4, 5], &[-100, 5], 0),
            row("c", &[9, 6], &[-100, 6], 1),
        ];
        let batch = PackedBatch::pack(rows, IMAGE, 3).expect("a valid batch");
        assert_eq!(batch.input_ids, [1, 9, 9, 9, 2, 3, 4, 5, 9, 9, 9, 6]);
        assert_eq!(batch.seq_lens, [6, 2, 4]);
        assert_eq!(batch.image_positions, [1, 2, 3, 8, 9, 10]);
        assert_eq!((batch.num_images, batch.pixel_values.len()), (2, 6));
        assert_eq!(batch.supervised(), (vec![4, 6, 10], vec![3, 5, 6]));
        assert_eq!(batch.supervised_per_row(), [1, 1, 1]);
    }

    #[test]
    fn pixel_values_that_are_in_the_batch_already_stay_where_they_are() {
        let mut batch = PackedBatch { pixel_values: Vec::with_capacity(6), ..Default::default() };
        let memory = batch.pixel_values.as_ptr();
        for (id, ids, images) in [("text", &[4][..], 0), ("a", &[9], 1), ("b", &[9], 1)] {
            let row = row(id, ids, &vec![-100; ids.len()], images);
            batch.pixel_values.extend(&row.pixel_values);
            batch.push(Row { pixel_values: vec![], ..row }, IMAGE, 3).expect("a valid row");
        }
        assert_eq!((batch.num_images, &batch.pixel_values[..]), (2, &[1.0; 6][..]));
        assert_eq!(batch.pixel_values.as_ptr(), memory, "a row without images must not take the memory away");
    }

    #[test]
    fn the_first_token_of_a_row_is_nobodys_target() {
        let batch = PackedBatch::pack(vec![row("a", &[1], &[-100], 0), row("b", &[2, 3], &[2, 3], 0)], IMAGE, 3);
        let batch = batch.expect("a valid batch");
        assert_eq!((batch.supervised(), batch.supervised_per_row()), ((vec![1], vec![3]), vec![0, 1]));
    }

    #[test]
    fn a_marker_without_an_image_names_the_row() {
        let error = PackedBatch::pack(vec![row("GCC_1", &[9, 9], &[-100, -100], 1)], IMAGE, 3).expect_err("2 markers");
        let message = error.to_string();
        assert!(message.contains("GCC_1") && message.contains("2 <image> tokens, 1 images"), "{message}");
    }
}
