//! SigLIP, and SigLIP 2 with a fixed resolution: no class token, no norm before the layers, patches with a bias.
//!
//! The pooling head of a SiglipVisionModel plays no part in a LLaVA and is left out.
//!
//! # Source
//! transformers 4.41 and 5.24, `configuration_siglip.py`, `modeling_siglip.py`.

use super::vit::*;
use super::{Defaults, Spec, VisionConfig};
use crate::config::Activation;
use crate::nn::init::Initializer;
use base::fields::Rule::{Harmless, Read};

pub(super) const SPEC: Spec = Spec {
    model_type: "siglip_vision_model",
    two_towers: "siglip",
    has_class_token: false,
    defaults: Defaults { patch_size: 16, hidden_act: Activation::GeluTanh, layer_norm_eps: 1e-6 },
    fields: &[
        // The pooling head, which is left out.
        ("vision_use_head", Harmless),
        // Of CLIP, where conversions left it.
        ("projection_dim", Harmless),
    ],
    two_towers_fields: &[("vision_config", Read), ("text_config", Harmless)],
    read: |_, _| Ok(()),
    write: |_, object| {
        object.insert("vision_use_head".into(), false.into());
    },
    init,
};

/// # Source
/// transformers `SiglipPreTrainedModel._init_weights`.
/// # Differs
/// The patches' weights are normal, there cut off at two standard deviations.
fn init(config: &VisionConfig, init: &mut Initializer<'_>) -> VisionTransformer {
    let (width, patch) = (config.hidden_size, config.patch_size);
    let inputs = config.num_channels * patch * patch;
    VisionTransformer {
        embeddings: VisionEmbeddings {
            class_embedding: None,
            patch_embedding: PatchEmbedding {
                weight: init.normal([width, config.num_channels, patch, patch], (inputs as f64).powf(-0.5)),
                bias: Some(init.zero_vector(width)),
            },
            position_embedding: init.table(config.tokens(), width, (width as f64).powf(-0.5)),
        },
        pre_layrnorm: None,
        encoder: VisionEncoder { layers: (0..config.num_hidden_layers).map(|_| layer(config, init)).collect() },
        post_layernorm: init.layer_norm(width),
    }
}

fn layer(config: &VisionConfig, init: &mut Initializer<'_>) -> VisionLayer {
    const BIAS_STD: f64 = 1e-6;
    let (width, inner) = (config.hidden_size, config.intermediate_size);
    let mut attention = || {
        let bias = init.zero_vector(width);
        init.xavier_linear(width, width, bias)
    };
    let self_attn =
        VisionAttention { q_proj: attention(), k_proj: attention(), v_proj: attention(), out_proj: attention() };
    let (bias1, bias2) = (init.normal([inner], BIAS_STD), init.normal([width], BIAS_STD));
    VisionLayer {
        layer_norm1: init.layer_norm(width),
        self_attn,
        layer_norm2: init.layer_norm(width),
        mlp: VisionMlp { fc1: init.xavier_linear(width, inner, bias1), fc2: init.xavier_linear(inner, width, bias2) },
    }
}
