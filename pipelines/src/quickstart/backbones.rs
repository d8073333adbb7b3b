//! A CLIP and a Qwen2 so small that a CPU trains them in minutes: random weights in Hugging Face directories.

use super::shapes;
use super::tokenizer::Vocabulary;
use anyhow::Result;
use base::{Error, json, names};
use burn::module::Module;
use kernels::device;
use model::Llava;
use model::config::{
    Activation, FeatureSelect, LlavaConfig, TextConfig, TextFamily, VisionConfig, VisionFamily, WeightDtype,
};
use serde_json::json;
use std::path::Path;
use store::checkpoint::{module_tensors, write_tensors};

/// Longest row, tokens.
pub const MAX_POSITIONS: usize = 256;
/// Rows of the embedding are rounded up to this, so that `<image>` finds a free one.
const VOCABULARY_STEP: usize = 64;

/// The sizes of both.
fn config(vocabulary: Vocabulary) -> LlavaConfig {
    LlavaConfig {
        vision: VisionConfig {
            family: VisionFamily::Clip,
            hidden_size: 96,
            intermediate_size: 192,
            // Features come from the layer before the last, so two of them are computed.
            num_hidden_layers: 3,
            num_attention_heads: 4,
            image_size: shapes::SIDE as usize,
            patch_size: 8,
            num_channels: 3,
            projection_dim: Some(32),
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            attention_dropout: 0.0,
        },
        text: TextConfig {
            family: TextFamily::Qwen2,
            hidden_size: 96,
            intermediate_size: 192,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            head_dim: 24,
            vocab_size: (vocabulary.size + 1).next_multiple_of(VOCABULARY_STEP),
            max_position_embeddings: MAX_POSITIONS,
            rope_theta: 10_000.0,
            rope_scaling: None,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            qkv_bias: true,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            bos_token_id: Some(vocabulary.pad),
            eos_token_id: vec![vocabulary.eos],
            attention_dropout: 0.0,
        },
        image_token_index: vocabulary.size as u32,
        pad_token_id: Some(vocabulary.pad),
        vision_feature_layers: vec![-2],
        vision_feature_layer_is_scalar: true,
        quantization: None,
        vision_feature_select_strategy: FeatureSelect::Default,
        projector_hidden_act: Activation::Gelu,
        multimodal_projector_bias: true,
        dtype: WeightDtype::F32,
    }
}

/// Writes the CLIP directory and the Qwen2 directory, tokenizer excepted.
///
/// # Errors
/// Files that cannot be written.
pub fn write(vocabulary: Vocabulary, seed: u64, clip: &Path, qwen2: &Path) -> Result<()> {
    let config = config(vocabulary);
    let model = Llava::random(&config, seed, &device::cpu());
    for folder in [clip, qwen2] {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    }
    write_clip(&config.vision, clip)?;
    write_weights(&model.vision_tower, clip)?;
    write_qwen2(&config.text, vocabulary, qwen2)?;
    write_weights(&model.language_model, qwen2)
}

fn write_clip(config: &VisionConfig, folder: &Path) -> Result<()> {
    let processor = json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": true, "size": {"shortest_edge": config.image_size}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": config.image_size, "width": config.image_size},
        "do_convert_rgb": true,
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    });
    json::write(&folder.join(names::CONFIG_FILE), &config.to_json(WeightDtype::F32))?;
    Ok(json::write(&folder.join(names::PREPROCESSOR_CONFIG_FILE), &processor)?)
}

fn write_qwen2(config: &TextConfig, vocabulary: Vocabulary, folder: &Path) -> Result<()> {
    let generation = json!({
        "bos_token_id": vocabulary.pad, "eos_token_id": [vocabulary.eos, vocabulary.pad], "pad_token_id": vocabulary.pad,
        "do_sample": false,
    });
    json::write(&folder.join(names::CONFIG_FILE), &config.to_json(WeightDtype::F32))?;
    Ok(json::write(&folder.join(names::GENERATION_CONFIG_FILE), &generation)?)
}

/// A part of the model under the names of its own checkpoint: its paths from the part on are those names.
fn write_weights(part: &impl Module, folder: &Path) -> Result<()> {
    Ok(write_tensors(module_tensors(part, None, WeightDtype::F32), folder, usize::MAX)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn directories_hold_the_published_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let (clip, qwen2) = (folder.path().join("clip"), folder.path().join("qwen2"));
        write(Vocabulary { size: 300, pad: 297, eos: 299 }, 1, &clip, &qwen2).expect("written");
        let shapes = |folder: &Path, name: &str| {
            let bytes = std::fs::read(folder.join(names::WEIGHTS_FILE)).expect("weights");
            let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
            tensors.tensor(name).map(|tensor| tensor.shape().to_vec()).expect("the tensor")
        };
        assert_eq!(shapes(&clip, "vision_model.embeddings.patch_embedding.weight"), [96, 3, 8, 8]);
        assert_eq!(shapes(&clip, "vision_model.encoder.layers.2.mlp.fc1.weight"), [192, 96]);
        assert_eq!(shapes(&qwen2, "model.embed_tokens.weight"), [320, 96]);
        assert_eq!(shapes(&qwen2, "lm_head.weight"), [320, 96]);
    }
}
