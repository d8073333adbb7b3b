//! Floating-point operations of a row, by block of the model.

use super::Plan;
use super::parameters::tensors;
use crate::config::Extent;
use crate::trainable::Choice;
use base::names::{self, Block};
use model::config::{TextConfig, VisionConfig};
use std::collections::BTreeMap;

/// Operations of a block for one row, products and attention alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct BlockWork {
    /// Operations of the forward pass.
    pub(super) forward: f64,
    /// Operations of the backward pass, recomputation included.
    pub(super) backward: f64,
    /// Trained values: what ranks exchange.
    pub(super) trained: usize,
}

/// Values of a block.
#[derive(Clone, Copy, Default)]
struct Values {
    base: usize,
    lora: usize,
    trained: usize,
}

impl Plan {
    /// Every computed block in the order of the forward pass.
    pub(super) fn work_of_a_row(&self) -> Vec<BlockWork> {
        let row = self.data.row;
        let TextConfig { num_attention_heads, head_dim, vocab_size, hidden_size, .. } = self.model.text;
        let VisionConfig { hidden_size: vision_width, .. } = self.model.vision;
        let trained = self.config.train_type.parts();
        let tower = trained.vision_tower;
        let trains_tower = tower == Extent::Whole || tower == Extent::Lora && self.config.lora_vision;
        let trains_text = trained.language_model == Extent::Whole;
        let per_image = self.model.vision.tokens() as f64;
        let vision_tokens = row.images * per_image;
        // Queries by keys and weights by values; half of each is masked in the language model.
        let text_attention = 2.0 * row.tokens * row.tokens * (num_attention_heads * head_dim) as f64;
        let vision_attention = 4.0 * vision_tokens * per_image * vision_width as f64;
        let again = self.config.gradient_checkpointing;
        let vision_layers = self.model.computed_vision_layers();
        let blocks = self.values_of_blocks();
        let work = |(block, values): (Block, Values)| {
            let products = |tokens: f64, attention: f64, has_inputs: bool, has_weights: bool| {
                let (base, lora) = (2.0 * values.base as f64 * tokens, 2.0 * values.lora as f64 * tokens);
                let forward = base + lora + attention;
                // Gradients of inputs and of weights cost a product each, those of attention two.
                let of_base = base * (f64::from(u8::from(has_inputs)) + f64::from(u8::from(has_weights)));
                let of_rest = if has_inputs { 2.0 * (lora + attention) } else { 0.0 };
                (forward, of_base + of_rest)
            };
            let (forward, backward) = match block {
                Block::VisionLayer(layer) if layer >= vision_layers => return None,
                Block::VisionPostNorm => return None,
                Block::VisionEmbeddings => products(vision_tokens, 0.0, false, tower == Extent::Whole),
                Block::VisionLayer(_) => {
                    products(vision_tokens, vision_attention, trains_tower, tower == Extent::Whole)
                }
                Block::Projector => {
                    let tokens = row.images * self.model.image_seq_length() as f64;
                    products(tokens, 0.0, trains_tower, trained.projector == Extent::Whole)
                }
                Block::TokenEmbeddings => (0.0, 0.0),
                Block::TextLayer(_) => products(row.tokens, text_attention, true, trains_text),
                Block::Head => {
                    let forward = 2.0 * (vocab_size * hidden_size) as f64 * row.supervised;
                    (forward, forward * if trains_text { 2.0 } else { 1.0 })
                }
            };
            let is_layer = matches!(block, Block::TextLayer(_) | Block::VisionLayer(_));
            let recomputed = if again && is_layer && backward > 0.0 { forward } else { 0.0 };
            Some(BlockWork { forward, backward: backward + recomputed, trained: values.trained })
        };
        blocks.into_iter().filter_map(work).collect()
    }

    /// Blocks in the order of the forward pass: that of their names' kinds.
    fn values_of_blocks(&self) -> BTreeMap<Block, Values> {
        let choice = Choice::new(self.config.train_type, self.lora.as_ref());
        let mut blocks: BTreeMap<Block, Values> = BTreeMap::new();
        for tensor in tensors(&self.model, self.lora.as_ref()) {
            let Some(block) = names::block(&tensor.name) else { continue };
            let values = blocks.entry(block).or_default();
            if names::is_lora(&tensor.name) {
                values.lora += tensor.len();
            } else {
                values.base += tensor.len();
            }
            if choice.is_trained(&tensor.name, &self.model) {
                values.trained += tensor.len();
            }
        }
        blocks
    }

    /// Floating-point operations of a row's forward and backward pass.
    pub(super) fn operations_of_a_row(&self) -> f64 {
        self.work_of_a_row().iter().map(|block| block.forward + block.backward).sum()
    }
}
