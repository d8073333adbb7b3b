//! CLIP's vision transformer.

use super::linear::Linear;
use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// `vision_tower.vision_model.…`
#[derive(Module, Debug)]
pub struct VisionTower {
    /// The transformer.
    pub vision_model: VisionTransformer,
}

/// Embeddings, layers, norms.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Patch, class and position embeddings.
    pub embeddings: VisionEmbeddings,
    /// Norm before the layers (the published name has this spelling).
    pub pre_layrnorm: LayerNorm,
    /// Layers.
    pub encoder: VisionEncoder,
    /// Norm of the class token; not used by LLaVA, kept for the checkpoint.
    pub post_layernorm: LayerNorm,
}

/// `embeddings.…`
#[derive(Module, Debug)]
pub struct VisionEmbeddings {
    /// `[D]`
    pub class_embedding: Param<Tensor<1>>,
    /// `[D, C, patch, patch]`
    pub patch_embedding: PatchEmbedding,
    /// `[1 + patches, D]`
    pub position_embedding: Embedding,
}

/// `patch_embedding.weight`
#[derive(Module, Debug)]
pub struct PatchEmbedding {
    /// `[D, C, patch, patch]`
    pub weight: Param<Tensor<4>>,
}

/// A table of rows (`….weight`).
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[rows, D]`
    pub weight: Param<Tensor<2>>,
}

/// `layers.…`
#[derive(Module, Debug)]
pub struct VisionEncoder {
    /// In order.
    pub layers: Vec<VisionLayer>,
}

/// Pre-norm transformer layer.
#[derive(Module, Debug)]
pub struct VisionLayer {
    /// Before attention.
    pub layer_norm1: LayerNorm,
    /// Full attention.
    pub self_attn: VisionAttention,
    /// Before the MLP.
    pub layer_norm2: LayerNorm,
    /// fc1, activation, fc2.
    pub mlp: VisionMlp,
}

/// `self_attn.…`
#[derive(Module, Debug)]
pub struct VisionAttention {
    /// Queries.
    pub q_proj: Linear,
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// Output.
    pub out_proj: Linear,
}

/// `mlp.…`
#[derive(Module, Debug)]
pub struct VisionMlp {
    /// Up.
    pub fc1: Linear,
    /// Down.
    pub fc2: Linear,
}

/// LayerNorm's weight and bias.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[D]`
    pub weight: Param<Tensor<1>>,
    /// `[D]`
    pub bias: Param<Tensor<1>>,
}
