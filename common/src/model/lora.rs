//! LoRA: configuration, attaching to a model, merging into its weights.

use super::Llava;
use super::language_model::Qwen2Layer;
use super::linear::{Linear, LoraMatrix};
use super::vision_tower::VisionLayer;
use crate::{Error, Result};
use burn::tensor::{DType, Device};

/// What an adapter says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Scale is `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout on the LoRA branch's input, probability.
    pub lora_dropout: f64,
    /// Projections of the language model that get LoRA (`q_proj`, …).
    pub target_modules: Vec<String>,
    /// The vision tower's q, k, v get LoRA too.
    pub lora_vision: bool,
}

/// Projections of the language model's layers that can carry LoRA.
pub const TEXT_PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl LoraConfig {
    /// Factor of the LoRA branch.
    pub fn scale(&self) -> f32 {
        (self.lora_alpha / self.r as f64) as f32
    }

    /// Refuses a rank of 0, a dropout outside `0..1` and targets that the language model does not have.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names the setting.
    pub fn validate(&self) -> Result<()> {
        let wrong =
            |place: &str, found: String, expected: &str| Err(Error::invalid(place, found, expected, "change it"));
        if self.r == 0 {
            return wrong("lora_r", "0".into(), "a rank of at least 1");
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return wrong("lora_dropout", self.lora_dropout.to_string(), "a probability from 0 to below 1");
        }
        if self.target_modules.is_empty() {
            return wrong("lora_target_modules", "an empty list".into(), &TEXT_PROJECTIONS.join(", "));
        }
        match self.target_modules.iter().find(|target| !TEXT_PROJECTIONS.contains(&target.as_str())) {
            Some(unknown) => wrong("lora_target_modules", format!("\"{unknown}\""), &TEXT_PROJECTIONS.join(", ")),
            None => Ok(()),
        }
    }

    fn targets(&self, projection: &str) -> bool {
        self.target_modules.iter().any(|target| target == projection)
    }
}

/// Adds freshly initialised matrices (A Kaiming-uniform as PEFT's, B zero) to the targeted layers.
pub fn attach(model: &mut Llava, config: &LoraConfig, seed: u64, device: &Device) {
    for (index, linear) in targets(model, config).into_iter().enumerate() {
        let [outputs, inputs] = linear.weight.dims();
        // Seeds far apart for neighbouring layers and neighbouring runs.
        let seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index as u64);
        linear.lora_A = Some(LoraMatrix::random(config.r, inputs, seed, device));
        linear.lora_B = Some(LoraMatrix::zeros(outputs, config.r, device));
        linear.lora_scale = config.scale();
    }
}

/// Adds `scale · B A` to every weight with LoRA and removes the matrices. The sum is in f32, the weight keeps its format.
/// Weights in 8-bit integers keep their matrices beside them.
pub fn merge(mut model: Llava) -> Llava {
    for linear in all_linears(&mut model).into_iter().filter(|linear| linear.int8.is_none()) {
        let (Some(a), Some(b)) = (linear.lora_A.take(), linear.lora_B.take()) else { continue };
        let (a, b) = (a.weight.val().cast(DType::F32), b.weight.val().cast(DType::F32));
        let delta = b.matmul(a) * linear.lora_scale;
        linear.weight = linear.weight.clone().map(|weight| {
            let (dtype, trained) = (weight.dtype(), weight.is_require_grad());
            (weight.cast(DType::F32) + delta).cast(dtype).detach().set_require_grad(trained)
        });
        linear.lora_scale = 0.0;
    }
    model
}

/// The layers that `config` gives LoRA to, in the model's order: the vision tower's, then the language model's.
pub fn targets<'a>(model: &'a mut Llava, config: &LoraConfig) -> Vec<&'a mut Linear> {
    let Llava { vision_tower, language_model, .. } = model;
    let vision = vision_tower.vision_model.encoder.layers.iter_mut().filter(|_| config.lora_vision);
    let text = language_model.model.layers.iter_mut().flat_map(text_projections);
    let text = text.filter(|(projection, _)| config.targets(projection)).map(|(_, linear)| linear);
    vision.flat_map(vision_projections).chain(text).collect()
}

/// Every layer that can carry LoRA.
fn all_linears(model: &mut Llava) -> Vec<&mut Linear> {
    let Llava { vision_tower, language_model, .. } = model;
    let vision = vision_tower.vision_model.encoder.layers.iter_mut().flat_map(vision_projections);
    let text = language_model.model.layers.iter_mut().flat_map(text_projections).map(|(_, linear)| linear);
    vision.chain(text).collect()
}

fn vision_projections(layer: &mut VisionLayer) -> [&mut Linear; 3] {
    let attention = &mut layer.self_attn;
    [&mut attention.q_proj, &mut attention.k_proj, &mut attention.v_proj]
}

/// In the order of [`TEXT_PROJECTIONS`].
fn text_projections(layer: &mut Qwen2Layer) -> impl Iterator<Item = (&'static str, &mut Linear)> {
    let (attention, mlp) = (&mut layer.self_attn, &mut layer.mlp);
    let linears = [
        &mut attention.q_proj,
        &mut attention.k_proj,
        &mut attention.v_proj,
        &mut attention.o_proj,
        &mut mlp.gate_proj,
        &mut mlp.up_proj,
        &mut mlp.down_proj,
    ];
    TEXT_PROJECTIONS.into_iter().zip(linears)
}
