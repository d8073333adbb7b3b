//! The LLaVA: one architecture per file, field names are the checkpoint's names.
//!
//! Sequences are packed: hidden states are `[T, D]` with the rows' lengths beside (`seq_lens`), so nothing is padded.
//! Every block (embeddings, a layer, the projector, the head) has a forward of its own, so that training can walk the blocks;
//! the functions here compose them for everyone else.

pub mod batch;
pub mod config;
pub mod dropout;
pub mod init;
pub mod language_model;
pub mod linear;
pub mod lora;
pub mod multi_modal_projector;
pub mod named;
pub mod vision_tower;

use crate::batch::PackedBatch;
use crate::config::LlavaConfig;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use kernels::kv_cache::KvCache;
use language_model::{LanguageModel, TextContext};
use multi_modal_projector::MultiModalProjector;
use vision_tower::{VisionContext, VisionTower};

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
    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.language_model.model.norm.weight.val().device()
    }

    /// Features of the batch's images, in order, as the projector gets them: `[N·P, D_vision · selected layers]`; `None`
    /// without images.
    pub fn image_features(&self, batch: &PackedBatch, config: &LlavaConfig) -> Option<Tensor<2>> {
        let pixel_values = pixel_tensor(batch, config, &self.device())?;
        let context = VisionContext::new(&config.vision, batch.num_images);
        Some(self.vision_tower.vision_model.features(pixel_values, config, &context))
    }

    /// Token embeddings with each image's place taken by its projected features: `[T, D]`.
    ///
    /// # Source
    /// transformers `modeling_llava.py`, `LlavaModel.forward`.
    pub fn inputs_embeds(&self, batch: &PackedBatch, config: &LlavaConfig) -> Tensor<2> {
        let embeds = self.language_model.embed(&batch.input_ids);
        match self.image_features(batch, config) {
            Some(features) => {
                let projected = self.multi_modal_projector.forward(features, config.projector_hidden_act);
                kernels::replace_rows(embeds, &batch.image_positions, projected)
            }
            None => embeds,
        }
    }

    /// Hidden states after the last layer, before the final norm: `[T, D]`.
    pub fn hidden(&self, batch: &PackedBatch, config: &LlavaConfig) -> Tensor<2> {
        let embeds = self.inputs_embeds(batch, config);
        let context = TextContext::new(&config.text, &batch.seq_lens, &embeds.device());
        self.language_model.forward(embeds, &context)
    }

    /// Sum of the cross entropy over the batch's supervised tokens `[1]`, and their number.
    pub fn loss(&self, batch: &PackedBatch, config: &LlavaConfig) -> (Tensor<1>, usize) {
        let (positions, targets) = batch.supervised();
        let embeds = self.inputs_embeds(batch, config);
        let context = TextContext::new(&config.text, &batch.seq_lens, &embeds.device());
        (self.language_model.loss(embeds, &positions, &targets, &context), targets.len())
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
        let embeds = self.inputs_embeds(batch, config);
        self.language_model.forward_cached(embeds, &batch.seq_lens, caches, &config.text)
    }

    /// Adds one token to each sequence: logits after it, `[sequences, V]`. The sequences may have any lengths, and may be
    /// others at every call.
    ///
    /// # Panics
    /// If a cache is full.
    pub fn decode(&self, tokens: &[u32], caches: &mut [&mut KvCache], config: &LlavaConfig) -> Tensor<2> {
        let embeds = self.language_model.embed(tokens);
        self.language_model.forward_cached(embeds, &vec![1; tokens.len()], caches, &config.text)
    }
}

/// The batch's pixels `[N, C, S, S]` on a device, in the number format that it computes in; `None` without images.
pub fn pixel_tensor(batch: &PackedBatch, config: &LlavaConfig, device: &Device) -> Option<Tensor<4>> {
    let (images, side) = (batch.num_images, config.vision.image_size);
    let shape = [images, config.vision.num_channels, side, side];
    (images > 0).then(|| Tensor::from_data(TensorData::new(batch.pixel_values.clone(), shape), device))
}
