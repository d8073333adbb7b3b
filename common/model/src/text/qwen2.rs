//! Qwen1.5, Qwen2, Qwen2.5: biases on queries, keys and values.
//!
//! # Source
//! transformers 4.37 to 5.24, `configuration_qwen2.py`, `modeling_qwen2.py`.

use super::{Defaults, Spec, window};
use base::fields::Rule::Read;
use base::fields::off;

pub(super) const SPEC: Spec = Spec {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    defaults: Defaults {
        intermediate_size: 22_016,
        num_key_value_heads: Some(32),
        head_dim: None,
        vocab_size: 151_936,
        max_position_embeddings: 32_768,
        bos_token_id: None,
        eos_token_id: None,
    },
    fields: &[
        ("use_sliding_window", Read),
        ("sliding_window", Read),
        ("max_window_layers", Read),
        ("layer_types", Read),
        ("use_mrope", off("positions in several dimensions are not implemented")),
    ],
    read: |config, fields| {
        config.qkv_bias = true;
        window::require_full_attention(fields, config.num_hidden_layers)
    },
    write: |config, object| {
        if config.query_width() != config.hidden_size {
            object.insert("head_dim".into(), config.head_dim.into());
        }
        object.insert("max_window_layers".into(), config.num_hidden_layers.into());
        // 4.41 windows its eager attention by this number even when use_sliding_window is false.
        object.insert("sliding_window".into(), config.max_position_embeddings.into());
        object.insert("use_sliding_window".into(), false.into());
    },
};
