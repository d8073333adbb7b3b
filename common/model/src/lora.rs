//! LoRA: configuration, attaching to a model, merging into its weights.

use super::Llava;
use super::multi_modal_projector::MultiModalProjector;
use super::nn::{Embedding, Linear, LoraMatrix, LoraSlots};
use super::text::{Decoder, LanguageModel, TEXT_LINEARS};
use super::vision::{VISION_LINEARS, VisionTower};
use base::names::{self, Block};
use base::{Error, Result};
use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What an adapter says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Scale is `lora_alpha / r`, or `lora_alpha / √r` with [`Self::use_rslora`].
    pub lora_alpha: f64,
    /// Rank-stabilised: the scale falls with the root of the rank.
    pub use_rslora: bool,
    /// DoRA: the length of each row of a weight with LoRA is a trained magnitude.
    pub use_dora: bool,
    /// Dropout on the LoRA branch's input (with DoRA, of all that is scaled), probability.
    pub lora_dropout: f64,
    /// Projections of the language model that get LoRA (`q_proj`, …).
    pub target_modules: Vec<String>,
    /// The vision tower's q, k, v get LoRA too.
    pub lora_vision: bool,
    /// Of an adapter whose parts the two fields above and the whole projector do not describe: what exactly it holds. The fields
    /// above then name the projections of any layer.
    pub modules: Option<AdapterModules>,
}

/// The parts of an adapter, by published names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterModules {
    /// Layers with LoRA.
    pub lora: BTreeSet<String>,
    /// Ranks of layers that have another one than [`LoraConfig::r`].
    pub ranks: BTreeMap<String, usize>,
    /// Numerators of the scales of layers that have another one than [`LoraConfig::lora_alpha`].
    pub alphas: BTreeMap<String, f64>,
    /// Tensors that are trained in full (of `modules_to_save`).
    pub trained: BTreeSet<String>,
    /// Further tensors that the adapter brings along and that are not trained.
    pub kept: BTreeSet<String>,
    /// Output weights that the model ties to its embedding are a table of their own.
    pub unties_head: bool,
    /// Why training cannot go on from it, if so.
    pub untrainable: Option<&'static str>,
    /// Fields of `adapter_config.json` that say so in PEFT's words.
    pub fields: Vec<(String, Value)>,
}

/// Projections of the language model's layers that can carry LoRA.
pub const TEXT_PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
/// Names the output weights as a target of LoRA.
pub const LM_HEAD_TARGET: &str = "lm_head";
/// Projections of the vision tower's layers that get LoRA with `lora_vision`.
pub const VISION_PROJECTIONS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

impl LoraConfig {
    /// Factor of the LoRA branch of layers without a rank or numerator of their own.
    pub fn scale(&self) -> f32 {
        self.scale_with(self.lora_alpha, self.r)
    }

    fn scale_with(&self, alpha: f64, rank: usize) -> f32 {
        let rank = rank as f64;
        (alpha / if self.use_rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Rank of a layer's matrices, by its published path.
    pub fn rank_of(&self, path: &str) -> usize {
        self.modules.as_ref().and_then(|modules| modules.ranks.get(path)).copied().unwrap_or(self.r)
    }

    /// Factor of a layer's LoRA branch.
    pub fn scale_of(&self, path: &str) -> f32 {
        let alpha = self.modules.as_ref().and_then(|modules| modules.alphas.get(path));
        self.scale_with(alpha.copied().unwrap_or(self.lora_alpha), self.rank_of(path))
    }

    /// Whether the projections of a new adapter name the output weights.
    pub fn targets_head(&self) -> bool {
        self.target_modules.iter().any(|target| target == LM_HEAD_TARGET)
    }

    /// Refuses a rank of 0, a dropout outside `0..1` and targets that the language model does not have.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the setting.
    pub fn validate(&self) -> Result<()> {
        let wrong =
            |place: &str, found: String, expected: &str| Err(Error::invalid(place, found, expected, "change it"));
        let choices = format!("some of {}, {LM_HEAD_TARGET}, or all-linear alone", TEXT_PROJECTIONS.join(", "));
        if self.r == 0 {
            return wrong("lora_r", "0".into(), "a rank of at least 1");
        }
        let mut of_layers = self.modules.iter().flat_map(|modules| &modules.ranks);
        if let Some((layer, _)) = of_layers.find(|(_, rank)| **rank == 0) {
            return wrong("rank_pattern", format!("0 for {layer}"), "a rank of at least 1");
        }
        let mut of_layers = self.modules.iter().flat_map(|modules| &modules.alphas);
        if let Some((layer, alpha)) = of_layers.find(|(_, alpha)| !(alpha.is_finite() && **alpha > 0.0)) {
            return wrong("alpha_pattern", format!("{alpha} for {layer}"), "a number above 0");
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return wrong("lora_dropout", self.lora_dropout.to_string(), "a probability from 0 to below 1");
        }
        if self.target_modules.is_empty() && self.modules.is_none() {
            return wrong("lora_target_modules", "an empty list".into(), &choices);
        }
        let is_known = |target: &str| TEXT_PROJECTIONS.contains(&target) || target == LM_HEAD_TARGET;
        match self.target_modules.iter().find(|target| !is_known(target)) {
            Some(unknown) => wrong("lora_target_modules", format!("\"{unknown}\""), &choices),
            None => Ok(()),
        }
    }

    /// Whether a layer gets LoRA, by its published path (`language_model.model.layers.0.self_attn.q_proj`).
    pub fn has_lora(&self, path: &str) -> bool {
        if let Some(modules) = &self.modules {
            return modules.lora.contains(path);
        }
        let projection = path.rsplit('.').next().unwrap_or_default();
        match names::block(path) {
            Some(Block::TextLayer(_)) => self.target_modules.iter().any(|target| target == projection),
            Some(Block::VisionLayer(_)) => self.lora_vision && VISION_PROJECTIONS.contains(&projection),
            _ => false,
        }
    }

    /// Whether a tensor is trained: LoRA, and what [`AdapterModules::trained`] names or else the projector in full.
    pub fn trains(&self, name: &str) -> bool {
        names::is_lora(name)
            || match &self.modules {
                Some(modules) => modules.trained.contains(name),
                None => name.starts_with(names::PROJECTOR),
            }
    }

    /// Whether a tensor is part of the adapter's file.
    pub fn stores(&self, name: &str) -> bool {
        self.trains(name) || self.modules.as_ref().is_some_and(|modules| modules.kept.contains(name))
    }

    /// Whether output weights that the model ties to its embedding become a table of their own.
    pub fn unties_head(&self) -> bool {
        self.modules.as_ref().is_some_and(|modules| modules.unties_head)
    }
}

/// Adds freshly initialised matrices (A Kaiming-uniform as PEFT's, B zero) and DoRA's magnitudes (which then change nothing) to
/// the targeted layers. Output weights that are tied get a table of their own when they are targeted, because the embedding has
/// no part in their LoRA, and when [`LoraConfig::unties_head`].
pub fn attach(model: &mut Llava, config: &LoraConfig, seed: u64, device: &Device) {
    attach_unset(model, config, seed, device);
    for (_, slots) in slots(model) {
        let norms = slots.row_norms();
        if let (Some(magnitude), Some(norms)) = (slots.magnitude, norms) {
            *magnitude = Param::from_tensor(norms.detach());
        }
    }
}

/// The same for values to come: magnitudes are zeros.
pub fn attach_unset(model: &mut Llava, config: &LoraConfig, seed: u64, device: &Device) {
    if config.unties_head() || config.has_lora(names::HEAD) {
        untied_head(&mut model.language_model);
    }
    let set = |path: &str, slots: LoraSlots<'_>, seed: u64| {
        let ([outputs, inputs], rank) = (slots.dims(), config.rank_of(path));
        *slots.a = Some(LoraMatrix::random(rank, inputs, seed, device));
        *slots.b = Some(LoraMatrix::zeros(outputs, rank, device));
        let zeros = || Param::from_tensor(Tensor::zeros([outputs], (device, DType::F32)));
        *slots.magnitude = config.use_dora.then(zeros);
        *slots.scale = config.scale_of(path);
    };
    let targets = linears(model).into_iter().filter(|(path, _)| config.has_lora(path));
    for (index, (path, linear)) in targets.enumerate() {
        // Seeds far apart for neighbouring layers and neighbouring runs.
        set(&path, linear.lora_mut(), seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index as u64));
    }
    if let Some(head) = model.language_model.lm_head.as_mut().filter(|_| config.has_lora(names::HEAD)) {
        set(names::HEAD, head.lora_mut(), seed);
    }
}

/// Computes once what DoRA needs of the weights: for a model whose weights do not change from here on.
pub fn keep_row_norms(model: &mut Llava) {
    linears(model).into_iter().for_each(|(_, linear)| linear.keep_row_norms());
    model.language_model.lm_head.iter_mut().for_each(Embedding::keep_row_norms);
}

/// Layers with DoRA in which rows have no length, by published paths, and how many: each step would divide 0 by 0 there.
///
/// # Errors
/// A device that cannot give its values.
pub fn rows_without_length(model: &mut Llava) -> Result<Vec<(String, usize)>> {
    let mut found = Vec::new();
    for (path, slots) in slots(model) {
        // A magnitude begins as the length: lengths are computed only where one is 0.
        let suspects = slots.magnitude.as_ref().map_or(Ok(0), |magnitude| zeros(magnitude.val()))?;
        let norms = if suspects > 0 { slots.row_norms() } else { None };
        let rows = norms.map_or(Ok(0), zeros)?;
        if rows > 0 {
            found.push((path, rows));
        }
    }
    Ok(found)
}

fn zeros(values: Tensor<1>) -> Result<usize> {
    let values = values.detach().try_into_vec_as::<f32>().map_err(|error| {
        Error::invalid("lengths of rows", format!("{error:?}"), "f32 values from the device", "report this as a bug")
    })?;
    Ok(values.iter().filter(|&&value| value == 0.0).count())
}

/// The LoRA of every layer that can carry some, by its published path.
fn slots(model: &mut Llava) -> impl Iterator<Item = (String, LoraSlots<'_>)> {
    let Llava { vision_tower, multi_modal_projector, language_model } = model;
    let LanguageModel { model: decoder, lm_head } = language_model;
    let linears = linears_of(vision_tower, multi_modal_projector, decoder).into_iter();
    let head = lm_head.iter_mut().map(|head| (names::HEAD.to_string(), head.lora_mut()));
    linears.map(|(path, linear)| (path, linear.lora_mut())).chain(head)
}

/// The output weights as a table of their own: a tied one is separated from the embedding, with the same values.
pub fn untied_head(language_model: &mut LanguageModel) -> &mut Embedding {
    let LanguageModel { model, lm_head } = language_model;
    lm_head.get_or_insert_with(|| Embedding::new(Param::from_tensor(model.embed_tokens.weight.val())))
}

/// Adds `scale · B A` to every weight with LoRA, gives its rows the lengths of DoRA's magnitudes, and removes both. Sums are in f32,
/// the weight keeps its format. Weights in few bits keep their matrices beside them.
pub fn merge(mut model: Llava) -> Llava {
    slots(&mut model).map(|(_, slots)| slots).filter(|slots| slots.quantized.is_none()).for_each(merge_weight);
    model
}

fn merge_weight(slots: LoraSlots<'_>) {
    let norms = slots.row_norms();
    let (Some(a), Some(b)) = (slots.a.take(), slots.b.take()) else { return };
    let (a, b) = (a.weight.val().cast(DType::F32), b.weight.val().cast(DType::F32));
    let delta = b.matmul(a) * *slots.scale;
    let gain = slots.magnitude.take().zip(norms).map(|(magnitude, norms)| magnitude.val().cast(DType::F32) / norms);
    *slots.weight = slots.weight.clone().map(|weight| {
        let (dtype, trained) = (weight.dtype(), weight.is_require_grad());
        let sum = weight.cast(DType::F32) + delta;
        let merged = match gain {
            Some(gain) => sum * gain.unsqueeze_dim(1),
            None => sum,
        };
        merged.cast(dtype).detach().set_require_grad(trained)
    });
    *slots.scale = 0.0;
}

/// The layers that `config` gives LoRA to, in the model's order: the vision tower's, the projector's, the language model's.
pub fn targets<'a>(model: &'a mut Llava, config: &LoraConfig) -> Vec<&'a mut Linear> {
    linears(model).into_iter().filter(|(path, _)| config.has_lora(path)).map(|(_, linear)| linear).collect()
}

/// Every layer that can carry LoRA but the head, with its published path.
pub(crate) fn linears(model: &mut Llava) -> Vec<(String, &mut Linear)> {
    let Llava { vision_tower, multi_modal_projector, language_model } = model;
    linears_of(vision_tower, multi_modal_projector, &mut language_model.model)
}

fn linears_of<'a>(
    vision_tower: &'a mut VisionTower,
    multi_modal_projector: &'a mut MultiModalProjector,
    decoder: &'a mut Decoder,
) -> Vec<(String, &'a mut Linear)> {
    let vision = vision_tower.vision_model.encoder.layers.iter_mut().enumerate().flat_map(|(index, layer)| {
        named(format!("{}.encoder.layers.{index}", names::VISION_MODEL), VISION_LINEARS, layer.linears_mut())
    });
    let MultiModalProjector { linear_1, linear_2 } = multi_modal_projector;
    let projector = named(names::PROJECTOR.into(), ["linear_1", "linear_2"], [linear_1, linear_2]);
    let text = decoder.layers.iter_mut().enumerate().flat_map(|(index, layer)| {
        named(format!("{}.layers.{index}", names::TEXT_MODEL), TEXT_LINEARS, layer.linears_mut())
    });
    vision.chain(projector).chain(text).collect()
}

/// Layers with their paths below `root`.
fn named<'a, const N: usize>(
    root: String,
    names: [&'static str; N],
    linears: [&'a mut Linear; N],
) -> impl Iterator<Item = (String, &'a mut Linear)> {
    names.into_iter().zip(linears).map(move |(name, linear)| (format!("{root}.{name}"), linear))
}

/// Whether a tensor is the weight of a layer that can carry LoRA, by its published name.
pub fn can_carry_lora(weight: &str) -> bool {
    let Some(path) = weight.strip_suffix(".weight") else { return false };
    let is_one_of = |linears: &[&str]| linears.iter().any(|name| path.ends_with(name));
    match names::block(weight) {
        Some(Block::TextLayer(_)) => is_one_of(&TEXT_LINEARS),
        Some(Block::VisionLayer(_)) => is_one_of(&VISION_LINEARS),
        Some(Block::Projector) => true,
        _ => weight == names::LM_HEAD,
    }
}
