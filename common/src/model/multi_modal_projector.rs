//! Two linear layers with an activation between: image features into the language model's width.

use super::linear::Linear;
use burn::module::Module;

/// `multi_modal_projector.…`
#[derive(Module, Debug)]
pub struct MultiModalProjector {
    /// `[D_text, D_vision · selected layers]`
    pub linear_1: Linear,
    /// `[D_text, D_text]`
    pub linear_2: Linear,
}
