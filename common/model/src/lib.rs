//! The LLaVA: field names are the checkpoint's names, families of towers and language models are files of [`vision`] and
//! [`text`].
//!
//! Sequences are packed: hidden states are `[T, D]` with the rows' lengths beside (`seq_lens`), so nothing is padded.
//! The forward pass is [`walk`]: inference and training walk the same blocks.

/// An enum of families, one a line: its name and the file (a module with a `SPEC`) that describes it.
macro_rules! families {
    ($(#[$doc:meta])* $name:ident { $($(#[$family_doc:meta])* $family:ident = $module:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$family_doc])* $family,)* }

        impl $name {
            /// All of them.
            pub fn all() -> impl Iterator<Item = Self> {
                [$(Self::$family),*].into_iter()
            }

            fn spec(self) -> &'static Spec {
                match self {
                    $(Self::$family => &$module::SPEC,)*
                }
            }
        }
    };
}

pub mod batch;
pub mod config;
pub mod dropout;
pub mod expected;
pub mod generate;
pub mod lora;
pub mod multi_modal_projector;
pub mod named;
pub mod nn;
pub mod quantized;
pub mod sampling;
pub mod text;
pub mod vision;
pub mod walk;

use crate::batch::PackedBatch;
use crate::config::LlavaConfig;
use crate::multi_modal_projector::MultiModalProjector;
use crate::nn::init::Initializer;
use crate::text::{LanguageModel, TextContext};
use crate::vision::{VisionContext, VisionTower};
use crate::walk::{BatchContext, Plain, Walk, text_layers};
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use kernels::CrossEntropies;
use kernels::kv_cache::KvCache;

/// Vision tower, projector, language model. Module paths equal the published tensor names.
#[derive(Module, Debug)]
pub struct Llava {
    /// `vision_tower.…`
    pub vision_tower: VisionTower,
    /// `multi_modal_projector.…`
    pub multi_modal_projector: MultiModalProjector,
    /// `language_model.…`
    pub language_model: LanguageModel,
}

impl Llava {
    /// A whole model with random weights, f32, distributed as transformers initialises the same families: the same for the same
    /// seed.
    pub fn random(config: &LlavaConfig, seed: u64, device: &Device) -> Self {
        Self::init(config, &mut Initializer::random(seed, device))
    }

    /// A model of the config's shapes, to be filled: its zeros take no memory before they are written or replaced.
    pub fn zeros(config: &LlavaConfig, device: &Device) -> Self {
        Self::init(config, &mut Initializer::zeros(device))
    }

    fn init(config: &LlavaConfig, init: &mut Initializer<'_>) -> Self {
        Self {
            vision_tower: VisionTower::init(&config.vision, init),
            multi_modal_projector: MultiModalProjector::init(config, init),
            language_model: LanguageModel::init(&config.text, init),
        }
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.language_model.model.norm.weight.val().device()
    }

    /// Features of the batch's images, in order, as the projector gets them: `[N·P, D_vision · selected layers]`; `None`
    /// without images.
    pub fn image_features(&self, batch: &PackedBatch, config: &LlavaConfig) -> Option<Tensor<2>> {
        let Ok(features) = Plain::new(self).image_features(batch, &BatchContext::new(config, batch, &self.device()));
        features
    }

    /// Token embeddings with each image's place taken by its projected features: `[T, D]`.
    pub fn inputs_embeds(&self, batch: &PackedBatch, config: &LlavaConfig) -> Tensor<2> {
        let context = BatchContext::new(config, batch, &self.device());
        let Ok(embeds) = walk::inputs_embeds(&mut Plain::new(self), batch, &context);
        embeds
    }

    /// Hidden states after the last layer, before the final norm: `[T, D]`.
    pub fn hidden(&self, batch: &PackedBatch, config: &LlavaConfig) -> Tensor<2> {
        let context = BatchContext::new(config, batch, &self.device());
        let Ok(hidden) = text_layers(&mut Plain::new(self), self.inputs_embeds(batch, config), &context);
        hidden
    }

    /// Sum of the cross entropy over the batch's supervised tokens `[1]`, and their number.
    pub fn loss(&self, batch: &PackedBatch, config: &LlavaConfig) -> (Tensor<1>, usize) {
        let (losses, tokens) = self.losses(batch, config);
        (losses.sum, tokens)
    }

    /// The same, with the cross entropy of each supervised token.
    pub fn losses(&self, batch: &PackedBatch, config: &LlavaConfig) -> (CrossEntropies, usize) {
        let (positions, targets) = batch.supervised();
        let context = BatchContext::new(config, batch, &self.device()).for_positions(&positions);
        let Ok(losses) = walk::losses(&mut Plain::new(self), batch, (&positions, &targets), &context);
        (losses, targets.len())
    }

    /// Logits after the tokens at `positions`: `[positions, V]`.
    pub fn logits(&self, batch: &PackedBatch, positions: &[usize], config: &LlavaConfig) -> Tensor<2> {
        self.language_model.logits(self.hidden(batch, config), positions, &config.text)
    }

    /// Reads whole prompts, with their images, into empty caches, one for each row of the batch: logits after the last
    /// token of each row, `[rows, V]`.
    ///
    /// # Panics
    /// If a cache is smaller than its prompt.
    pub fn prefill(&self, batch: &PackedBatch, caches: &mut [&mut KvCache], config: &LlavaConfig) -> Tensor<2> {
        self.forward_cached(self.inputs_embeds(batch, config), &batch.seq_lens, caches, config)
    }

    /// Adds one token to each sequence: logits after it, `[sequences, V]`. The sequences may have any lengths, and may be
    /// others at every call.
    ///
    /// # Panics
    /// If a cache is full.
    pub fn decode(&self, tokens: &[u32], caches: &mut [&mut KvCache], config: &LlavaConfig) -> Tensor<2> {
        self.forward_cached(self.language_model.embed(tokens), &vec![1; tokens.len()], caches, config)
    }

    /// The language model for tokens that follow those in `caches`, which they are added to: hidden `[T, D]`, `seq_lens[i]`
    /// tokens of the sequence of `caches[i]` → logits after the last token of each sequence, `[sequences, V]`.
    fn forward_cached(
        &self,
        hidden: Tensor<2>,
        seq_lens: &[usize],
        caches: &mut [&mut KvCache],
        config: &LlavaConfig,
    ) -> Tensor<2> {
        let mut end = 0;
        let ends: Vec<usize> = seq_lens.iter().map(|len| (end += len, end - 1).1).collect();
        let text = TextContext::continuing(&config.text, seq_lens, caches, &hidden.device()).for_positions(&ends);
        let context = BatchContext { config, vision: VisionContext::new(&config.vision, 0), text };
        let Ok(hidden) = text_layers(&mut Plain::cached(self, caches), hidden, &context);
        self.language_model.logits(hidden, &context.text.places(&ends), &config.text)
    }
}

/// The pixels of a batch with images, `[N, C, S, S]`, on a device and in the dtype that it computes in.
pub fn pixel_tensor(batch: &PackedBatch, config: &LlavaConfig, device: &Device) -> Tensor<4> {
    let side = config.vision.image_size;
    let shape = [batch.num_images, config.vision.num_channels, side, side];
    Tensor::from_data(TensorData::new(batch.pixel_values.clone(), shape), device)
}
