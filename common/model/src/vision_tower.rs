//! CLIP's vision transformer.

#![allow(non_snake_case)] // `lora_A` and `lora_B` are the published names.

use super::dropout::{LoraDropout, SiteDropout};
use super::linear::{Linear, LoraMatrix};
use crate::config::{FeatureSelect, LlavaConfig, VisionConfig};
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use kernels::int8::{Int8Weight, linear_int8};
use kernels::{LinearInput, Mask};
use std::collections::BTreeMap;

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
    pub pre_layrnorm: LayerNorm,
    /// Layers.
    pub encoder: VisionEncoder,
    /// Norm of the class token; not used by LLaVA, kept for the checkpoint.
    pub post_layernorm: LayerNorm,
}

/// `embeddings.…`
#[derive(Module, Debug)]
pub struct VisionEmbeddings {
    /// `[D]`
    pub class_embedding: Param<Tensor<1>>,
    /// `[D, C, patch, patch]`
    pub patch_embedding: PatchEmbedding,
    /// `[1 + patches, D]`
    pub position_embedding: Embedding,
}

/// `patch_embedding.weight`
#[derive(Module, Debug)]
pub struct PatchEmbedding {
    /// `[D, C, patch, patch]`
    pub weight: Param<Tensor<4>>,
}

/// A table of rows (`….weight`).
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[rows, D]`
    pub weight: Param<Tensor<2>>,
    /// `[rank, D]` as `lora_A.weight`: LoRA of the products with all rows ([`Embedding::logits`]), not of the rows.
    pub lora_A: Option<LoraMatrix>,
    /// `[rows, rank]` as `lora_B.weight`
    pub lora_B: Option<LoraMatrix>,
    /// `lora_alpha / r`; 0 without LoRA.
    #[module(skip)]
    pub lora_scale: f32,
    /// The table in 8-bit integers, which then stands for `weight` (inference only).
    #[module(skip)]
    pub int8: Option<Int8Weight>,
}

impl Embedding {
    /// A table `[rows, D]`.
    pub fn new(weight: Param<Tensor<2>>) -> Self {
        Self { weight, lora_A: None, lora_B: None, lora_scale: 0.0, int8: None }
    }

    /// Rows `ids`, in the number format that the device computes in: `[T]` → `[T, D]`.
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        let weight = self.weight.val();
        let dtype = weight.device().settings().float_dtype;
        match &self.int8 {
            Some(int8) => int8.rows(ids),
            None => kernels::embedding(weight, ids).cast(dtype),
        }
    }

    /// Products with all rows: x `[T, D]` → `[T, rows]`.
    pub fn logits(&self, x: Tensor<2>) -> Tensor<2> {
        let branch = self.lora_A.as_ref().zip(self.lora_B.as_ref()).map(|(a, b)| {
            let low = kernels::linear(x.clone(), a.weight.val(), None);
            kernels::linear(low, b.weight.val(), None) * self.lora_scale
        });
        let logits = match &self.int8 {
            Some(int8) => linear_int8(x, int8, None),
            None => kernels::linear(x, self.weight.val(), None),
        };
        match branch {
            Some(branch) => logits + branch,
            None => logits,
        }
    }

    /// The products are not those with `weight` alone.
    pub fn is_composed(&self) -> bool {
        self.int8.is_some() || self.lora_A.is_some()
    }

    /// Keeps the table in 8-bit integers from here on; the float table is freed.
    pub fn quantize_int8(&mut self) {
        if self.int8.is_none() {
            self.int8 = Some(Int8Weight::quantize(self.weight.val()));
            self.weight = Param::from_tensor(Tensor::empty([0, 0], &self.weight.val().device()));
        }
    }
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

/// LayerNorm's weight and bias.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// `[D]`
    pub weight: Param<Tensor<1>>,
    /// `[D]`
    pub bias: Param<Tensor<1>>,
}

/// What the layers need to know of a batch of images besides the hidden states.
#[derive(Clone, Debug)]
pub struct VisionContext {
    /// Sizes, epsilon, activation.
    pub config: VisionConfig,
    /// Tokens of each image: class token and patches.
    pub seq_lens: Vec<usize>,
    /// Dropout of LoRA branches; `row_keys` has one entry for each image.
    pub dropout: Option<LoraDropout>,
}

impl VisionContext {
    /// The context of `num_images` images, without dropout.
    pub fn new(config: &VisionConfig, num_images: usize) -> Self {
        let side = config.image_size / config.patch_size;
        Self { config: config.clone(), seq_lens: vec![1 + side * side; num_images], dropout: None }
    }

    fn dropout(&self, layer: usize, projection: usize) -> Option<SiteDropout<'_>> {
        // The tower's layers count from above the language model's.
        self.dropout.as_ref()?.at(&self.seq_lens, VISION_SITES + layer, projection)
    }
}

/// First layer number of the vision tower's dropout sites.
const VISION_SITES: usize = 1 << 16;

impl VisionTransformer {
    /// The features that the projector gets.
    ///
    /// Only the layers up to the selected one are computed.
    ///
    /// # Shapes  (N images, C channels, S side, P features an image, D width, K selected layers)
    /// - `pixel_values` `[N, C, S, S]` → `[N·P, K·D]`
    /// # Source
    /// transformers `modeling_llava.py`, `LlavaModel.get_image_features`.
    pub fn features(&self, pixel_values: Tensor<4>, config: &LlavaConfig, context: &VisionContext) -> Tensor<2> {
        let selected = config.selected_hidden_states();
        let mut state = self.embed(pixel_values, context);
        let mut kept = BTreeMap::new();
        for (index, layer) in self.encoder.layers[..config.computed_vision_layers()].iter().enumerate() {
            if selected.contains(&index) {
                kept.insert(index, state.clone());
            }
            state = layer.forward(state, index, context);
        }
        let states = selected.iter().map(|index| kept.get(index).unwrap_or(&state).clone()).collect();
        select_features(states, config.vision_feature_select_strategy, context.seq_lens.len())
    }

    /// `pixel_values` `[N, C, S, S]` → hidden state 0, `[N·(1 + patches), D]`.
    pub fn embed(&self, pixel_values: Tensor<4>, context: &VisionContext) -> Tensor<2> {
        let embeddings = self.embeddings.forward(pixel_values);
        self.pre_layrnorm.forward(embeddings, context.config.layer_norm_eps).into()
    }
}

/// Joins the selected hidden states on the last dimension and drops the class tokens if the strategy says so.
///
/// `states`: K of `[N·(1 + patches), D]` → `[N·P, K·D]`.
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
    /// `pixel_values` `[N, C, S, S]` → `[N·(1 + patches), D]`: the class token, then the patches row by row, each with its
    /// position added.
    pub fn forward(&self, pixel_values: Tensor<4>) -> Tensor<2> {
        let weight = self.patch_embedding.weight.val();
        let [images, channels, side, _] = pixel_values.dims();
        let [width, _, patch, _] = weight.dims();
        let (per_side, dtype) = (side / patch, pixel_values.dtype());
        let (patches, inputs) = (per_side * per_side, channels * patch * patch);
        let pixels = pixel_values
            .reshape([images, channels, per_side, patch, per_side, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([images * patches, inputs]);
        let embedded = kernels::linear(pixels, weight.reshape([width, inputs]), None).reshape([images, patches, width]);
        let class = self.class_embedding.val().cast(dtype).reshape([1, 1, width]).expand([images, 1, width]);
        let positions = self.position_embedding.weight.val().cast(dtype).unsqueeze::<3>();
        (Tensor::cat(vec![class, embedded], 1) + positions).reshape([images * (1 + patches), width])
    }
}

impl VisionLayer {
    /// hidden `[N·(1 + patches), D]` → same; `layer` is the index in the tower.
    ///
    /// # Source
    /// transformers `modeling_clip.py`, `CLIPEncoderLayer.forward`.
    pub fn forward(&self, hidden: Tensor<2>, layer: usize, context: &VisionContext) -> Tensor<2> {
        let VisionConfig { layer_norm_eps, hidden_act, .. } = context.config;
        let normed = self.layer_norm1.forward(hidden.clone(), layer_norm_eps);
        let hidden = kernels::add(hidden, self.self_attn.forward(normed, layer, context));
        let normed = self.layer_norm2.forward(hidden.clone(), layer_norm_eps);
        let up = kernels::activate(self.mlp.fc1.forward(normed, context.dropout(layer, 4)), hidden_act);
        kernels::add(hidden, self.mlp.fc2.forward(up, context.dropout(layer, 5)))
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

impl LayerNorm {
    /// x `[T, D]` → same.
    pub fn forward(&self, x: Tensor<2>, eps: f64) -> LinearInput {
        kernels::layer_norm(x, self.weight.val(), self.bias.val(), eps)
    }
}
