//! One micro-batch through the model and back, block by block.
//!
//! The forward pass cuts the graph between blocks: each block starts from a detached input. The backward pass then walks the
//! blocks from the loss to the images; a block's gradients are handed on and its graph is freed before the next one starts,
//! so that no more than one block's gradients exist at a time and their exchange can begin at once.

use crate::gradient::BlockGradient;
use crate::layout::{BlockLayout, Layout};
use crate::vision_cache::VisionFeatureCache;
use anyhow::{Result, anyhow};
use base::names::Block;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use model::dropout::LoraDropout;
use model::language_model::{LastTokens, Qwen2Layer, TextContext};
use model::vision_tower::{VisionContext, select_features};
use model::{Llava, pixel_tensor};
use std::collections::BTreeMap;

/// What a micro-batch is computed with.
pub struct Pass<'a> {
    /// The model; its trained parameters collect gradients.
    pub model: &'a mut Llava,
    /// Its configuration.
    pub config: &'a LlavaConfig,
    /// The trained parameters.
    pub layout: &'a Layout,
    /// Recompute each block in the backward pass instead of keeping its graph.
    pub recompute: bool,
    /// Features of the frozen vision tower that are kept, and the batch's rows in the data.
    pub kept_features: Option<(&'a VisionFeatureCache, &'a [usize])>,
    /// Dropout of the LoRA branches, if any.
    pub dropout: Option<LoraDropout>,
    /// The loss is multiplied by this before the backward pass.
    pub loss_scale: f32,
}

/// A block's input (a leaf of the graph) and, unless it is recomputed, its output with the graph.
struct Step {
    input: Tensor<2>,
    output: Option<Tensor<2>>,
}

/// Forward and backward: the sum of the cross entropy over the supervised tokens (not scaled). `begin(model, block)` is called
/// before the forward pass uses a block, whose new values may still be on their way; it is called for the head at the latest
/// before any gradient is computed. `finished(block, gradients)` gets each trained block's gradient, from the head down.
///
/// # Errors
/// What `begin` and `finished` say, and a backend that cannot give its values.
pub fn forward_backward(
    pass: &mut Pass<'_>,
    batch: &PackedBatch,
    mut begin: impl FnMut(&mut Llava, Block) -> Result<()>,
    mut finished: impl FnMut(usize, BlockGradient) -> Result<()>,
) -> Result<f64> {
    let (positions, targets) = batch.supervised();
    let vision = pass.forward_vision(batch, &mut begin)?;
    let device = pass.model.device();
    let mut context = TextContext::new(&pass.config.text, &batch.seq_lens, &device);
    context.dropout = pass.dropout.clone();
    let plain = context.inner();

    begin(pass.model, Block::TokenEmbeddings)?;
    let num_layers = pass.model.language_model.model.layers.len();
    // Of the last layer, only what the loss needs is computed.
    let last = (!positions.is_empty() && num_layers > 0).then(|| context.last_tokens(&positions));
    let plain_last = last.as_ref().map(LastTokens::inner);
    let last_of = |index: usize| last.as_ref().filter(|_| index + 1 == num_layers);
    let mut hidden = leaf(pass.merge(batch, vision.as_ref()));
    let mut steps = Vec::new();
    for index in 0..num_layers {
        begin(pass.model, Block::TextLayer(index))?;
        let layer = &pass.model.language_model.model.layers[index];
        let step = pass.forward_block(hidden, layer, |layer, input, has_graph| {
            let (context, last) = if has_graph { (&context, &last) } else { (&plain, &plain_last) };
            forward_layer(layer, input, index, context, last.as_ref().filter(|_| index + 1 == num_layers))
        });
        hidden = leaf(step.1);
        steps.push(step.0);
    }
    let positions = last.as_ref().map_or(positions.clone(), |last| last.places(&positions));
    begin(pass.model, Block::Head)?;
    let loss = pass.model.language_model.loss_sum(hidden.clone(), &positions, &targets, &pass.config.text);
    let loss_sum = f64::from(scalar(&loss)?);

    let mut gradients = (loss * pass.loss_scale).backward();
    let mut tied = None;
    if let Some(block) = pass.layout.block(Block::Head) {
        finished(block, collect(&pass.model.language_model, &mut gradients, &pass.layout.blocks[block])?)?;
    }
    if let (None, Some(block)) = (&pass.model.language_model.lm_head, pass.layout.block(Block::TokenEmbeddings)) {
        let embedding = &pass.model.language_model.model.embed_tokens;
        tied = Some(collect(embedding, &mut gradients, &pass.layout.blocks[block])?);
    }
    let mut gradient = hidden.grad_remove(&mut gradients);
    drop((gradients, hidden));
    for (index, layer) in pass.model.language_model.model.layers.iter().enumerate().rev() {
        let (Some(step), Some(outer)) = (steps.pop(), gradient.take()) else { break };
        let forward = |input| forward_layer(layer, input, index, &context, last_of(index));
        let (mut gradients, input) = backward_block(step, outer, forward);
        if let Some(block) = pass.layout.block(Block::TextLayer(index)) {
            finished(block, collect(layer, &mut gradients, &pass.layout.blocks[block])?)?;
        }
        gradient = input.grad_remove(&mut gradients);
    }
    let Some(outer) = gradient else { return Ok(loss_sum) };
    pass.backward_inputs(batch, vision, outer, tied, &mut finished)?;
    Ok(loss_sum)
}

/// A language layer for all tokens, or the last one for the last tokens alone.
fn forward_layer(
    layer: &Qwen2Layer,
    input: Tensor<2>,
    index: usize,
    context: &TextContext,
    last: Option<&LastTokens>,
) -> Tensor<2> {
    match last {
        Some(last) => layer.forward_last(input, index, context, last),
        None => layer.forward(input, index, context),
    }
}

/// The images' way to the language model.
struct Vision {
    context: VisionContext,
    /// Output of the embeddings with its graph; nothing with a frozen tower, as with `layers` and `states`.
    embedded: Option<Tensor<2>>,
    layers: Vec<Step>,
    /// Hidden states as leaves, in order: what is selected and what the next layer starts from.
    states: Vec<Tensor<2>>,
    projected: Tensor<2>,
}

impl Pass<'_> {
    fn trains_vision(&self) -> bool {
        let layers = 0..self.config.computed_vision_layers();
        let blocks = layers.map(Block::VisionLayer).chain([Block::VisionEmbeddings]);
        blocks.into_iter().any(|block| self.layout.block(block).is_some())
    }

    /// Lowest vision layer with trained parameters: below it nothing needs a gradient. 0 with trained embeddings.
    fn first_trained_vision_layer(&self) -> usize {
        if self.layout.block(Block::VisionEmbeddings).is_some() {
            return 0;
        }
        let mut layers = 0..self.config.computed_vision_layers();
        layers.find(|&layer| self.layout.block(Block::VisionLayer(layer)).is_some()).unwrap_or(usize::MAX)
    }

    fn forward_vision(
        &mut self,
        batch: &PackedBatch,
        begin: &mut impl FnMut(&mut Llava, Block) -> Result<()>,
    ) -> Result<Option<Vision>> {
        if batch.num_images == 0 {
            return Ok(None);
        }
        let mut context = VisionContext::new(&self.config.vision, batch.num_images);
        context.dropout = self.dropout.as_ref().map(|dropout| per_image(dropout, batch, self.config));
        let (first, trained) = (self.first_trained_vision_layer(), self.trains_vision());
        if !trained {
            // No parameter below wants a gradient, so no graph and no states are kept.
            let Some(features) = self.frozen_features(batch, &context)? else { return Ok(None) };
            begin(self.model, Block::Projector)?;
            let projected = self.project(features, &context);
            return Ok(Some(Vision { context, embedded: None, layers: Vec::new(), states: Vec::new(), projected }));
        }
        let Some(pixel_values) = pixel_tensor(batch, self.config, &self.model.device()) else { return Ok(None) };
        begin(self.model, Block::VisionEmbeddings)?;
        let embedded = self.model.vision_tower.vision_model.embed(pixel_values, &context);
        let trains_embeddings = self.layout.block(Block::VisionEmbeddings).is_some();
        let as_state = |tensor: Tensor<2>, index: usize| {
            // States below the lowest trained layer stay outside the graph.
            if index > first || trains_embeddings { leaf(tensor) } else { tensor.detach() }
        };
        let mut states = vec![as_state(embedded.clone(), 0)];
        let mut layers = Vec::new();
        for index in 0..self.config.computed_vision_layers() {
            begin(self.model, Block::VisionLayer(index))?;
            let layer = &self.model.vision_tower.vision_model.encoder.layers[index];
            let (step, output) = self
                .forward_block(states[index].clone(), layer, |layer, input, _| layer.forward(input, index, &context));
            layers.push(step);
            states.push(as_state(output, index + 1));
        }
        let features = self.selected(&states, batch.num_images);
        begin(self.model, Block::Projector)?;
        let projected = self.project(features, &context);
        Ok(Some(Vision { context, embedded: Some(embedded), layers, states, projected }))
    }

    fn frozen_features(&self, batch: &PackedBatch, context: &VisionContext) -> Result<Option<Tensor<2>>> {
        if let Some((kept, rows)) = self.kept_features {
            return Ok(kept.image_features(self.model, batch, rows, self.config)?);
        }
        let pixel_values = pixel_tensor(batch, self.config, &self.model.device());
        Ok(pixel_values.map(|pixels| self.model.vision_tower.vision_model.features(pixels, self.config, context)))
    }

    /// Image features in the language model's width, with the dropout of the projector's LoRA branches.
    fn project(&self, features: Tensor<2>, context: &VisionContext) -> Tensor<2> {
        let (act, per_image) = (self.config.projector_hidden_act, self.config.image_seq_length());
        self.model.multi_modal_projector.forward_dropped(features, act, context.dropout.as_ref(), per_image)
    }

    fn selected(&self, states: &[Tensor<2>], num_images: usize) -> Tensor<2> {
        let selected = self.config.selected_hidden_states().into_iter().map(|index| states[index].clone()).collect();
        select_features(selected, self.config.vision_feature_select_strategy, num_images)
    }

    /// Embedded tokens with the image features in their places, without a graph: [`Pass::backward_inputs`] goes back by hand.
    fn merge(&self, batch: &PackedBatch, vision: Option<&Vision>) -> Tensor<2> {
        let embeds = self.model.language_model.embed(&batch.input_ids).detach();
        match vision {
            Some(vision) => kernels::replace_rows(embeds, &batch.image_positions, vision.projected.clone().detach()),
            None => embeds,
        }
    }

    /// Runs a block on its input; keeps the graph, or only the input when it is to be recomputed.
    fn forward_block<M: Module>(
        &self,
        input: Tensor<2>,
        block: &M,
        forward: impl Fn(&M, Tensor<2>, bool) -> Tensor<2>,
    ) -> (Step, Tensor<2>) {
        if self.recompute {
            // Without autodiff: a graph that nobody walks would be kept until the next backward step.
            let values = forward(&block.valid(), input.clone().inner(), false);
            return (Step { input, output: None }, Tensor::from_inner(values));
        }
        let output = forward(block, input.clone(), true);
        (Step { input, output: Some(output.clone()) }, output)
    }

    /// From the gradient of the merged embeddings down to the images.
    fn backward_inputs(
        &self,
        batch: &PackedBatch,
        vision: Option<Vision>,
        outer: Tensor<2>,
        tied: Option<BlockGradient>,
        finished: &mut impl FnMut(usize, BlockGradient) -> Result<()>,
    ) -> Result<()> {
        if let Some(block) = self.layout.block(Block::TokenEmbeddings) {
            let mut gradient = BlockGradient::Rows(embedding_gradient(batch, &outer)?);
            if let Some(tied) = tied {
                gradient.add(tied);
            }
            finished(block, gradient)?;
        }
        match vision {
            Some(vision) => self.backward_vision(vision, kernels::select_rows(outer, &batch.image_positions), finished),
            None => Ok(()),
        }
    }

    fn backward_vision(
        &self,
        vision: Vision,
        outer: Tensor<2>,
        finished: &mut impl FnMut(usize, BlockGradient) -> Result<()>,
    ) -> Result<()> {
        if !self.trains_vision() && self.layout.block(Block::Projector).is_none() {
            return Ok(());
        }
        let Vision { context, embedded, mut layers, states, projected } = vision;
        let mut gradients = backward(projected, outer);
        if let Some(block) = self.layout.block(Block::Projector) {
            let projector = &self.model.multi_modal_projector;
            finished(block, collect(projector, &mut gradients, &self.layout.blocks[block])?)?;
        }
        if !self.trains_vision() {
            return Ok(());
        }
        // A selected state's gradient comes from the projector, and from the layer above it if there is one.
        let mut selected: Vec<_> = states.iter().map(|state| state.grad_remove(&mut gradients)).collect();
        drop(gradients);
        let mut gradient = None;
        let tower = &self.model.vision_tower.vision_model;
        for index in (self.first_trained_vision_layer()..layers.len()).rev() {
            gradient = sum(gradient, selected[index + 1].take());
            layers.truncate(index + 1);
            let (Some(step), Some(outer)) = (layers.pop(), gradient.take()) else { continue };
            let layer = &tower.encoder.layers[index];
            let (mut gradients, input) = backward_block(step, outer, |input| layer.forward(input, index, &context));
            if let Some(block) = self.layout.block(Block::VisionLayer(index)) {
                finished(block, collect(layer, &mut gradients, &self.layout.blocks[block])?)?;
            }
            gradient = input.grad_remove(&mut gradients);
        }
        let gradient = sum(gradient, selected[0].take());
        let block = self.layout.block(Block::VisionEmbeddings);
        if let (Some(block), Some(outer), Some(embedded)) = (block, gradient, embedded) {
            let mut gradients = backward(embedded, outer);
            finished(block, collect(tower, &mut gradients, &self.layout.blocks[block])?)?;
        }
        Ok(())
    }
}

/// A new leaf of the graph with the same values.
fn leaf(tensor: Tensor<2>) -> Tensor<2> {
    tensor.detach().require_grad()
}

fn backward(output: Tensor<2>, outer: Tensor<2>) -> Gradients {
    kernels::with_gradient(output, outer).backward()
}

/// The gradients of a block, and its input, whose gradient is among them.
fn backward_block(step: Step, outer: Tensor<2>, forward: impl Fn(Tensor<2>) -> Tensor<2>) -> (Gradients, Tensor<2>) {
    let output = step.output.unwrap_or_else(|| forward(step.input.clone()));
    (backward(output, outer), step.input)
}

/// The embedding's gradient from that of the embedded tokens `[T, D]`: each token's is added to its row, but for those whose
/// place an image feature has taken.
fn embedding_gradient(batch: &PackedBatch, outer: &Tensor<2>) -> Result<BTreeMap<usize, Vec<f32>>> {
    let [_, width] = outer.dims();
    let data = outer.clone().into_data().convert::<f32>();
    let outer = data.as_slice::<f32>().map_err(|error| anyhow!("gradient of the embedding: {error:?}"))?;
    let mut rows: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    let mut replaced = batch.image_positions.iter().peekable();
    for (position, (&id, gradient)) in batch.input_ids.iter().zip(outer.chunks_exact(width)).enumerate() {
        if replaced.next_if_eq(&&position).is_none() {
            let row = rows.entry(id as usize).or_insert_with(|| vec![0.0; width]);
            row.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
        }
    }
    Ok(rows)
}

fn sum(a: Option<Tensor<2>>, b: Option<Tensor<2>>) -> Option<Tensor<2>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}

/// The dropout of the tower's layers: an image's mask is that of its row.
fn per_image(dropout: &LoraDropout, batch: &PackedBatch, config: &LlavaConfig) -> LoraDropout {
    let per_image = config.image_seq_length();
    let mut ends = batch.seq_lens.iter().scan(0, |end, len| {
        *end += len;
        Some(*end)
    });
    let mut end = ends.next().unwrap_or(0);
    let (mut row, mut image_of_row) = (0, 0u64);
    let firsts = batch.image_positions.iter().step_by(per_image);
    let row_keys = firsts.map(|&position| {
        while position >= end {
            end = ends.next().unwrap_or(usize::MAX);
            (row, image_of_row) = (row + 1, 0);
        }
        image_of_row += 1;
        base::mix(dropout.row_keys[row] ^ image_of_row)
    });
    LoraDropout { row_keys: row_keys.collect(), ..dropout.clone() }
}

fn scalar(tensor: &Tensor<1>) -> Result<f32> {
    let data = tensor.clone().into_data().convert::<f32>();
    let values = data.as_slice::<f32>().map_err(|error| anyhow!("the loss is not f32: {error:?}"))?;
    values.first().copied().ok_or_else(|| anyhow!("the loss has no value"))
}

/// The gradients of a block's parameters; a parameter without one gets zeros.
fn collect(module: &impl Module, gradients: &mut Gradients, block: &BlockLayout) -> Result<BlockGradient> {
    let mut collector = Collector { gradients, block, params: vec![Vec::new(); block.params.len()], error: None };
    module.visit(&mut collector);
    if let Some(error) = collector.error {
        return Err(anyhow!("gradient of {}: {error}", block.name));
    }
    for (values, slot) in collector.params.iter_mut().zip(&block.params) {
        values.resize(slot.len, 0.0);
    }
    Ok(BlockGradient::Params(collector.params))
}

struct Collector<'a> {
    gradients: &'a mut Gradients,
    block: &'a BlockLayout,
    params: Vec<Vec<f32>>,
    error: Option<String>,
}

impl ModuleVisitor for Collector<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(index) = self.block.params.iter().position(|slot| slot.id == param.id) else { return };
        let Some(gradient) = param.val().grad_remove(self.gradients) else { return };
        // Of a GPU these bytes are in pinned memory: cubecl-server, `Command::copy_to_bytes`.
        match gradient.into_data().convert::<f32>().try_into_vec::<f32>() {
            Ok(values) => self.params[index] = values,
            Err(error) => self.error = Some(format!("{}: {error:?}", self.block.params[index].name)),
        }
    }
}
