//! Llama 2 and 3, Vicuna, SmolLM2 and other models of the type `llama`: no biases unless the configuration says so.
//!
//! # Source
//! transformers 4.41 to 5.24, `configuration_llama.py`, `modeling_llama.py`.

use super::{Defaults, Spec, window};
use base::fields::Rule::{Harmless, Read};
use base::fields::off;

pub(super) const SPEC: Spec = Spec {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    defaults: Defaults {
        intermediate_size: 11_008,
        num_key_value_heads: None,
        head_dim: None,
        vocab_size: 32_000,
        max_position_embeddings: 2048,
        bos_token_id: Some(1),
        eos_token_id: Some(2),
    },
    fields: &[
        ("attention_bias", Read),
        ("mlp_bias", Read),
        ("layer_types", Read),
        // Splits products into parts with the same sum.
        ("pretraining_tp", Harmless),
        // Of SmolLM2's own training code.
        ("is_llama_config", Harmless),
        ("rope_interleaved", off("rotations of neighbouring channels are not implemented")),
    ],
    read: |config, fields| {
        config.qkv_bias = fields.or("attention_bias", false)?;
        config.o_bias = config.qkv_bias;
        config.mlp_bias = fields.or("mlp_bias", false)?;
        window::require_full_layers(fields, config.num_hidden_layers, "").map(drop)
    },
    write: |config, object| {
        object.insert("attention_bias".into(), config.qkv_bias.into());
        object.insert("head_dim".into(), config.head_dim.into());
        object.insert("mlp_bias".into(), config.mlp_bias.into());
        object.insert("pretraining_tp".into(), 1.into());
    },
};
