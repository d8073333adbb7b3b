//! A sample: the output of the shard reader and the input of a packed batch.

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
