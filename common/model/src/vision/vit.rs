//! The vision transformer of all vision families: pre-norm layers of full attention. What a family has or lacks (class token,
//! norm before the layers, bias of the patches) is an optional field.

use super::VisionConfig;
use crate::config::FeatureSelect;
use crate::dropout::{LoraDropout, SiteDropout};
use crate::nn::{Embedding, LayerNorm, Linear};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use kernels::{LinearInput, Mask};

/// `vision_tower.vision_model.…`
#[derive(Module, Debug)]
pub struct VisionTower {
    /// The transformer.
    pub vision_model: VisionTransformer,
}

/// Embeddings, layers, norms.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Patch, class and position embeddings.
    pub embeddings: VisionEmbeddings,
    /// Norm before the layers (the published name has this spelling).
    pub pre_layrnorm: Option<LayerNorm>,
    /// Layers.
    pub encoder: VisionEncoder,
    /// Norm of the output; not used by LLaVA, kept for the checkpoint.
    pub post_layernorm: LayerNorm,
}

/// `embeddings.…`
#[derive(Module, Debug)]
pub struct VisionEmbeddings {
    /// `[D]`
    pub class_embedding: Option<Param<Tensor<1>>>,
    /// `[D, C, patch, patch]`
    pub patch_embedding: PatchEmbedding,
    /// One for each token of an image: `[tokens, D]`
    pub position_embedding: Embedding,
}

/// `patch_embedding.…`
#[derive(Module, Debug)]
pub struct PatchEmbedding {
    /// `[D, C, patch, patch]`
    pub weight: Param<Tensor<4>>,
    /// `[D]`
    pub bias: Option<Param<Tensor<1>>>,
}

/// `layers.…`
#[derive(Module, Debug)]
pub struct VisionEncoder {
    /// In order.
    pub layers: Vec<VisionLayer>,
}

/// Pre-norm transformer layer.
#[derive(Module, Debug)]
pub struct VisionLayer {
    /// Before attention.
    pub layer_norm1: LayerNorm,
    /// Full attention.
    pub self_attn: VisionAttention,
    /// Before the MLP.
    pub layer_norm2: LayerNorm,
    /// fc1, activation, fc2.
    pub mlp: VisionMlp,
}

/// `self_attn.…`
#[derive(Module, Debug)]
pub struct VisionAttention {
    /// Queries.
    pub q_proj: Linear,
    /// Keys.
    pub k_proj: Linear,
    /// Values.
    pub v_proj: Linear,
    /// Output.
    pub out_proj: Linear,
}

/// `mlp.…`
#[derive(Module, Debug)]
pub struct VisionMlp {
    /// Up.
    pub fc1: Linear,
    /// Down.
    pub fc2: Linear,
}

/// Names of a layer's linear layers, in the order of [`VisionLayer::linears_mut`].
pub const VISION_LINEARS: [&str; 6] =
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"];

/// What the layers need to know of a batch of images besides the hidden states.
#[derive(Clone, Debug)]
pub struct VisionContext {
    /// Sizes, epsilon, activation.
    pub config: VisionConfig,
    /// Tokens of each image: patches and, where there is one, the class token.
    pub seq_lens: Vec<usize>,
    /// Dropout of LoRA branches; `row_keys` has one entry for each image.
    pub dropout: Option<LoraDropout>,
}

impl VisionContext {
    /// The context of `num_images` images, without dropout.
    pub fn new(config: &VisionConfig, num_images: usize) -> Self {
        Self { config: config.clone(), seq_lens: vec![config.tokens(); num_images], dropout: None }
    }

    fn dropout(&self, layer: usize, projection: usize) -> Option<SiteDropout<'_>> {
        // The tower's layers count from above the language model's.
        self.dropout.as_ref()?.at(&self.seq_lens, VISION_SITES + layer, projection)
    }
}

/// First layer number of the vision tower's dropout sites.
const VISION_SITES: usize = 1 << 16;

impl VisionTransformer {
    /// `pixel_values` `[N, C, S, S]` → hidden state 0, `[N·tokens, D]`.
    pub fn embed(&self, pixel_values: Tensor<4>, context: &VisionContext) -> Tensor<2> {
        let embeddings = self.embeddings.forward(pixel_values);
        match &self.pre_layrnorm {
            Some(norm) => norm.forward(embeddings, context.config.layer_norm_eps).into(),
            None => embeddings,
        }
    }
}

/// Joins the selected hidden states on the last dimension and drops the class tokens if the strategy says so.
///
/// `states`: K of `[N·(1 + patches), D]` → `[N·P, K·D]`.
/// # Source
/// transformers `modeling_llava.py`, `LlavaModel.get_image_features`.
pub fn select_features(states: Vec<Tensor<2>>, strategy: FeatureSelect, num_images: usize) -> Tensor<2> {
    let joined = Tensor::cat(states, 1);
    let [rows, width] = joined.dims();
    if strategy == FeatureSelect::Full {
        return joined;
    }
    let tokens = rows / num_images;
    let images = joined.reshape([num_images, tokens, width]);
    images.narrow(1, 1, tokens - 1).reshape([num_images * (tokens - 1), width])
}

impl VisionEmbeddings {
    /// `pixel_values` `[N, C, S, S]` → `[N·tokens, D]`: the class token, if there is one, then the patches row by row, each with
    /// its position added. Pixels that fill no patch, at the right and lower border, are left out, as a convolution does.
    pub fn forward(&self, pixel_values: Tensor<4>) -> Tensor<2> {
        let PatchEmbedding { weight, bias } = &self.patch_embedding;
        let weight = weight.val();
        let [images, channels, side, _] = pixel_values.dims();
        let [width, _, patch, _] = weight.dims();
        let (per_side, dtype) = (side / patch, pixel_values.dtype());
        let (patches, inputs, used) = (per_side * per_side, channels * patch * patch, per_side * patch);
        let pixels = if used == side { pixel_values } else { pixel_values.narrow(2, 0, used).narrow(3, 0, used) };
        let pixels = pixels
            .reshape([images, channels, per_side, patch, per_side, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([images * patches, inputs]);
        let bias = bias.as_ref().map(Param::val);
        let embedded = kernels::linear(pixels, weight.reshape([width, inputs]), bias).reshape([images, patches, width]);
        let tokens = match &self.class_embedding {
            Some(class) => {
                let class = class.val().cast(dtype).reshape([1, 1, width]).expand([images, 1, width]);
                Tensor::cat(vec![class, embedded], 1)
            }
            None => embedded,
        };
        let positions = self.position_embedding.weight.val().cast(dtype).unsqueeze::<3>();
        let [_, per_image, _] = tokens.dims();
        (tokens + positions).reshape([images * per_image, width])
    }
}

impl VisionLayer {
    /// hidden `[N·tokens, D]` → same; `layer` is the index in the tower.
    ///
    /// # Source
    /// transformers `modeling_clip.py`, `CLIPEncoderLayer.forward`; SigLIP's is the same.
    pub fn forward(&self, hidden: Tensor<2>, layer: usize, context: &VisionContext) -> Tensor<2> {
        let VisionConfig { layer_norm_eps, hidden_act, .. } = context.config;
        let normed = self.layer_norm1.forward(hidden.clone(), layer_norm_eps);
        let hidden = kernels::add(hidden, self.self_attn.forward(normed, layer, context));
        let normed = self.layer_norm2.forward(hidden.clone(), layer_norm_eps);
        let up = kernels::activate(self.mlp.fc1.forward(normed, context.dropout(layer, 4)), hidden_act);
        kernels::add(hidden, self.mlp.fc2.forward(up, context.dropout(layer, 5)))
    }
}

impl VisionLayer {
    /// The linear layers, in the order of [`VISION_LINEARS`].
    pub fn linears_mut(&mut self) -> [&mut Linear; 6] {
        let VisionAttention { q_proj, k_proj, v_proj, out_proj } = &mut self.self_attn;
        let VisionMlp { fc1, fc2 } = &mut self.mlp;
        [q_proj, k_proj, v_proj, out_proj, fc1, fc2]
    }
}

impl VisionAttention {
    fn forward(&self, x: LinearInput, layer: usize, context: &VisionContext) -> Tensor<2> {
        let heads = context.config.num_attention_heads;
        let q = self.q_proj.forward(x.clone(), context.dropout(layer, 0));
        let k = self.k_proj.forward(x.clone(), context.dropout(layer, 1));
        let v = self.v_proj.forward(x, context.dropout(layer, 2));
        let attended = kernels::attention(q, k, v, heads, heads, &context.seq_lens, Mask::Full);
        self.out_proj.forward(attended, context.dropout(layer, 3))
    }
}
