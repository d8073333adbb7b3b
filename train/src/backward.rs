//! One micro-batch through the model and back, block by block.
//!
//! The forward pass ([`model::walk`]) cuts the graph between blocks: each block starts from a detached input, which the tape
//! keeps. The backward pass then walks the tape from the loss to the images; a block's gradients are handed on and its graph is
//! freed before the next one starts, so that no more than one block's gradients exist at a time and their exchange can begin at
//! once.

use crate::gradient::BlockGradient;
use crate::layout::{BlockLayout, Layout};
use crate::on_device::{DeviceGradient, Rows};
use crate::vision_cache::VisionFeatureCache;
use anyhow::{Result, anyhow};
use base::names::Block;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Gradients, Tensor};
use model::Llava;
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use model::dropout::LoraDropout;
use model::walk::{self, BatchContext, Layer, Plain, Walk, tower_features};
use std::collections::BTreeMap;

/// What a micro-batch is computed with.
pub struct Pass<'a> {
    /// The model; its trained parameters collect gradients.
    pub model: &'a mut Llava,
    /// Its configuration.
    pub config: &'a LlavaConfig,
    /// The trained parameters.
    pub layout: &'a Layout,
    /// Recompute each layer in the backward pass instead of keeping its graph.
    pub recompute: bool,
    /// Features of the frozen vision tower that are kept, and the batch's rows in the data.
    pub kept_features: Option<(&'a VisionFeatureCache, &'a [usize])>,
    /// Dropout of the LoRA branches, if any.
    pub dropout: Option<LoraDropout>,
    /// The loss is multiplied by this before the backward pass.
    pub loss_scale: f32,
    /// Whether gradients stay on the device.
    pub on_device: bool,
}

/// What happens beside the computing of a micro-batch, block by block.
pub trait BlockHooks {
    /// Before the forward pass uses a block, whose new values may still be in transit; called for the head at the latest
    /// before any gradient is computed.
    ///
    /// # Errors
    /// Values that do not come.
    fn before_forward(&mut self, model: &mut Llava, block: Block) -> Result<()>;

    /// After the backward pass of a trained block (its index in the layout), from the head down.
    ///
    /// # Errors
    /// A gradient that cannot be taken.
    fn after_backward(&mut self, block: usize, gradient: BlockGradient) -> Result<()>;
}

/// Cross entropy of a micro-batch's supervised tokens, not scaled.
pub struct BatchLoss {
    /// Its sum: `[1]` in f32, on the device.
    pub sum: Tensor<1>,
    /// That of each token, in order: `[S]`.
    pub tokens: Tensor<1>,
}

/// Forward and backward.
///
/// # Errors
/// What the hooks say, and a backend that cannot give its values.
pub fn forward_backward(pass: &mut Pass<'_>, batch: &PackedBatch, hooks: &mut impl BlockHooks) -> Result<BatchLoss> {
    let (positions, targets) = batch.supervised();
    let mut context = BatchContext::new(pass.config, batch, &pass.model.device()).for_positions(&positions);
    context.text.dropout = pass.dropout.clone();
    context.vision.dropout = pass.dropout.as_ref().map(|dropout| per_image(dropout, batch, pass.config));
    let mut tape = Tape::new(pass, hooks);
    let losses = walk::losses(&mut tape, batch, (&positions, &targets), &context)?;
    let sum = losses.sum.clone().inner().cast(DType::F32);
    tape.backward(losses.sum, batch, &context)?;
    Ok(BatchLoss { sum, tokens: losses.rows })
}

/// A block that the backward pass comes back to.
enum Step {
    /// From a state to the next one; without `output`, that is computed again.
    Layer { layer: Layer, input: usize, output: Option<Tensor<2>>, state: usize },
    /// To the first state of the tower.
    VisionEmbeddings { output: Tensor<2>, state: usize },
    /// From any of the tower's states.
    Projector { output: Tensor<2>, state: usize },
    /// Token embeddings and projected features `projected` to the language model's first state.
    Merge { projected: Option<usize>, state: usize },
}

/// A forward pass that keeps, of each block, what its backward pass needs.
struct Tape<'p, 'a, H> {
    pass: &'p mut Pass<'a>,
    hooks: &'p mut H,
    steps: Vec<Step>,
    /// What blocks start from: leaves of the graph (or no part of it, where nothing below is trained), and their gradients as
    /// far as they are known.
    states: Vec<(Tensor<2>, Option<Tensor<2>>)>,
    /// Lowest vision layer with trained parameters, 0 with trained embeddings; `None`: the tower is frozen.
    first_trained: Option<usize>,
}

impl<H: BlockHooks> Walk for Tape<'_, '_, H> {
    type Error = anyhow::Error;

    fn model(&mut self, block: Block) -> Result<&Llava> {
        self.hooks.before_forward(self.pass.model, block)?;
        Ok(self.pass.model)
    }

    fn layer(&mut self, layer: Layer, input: Tensor<2>, context: &BatchContext<'_>) -> Result<Tensor<2>> {
        let recompute = self.pass.recompute;
        let model = self.model(layer.block())?;
        // A graph that nobody walks would be kept until the next backward step, so values alone are computed without one.
        let output = match recompute {
            true => layer.forward_without_graph(model, input, context),
            false => layer.forward(model, input, context, None),
        };
        if !self.is_in_graph(layer) {
            return Ok(self.keep(output.detach()));
        }
        let (input, state) = (self.states.len() - 1, self.states.len());
        let kept = (!recompute).then(|| output.clone());
        self.steps.push(Step::Layer { layer, input, output: kept, state });
        Ok(self.keep(leaf(output)))
    }

    fn pass_on(&mut self, block: Block, output: Tensor<2>) -> Tensor<2> {
        let state = self.states.len();
        if block == Block::Projector {
            self.steps.push(Step::Projector { output: output.clone(), state });
            return self.keep(leaf(output));
        }
        if self.pass.layout.block(block).is_none() {
            return self.keep(output.detach());
        }
        self.steps.push(Step::VisionEmbeddings { output: output.clone(), state });
        self.keep(leaf(output))
    }

    fn image_features(&mut self, batch: &PackedBatch, context: &BatchContext<'_>) -> Result<Option<Tensor<2>>> {
        if self.first_trained.is_some() {
            return tower_features(self, batch, context);
        }
        // No parameter wants a gradient, so no graph and no states are kept.
        if let Some((kept, rows)) = self.pass.kept_features {
            return Ok(kept.image_features(self.pass.model, batch, rows, self.pass.config)?);
        }
        let Ok(features) = tower_features(&mut Plain::new(self.pass.model), batch, context);
        Ok(features)
    }

    /// Without a graph: [`Tape::backward`] goes back by hand.
    fn merge(&mut self, batch: &PackedBatch, projected: Option<Tensor<2>>) -> Result<Tensor<2>> {
        let embeds = self.model(Block::TokenEmbeddings)?.language_model.embed(&batch.input_ids).detach();
        let (merged, projected) = match projected {
            Some(features) => {
                let merged = kernels::replace_rows(embeds, &batch.image_positions, features.detach());
                (merged, Some(self.states.len() - 1))
            }
            None => (embeds, None),
        };
        self.steps.push(Step::Merge { projected, state: self.states.len() });
        Ok(self.keep(leaf(merged)))
    }
}

impl<'p, 'a, H: BlockHooks> Tape<'p, 'a, H> {
    fn new(pass: &'p mut Pass<'a>, hooks: &'p mut H) -> Self {
        let is_trained = |block| pass.layout.block(block).is_some();
        let layers = 0..pass.config.computed_vision_layers();
        let first_layer = layers.into_iter().find(|&layer| is_trained(Block::VisionLayer(layer)));
        let first_trained = if is_trained(Block::VisionEmbeddings) { Some(0) } else { first_layer };
        Self { pass, hooks, steps: Vec::new(), states: Vec::new(), first_trained }
    }

    /// Whether a layer's backward pass is needed.
    fn is_in_graph(&self, layer: Layer) -> bool {
        match layer {
            Layer::Vision(index) => self.first_trained.is_some_and(|first| index >= first),
            Layer::Text(_) => true,
        }
    }

    fn keep(&mut self, state: Tensor<2>) -> Tensor<2> {
        self.states.push((state.clone(), None));
        state
    }

    /// From the loss to the images.
    fn backward(mut self, loss: Tensor<1>, batch: &PackedBatch, context: &BatchContext<'_>) -> Result<()> {
        let mut gradients = (loss * self.pass.loss_scale).backward();
        self.hand_on(Block::Head, &mut gradients, |model, collector| model.language_model.visit(collector))?;
        let language_model = &self.pass.model.language_model;
        // Tied output weights are the embedding's, whose gradient is not complete before the end.
        let mut tied = match (&language_model.lm_head, self.pass.layout.block(Block::TokenEmbeddings)) {
            (None, Some(block)) => {
                let embedding = &language_model.model.embed_tokens;
                let visit = |collector: &mut Collector<'_>| embedding.visit(collector);
                Some(collect(&mut gradients, &self.pass.layout.blocks[block], self.pass.on_device, visit)?)
            }
            _ => None,
        };
        self.take_gradient(self.states.len() - 1, &mut gradients);
        drop(gradients);
        while let Some(step) = self.steps.pop() {
            match step {
                Step::Layer { layer, input, output, state } => {
                    let Some(outer) = self.gradient(state) else { continue };
                    let model = &*self.pass.model;
                    let again = || layer.forward(model, self.states[input].0.clone(), context, None);
                    let mut gradients = backward(output.unwrap_or_else(again), outer);
                    self.hand_on(layer.block(), &mut gradients, |model, collector| layer.visit(model, collector))?;
                    self.take_gradient(input, &mut gradients);
                }
                Step::Merge { projected, state } => {
                    let Some(outer) = self.gradient(state) else { continue };
                    if let Some(block) = self.pass.layout.block(Block::TokenEmbeddings) {
                        let mut gradient = embedding_gradient(batch, &outer, self.pass.on_device)?;
                        if let Some(tied) = tied.take() {
                            gradient.add(tied);
                        }
                        self.hooks.after_backward(block, gradient)?;
                    }
                    if let Some(projected) = projected {
                        self.states[projected].1 = Some(kernels::select_rows(outer, &batch.image_positions));
                    }
                }
                Step::Projector { output, state } => {
                    let is_trained = self.pass.layout.block(Block::Projector).is_some();
                    if !is_trained && self.first_trained.is_none() {
                        return Ok(());
                    }
                    let Some(outer) = self.gradient(state) else { continue };
                    let mut gradients = backward(output, outer);
                    let visit =
                        |model: &Llava, collector: &mut Collector<'_>| model.multi_modal_projector.visit(collector);
                    self.hand_on(Block::Projector, &mut gradients, visit)?;
                    (0..state).for_each(|state| self.take_gradient(state, &mut gradients));
                }
                Step::VisionEmbeddings { output, state } => {
                    let Some(outer) = self.gradient(state) else { continue };
                    let mut gradients = backward(output, outer);
                    let visit = |model: &Llava, collector: &mut Collector<'_>| model.vision_tower.visit(collector);
                    self.hand_on(Block::VisionEmbeddings, &mut gradients, visit)?;
                }
            }
        }
        Ok(())
    }

    /// A state's whole gradient. The states after it are not needed any more.
    fn gradient(&mut self, state: usize) -> Option<Tensor<2>> {
        self.states.truncate(state + 1);
        self.states.pop()?.1
    }

    /// Adds a state's gradient, if there is one: several blocks may start from it.
    fn take_gradient(&mut self, state: usize, gradients: &mut Gradients) {
        let (tensor, known) = &mut self.states[state];
        if let Some(gradient) = tensor.grad_remove(gradients) {
            *known = Some(match known.take() {
                Some(known) => gradient + known,
                None => gradient,
            });
        }
    }

    /// Hands on the gradient of a block, if it is trained; `visit` shows a module that has its parameters.
    fn hand_on(
        &mut self,
        block: Block,
        gradients: &mut Gradients,
        visit: impl FnOnce(&Llava, &mut Collector<'_>),
    ) -> Result<()> {
        let Some(index) = self.pass.layout.block(block) else { return Ok(()) };
        let gradient = collect(gradients, &self.pass.layout.blocks[index], self.pass.on_device, |collector| {
            visit(self.pass.model, collector);
        })?;
        self.hooks.after_backward(index, gradient)
    }
}

/// A new leaf of the graph with the same values.
fn leaf(tensor: Tensor<2>) -> Tensor<2> {
    tensor.detach().require_grad()
}

fn backward(output: Tensor<2>, outer: Tensor<2>) -> Gradients {
    kernels::with_gradient(output, outer).backward()
}

/// The embedding's gradient from that of the embedded tokens `[T, D]`: each token's is added to its row, but for those whose
/// place an image feature has taken.
fn embedding_gradient(batch: &PackedBatch, outer: &Tensor<2>, on_device: bool) -> Result<BlockGradient> {
    let mut replaced = batch.image_positions.iter().peekable();
    let embedded = (0..batch.input_ids.len()).filter(|position| replaced.next_if_eq(&position).is_none());
    let embedded: Vec<usize> = embedded.collect();
    let ids = embedded.iter().map(|&position| batch.input_ids[position] as usize);
    if on_device {
        let values = kernels::select_rows(outer.clone(), &embedded);
        let rows = Some(Rows::sum(&ids.collect::<Vec<_>>(), values));
        return Ok(BlockGradient::OnDevice(DeviceGradient { params: Vec::new(), rows }.into()));
    }
    let [_, width] = outer.dims();
    let data = outer.clone().into_data().convert::<f32>();
    let outer = data.as_slice::<f32>().map_err(|error| anyhow!("gradient of the embedding: {error:?}"))?;
    let mut rows: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    for (id, &position) in ids.zip(&embedded) {
        let row = rows.entry(id).or_insert_with(|| vec![0.0; width]);
        row.iter_mut().zip(&outer[position * width..]).for_each(|(sum, value)| *sum += value);
    }
    Ok(BlockGradient::Rows(rows))
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

/// The gradients of a block's parameters, which `visit` shows; a parameter without one gets zeros.
fn collect(
    gradients: &mut Gradients,
    block: &BlockLayout,
    on_device: bool,
    visit: impl FnOnce(&mut Collector<'_>),
) -> Result<BlockGradient> {
    let found = match on_device {
        true => Found::Tensors(vec![None; block.params.len()]),
        false => Found::Values(vec![Vec::new(); block.params.len()]),
    };
    let mut collector = Collector { gradients, block, found, error: None };
    visit(&mut collector);
    if let Some(error) = collector.error {
        return Err(anyhow!("gradient of {}: {error}", block.name));
    }
    Ok(match collector.found {
        Found::Tensors(params) => BlockGradient::OnDevice(DeviceGradient { params, rows: None }.into()),
        Found::Values(mut params) => {
            params.iter_mut().zip(&block.params).for_each(|(values, slot)| values.resize(slot.len, 0.0));
            BlockGradient::Params(params)
        }
    })
}

struct Collector<'a> {
    gradients: &'a mut Gradients,
    block: &'a BlockLayout,
    found: Found,
    error: Option<String>,
}

/// For each of a block's parameters.
enum Found {
    Tensors(Vec<Option<Tensor<2>>>),
    Values(Vec<Vec<f32>>),
}

impl ModuleVisitor for Collector<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(index) = self.block.params.iter().position(|slot| slot.id == param.id) else { return };
        let Some(gradient) = param.val().grad_remove(self.gradients) else { return };
        match &mut self.found {
            Found::Tensors(params) => {
                let shape = match gradient.dims()[..] {
                    [rows, width] => [rows, width],
                    _ => [1, self.block.params[index].len],
                };
                params[index] = Some(gradient.reshape(shape));
            }
            // Of a GPU these bytes are in pinned memory: cubecl-server, `Command::copy_to_bytes`.
            Found::Values(params) => match gradient.into_data().convert::<f32>().try_into_vec::<f32>() {
                Ok(values) => params[index] = values,
                Err(error) => self.error = Some(format!("{}: {error:?}", self.block.params[index].name)),
            },
        }
    }
}
