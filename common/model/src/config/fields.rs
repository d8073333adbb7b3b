//! Fields of `config.json` of a LLaVA, a CLIP and a Qwen2, beside those that every configuration has.
//!
//! # Source
//! transformers 4.37 to 5.24, `configuration_llava.py`, `configuration_clip.py`, `configuration_qwen2.py`.

use super::read::At;
use base::Result;
use base::fields::Rule::{Harmless, Only, Read};
use base::fields::{self, Place, Row, generation, off, pretrained};
use serde_json::{Map, Value};

/// `LlavaConfig`.
pub const LLAVA: &[Row] = &[
    ("vision_config", Read),
    ("text_config", Read),
    ("image_token_index", Read),
    ("image_token_id", Read),
    ("pad_token_id", Read),
    ("vision_feature_layer", Read),
    ("vision_feature_select_strategy", Read),
    ("projector_hidden_act", Read),
    ("multimodal_projector_bias", Read),
    // Follows from the tower and the strategy.
    ("image_seq_length", Harmless),
    // Copies of the language model's.
    ("vocab_size", Harmless),
    ("hidden_size", Harmless),
    ("ignore_index", Only(&["-100"], "labels of tokens without supervision are -100")),
];

/// `CLIPVisionConfig`.
pub const VISION: &[Row] = &[
    ("hidden_size", Read),
    ("intermediate_size", Read),
    ("num_hidden_layers", Read),
    ("num_attention_heads", Read),
    ("image_size", Read),
    ("patch_size", Read),
    ("num_channels", Read),
    ("projection_dim", Read),
    ("hidden_act", Read),
    ("layer_norm_eps", Read),
    ("attention_dropout", Read),
    // No module of a CLIP has used it.
    ("dropout", Harmless),
    // Of the text tower, where LLaVA's conversion left it.
    ("vocab_size", Harmless),
];

/// `CLIPConfig`; its text tower is not used.
pub const CLIP: &[Row] = &[
    ("vision_config", Read),
    ("vision_config_dict", Read),
    ("text_config", Harmless),
    ("text_config_dict", Harmless),
    ("projection_dim", Harmless),
    ("logit_scale_init_value", Harmless),
];

/// `Qwen2Config`.
pub const TEXT: &[Row] = &[
    ("vocab_size", Read),
    ("hidden_size", Read),
    ("intermediate_size", Read),
    ("num_hidden_layers", Read),
    ("num_attention_heads", Read),
    ("num_key_value_heads", Read),
    ("head_dim", Read),
    ("hidden_act", Read),
    ("max_position_embeddings", Read),
    ("rms_norm_eps", Read),
    ("rope_theta", Read),
    ("rope_parameters", Read),
    ("rope_scaling", Read),
    ("use_sliding_window", Read),
    ("sliding_window", Read),
    ("max_window_layers", Read),
    ("layer_types", Read),
    ("attention_dropout", Read),
    ("bos_token_id", Read),
    // A copy of max_position_embeddings.
    ("seq_length", Harmless),
    ("model_max_length", Harmless),
    ("use_mrope", off("positions in several dimensions are not implemented")),
    ("is_causal", Only(&["true"], "attention in both directions is not implemented")),
];

/// What `rope_parameters` and `rope_scaling` may hold beside what is read, with the default type.
pub const ROPE: &[Row] = &[
    // Of scaled types alone.
    ("factor", Harmless),
    ("original_max_position_embeddings", Harmless),
];

/// Checks one of the objects of `config.json`.
pub fn check(object: &Map<String, Value>, own: &[Row], at: &At, kind: &str) -> Result<()> {
    let place = Place { place: &at.0, kind, remedy: "use a model without it" };
    fields::check(object, &[own, pretrained::FIELDS, generation::FIELDS], place)
}

/// Checks a rotary embedding's object: none of the fields of all configurations belongs there.
pub fn check_rope(object: &Map<String, Value>, at: &At) -> Result<()> {
    let place = Place { place: &at.0, kind: "a rotary embedding", remedy: "use a model without it" };
    fields::check(object, &[ROPE], place)
}
