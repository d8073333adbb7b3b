//! The vision tower's and the projector's names and metadata in GGUF, as llama.cpp's `clip.cpp` reads a LLaVA.
//!
//! # Source
//! llama.cpp `tools/mtmd/clip.cpp` (projector type `mlp`), `gguf-py/gguf/tensor_mapping.py` (MMPROJ), `models/llava.cpp`, and
//! `convert_image_encoder_to_gguf.py` for what a LLaVA leaves out: layers after the selected one, the last norm.

use super::gguf::{GgufTensor, Value};
use super::tensor::{Order, Target, vector};
use super::{MOSTLY_F16, entry, number};
use anyhow::Result;
use base::Error;
use base::names::{PROJECTOR, VISION_MODEL};
use images::image_processor::ImageProcessor;
use model::config::{Activation, FeatureSelect, LlavaConfig};
use std::path::Path;

const LAYER_PARTS: [(&str, &str); 8] = [
    ("layer_norm1", "ln1"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.out_proj", "attn_out"),
    ("layer_norm2", "ln2"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
];

/// Refuses what `clip.cpp` does not compute.
///
/// # Errors
/// Names the setting.
pub fn require_supported(config: &LlavaConfig) -> base::Result<()> {
    let refuse = |key: &str, found: String, expected: &str| {
        Err(Error::invalid(key, found, expected, "llama.cpp's LLaVA has no other; keep the safetensors"))
    };
    let layers = config.selected_hidden_states();
    if layers.iter().enumerate().any(|(index, layer)| layers[..index].contains(layer)) {
        let found = format!("{:?}", config.vision_feature_layers);
        return refuse("vision_feature_layer", found, "each layer once");
    }
    if config.vision_feature_select_strategy == FeatureSelect::Full && config.vision.family.has_class_token() {
        return refuse("vision_feature_select_strategy", "full".into(), "default for a tower with a class token");
    }
    // llama.cpp computes both with tanh.
    if !matches!(config.projector_hidden_act, Activation::Gelu | Activation::GeluTanh) {
        return refuse("projector_hidden_act", config.projector_hidden_act.name().into(), "gelu");
    }
    Ok(())
}

/// A tensor's place in the file by its published name; `None` for other parts, and for layers that are not computed.
pub fn target(published: &str, config: &LlavaConfig) -> Option<Target> {
    if let Some(rest) = published.strip_prefix(PROJECTOR) {
        // A sequence of linear (0), GELU (1), linear (2), as the original LLaVA numbers it.
        let (linear, kind) = rest.strip_prefix('.')?.split_once('.')?;
        let order = match (linear, kind) {
            ("linear_1", "weight") => Order::Blocks(layers_from_the_first(config)),
            _ => Order::Kept,
        };
        let number = match linear {
            "linear_1" => 0,
            "linear_2" => 2,
            _ => return None,
        };
        return Some(Target { name: format!("mm.{number}.{kind}"), order });
    }
    let rest = published.strip_prefix(VISION_MODEL)?.strip_prefix('.')?;
    if let Some((layer, rest)) = rest.strip_prefix("encoder.layers.").and_then(|rest| rest.split_once('.')) {
        if layer.parse::<usize>().ok()? >= config.computed_vision_layers() {
            return None;
        }
        let (part, kind) = rest.rsplit_once('.')?;
        let (_, name) = LAYER_PARTS.iter().find(|(known, _)| *known == part)?;
        return Some(Target::kept(format!("v.blk.{layer}.{name}.{kind}")));
    }
    let name = match rest {
        "embeddings.class_embedding" => "v.class_embd",
        "embeddings.patch_embedding.weight" => "v.patch_embd.weight",
        "embeddings.patch_embedding.bias" => "v.patch_embd.bias",
        "embeddings.position_embedding.weight" => "v.position_embd.weight",
        "pre_layrnorm.weight" => "v.pre_ln.weight",
        "pre_layrnorm.bias" => "v.pre_ln.bias",
        _ => return None,
    };
    Some(Target::kept(name))
}

/// The places of the selected layers in the projector's input, as `clip.cpp` stacks them: the first layer first.
fn layers_from_the_first(config: &LlavaConfig) -> Vec<usize> {
    let layers = config.selected_hidden_states();
    let mut places: Vec<usize> = (0..layers.len()).collect();
    places.sort_by_key(|&place| layers[place]);
    places
}

/// Tensors that the checkpoint does not have: `clip.cpp` adds biases to the projector's layers in any case.
pub fn further_tensors(config: &LlavaConfig) -> Vec<GgufTensor<'static>> {
    if config.multimodal_projector_bias {
        return Vec::new();
    }
    [0, 2].map(|number| vector(format!("mm.{number}.bias"), vec![0.0; config.text.hidden_size])).into()
}

/// Everything that `clip.cpp` has to know besides the weights.
pub fn metadata(dir: &Path, name: &str, config: &LlavaConfig) -> Result<Vec<(String, Value)>> {
    let images = ImageProcessor::from_dir(dir)?;
    let floats = |values: [f64; 3]| Value::F32s(values.iter().map(|&value| value as f32).collect());
    let vision = &config.vision;
    let feature_layers = config.selected_hidden_states().into_iter().map(|layer| layer as i32).collect();
    let key = |rest: &str| format!("clip.vision.{rest}");
    Ok(vec![
        entry("general.architecture", Value::Text("clip".into())),
        entry("general.type", Value::Text("mmproj".into())),
        entry("general.name", Value::Text(name.into())),
        number("general.file_type", MOSTLY_F16 as usize),
        number("general.quantization_version", 2),
        entry("clip.has_text_encoder", Value::Bool(false)),
        entry("clip.has_vision_encoder", Value::Bool(true)),
        entry("clip.has_llava_projector", Value::Bool(true)),
        entry("clip.projector_type", Value::Text("mlp".into())),
        number(key("image_size"), vision.image_size),
        number(key("patch_size"), vision.patch_size),
        number(key("embedding_length"), vision.hidden_size),
        number(key("feed_forward_length"), vision.intermediate_size),
        number(key("projection_dim"), config.text.hidden_size),
        number(key("block_count"), config.computed_vision_layers()),
        // Without it clip.cpp leaves out the last of the layers that it is given.
        entry(key("feature_layer"), Value::I32s(feature_layers)),
        number(key("attention.head_count"), vision.num_attention_heads),
        entry(key("attention.layer_norm_epsilon"), Value::F32(vision.layer_norm_eps as f32)),
        entry(key("image_mean"), floats(images.image_mean)),
        entry(key("image_std"), floats(images.image_std)),
        // Without it clip.cpp takes x · sigmoid(1.702 x); its GELU is the one with tanh.
        entry("clip.use_gelu", Value::Bool(matches!(vision.hidden_act, Activation::Gelu | Activation::GeluTanh))),
        entry("clip.use_silu", Value::Bool(vision.hidden_act == Activation::Silu)),
    ])
}
