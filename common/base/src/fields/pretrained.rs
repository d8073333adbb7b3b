//! Fields that transformers' base class of all configurations writes, whatever the model.
//!
//! # Source
//! transformers 4.21 to 5.24, `configuration_utils.py`, `PretrainedConfig` (`PreTrainedConfig` in 5.x).

use super::Rule::{Harmless, Only, Read};
use super::{Row, empty, off};

const NO_CROSS: &str = "cross attention is not implemented";
const NO_ENCODER: &str = "only decoders are implemented";

/// `PretrainedConfig`; generation's fields, which it has too, are [`super::generation::FIELDS`].
pub const FIELDS: &[Row] = &[
    ("model_type", Read),
    ("dtype", Read),
    ("torch_dtype", Read),
    ("tie_word_embeddings", Read),
    // Origin, and the program that saved it.
    ("_name_or_path", Harmless),
    ("name_or_path", Harmless),
    ("_commit_hash", Harmless),
    ("architectures", Harmless),
    ("transformers_version", Harmless),
    ("transformers.js_config", Harmless),
    ("unsloth_version", Harmless),
    ("unsloth_fixed", Harmless),
    // How it is computed elsewhere; the result is the same.
    ("_attn_implementation", Harmless),
    ("_attn_implementation_autoset", Harmless),
    ("_attn_implementation_internal", Harmless),
    ("attn_implementation", Harmless),
    ("_flash_attn_2_enabled", Harmless),
    ("_experts_implementation", Harmless),
    ("_experts_implementation_internal", Harmless),
    ("experts_implementation", Harmless),
    ("chunk_size_feed_forward", Only(&["0"], "layers in pieces are not implemented")),
    ("gradient_checkpointing", Harmless),
    ("use_bfloat16", Harmless),
    // What a forward pass gives back.
    ("return_dict", Harmless),
    ("use_return_dict", Harmless),
    ("torchscript", off("weights under TorchScript are not tied")),
    // Classification heads, which a LLaVA does not have.
    ("finetuning_task", Harmless),
    ("id2label", Harmless),
    ("label2id", Harmless),
    ("num_labels", Harmless),
    ("problem_type", Harmless),
    ("task_specific_params", Harmless),
    ("tf_legacy_loss", Harmless),
    // Of the tokenizer, which has files of its own.
    ("prefix", Harmless),
    ("tokenizer_class", Harmless),
    ("sep_token_id", Harmless),
    ("cls_token_id", Harmless),
    // Only what initialises weights that are in the files.
    ("initializer_range", Harmless),
    ("initializer_factor", Harmless),
    // Other architectures.
    ("add_cross_attention", off(NO_CROSS)),
    ("cross_attention_hidden_size", Only(&[], NO_CROSS)),
    ("is_decoder", off("it changes the attention of some models")),
    ("is_encoder_decoder", off(NO_ENCODER)),
    ("tie_encoder_decoder", off(NO_ENCODER)),
    ("pruned_heads", empty("heads that are pruned at loading are not implemented")),
    // Weights and code of other kinds.
    ("quantization_config", Only(&[], "quantized weights are not read; use the model that was quantized")),
    ("compression_config", Only(&[], "compressed weights are not read")),
    ("auto_map", empty("code that comes with the model is not run")),
    ("adapter_path", Only(&[], "give the adapter by its own option")),
];
