//! The files as transformers writes them: field names are the keys, absent keys have transformers' defaults.
//!
//! # Source
//! transformers 4.41 and 5.24, `configuration_llava.py`, `configuration_clip.py`, `configuration_qwen2.py`.

use base::json::OneOrMany;
use serde::Deserialize;
use serde_json::{Map, Value};

/// `config.json` of a LLaVA.
#[derive(Deserialize)]
pub struct RawLlava {
    pub vision_config: Option<RawVision>,
    pub text_config: Option<RawText>,
    pub image_token_index: Option<u32>,
    /// The newer name; some files have both.
    pub image_token_id: Option<u32>,
    pub pad_token_id: Option<u32>,
    pub vision_feature_layer: Option<OneOrMany<i64>>,
    pub vision_feature_select_strategy: Option<String>,
    pub projector_hidden_act: Option<String>,
    pub multimodal_projector_bias: Option<bool>,
    pub tie_word_embeddings: Option<bool>,
    pub dtype: Option<String>,
    pub torch_dtype: Option<String>,
}

/// `config.json` of a CLIP (both towers).
#[derive(Deserialize)]
pub struct RawClip {
    pub vision_config: Option<RawVision>,
    /// What early conversions wrote; it wins over `vision_config`.
    pub vision_config_dict: Option<RawVision>,
    pub dtype: Option<String>,
    pub torch_dtype: Option<String>,
}

/// CLIP's vision tower, nested or as a file of its own.
#[derive(Deserialize)]
pub struct RawVision {
    pub model_type: Option<String>,
    #[serde(default = "defaults::vision_hidden_size")]
    pub hidden_size: usize,
    #[serde(default = "defaults::vision_intermediate_size")]
    pub intermediate_size: usize,
    #[serde(default = "defaults::vision_layers")]
    pub num_hidden_layers: usize,
    #[serde(default = "defaults::vision_layers")]
    pub num_attention_heads: usize,
    #[serde(default = "defaults::image_size")]
    pub image_size: OneOrMany<usize>,
    #[serde(default = "defaults::patch_size")]
    pub patch_size: OneOrMany<usize>,
    #[serde(default = "defaults::num_channels")]
    pub num_channels: usize,
    #[serde(default = "defaults::projection_dim")]
    pub projection_dim: usize,
    pub hidden_act: Option<String>,
    #[serde(default = "defaults::layer_norm_eps")]
    pub layer_norm_eps: f64,
    pub attention_dropout: Option<f64>,
    pub dtype: Option<String>,
    pub torch_dtype: Option<String>,
}

/// Qwen2, nested or as a file of its own.
#[derive(Deserialize)]
pub struct RawText {
    pub model_type: Option<String>,
    #[serde(default = "defaults::text_hidden_size")]
    pub hidden_size: usize,
    #[serde(default = "defaults::text_intermediate_size")]
    pub intermediate_size: usize,
    #[serde(default = "defaults::text_layers")]
    pub num_hidden_layers: usize,
    #[serde(default = "defaults::text_layers")]
    pub num_attention_heads: usize,
    /// Absent means 32, as there; an explicit `null` means as many as query heads.
    #[serde(default = "defaults::num_key_value_heads")]
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    #[serde(default = "defaults::vocab_size")]
    pub vocab_size: usize,
    #[serde(default = "defaults::max_position_embeddings")]
    pub max_position_embeddings: usize,
    pub rope_theta: Option<f64>,
    pub rope_parameters: Option<RawRope>,
    pub rope_scaling: Option<RawRope>,
    #[serde(default = "defaults::rms_norm_eps")]
    pub rms_norm_eps: f64,
    pub hidden_act: Option<String>,
    pub tie_word_embeddings: Option<bool>,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<OneOrMany<u32>>,
    #[serde(default)]
    pub use_sliding_window: bool,
    /// Absent means 4096, as there; an explicit `null` means no window.
    #[serde(default = "defaults::sliding_window")]
    pub sliding_window: Option<usize>,
    #[serde(default = "defaults::max_window_layers")]
    pub max_window_layers: usize,
    pub layer_types: Option<Vec<String>>,
    pub attention_dropout: Option<f64>,
    pub dtype: Option<String>,
    pub torch_dtype: Option<String>,
}

/// `rope_parameters` of 5.x, `rope_scaling` of 4.x.
#[derive(Deserialize)]
pub struct RawRope {
    pub rope_theta: Option<f64>,
    pub rope_type: Option<String>,
    /// The older name of `rope_type`; some files have both.
    #[serde(rename = "type")]
    pub older_rope_type: Option<String>,
    pub partial_rotary_factor: Option<f64>,
    /// The other fields, to be checked.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

impl RawRope {
    /// Whether it says nothing, as `{}`.
    pub fn is_empty(&self) -> bool {
        let Self { rope_theta, rope_type, older_rope_type, partial_rotary_factor, others } = self;
        let has_number = rope_theta.or(*partial_rotary_factor).is_some();
        !has_number && rope_type.is_none() && older_rope_type.is_none() && others.is_empty()
    }

    /// The type that is not the default, if there is one.
    pub fn scaled_type(&self) -> Option<&str> {
        let types = [self.rope_type.as_deref(), self.older_rope_type.as_deref()];
        types.into_iter().flatten().find(|&kind| kind != "default")
    }
}

/// Enough of any `config.json` to say what it is.
#[derive(Deserialize)]
pub struct RawModelType {
    pub model_type: Option<Value>,
}

/// transformers' values of absent keys.
pub mod defaults {
    use base::json::OneOrMany;

    macro_rules! values {
        ($($name:ident: $type:ty = $value:expr;)*) => { $(pub fn $name() -> $type { $value })* };
    }

    values! {
        vision_hidden_size: usize = 768;
        vision_intermediate_size: usize = 3072;
        vision_layers: usize = 12;
        image_size: OneOrMany<usize> = OneOrMany::One(224);
        patch_size: OneOrMany<usize> = OneOrMany::One(32);
        num_channels: usize = 3;
        projection_dim: usize = 512;
        layer_norm_eps: f64 = 1e-5;
        text_hidden_size: usize = 4096;
        text_intermediate_size: usize = 22016;
        text_layers: usize = 32;
        num_key_value_heads: Option<usize> = Some(32);
        vocab_size: usize = 151_936;
        max_position_embeddings: usize = 32_768;
        max_window_layers: usize = 28;
        sliding_window: Option<usize> = Some(4096);
        rms_norm_eps: f64 = 1e-6;
        rope_theta: f64 = 10_000.0;
        image_token_index: u32 = 32_000;
    }
}
