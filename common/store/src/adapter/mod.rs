//! PEFT LoRA adapters: `adapter_config.json` is read strictly and written with few fields, `adapter_model.safetensors` is read in
//! every key spelling and written in both.

mod config;
mod fields;
mod modules;
mod options;
mod origin;
mod patterns;
mod targets;
mod weights;

use crate::checkpoint::{expected_tensors, renamed_tensors, write_file};
use base::names::{EMBED_TOKENS, LM_HEAD};
use base::{Error, Result, json, names};
use burn::module::Param;
use burn::tensor::{Device, Tensor};
use model::Llava;
use model::config::{LlavaConfig, WeightDtype};
use model::lora::{self, LoraConfig};
use model::named::{NamedMapper, NamedVisitor, map_named, visit_named};
use modules::{Head, ModelTensors, Resolved};
pub use options::{ALL_LINEAR, AdapterOptions};
pub use origin::{MODEL_OPTION, RUN_RECORD, require_own_model, warn_of_another_model};
pub use patterns::LayerPattern;
use serde::Deserialize;
use std::path::{Path, PathBuf};
pub(crate) use targets::{is_match, regex};
use weights::AdapterWeights;
pub(crate) use weights::weights_file;

/// Reads what an adapter for a model holds: `dir/adapter_config.json` and the names of the weights beside it.
///
/// # Errors
/// A missing file, another kind of adapter, LoRA variants that are not implemented, targets that the model does not have.
pub fn read_config(dir: &Path, model: &LlavaConfig) -> Result<LoraConfig> {
    let (file, weights) = (config::read(dir)?, AdapterWeights::open(dir)?);
    let tensors = ModelTensors::new(expected_tensors(model).into_iter().map(|tensor| tensor.name));
    Ok(modules::resolve(&file, &weights, &tensors)?.lora)
}

/// The dropout that an adapter was trained with.
///
/// # Errors
/// As [`read_config`], as far as the file itself goes.
pub fn dropout(dir: &Path) -> Result<f64> {
    Ok(config::read(dir)?.settings().lora_dropout)
}

/// The model that an adapter's folder names; `None` for a folder of anything else, or with a whole model beside the adapter.
///
/// # Errors
/// An `adapter_config.json` that is no JSON object.
pub fn base_of(dir: &Path) -> Result<Option<PathBuf>> {
    if dir.join(names::CONFIG_FILE).exists() {
        return Ok(None);
    }
    named_base(dir)
}

/// The model that `adapter_config.json` names, if there is one.
fn named_base(dir: &Path) -> Result<Option<PathBuf>> {
    #[derive(Deserialize)]
    struct Base {
        base_model_name_or_path: Option<PathBuf>,
    }
    let file: Option<Base> = json::read_if_there(&dir.join(names::ADAPTER_CONFIG_FILE))?;
    Ok(file.and_then(|file| file.base_model_name_or_path).filter(|base| !base.as_os_str().is_empty()))
}

/// Attaches the adapter's LoRA matrices (`lora_A`, `lora_B`) to the model's layers and replaces what else it holds (the
/// projector, as a rule). They stay in f32. Output weights that are tied get a table of their own where the adapter has other
/// values for one of the pair than for the other, as in PEFT.
///
/// # Errors
/// A missing, extra or misshapen tensor, by name.
pub fn load_adapter(model: &mut Llava, dir: &Path, device: &Device) -> Result<LoraConfig> {
    let (file, weights) = (config::read(dir)?, AdapterWeights::open(dir)?);
    let Resolved { lora: config, head } = modules::resolve(&file, &weights, &model_tensors(model))?;
    let mut attached = model.clone();
    lora::attach_unset(&mut attached, &config, 0, device);
    let mut loader = AdapterLoader { weights: &weights, config: &config, head, problems: Vec::new(), device };
    attached = map_named(attached, &mut loader);
    if let [first, others @ ..] = &loader.problems[..] {
        let more = if others.is_empty() { String::new() } else { format!(" ({} such tensors)", loader.problems.len()) };
        let expected = "the tensors of this model's adapter";
        let remedy = "give an adapter that was trained on this model";
        return Err(Error::invalid(weights.path.display(), first.clone() + &more, expected, remedy));
    }
    *model = attached;
    Ok(config)
}

/// Writes the model's LoRA matrices and what else the adapter holds (the projector, as a rule) as a PEFT directory, each tensor
/// under both spellings.
///
/// # Errors
/// A model without LoRA, and what the operating system refuses.
pub fn save_adapter(model: &Llava, config: &LoraConfig, base_model: &str, dir: &Path) -> Result<()> {
    let spellings = |path: String| match config.stores(&path) {
        true => names::adapter_spellings(&path).to_vec(),
        false => Vec::new(),
    };
    let tensors = renamed_tensors(model, None, WeightDtype::F32, spellings);
    if !tensors.iter().any(|tensor| names::is_lora(&tensor.name)) {
        return Err(Error::invalid(dir.display(), "no LoRA matrices", "a model with LoRA", "save the whole model"));
    }
    write_file(tensors, &dir.join(names::ADAPTER_WEIGHTS_FILE))?;
    config::write(config, base_model, dir)
}

fn model_tensors(model: &Llava) -> ModelTensors {
    struct Names(Vec<String>);
    impl NamedVisitor for Names {
        fn visit<const D: usize>(&mut self, name: String, _: &Param<Tensor<D>>) {
            self.0.push(name);
        }
    }
    let mut names = Names(Vec::new());
    visit_named(model, &mut names);
    ModelTensors::new(names.0.into_iter())
}

struct AdapterLoader<'a> {
    weights: &'a AdapterWeights,
    config: &'a LoraConfig,
    head: Head,
    problems: Vec<String>,
    device: &'a Device,
}

impl AdapterLoader<'_> {
    /// The name under which the adapter has a tensor. In a model that ties the two, values of the embedding or of the head that
    /// are not trained are those of both.
    fn published<'n>(&self, name: &'n str) -> Option<&'n str> {
        let stored = |name: &str| self.weights.stored_name(name).is_some();
        let other = match name {
            _ if stored(name) => return Some(name),
            EMBED_TOKENS => LM_HEAD,
            LM_HEAD => EMBED_TOKENS,
            _ => return None,
        };
        let is_shared = match self.head {
            Head::Own => false,
            Head::Tied => true,
            Head::Untied => !self.config.trains(other),
        };
        (stored(other) && is_shared).then_some(other)
    }
}

impl NamedMapper for AdapterLoader<'_> {
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(published) = self.published(&name) else { return param };
        let (Some(view), Some(stored)) = (self.weights.get(published), self.weights.stored_name(published)) else {
            return param;
        };
        let shape = param.val().dims();
        if view.shape != shape {
            self.problems.push(format!("tensor {stored} of shape {:?} where the model has {shape:?}", view.shape));
            return param;
        }
        Param::from_tensor(view.to_tensor(WeightDtype::F32, self.device))
    }
}
