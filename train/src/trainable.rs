//! Which parameters a train type trains, and how they are laid out for the optimizer.

use crate::config::{Extent, TrainType};
use crate::layout::{BlockLayout, Layout, MAX_BUCKET_VALUES, ParamSlot};
use base::names::{self, Block};
use burn::module::Param;
use burn::tensor::Tensor;
use model::Llava;
use model::config::LlavaConfig;
use model::lora::LoraConfig;
use model::named::{NamedMapper, NamedVisitor, map_named, visit_named};
use std::collections::BTreeMap;

/// What decides about which parameters are trained.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The train type.
    pub train_type: TrainType,
    /// The adapter, with `use_lora`.
    pub lora: Option<&'a LoraConfig>,
}

impl<'a> Choice<'a> {
    /// Of a train type and its adapter.
    pub fn new(train_type: TrainType, lora: Option<&'a LoraConfig>) -> Self {
        Self { train_type, lora }
    }

    /// Whether a parameter is trained: the train type covers it, and a gradient can reach it.
    pub fn is_trained(self, name: &str, config: &LlavaConfig) -> bool {
        self.is_covered(name) && receives_gradient(name, config)
    }

    /// Whether a parameter is meant to be trained.
    pub fn is_covered(self, name: &str) -> bool {
        let Some(block) = names::block(name) else { return false };
        if let Some(lora) = self.lora.filter(|_| self.train_type.uses_lora()) {
            return lora.trains(name);
        }
        let parts = self.train_type.parts();
        let extent = match block {
            Block::VisionEmbeddings | Block::VisionLayer(_) | Block::VisionPostNorm => parts.vision_tower,
            Block::Projector => parts.projector,
            Block::TokenEmbeddings | Block::TextLayer(_) | Block::Head => parts.language_model,
        };
        match extent {
            Extent::Frozen => false,
            Extent::Lora => names::is_lora(name),
            Extent::Whole => true,
        }
    }
}

/// Whether a parameter can receive a gradient at all: vision layers after the selected one and the tower's last norm are not
/// computed.
pub fn receives_gradient(name: &str, config: &LlavaConfig) -> bool {
    match names::block(name) {
        None | Some(Block::VisionPostNorm) => false,
        Some(Block::VisionLayer(layer)) => layer < config.computed_vision_layers(),
        Some(_) => true,
    }
}

/// Lets exactly the trained parameters collect gradients.
pub fn select(model: Llava, choice: Choice<'_>, config: &LlavaConfig) -> Llava {
    map_named(model, &mut Selector { choice, config })
}

struct Selector<'a> {
    choice: Choice<'a>,
    config: &'a LlavaConfig,
}

impl NamedMapper for Selector<'_> {
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.set_require_grad(self.choice.is_trained(&name, self.config))
    }
}

/// The layout of a model's trained parameters: a block of the model is a block of the layout.
pub fn layout(model: &Llava, choice: Choice<'_>, config: &LlavaConfig, rank: usize, world_size: usize) -> Layout {
    let mut collector = Collector { choice, config, blocks: BTreeMap::new() };
    visit_named(model, &mut collector);
    let blocks = collector.blocks.into_iter();
    let blocks = blocks
        .map(|(block, params)| (block, BlockLayout::new(format!("{block:?}"), params, world_size, MAX_BUCKET_VALUES)));
    Layout::new(blocks.collect(), rank, world_size)
}

struct Collector<'a> {
    choice: Choice<'a>,
    config: &'a LlavaConfig,
    blocks: BTreeMap<Block, Vec<ParamSlot>>,
}

impl NamedVisitor for Collector<'_> {
    fn visit<const D: usize>(&mut self, name: String, param: &Param<Tensor<D>>) {
        if !self.choice.is_trained(&name, self.config) {
            return;
        }
        let Some(block) = names::block(&name) else { return };
        let shape = param.val().dims().to_vec();
        let (len, decays) = (shape.iter().product(), names::decays(&name));
        let slot = ParamSlot { id: param.id, name, shape, offset: 0, len, decays };
        self.blocks.entry(block).or_default().push(slot);
    }
}
