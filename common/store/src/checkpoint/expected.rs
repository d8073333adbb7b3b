//! Which tensors a configuration has: names and shapes, without weights.

use base::names::{EMBED_TOKENS, LM_HEAD, PROJECTOR, TEXT_MODEL, VISION_MODEL};
use model::config::{LlavaConfig, TextConfig, VisionConfig};

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// Published name.
    pub name: String,
    /// Shape, Hugging Face's layout.
    pub shape: Vec<usize>,
}

impl ExpectedTensor {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// No values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Every tensor of a LLaVA, in the model's order; the head is absent when tied.
pub fn expected_tensors(config: &LlavaConfig) -> Vec<ExpectedTensor> {
    [expected_vision(&config.vision), expected_projector(config), expected_text(&config.text)].concat()
}

/// The vision tower's tensors.
pub fn expected_vision(config: &VisionConfig) -> Vec<ExpectedTensor> {
    let mut list = List(Vec::new());
    list.vision(config);
    list.0
}

/// The projector's tensors.
pub fn expected_projector(config: &LlavaConfig) -> Vec<ExpectedTensor> {
    let mut list = List(Vec::new());
    let inputs = config.vision.hidden_size * config.vision_feature_layers.len();
    let (width, bias) = (config.text.hidden_size, config.multimodal_projector_bias);
    list.linear(&format!("{PROJECTOR}.linear_1"), inputs, width, bias);
    list.linear(&format!("{PROJECTOR}.linear_2"), width, width, bias);
    list.0
}

/// The language model's tensors; the head is absent when tied.
pub fn expected_text(config: &TextConfig) -> Vec<ExpectedTensor> {
    let mut list = List(Vec::new());
    list.text(config);
    list.0
}

struct List(Vec<ExpectedTensor>);

impl List {
    fn push(&mut self, name: String, shape: &[usize]) {
        self.0.push(ExpectedTensor { name, shape: shape.to_vec() });
    }

    fn linear(&mut self, path: &str, inputs: usize, outputs: usize, bias: bool) {
        self.push(format!("{path}.weight"), &[outputs, inputs]);
        if bias {
            self.push(format!("{path}.bias"), &[outputs]);
        }
    }

    fn layer_norm(&mut self, path: &str, width: usize) {
        self.push(format!("{path}.weight"), &[width]);
        self.push(format!("{path}.bias"), &[width]);
    }

    fn vision(&mut self, config: &VisionConfig) {
        let (width, inner, side) =
            (config.hidden_size, config.intermediate_size, config.image_size / config.patch_size);
        let patch = [width, config.num_channels, config.patch_size, config.patch_size];
        let embeddings = format!("{VISION_MODEL}.embeddings");
        self.push(format!("{embeddings}.class_embedding"), &[width]);
        self.push(format!("{embeddings}.patch_embedding.weight"), &patch);
        self.push(format!("{embeddings}.position_embedding.weight"), &[1 + side * side, width]);
        self.layer_norm(&format!("{VISION_MODEL}.pre_layrnorm"), width);
        for layer in 0..config.num_hidden_layers {
            let path = format!("{VISION_MODEL}.encoder.layers.{layer}");
            self.layer_norm(&format!("{path}.layer_norm1"), width);
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                self.linear(&format!("{path}.self_attn.{projection}"), width, width, true);
            }
            self.layer_norm(&format!("{path}.layer_norm2"), width);
            self.linear(&format!("{path}.mlp.fc1"), width, inner, true);
            self.linear(&format!("{path}.mlp.fc2"), inner, width, true);
        }
        self.layer_norm(&format!("{VISION_MODEL}.post_layernorm"), width);
    }

    fn text(&mut self, config: &TextConfig) {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let kv_width = config.num_key_value_heads * config.head_dim();
        self.push(EMBED_TOKENS.into(), &[config.vocab_size, width]);
        for layer in 0..config.num_hidden_layers {
            let path = format!("{TEXT_MODEL}.layers.{layer}");
            self.push(format!("{path}.input_layernorm.weight"), &[width]);
            self.linear(&format!("{path}.self_attn.q_proj"), width, width, true);
            self.linear(&format!("{path}.self_attn.k_proj"), width, kv_width, true);
            self.linear(&format!("{path}.self_attn.v_proj"), width, kv_width, true);
            self.linear(&format!("{path}.self_attn.o_proj"), width, width, false);
            self.push(format!("{path}.post_attention_layernorm.weight"), &[width]);
            self.linear(&format!("{path}.mlp.gate_proj"), width, inner, false);
            self.linear(&format!("{path}.mlp.up_proj"), width, inner, false);
            self.linear(&format!("{path}.mlp.down_proj"), inner, width, false);
        }
        self.push(format!("{TEXT_MODEL}.norm.weight"), &[width]);
        if !config.tie_word_embeddings {
            self.push(LM_HEAD.into(), &[config.vocab_size, width]);
        }
    }
}
