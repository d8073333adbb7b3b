//! `config.json` of a LLaVA: read in every spelling that transformers has written, validated once. The parts of it that describe
//! a tower or a language model belong to their families, in [`crate::vision`] and [`crate::text`].

mod directory;
mod llava;
mod quantization;
pub(crate) mod reader;

pub use crate::text::{RopeScaling, TextConfig, TextFamily};
pub use crate::vision::{VisionConfig, VisionFamily};
pub use kernels::{Activation, Quantization};

/// Which patch features of the selected layers the projector gets (`vision_feature_select_strategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureSelect {
    /// The patches, without the class token.
    Default,
    /// All tokens: the patches, and the class token if the tower has one.
    Full,
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

/// Dtype of weights in a file (`dtype` / `torch_dtype`).
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
    /// Indices into the tower's `hidden_states` (0 is the embedding's output), as written: negative counts from the end.
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
    /// Format of the matrices that the files hold in few bits.
    pub quantization: Option<Quantization>,
}

impl LlavaConfig {
    /// Features that one image becomes: the tower's tokens, without the class token with [`FeatureSelect::Default`].
    pub fn image_seq_length(&self) -> usize {
        match self.vision_feature_select_strategy {
            FeatureSelect::Default => self.vision.patches(),
            FeatureSelect::Full => self.vision.tokens(),
        }
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
