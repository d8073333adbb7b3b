//! The modules of a new adapter: from a run's options, as PEFT chooses them.

use super::config::{ALPHA_PATTERN, RANK_PATTERN, target_pattern};
use super::modules::{ModelTensors, SAVED, is_saved, of_layers, with_projections};
use super::patterns::LayerPattern;
use super::targets::{Modules, RawTargets, Targets};
use crate::checkpoint::expected_tensors;
use base::names::{self, EMBED_TOKENS, LM_HEAD};
use base::{Error, Result};
use model::config::LlavaConfig;
use model::lora::{AdapterModules, LoraConfig};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// `target_modules` that stands for every linear layer but the output weights.
pub const ALL_LINEAR: &str = "all-linear";
/// Modules are named as in transformers 5: the last of [`names::module_spellings`].
const SPELLING: usize = names::SPELLINGS_OF_MODULES - 1;

/// What a run asks for.
#[derive(Clone, Debug)]
pub struct AdapterOptions {
    /// Rank, scale, dropout, the language model's projections.
    pub lora: LoraConfig,
    /// LoRA on every linear layer but the output weights, whatever the projections.
    pub all_linear: bool,
    /// Modules that are trained in full, by the ends of their paths.
    pub modules_to_save: Vec<String>,
    /// Ranks of single layers.
    pub rank_pattern: LayerPattern<usize>,
    /// Numerators of the scales of single layers.
    pub alpha_pattern: LayerPattern<f64>,
}

impl AdapterOptions {
    /// The adapter's settings for a model.
    ///
    /// # Errors
    /// Settings that no model can have; modules that this one does not have; no layer left for LoRA; patterns that fit none.
    /// # Source
    /// peft 0.21, `tuners/tuners_utils.py`: `_maybe_include_all_linear_layers`, `check_target_module_exists`;
    /// `utils/other.py`: `_set_trainable`.
    pub fn resolve(self, model: &LlavaConfig) -> Result<LoraConfig> {
        let has_patterns = !(self.rank_pattern.is_empty() && self.alpha_pattern.is_empty());
        if !self.all_linear && self.modules_to_save == [names::PROJECTOR] && !has_patterns && !self.lora.targets_head()
        {
            self.lora.validate()?;
            return Ok(self.lora);
        }
        let tensors = ModelTensors::new(expected_tensors(model).into_iter().map(|tensor| tensor.name));
        let target = if self.all_linear { ALL_LINEAR.to_string() } else { target_pattern(&self.lora) };
        let saved = Some(self.modules_to_save.clone()).filter(|names| !names.is_empty());
        let mut fields = vec![("target_modules".to_string(), json!(target))];
        fields.extend(saved.as_ref().map(|names| (SAVED.to_string(), json!(names))));
        for (field, value, is_empty) in [
            (RANK_PATTERN, json!(self.rank_pattern), self.rank_pattern.is_empty()),
            (ALPHA_PATTERN, json!(self.alpha_pattern), self.alpha_pattern.is_empty()),
        ] {
            fields.extend((!is_empty).then(|| (field.to_string(), value)));
        }
        let raw = RawTargets {
            target_modules: Some(Modules::Pattern(target)),
            modules_to_save: saved,
            ..RawTargets::default()
        };
        let targets = Targets::new(&raw, "lora_target_modules")?;
        let is_target = |layer: &&str| targets.has_lora(&names::module_spellings(layer)[SPELLING]);
        let lora: BTreeSet<String> = tensors.linears().filter(is_target).map(String::from).collect();
        let trained = saved_tensors(&targets, &tensors)?;
        self.require_apart(&lora, &trained)?;
        let unties_head = tensors.is_tied() && [EMBED_TOKENS, LM_HEAD].iter().any(|name| trained.contains(*name));
        let paths: Vec<String> = lora.iter().map(|layer| names::module_spellings(layer)[SPELLING].clone()).collect();
        self.rank_pattern.require_fitting(RANK_PATTERN, &paths)?;
        self.alpha_pattern.require_fitting(ALPHA_PATTERN, &paths)?;
        let ranks = of_layers(&self.rank_pattern, self.lora.r, &lora, SPELLING, RANK_PATTERN)?;
        let alphas = of_layers(&self.alpha_pattern, self.lora.lora_alpha, &lora, SPELLING, ALPHA_PATTERN)?;
        let config = with_projections(self.lora, &lora);
        let modules = AdapterModules { lora, ranks, alphas, trained, unties_head, fields, ..AdapterModules::default() };
        let config = LoraConfig { modules: Some(modules), ..config };
        config.validate()?;
        Ok(config)
    }

    /// Refuses an adapter without LoRA, and layers that would have both LoRA and trained weights.
    fn require_apart(&self, lora: &BTreeSet<String>, trained: &BTreeSet<String>) -> Result<()> {
        let saved = self.modules_to_save.join(", ");
        if lora.is_empty() {
            let expected = "a layer that lora_target_modules names outside of these modules";
            let remedy = "name fewer modules, or use --train_type none or freeze_vision, which train whole parts";
            return Err(Error::invalid(SAVED, saved, expected, remedy));
        }
        let weight = |layer: &&String| trained.contains(&format!("{layer}.weight"));
        match lora.iter().find(weight) {
            Some(layer) => {
                let found = format!("{saved}: the weights of {layer}, which gets LoRA");
                let remedy = "name whole modules (PEFT takes a name as the end of a path)";
                Err(Error::invalid(SAVED, found, "modules without LoRA", remedy))
            }
            None => Ok(()),
        }
    }
}

/// The tensors of the modules that are trained in full.
fn saved_tensors(targets: &Targets, model: &ModelTensors) -> Result<BTreeSet<String>> {
    let mut saved = BTreeSet::new();
    for name in targets.modules_to_save() {
        let found: Vec<&String> =
            model.names().iter().filter(|tensor| is_saved(targets, name, tensor, SPELLING)).collect();
        if found.is_empty() {
            let expected = "the end of a module's path in this model, as transformers 5 names them: multi_modal_projector, \
                            embed_tokens, lm_head, vision_tower, norm, layers.0.mlp, …";
            return Err(Error::invalid(SAVED, Value::from(name.as_str()), expected, "correct it, or leave it out"));
        }
        saved.extend(found.into_iter().cloned());
    }
    Ok(saved)
}
