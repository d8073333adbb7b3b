//! The language model's names and metadata in GGUF.
//!
//! # Source
//! llama.cpp `convert_hf_to_gguf.py` (`Qwen2Model`, `Qwen3Model`, `LlamaModel`) and `gguf-py/gguf/tensor_mapping.py`.

use super::gguf::{GgufTensor, Value};
use super::tensor::{Order, Target, vector};
use super::{entry, number, vocabulary};
use anyhow::Result;
use base::Error;
use base::names::{EMBED_TOKENS, LM_HEAD, TEXT_MODEL};
use kernels::Rope;
use model::config::{RopeScaling, TextConfig, TextFamily};
use std::path::Path;

/// Parts of a layer's tensors: Hugging Face's name and llama.cpp's.
const LAYER_PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    (Q_PROJ, "attn_q"),
    (K_PROJ, "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];
const Q_PROJ: &str = "self_attn.q_proj";
const K_PROJ: &str = "self_attn.k_proj";

/// llama.cpp's name of a family.
fn architecture(family: TextFamily) -> &'static str {
    match family {
        TextFamily::Qwen2 => "qwen2",
        TextFamily::Qwen3 => "qwen3",
        TextFamily::Llama => "llama",
    }
}

/// Refuses what llama.cpp's graph of the family does not compute.
///
/// # Errors
/// Names the setting.
pub fn require_supported(config: &TextConfig) -> base::Result<()> {
    let family = architecture(config.family);
    let refuse = |key: &str, found: &str| {
        let expected = format!("a setting that llama.cpp's {family} computes");
        Err(Error::invalid(format!("text_config: {key}"), found, expected, "keep the safetensors"))
    };
    if config.family == TextFamily::Qwen3 && config.qkv_bias {
        return refuse("attention_bias", "true");
    }
    // llama.cpp takes the width of a Qwen2's heads from the other two numbers.
    if config.family == TextFamily::Qwen2 && config.query_width() != config.hidden_size {
        return refuse("head_dim", &config.head_dim.to_string());
    }
    match config.rope_scaling {
        Some(RopeScaling::Llama3 { .. }) if config.family != TextFamily::Llama => refuse("rope_type", "llama3"),
        _ => Ok(()),
    }
}

/// A tensor's place in the file by its published name; `None` for tensors of other parts.
pub fn target(published: &str, config: &TextConfig) -> Option<Target> {
    match published {
        EMBED_TOKENS => return Some(Target::kept("token_embd.weight")),
        LM_HEAD => return Some(Target::kept("output.weight")),
        _ => {}
    }
    let rest = published.strip_prefix(TEXT_MODEL)?.strip_prefix('.')?;
    if rest == "norm.weight" {
        return Some(Target::kept("output_norm.weight"));
    }
    let (layer, rest) = rest.strip_prefix("layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let (_, name) = LAYER_PARTS.iter().find(|(known, _)| *known == part)?;
    let order = match (config.family, part) {
        (TextFamily::Llama, Q_PROJ) => Order::InterleavedHalves { heads: config.num_attention_heads },
        (TextFamily::Llama, K_PROJ) => Order::InterleavedHalves { heads: config.num_key_value_heads },
        _ => Order::Kept,
    };
    Some(Target { name: format!("blk.{layer}.{name}.{kind}"), order })
}

/// Tensors that the checkpoint does not have: the divisors of Llama 3's frequencies.
pub fn further_tensors(config: &TextConfig) -> Vec<GgufTensor<'static>> {
    let Some(RopeScaling::Llama3 { .. }) = config.rope_scaling else { return Vec::new() };
    let plain = Rope::frequencies(config.head_dim, config.rope_theta);
    let divisors = plain.iter().zip(config.inverse_frequencies()).map(|(plain, scaled)| plain / scaled).collect();
    vec![vector("rope_freqs.weight", divisors)]
}

/// Everything that llama.cpp has to know besides the weights.
pub fn metadata(dir: &Path, name: &str, file_type: u32, config: &TextConfig) -> Result<Vec<(String, Value)>> {
    let architecture = architecture(config.family);
    let key = |rest: &str| format!("{architecture}.{rest}");
    let mut metadata = vec![
        entry("general.architecture", Value::Text(architecture.into())),
        entry("general.type", Value::Text("model".into())),
        entry("general.name", Value::Text(name.into())),
        number("general.file_type", file_type as usize),
        number("general.quantization_version", 2),
        number(key("block_count"), config.num_hidden_layers),
        number(key("context_length"), config.max_position_embeddings),
        number(key("embedding_length"), config.hidden_size),
        number(key("feed_forward_length"), config.intermediate_size),
        number(key("attention.head_count"), config.num_attention_heads),
        number(key("attention.head_count_kv"), config.num_key_value_heads),
        number(key("attention.key_length"), config.head_dim),
        number(key("attention.value_length"), config.head_dim),
        number(key("rope.dimension_count"), config.head_dim),
        number(key("vocab_size"), config.vocab_size),
        entry(key("rope.freq_base"), Value::F32(config.rope_theta as f32)),
        entry(key("attention.layer_norm_rms_epsilon"), Value::F32(config.rms_norm_eps as f32)),
    ];
    if let Some(RopeScaling::Linear { factor }) = config.rope_scaling {
        metadata.push(entry(key("rope.scaling.type"), Value::Text("linear".into())));
        metadata.push(entry(key("rope.scaling.factor"), Value::F32(factor as f32)));
    }
    metadata.extend(vocabulary::metadata(dir, config)?);
    Ok(metadata)
}
