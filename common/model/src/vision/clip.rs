//! CLIP: a class token, a norm before the layers, patches without a bias.
//!
//! # Source
//! transformers 4.41 and 5.24, `configuration_clip.py`, `modeling_clip.py`.

use super::vit::*;
use super::{Defaults, Spec, VisionConfig, VisionFamily};
use crate::config::Activation;
use crate::nn::init::Initializer;
use base::fields::Rule::{Harmless, Read};

pub(super) const SPEC: Spec = Spec {
    model_type: "clip_vision_model",
    two_towers: "clip",
    has_class_token: true,
    defaults: Defaults { patch_size: 32, hidden_act: Activation::QuickGelu, layer_norm_eps: 1e-5 },
    fields: &[("projection_dim", Read)],
    two_towers_fields: &[
        ("vision_config", Read),
        ("vision_config_dict", Read),
        ("text_config", Harmless),
        ("text_config_dict", Harmless),
        ("projection_dim", Harmless),
        ("logit_scale_init_value", Harmless),
    ],
    read: |config, fields| {
        config.projection_dim = Some(fields.or("projection_dim", 512)?);
        Ok(())
    },
    write: |config, object| {
        object.insert("initializer_factor".into(), 1.0.into());
        object.extend(config.projection_dim.map(|width| ("projection_dim".to_string(), width.into())));
    },
    init,
};

/// What transformers takes when a LLaVA's config says nothing of the tower: CLIP ViT-L/14 at 336 pixels.
pub(super) fn vit_large_336() -> VisionConfig {
    VisionConfig {
        family: VisionFamily::Clip,
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        image_size: 336,
        patch_size: 14,
        num_channels: 3,
        projection_dim: Some(768),
        hidden_act: Activation::QuickGelu,
        layer_norm_eps: 1e-5,
        attention_dropout: 0.0,
    }
}

/// # Source
/// transformers `CLIPPreTrainedModel._init_weights`.
fn init(config: &VisionConfig, init: &mut Initializer<'_>) -> VisionTransformer {
    const RANGE: f64 = 0.02;
    let (width, patch) = (config.hidden_size, config.patch_size);
    VisionTransformer {
        embeddings: VisionEmbeddings {
            class_embedding: Some(init.normal([width], (width as f64).powf(-0.5))),
            patch_embedding: PatchEmbedding {
                weight: init.normal([width, config.num_channels, patch, patch], RANGE),
                bias: None,
            },
            position_embedding: init.table(config.tokens(), width, RANGE),
        },
        pre_layrnorm: Some(init.layer_norm(width)),
        encoder: VisionEncoder { layers: (0..config.num_hidden_layers).map(|_| layer(config, init)).collect() },
        post_layernorm: init.layer_norm(width),
    }
}

fn layer(config: &VisionConfig, init: &mut Initializer<'_>) -> VisionLayer {
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let depth = (2.0 * config.num_hidden_layers as f64).powf(-0.5);
    let out_std = (width as f64).powf(-0.5);
    let in_std = out_std * depth;
    VisionLayer {
        layer_norm1: init.layer_norm(width),
        self_attn: VisionAttention {
            q_proj: init.linear(width, width, in_std, true),
            k_proj: init.linear(width, width, in_std, true),
            v_proj: init.linear(width, width, in_std, true),
            out_proj: init.linear(width, width, out_std, true),
        },
        layer_norm2: init.layer_norm(width),
        mlp: VisionMlp {
            fc1: init.linear(width, inner, (2.0 * width as f64).powf(-0.5), true),
            fc2: init.linear(inner, width, in_std, true),
        },
    }
}
