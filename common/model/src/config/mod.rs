//! `config.json` of a LLaVA, a CLIP and a Qwen2: read in every spelling that transformers has written, validated once.

mod attention;
mod fields;
mod raw;
mod read;
mod write;

pub use kernels::Activation;

use burn::tensor::Device;
use kernels::kv_cache::KvCache;

/// Which patch features of the selected layers the projector gets (`vision_feature_select_strategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureSelect {
    /// The patches, without the class token.
    Default,
    /// The class token and the patches.
    Full,
}

/// Number format of weights in a file (`dtype` / `torch_dtype`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightDtype {
    /// float32
    F32,
    /// bfloat16
    Bf16,
    /// float16
    F16,
}

impl WeightDtype {
    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// PyTorch's name (`float32`, …).
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    /// From PyTorch's name.
    pub fn from_torch_name(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16, Self::F16].into_iter().find(|dtype| dtype.torch_name() == name)
    }
}

/// CLIP's vision tower.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers in the checkpoint (those after the selected one are not computed).
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Side of the square input, pixels.
    pub image_size: usize,
    /// Side of a patch, pixels.
    pub patch_size: usize,
    /// Colour channels.
    pub num_channels: usize,
    /// Width of CLIP's joint space; unused by LLaVA, kept for the config file.
    pub projection_dim: usize,
    /// MLP activation.
    pub hidden_act: Activation,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f64,
    /// Dropout of attention weights in training; not applied here, kept for the config file.
    pub attention_dropout: f64,
}

/// Qwen2.
#[derive(Clone, Debug, PartialEq)]
pub struct TextConfig {
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest position the model was made for, tokens.
    pub max_position_embeddings: usize,
    /// RoPE base.
    pub rope_theta: f64,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// lm_head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// `bos_token_id`, if any.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id` of the config, one id or several; may be empty.
    pub eos_token_id: Vec<u32>,
    /// Dropout of attention weights in training; not applied here, kept for the config file.
    pub attention_dropout: f64,
}

/// A whole LLaVA.
#[derive(Clone, Debug, PartialEq)]
pub struct LlavaConfig {
    /// Vision tower.
    pub vision: VisionConfig,
    /// Language model.
    pub text: TextConfig,
    /// Id of `<image>`.
    pub image_token_index: u32,
    /// Padding id, if any.
    pub pad_token_id: Option<u32>,
    /// Indices into CLIP's `hidden_states` (0 is the embedding's output), as written: negative counts from the end.
    pub vision_feature_layers: Vec<i64>,
    /// `vision_feature_layer` stood as one integer, not as a list (kept so that the file is written the same way).
    pub vision_feature_layer_is_scalar: bool,
    /// Patches only, or with the class token.
    pub vision_feature_select_strategy: FeatureSelect,
    /// Activation between the projector's two layers.
    pub projector_hidden_act: Activation,
    /// The projector's layers have biases.
    pub multimodal_projector_bias: bool,
    /// Format of the weights in the files.
    pub dtype: WeightDtype,
}

impl LlavaConfig {
    /// Features that one image becomes: patches, plus one with [`FeatureSelect::Full`].
    pub fn image_seq_length(&self) -> usize {
        let side = self.vision.image_size / self.vision.patch_size;
        side * side + usize::from(self.vision_feature_select_strategy == FeatureSelect::Full)
    }

    /// Absolute indices into `hidden_states`, in the config's order; 0 is the embedding's output.
    pub fn selected_hidden_states(&self) -> Vec<usize> {
        let states = self.vision.num_hidden_layers as i64 + 1;
        self.vision_feature_layers
            .iter()
            .map(|&layer| (if layer < 0 { states + layer } else { layer }) as usize)
            .collect()
    }

    /// Vision layers that have to be computed: the largest selected hidden state.
    pub fn computed_vision_layers(&self) -> usize {
        self.selected_hidden_states().into_iter().max().unwrap_or(0)
    }
}

impl TextConfig {
    /// An empty cache for a sequence of at most `capacity` tokens.
    pub fn kv_cache(&self, capacity: usize, device: &Device) -> KvCache {
        KvCache::new(self.num_hidden_layers, self.num_key_value_heads, self.head_dim(), capacity, device)
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}
