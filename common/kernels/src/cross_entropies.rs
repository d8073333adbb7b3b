//! What a loss over rows of logits gives.

use burn::tensor::Tensor;

/// Cross entropy of rows against their targets.
pub struct CrossEntropies {
    /// Their sum, from which a backward pass starts: `[1]`.
    pub sum: Tensor<1>,
    /// That of each row, without autodiff: `[S]`.
    pub rows: Tensor<1>,
}
