//! The LLaVA: one architecture per file, field names are the checkpoint's names.
//!
//! Sequences are packed: hidden states are `[T, D]` with the rows' lengths beside (`seq_lens`), so nothing is padded.

pub mod language_model;
pub mod linear;
pub mod lora;
pub mod multi_modal_projector;
pub mod vision_tower;

use burn::module::Module;
use language_model::LanguageModel;
use multi_modal_projector::MultiModalProjector;
use vision_tower::VisionTower;

/// Vision tower, projector, language model. Module paths equal the published tensor names.
#[derive(Module, Debug)]
pub struct Llava {
    /// `vision_tower.…`
    pub vision_tower: VisionTower,
    /// `multi_modal_projector.…`
    pub multi_modal_projector: MultiModalProjector,
    /// `language_model.…`
    pub language_model: LanguageModel,
}
