//! Qwen2.

use super::linear::Linear;
use super::vision_tower::Embedding;
use burn::module::{Module, Param};
use burn::tensor::Tensor;

/// `language_model.…`
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// Embedding, layers, final norm.
    pub model: Qwen2Model,
    /// Output weights; `None` when tied to the embedding.
    pub lm_head: Option<Embedding>,
}

/// `language_model.model.…`
#[derive(Module, Debug)]
pub struct Qwen2Model {
    /// `[V, D]`
    pub embed_tokens: Embedding,
    /// In order.
    pub layers: Vec<Qwen2Layer>,
    /// Before the head.
    pub norm: RmsNorm,
}

/// Pre-norm transformer layer.
#[derive(Module, Debug)]
pub struct Qwen2Layer {
    /// Before attention.
    pub input_layernorm: RmsNorm,
    /// Causal attention with RoPE.
    pub self_attn: Qwen2Attention,
    /// Before the MLP.
    pub post_attention_layernorm: RmsNorm,
    /// SwiGLU.
    pub mlp: Qwen2Mlp,
}

/// `self_attn.…`
#[derive(Module, Debug)]
pub struct Qwen2Attention {
    /// Queries, with bias.
    pub q_proj: Linear,
    /// Keys, with bias.
    pub k_proj: Linear,
    /// Values, with bias.
    pub v_proj: Linear,
    /// Output, without bias.
    pub o_proj: Linear,
}

/// `mlp.…`
#[derive(Module, Debug)]
pub struct Qwen2Mlp {
    /// Gate.
    pub gate_proj: Linear,
    /// Up.
    pub up_proj: Linear,
    /// Down.
    pub down_proj: Linear,
}

/// RMSNorm's weight.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[D]`
    pub weight: Param<Tensor<1>>,
}
