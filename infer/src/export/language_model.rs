//! The language model's names and metadata in GGUF.
//!
//! # Source
//! llama.cpp `convert_hf_to_gguf.py` (`Qwen2Model`) and `gguf-py/gguf/tensor_mapping.py`.

use super::gguf::Value;
use super::{MOSTLY_F16, entry, number, vocabulary};
use anyhow::Result;
use base::names::{EMBED_TOKENS, LM_HEAD, TEXT_MODEL};
use model::config::TextConfig;
use std::path::Path;

const ARCHITECTURE: &str = "qwen2";

/// Parts of a layer's tensors: Hugging Face's name and llama.cpp's.
const LAYER_PARTS: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// llama.cpp's name of a tensor by its published name; `None` for tensors of other parts.
pub fn tensor_name(published: &str) -> Option<String> {
    match published {
        EMBED_TOKENS => return Some("token_embd.weight".into()),
        LM_HEAD => return Some("output.weight".into()),
        _ => {}
    }
    let rest = published.strip_prefix(TEXT_MODEL)?.strip_prefix('.')?;
    if rest == "norm.weight" {
        return Some("output_norm.weight".into());
    }
    let (layer, rest) = rest.strip_prefix("layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (_, name) = LAYER_PARTS.iter().find(|(known, _)| *known == part)?;
    Some(format!("blk.{layer}.{name}.{kind}"))
}

/// Everything that llama.cpp has to know besides the weights.
pub fn metadata(dir: &Path, name: &str, config: &TextConfig) -> Result<Vec<(String, Value)>> {
    let key = |rest: &str| format!("{ARCHITECTURE}.{rest}");
    let mut metadata = vec![
        entry("general.architecture", Value::Text(ARCHITECTURE.into())),
        entry("general.type", Value::Text("model".into())),
        entry("general.name", Value::Text(name.into())),
        number("general.file_type", MOSTLY_F16 as usize),
        number("general.quantization_version", 2),
        number(key("block_count"), config.num_hidden_layers),
        number(key("context_length"), config.max_position_embeddings),
        number(key("embedding_length"), config.hidden_size),
        number(key("feed_forward_length"), config.intermediate_size),
        number(key("attention.head_count"), config.num_attention_heads),
        number(key("attention.head_count_kv"), config.num_key_value_heads),
        entry(key("rope.freq_base"), Value::F32(config.rope_theta as f32)),
        entry(key("attention.layer_norm_rms_epsilon"), Value::F32(config.rms_norm_eps as f32)),
    ];
    metadata.extend(vocabulary::metadata(dir, config)?);
    Ok(metadata)
}
