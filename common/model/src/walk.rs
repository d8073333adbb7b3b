//! The forward pass, written once: which block follows which. What happens at a block is up to the [`Walk`]: inference computes
//! it, training also keeps what its backward pass needs.

use crate::batch::PackedBatch;
use crate::config::LlavaConfig;
use crate::text::TextContext;
use crate::vision::{VisionContext, select_features};
use crate::{Llava, pixel_tensor};
use base::names::Block;
use burn::module::{Module, ModuleVisitor};
use burn::tensor::{Device, Tensor};
use kernels::CrossEntropies;
use kernels::kv_cache::KvCache;
use std::collections::BTreeMap;
use std::convert::Infallible;

/// What the blocks know of a batch besides their inputs.
#[derive(Clone, Debug)]
pub struct BatchContext<'a> {
    /// The model's configuration.
    pub config: &'a LlavaConfig,
    /// The images.
    pub vision: VisionContext,
    /// The tokens.
    pub text: TextContext,
}

impl<'a> BatchContext<'a> {
    /// Whole rows, without dropout. `device` is that of the model.
    pub fn new(config: &'a LlavaConfig, batch: &PackedBatch, device: &Device) -> Self {
        let vision = VisionContext::new(&config.vision, batch.num_images);
        Self { config, vision, text: TextContext::new(&config.text, &batch.seq_lens, device) }
    }

    /// As [`TextContext::for_positions`].
    pub fn for_positions(self, positions: &[usize]) -> Self {
        Self { text: self.text.for_positions(positions), ..self }
    }
}

/// A transformer layer: what is kept, recomputed and differentiated as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Of the vision tower.
    Vision(usize),
    /// Of the language model.
    Text(usize),
}

impl Layer {
    /// Its block.
    pub fn block(self) -> Block {
        match self {
            Self::Vision(index) => Block::VisionLayer(index),
            Self::Text(index) => Block::TextLayer(index),
        }
    }

    /// The layer's output: `[T, D]` → `[T, D]`, or fewer rows, see [`crate::text::TextLayer::forward`].
    pub fn forward(
        self,
        model: &Llava,
        input: Tensor<2>,
        context: &BatchContext<'_>,
        caches: Option<&mut [&mut KvCache]>,
    ) -> Tensor<2> {
        match self {
            Self::Vision(index) => {
                model.vision_tower.vision_model.encoder.layers[index].forward(input, index, &context.vision)
            }
            Self::Text(index) => model.language_model.model.layers[index].forward(input, index, &context.text, caches),
        }
    }

    /// The values of the layer's output, without a graph even if the input has one.
    pub fn forward_without_graph(self, model: &Llava, input: Tensor<2>, context: &BatchContext<'_>) -> Tensor<2> {
        let input = input.inner();
        let output = match self {
            Self::Vision(index) => {
                model.vision_tower.vision_model.encoder.layers[index].valid().forward(input, index, &context.vision)
            }
            Self::Text(index) => {
                let layer = model.language_model.model.layers[index].valid();
                layer.forward(input, index, &context.text.inner(), None)
            }
        };
        Tensor::from_inner(output)
    }

    /// Shows the layer's parameters.
    pub fn visit(self, model: &Llava, visitor: &mut impl ModuleVisitor) {
        match self {
            Self::Vision(index) => model.vision_tower.vision_model.encoder.layers[index].visit(visitor),
            Self::Text(index) => model.language_model.model.layers[index].visit(visitor),
        }
    }
}

/// What a forward pass does at each block.
pub trait Walk {
    /// Why it may stop.
    type Error;

    /// The model, with the values of a block in place.
    fn model(&mut self, block: Block) -> Result<&Llava, Self::Error>;

    /// A layer's output, as the next block gets it.
    fn layer(&mut self, layer: Layer, input: Tensor<2>, context: &BatchContext<'_>) -> Result<Tensor<2>, Self::Error>;

    /// The output of the vision tower's embeddings or of the projector, as the next block gets it.
    fn pass_on(&mut self, _block: Block, output: Tensor<2>) -> Tensor<2> {
        output
    }

    /// The batch's image features, `[N·P, D_vision · selected layers]`; `None` without images.
    fn image_features(
        &mut self,
        batch: &PackedBatch,
        context: &BatchContext<'_>,
    ) -> Result<Option<Tensor<2>>, Self::Error>
    where
        Self: Sized,
    {
        tower_features(self, batch, context)
    }

    /// Token embeddings `[T, D]`, each image's place taken by its projected features.
    fn merge(&mut self, batch: &PackedBatch, projected: Option<Tensor<2>>) -> Result<Tensor<2>, Self::Error> {
        let embeds = self.model(Block::TokenEmbeddings)?.language_model.embed(&batch.input_ids);
        Ok(match projected {
            Some(projected) => kernels::replace_rows(embeds, &batch.image_positions, projected),
            None => embeds,
        })
    }
}

/// The features that the tower gives the projector; only the layers up to the selected one are computed.
///
/// # Shapes  (N images, P features an image, D width, K selected layers)
/// The batch's pixels `[N, C, S, S]` → `[N·P, K·D]`; `None` without images.
/// # Source
/// transformers `modeling_llava.py`, `LlavaModel.get_image_features`.
pub fn tower_features<W: Walk>(
    walk: &mut W,
    batch: &PackedBatch,
    context: &BatchContext<'_>,
) -> Result<Option<Tensor<2>>, W::Error> {
    let config = context.config;
    if batch.num_images == 0 {
        return Ok(None);
    }
    let model = walk.model(Block::VisionEmbeddings)?;
    let pixel_values = pixel_tensor(batch, config, &model.device());
    let embedded = model.vision_tower.vision_model.embed(pixel_values, &context.vision);
    let mut state = walk.pass_on(Block::VisionEmbeddings, embedded);
    let selected = config.selected_hidden_states();
    let mut kept = BTreeMap::new();
    for index in 0..config.computed_vision_layers() {
        if selected.contains(&index) {
            kept.insert(index, state.clone());
        }
        state = walk.layer(Layer::Vision(index), state, context)?;
    }
    let states = selected.iter().map(|index| kept.get(index).unwrap_or(&state).clone()).collect();
    Ok(Some(select_features(states, config.vision_feature_select_strategy, batch.num_images)))
}

/// Token embeddings with each image's place taken by its projected features: `[T, D]`.
///
/// # Source
/// transformers `modeling_llava.py`, `LlavaModel.forward`.
pub fn inputs_embeds<W: Walk>(
    walk: &mut W,
    batch: &PackedBatch,
    context: &BatchContext<'_>,
) -> Result<Tensor<2>, W::Error> {
    let features = if batch.num_images > 0 { walk.image_features(batch, context)? } else { None };
    let projected = match features {
        Some(features) => {
            let (act, per_image) = (context.config.projector_hidden_act, context.config.image_seq_length());
            let projector = &walk.model(Block::Projector)?.multi_modal_projector;
            let projected = projector.forward(features, act, context.vision.dropout.as_ref(), per_image);
            Some(walk.pass_on(Block::Projector, projected))
        }
        None => None,
    };
    walk.merge(batch, projected)
}

/// The language model's layers, without the final norm: hidden `[T, D]` → same, or the rows that the context asks for.
pub fn text_layers<W: Walk>(
    walk: &mut W,
    mut hidden: Tensor<2>,
    context: &BatchContext<'_>,
) -> Result<Tensor<2>, W::Error> {
    for index in 0..context.config.text.num_hidden_layers {
        hidden = walk.layer(Layer::Text(index), hidden, context)?;
    }
    Ok(hidden)
}

/// Cross entropy of `targets` at `positions` (ascending; the context's too).
pub fn losses<W: Walk>(
    walk: &mut W,
    batch: &PackedBatch,
    (positions, targets): (&[usize], &[u32]),
    context: &BatchContext<'_>,
) -> Result<CrossEntropies, W::Error> {
    let embeds = inputs_embeds(walk, batch, context)?;
    let hidden = text_layers(walk, embeds, context)?;
    let language_model = &walk.model(Block::Head)?.language_model;
    let dropout = context.text.head_dropout(positions);
    let places = context.text.places(positions);
    Ok(language_model.losses(hidden, &places, targets, &context.config.text, dropout.as_ref()))
}

/// A forward pass that keeps nothing but, where there are any, keys and values.
pub struct Plain<'a, 'c, 'k> {
    model: &'a Llava,
    caches: Option<&'c mut [&'k mut KvCache]>,
}

impl<'a> Plain<'a, '_, '_> {
    /// Without caches.
    pub fn new(model: &'a Llava) -> Self {
        Self { model, caches: None }
    }
}

impl<'a, 'c, 'k> Plain<'a, 'c, 'k> {
    /// With a cache for each sequence, to which the batch's tokens are added.
    pub fn cached(model: &'a Llava, caches: &'c mut [&'k mut KvCache]) -> Self {
        Self { model, caches: Some(caches) }
    }
}

impl Walk for Plain<'_, '_, '_> {
    type Error = Infallible;

    fn model(&mut self, _block: Block) -> Result<&Llava, Infallible> {
        Ok(self.model)
    }

    fn layer(&mut self, layer: Layer, input: Tensor<2>, context: &BatchContext<'_>) -> Result<Tensor<2>, Infallible> {
        Ok(layer.forward(self.model, input, context, self.caches.as_deref_mut()))
    }
}
