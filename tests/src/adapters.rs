//! Adapter folders and models made by the tests themselves.

use burn::tensor::Device;
use model::Llava;
use model::config::{
    Activation, FeatureSelect, LlavaConfig, TextConfig, TextFamily, VisionConfig, VisionFamily, WeightDtype,
};
use serde_json::Value;
use std::path::Path;
use store::checkpoint::{TensorSource, from_f32, write_file};

/// The configuration of a LLaVA with 2 layers of the language model and 3 of the tower, untied.
pub fn config() -> LlavaConfig {
    LlavaConfig {
        vision: VisionConfig {
            family: VisionFamily::Clip,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            image_size: 28,
            patch_size: 14,
            num_channels: 3,
            projection_dim: Some(8),
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            attention_dropout: 0.0,
        },
        text: TextConfig {
            family: TextFamily::Qwen2,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            head_dim: 8,
            vocab_size: 64,
            max_position_embeddings: 128,
            rope_theta: 10_000.0,
            rope_scaling: None,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            qkv_bias: true,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            bos_token_id: None,
            eos_token_id: vec![2],
            attention_dropout: 0.0,
        },
        image_token_index: 60,
        pad_token_id: None,
        vision_feature_layers: vec![-2],
        vision_feature_layer_is_scalar: true,
        quantization: None,
        vision_feature_select_strategy: FeatureSelect::Default,
        projector_hidden_act: Activation::Gelu,
        multimodal_projector_bias: true,
        dtype: WeightDtype::F32,
    }
}

/// A model of that configuration with random weights.
pub fn model(device: &Device) -> Llava {
    Llava::random(&config(), 3, device)
}

/// Names and shapes of the LoRA matrices of rank `rank` on projections of all layers of the language model, as transformers 4
/// names them.
pub fn text_lora(projections: &[&str], rank: usize) -> Vec<(String, Vec<usize>)> {
    let TextConfig { hidden_size, intermediate_size, num_hidden_layers, .. } = config().text;
    let layer = |layer: usize| {
        projections.iter().flat_map(move |projection| {
            let (module, inputs, outputs) = match *projection {
                "gate_proj" | "up_proj" => ("mlp", hidden_size, intermediate_size),
                "down_proj" => ("mlp", intermediate_size, hidden_size),
                _ => ("self_attn", hidden_size, hidden_size),
            };
            let path = format!("base_model.model.language_model.model.layers.{layer}.{module}.{projection}");
            [
                (format!("{path}.lora_A.weight"), vec![rank, inputs]),
                (format!("{path}.lora_B.weight"), vec![outputs, rank]),
            ]
        })
    };
    (0..num_hidden_layers).flat_map(layer).collect()
}

/// Writes an adapter with this configuration and tensors of arbitrary values.
pub fn write(dir: &Path, config: &Value, tensors: &[(String, Vec<usize>)]) {
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).expect("written");
    let source = |(name, shape): &(String, Vec<usize>)| {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|index| ((index + name.len()) as f32 * 0.7).sin() * 0.1).collect();
        let bytes = Box::new(move || Ok(from_f32(&values, WeightDtype::F32)));
        TensorSource { name: name.clone(), dtype: WeightDtype::F32.into(), shape: shape.clone(), bytes }
    };
    write_file(tensors.iter().map(source).collect(), &dir.join("adapter_model.safetensors")).expect("written");
}
