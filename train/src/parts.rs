//! The parts of a model (vision tower, projector, …), for tables and manifests.

use base::names::{self, Block};
use serde::Serialize;

/// A part of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// CLIP: embeddings, layers, norms.
    VisionTower,
    /// LoRA matrices in the tower.
    VisionTowerLora,
    /// The projector.
    Projector,
    /// LoRA matrices in it.
    ProjectorLora,
    /// Token embeddings.
    TokenEmbeddings,
    /// Layers of the language model.
    LanguageModel,
    /// LoRA matrices in them.
    LanguageModelLora,
    /// Final norm and output weights.
    Head,
    /// LoRA matrices of the output weights.
    HeadLora,
}

impl Part {
    /// LoRA matrices.
    pub fn is_lora(self) -> bool {
        matches!(self, Self::VisionTowerLora | Self::ProjectorLora | Self::LanguageModelLora | Self::HeadLora)
    }

    /// The part of a tensor by its published name; `None` for a name that no LLaVA has.
    pub fn of(name: &str) -> Option<Self> {
        let lora = names::is_lora(name);
        Some(match names::block(name)? {
            Block::VisionEmbeddings | Block::VisionLayer(_) | Block::VisionPostNorm if lora => Self::VisionTowerLora,
            Block::VisionEmbeddings | Block::VisionLayer(_) | Block::VisionPostNorm => Self::VisionTower,
            Block::Projector if lora => Self::ProjectorLora,
            Block::Projector => Self::Projector,
            Block::TokenEmbeddings => Self::TokenEmbeddings,
            Block::TextLayer(_) if lora => Self::LanguageModelLora,
            Block::TextLayer(_) => Self::LanguageModel,
            Block::Head if lora => Self::HeadLora,
            Block::Head => Self::Head,
        })
    }

    /// The option with this part's own learning rate, where there is one.
    pub fn learning_rate_option(self) -> Option<&'static str> {
        match self {
            Self::VisionTower | Self::VisionTowerLora => Some("vision_tower_lr"),
            Self::Projector | Self::ProjectorLora => Some("mm_projector_lr"),
            Self::TokenEmbeddings | Self::LanguageModel | Self::LanguageModelLora | Self::Head | Self::HeadLora => None,
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::VisionTower => "vision tower",
            Self::VisionTowerLora => "LoRA in the vision tower",
            Self::Projector => "projector",
            Self::ProjectorLora => "LoRA in the projector",
            Self::TokenEmbeddings => "token embeddings",
            Self::LanguageModel => "language model's layers",
            Self::LanguageModelLora => "LoRA in the language model",
            Self::Head => "norm and head",
            Self::HeadLora => "LoRA in the head",
        }
    }
}
