//! `config.json` of a LLaVA with the keys that transformers 4.41 and 5.x both understand.

use super::read::{CLIP_VISION, LLAVA, QWEN2};
use super::{Activation, FeatureSelect, LlavaConfig, TextConfig, VisionConfig};
use base::{Result, json, names};
use serde_json::{Value, json};
use std::path::Path;

impl LlavaConfig {
    /// Writes `dir/config.json`.
    ///
    /// `rope_theta` and `torch_dtype` are written in their older places: 5.x reads them there, 4.41 nowhere else.
    pub fn write(&self, dir: &Path) -> Result<()> {
        json::write(&dir.join(names::CONFIG_FILE), &self.to_json())
    }

    fn to_json(&self) -> Value {
        let layers = &self.vision_feature_layers;
        json!({
            "architectures": ["LlavaForConditionalGeneration"],
            "image_seq_length": self.image_seq_length(),
            "image_token_index": self.image_token_index,
            "model_type": LLAVA,
            "multimodal_projector_bias": self.multimodal_projector_bias,
            "pad_token_id": self.pad_token_id,
            "projector_hidden_act": self.projector_hidden_act.name(),
            "text_config": text_json(&self.text, self.dtype.torch_name()),
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "torch_dtype": self.dtype.torch_name(),
            "vision_config": vision_json(&self.vision, self.dtype.torch_name()),
            "vision_feature_layer": match (self.vision_feature_layer_is_scalar, &layers[..]) {
                (true, [layer]) => json!(layer),
                _ => json!(layers),
            },
            "vision_feature_select_strategy": self.vision_feature_select_strategy.name(),
        })
    }
}

fn text_json(text: &TextConfig, dtype: &str) -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": text.attention_dropout,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": match text.eos_token_id[..] {
            [] => Value::Null,
            [id] => json!(id),
            ref ids => json!(ids),
        },
        "hidden_act": Activation::Silu.name(),
        "hidden_size": text.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": text.intermediate_size,
        "max_position_embeddings": text.max_position_embeddings,
        "max_window_layers": text.num_hidden_layers,
        "model_type": QWEN2,
        "num_attention_heads": text.num_attention_heads,
        "num_hidden_layers": text.num_hidden_layers,
        "num_key_value_heads": text.num_key_value_heads,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        // 4.41 windows its eager attention by this number even when use_sliding_window is false.
        "sliding_window": text.max_position_embeddings,
        "tie_word_embeddings": text.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": text.vocab_size,
    })
}

fn vision_json(vision: &VisionConfig, dtype: &str) -> Value {
    json!({
        "attention_dropout": vision.attention_dropout,
        "hidden_act": vision.hidden_act.name(),
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": vision.intermediate_size,
        "layer_norm_eps": vision.layer_norm_eps,
        "model_type": CLIP_VISION,
        "num_attention_heads": vision.num_attention_heads,
        "num_channels": vision.num_channels,
        "num_hidden_layers": vision.num_hidden_layers,
        "patch_size": vision.patch_size,
        "projection_dim": vision.projection_dim,
        "torch_dtype": dtype,
    })
}

impl FeatureSelect {
    /// transformers' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Full => "full",
        }
    }
}
