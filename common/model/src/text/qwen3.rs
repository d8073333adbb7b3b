//! Qwen3 without experts: query and key heads are normalised before their rotation; the heads' width is a field.
//!
//! # Source
//! transformers 4.51 to 5.24, `configuration_qwen3.py`, `modeling_qwen3.py`.

use super::{Defaults, Spec, window};
use base::fields::Rule::Read;

pub(super) const SPEC: Spec = Spec {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    defaults: Defaults {
        intermediate_size: 22_016,
        num_key_value_heads: Some(32),
        head_dim: Some(128),
        vocab_size: 151_936,
        max_position_embeddings: 32_768,
        bos_token_id: None,
        eos_token_id: None,
    },
    fields: &[
        ("attention_bias", Read),
        ("use_sliding_window", Read),
        ("sliding_window", Read),
        ("max_window_layers", Read),
        ("layer_types", Read),
    ],
    read: |config, fields| {
        config.qk_norm = true;
        config.qkv_bias = fields.or("attention_bias", false)?;
        config.o_bias = config.qkv_bias;
        window::require_full_attention(fields, config.num_hidden_layers)
    },
    write: |config, object| {
        object.insert("attention_bias".into(), config.qkv_bias.into());
        object.insert("head_dim".into(), config.head_dim.into());
        object.insert("max_window_layers".into(), config.num_hidden_layers.into());
        object.insert("sliding_window".into(), serde_json::Value::Null);
        object.insert("use_sliding_window".into(), false.into());
    },
};
