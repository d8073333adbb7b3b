//! Fresh weights, distributed as transformers initialises the same modules.

use super::Llava;
use super::language_model::{LanguageModel, Qwen2Attention, Qwen2Layer, Qwen2Mlp, Qwen2Model, RmsNorm};
use super::linear::{Linear, LoraMatrix};
use super::multi_modal_projector::MultiModalProjector;
use super::vision_tower::{
    Embedding, LayerNorm, PatchEmbedding, VisionAttention, VisionEmbeddings, VisionEncoder, VisionLayer, VisionMlp,
    VisionTower, VisionTransformer,
};
use crate::config::{LlavaConfig, TextConfig, VisionConfig};
use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// `initializer_range` of CLIP, Qwen2 and LLaVA: the standard deviation of everything without a rule of its own.
const INITIALIZER_RANGE: f64 = 0.02;

/// Draws the weights of one model from one seed, in the order of the modules, or makes them zero.
struct Initializer<'a> {
    /// `None` draws zeros.
    rng: Option<StdRng>,
    device: &'a Device,
}

impl Llava {
    /// A whole model with random weights, f32: the same for the same seed.
    ///
    /// # Source
    /// transformers `CLIPPreTrainedModel._init_weights`, `PreTrainedModel._init_weights` (Qwen2, LLaVA's projector).
    pub fn random(config: &LlavaConfig, seed: u64, device: &Device) -> Self {
        Self::initialized(config, Initializer::new(seed, device))
    }

    /// A model of the config's shapes, to be filled: its zeros take no memory before they are written or replaced.
    pub fn zeros(config: &LlavaConfig, device: &Device) -> Self {
        Self::initialized(config, Initializer { rng: None, device })
    }

    fn initialized(config: &LlavaConfig, mut init: Initializer<'_>) -> Self {
        Self {
            vision_tower: VisionTower { vision_model: init.vision(&config.vision) },
            multi_modal_projector: init.projector(config),
            language_model: init.language_model(&config.text),
        }
    }
}

impl MultiModalProjector {
    /// A projector with random weights, f32, as transformers gives a new LLaVA.
    pub fn random(config: &LlavaConfig, seed: u64, device: &Device) -> Self {
        Initializer::new(seed, device).projector(config)
    }
}

impl LoraMatrix {
    /// PEFT's A: uniform in ±1/√in (`kaiming_uniform_` with a = √5). `[rank, in]`
    pub(super) fn random(rank: usize, inputs: usize, seed: u64, device: &Device) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let bound = 1.0 / (inputs as f32).sqrt();
        let values: Vec<f32> = (0..rank * inputs).map(|_| rng.random_range(-bound..=bound)).collect();
        Self {
            weight: Param::from_tensor(Tensor::from_data(
                TensorData::new(values, [rank, inputs]),
                (device, DType::F32),
            )),
        }
    }

    /// PEFT's B: zeros. `[out, rank]`
    pub(super) fn zeros(outputs: usize, rank: usize, device: &Device) -> Self {
        Self { weight: Param::from_tensor(Tensor::zeros([outputs, rank], (device, DType::F32))) }
    }
}

/// A parameter that is made when it is looked at, and never if it is replaced before.
fn lazy<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    let zeros = move |device: &Device, _: bool| Tensor::zeros(shape, device);
    Param::uninitialized(ParamId::new(), zeros, device.clone(), false, shape.into())
}

impl<'a> Initializer<'a> {
    fn new(seed: u64, device: &'a Device) -> Self {
        Self { rng: Some(StdRng::seed_from_u64(seed)), device }
    }

    /// Normal values with mean 0 (Box–Muller).
    fn normal<const D: usize>(&mut self, shape: [usize; D], std: f64) -> Param<Tensor<D>> {
        let Some(rng) = &mut self.rng else { return lazy(shape, self.device) };
        let count: usize = shape.iter().product();
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * std;
            let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
            values.extend([(radius * cos) as f32, (radius * sin) as f32]);
        }
        values.truncate(count);
        Param::from_data(TensorData::new(values, shape), self.device)
    }

    fn zeros(&self, len: usize) -> Param<Tensor<1>> {
        Param::from_tensor(Tensor::zeros([len], self.device))
    }

    fn ones(&self, len: usize) -> Param<Tensor<1>> {
        Param::from_tensor(Tensor::ones([len], self.device))
    }

    fn linear(&mut self, inputs: usize, outputs: usize, std: f64, bias: bool) -> Linear {
        let weight = self.normal([outputs, inputs], std);
        Linear::new(weight, bias.then(|| self.zeros(outputs)))
    }

    fn table(&mut self, rows: usize, width: usize) -> Embedding {
        Embedding::new(self.normal([rows, width], INITIALIZER_RANGE))
    }

    fn layer_norm(&self, width: usize) -> LayerNorm {
        LayerNorm { weight: self.ones(width), bias: self.zeros(width) }
    }

    fn vision(&mut self, config: &VisionConfig) -> VisionTransformer {
        let (width, side) = (config.hidden_size, config.image_size / config.patch_size);
        let patch = [width, config.num_channels, config.patch_size, config.patch_size];
        VisionTransformer {
            embeddings: VisionEmbeddings {
                class_embedding: self.normal([width], (width as f64).powf(-0.5)),
                patch_embedding: PatchEmbedding { weight: self.normal(patch, INITIALIZER_RANGE) },
                position_embedding: self.table(1 + side * side, width),
            },
            pre_layrnorm: self.layer_norm(width),
            encoder: VisionEncoder {
                layers: (0..config.num_hidden_layers).map(|_| self.vision_layer(config)).collect(),
            },
            post_layernorm: self.layer_norm(width),
        }
    }

    fn vision_layer(&mut self, config: &VisionConfig) -> VisionLayer {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let depth = (2.0 * config.num_hidden_layers as f64).powf(-0.5);
        let out_std = (width as f64).powf(-0.5);
        let in_std = out_std * depth;
        VisionLayer {
            layer_norm1: self.layer_norm(width),
            self_attn: VisionAttention {
                q_proj: self.linear(width, width, in_std, true),
                k_proj: self.linear(width, width, in_std, true),
                v_proj: self.linear(width, width, in_std, true),
                out_proj: self.linear(width, width, out_std, true),
            },
            layer_norm2: self.layer_norm(width),
            mlp: VisionMlp {
                fc1: self.linear(width, inner, (2.0 * width as f64).powf(-0.5), true),
                fc2: self.linear(inner, width, in_std, true),
            },
        }
    }

    fn projector(&mut self, config: &LlavaConfig) -> MultiModalProjector {
        let inputs = config.vision.hidden_size * config.vision_feature_layers.len();
        let (width, bias) = (config.text.hidden_size, config.multimodal_projector_bias);
        MultiModalProjector {
            linear_1: self.linear(inputs, width, INITIALIZER_RANGE, bias),
            linear_2: self.linear(width, width, INITIALIZER_RANGE, bias),
        }
    }

    fn language_model(&mut self, config: &TextConfig) -> LanguageModel {
        let (rows, width) = (config.vocab_size, config.hidden_size);
        LanguageModel {
            model: Qwen2Model {
                embed_tokens: self.table(rows, width),
                layers: (0..config.num_hidden_layers).map(|_| self.qwen2_layer(config)).collect(),
                norm: RmsNorm { weight: self.ones(width) },
            },
            lm_head: (!config.tie_word_embeddings).then(|| self.table(rows, width)),
        }
    }

    fn qwen2_layer(&mut self, config: &TextConfig) -> Qwen2Layer {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let kv_width = config.num_key_value_heads * config.head_dim();
        Qwen2Layer {
            input_layernorm: RmsNorm { weight: self.ones(width) },
            self_attn: Qwen2Attention {
                q_proj: self.linear(width, width, INITIALIZER_RANGE, true),
                k_proj: self.linear(width, kv_width, INITIALIZER_RANGE, true),
                v_proj: self.linear(width, kv_width, INITIALIZER_RANGE, true),
                o_proj: self.linear(width, width, INITIALIZER_RANGE, false),
            },
            post_attention_layernorm: RmsNorm { weight: self.ones(width) },
            mlp: Qwen2Mlp {
                gate_proj: self.linear(width, inner, INITIALIZER_RANGE, false),
                up_proj: self.linear(width, inner, INITIALIZER_RANGE, false),
                down_proj: self.linear(inner, width, INITIALIZER_RANGE, false),
            },
        }
    }
}
