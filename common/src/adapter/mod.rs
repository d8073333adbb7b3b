//! PEFT LoRA adapters: minimal `adapter_config.json`, both key spellings in `adapter_model.safetensors`.

mod config;

use crate::checkpoint::{TensorFiles, TensorSource, tensor_bytes, write_file};
use crate::config::WeightDtype;
use crate::model::Llava;
use crate::model::lora::{self, LoraConfig};
use crate::model::named::{NamedMapper, NamedVisitor, map_named, visit_named};
use crate::{Error, Result, names};
use burn::module::Param;
use burn::tensor::{Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Reads `dir/adapter_config.json`; which projections it targets is taken from the weights beside it.
///
/// # Errors
/// A missing file, another kind of adapter, LoRA variants that are not implemented, targets that the model does not have.
pub fn read_config(dir: &Path) -> Result<LoraConfig> {
    let weights = AdapterWeights::open(dir)?;
    config::read(dir, &weights.published())
}

/// Attaches the adapter's LoRA matrices (`lora_A`, `lora_B`) to the model's layers and replaces what else it holds (the
/// projector, as a rule). They stay in f32.
///
/// # Errors
/// A missing, extra or misshapen tensor, by name.
pub fn load_adapter(model: &mut Llava, dir: &Path, device: &Device) -> Result<LoraConfig> {
    let weights = AdapterWeights::open(dir)?;
    let config = config::read(dir, &weights.published())?;
    let mut attached = model.clone();
    lora::attach(&mut attached, &config, 0, device);
    let stored = weights.stored.clone();
    let mut loader = AdapterLoader { files: &weights.files, stored, problems: Vec::new(), device };
    attached = map_named(attached, &mut loader);
    let AdapterLoader { stored, mut problems, .. } = loader;
    problems.extend(stored.into_values().map(|name| format!("tensor {name}, for which this model has no place")));
    if let Some(first) = problems.first() {
        let others = if problems.len() > 1 { format!(" ({} such tensors)", problems.len()) } else { String::new() };
        return Err(Error::invalid(
            weights.path.display(),
            first.clone() + &others,
            "the tensors of this model's adapter",
            "give an adapter that was trained on this model",
        ));
    }
    *model = attached;
    Ok(config)
}

/// Writes the model's LoRA matrices and projector as a PEFT directory, each tensor under both spellings.
///
/// # Errors
/// A model without LoRA, and what the operating system refuses.
pub fn save_adapter(model: &Llava, config: &LoraConfig, base_model: &str, dir: &Path) -> Result<()> {
    let mut collector = AdapterCollector { tensors: Vec::new() };
    visit_named(model, &mut collector);
    if !collector.tensors.iter().any(|tensor| names::is_lora(&tensor.name)) {
        return Err(Error::invalid(dir.display(), "no LoRA matrices", "a model with LoRA", "save the whole model"));
    }
    write_file(collector.tensors, &dir.join(names::ADAPTER_WEIGHTS_FILE))?;
    config::write(config, base_model, dir)
}

/// The mapped weights of an adapter: published path → name in the file.
struct AdapterWeights {
    path: PathBuf,
    files: TensorFiles,
    stored: BTreeMap<String, String>,
}

impl AdapterWeights {
    fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(names::ADAPTER_WEIGHTS_FILE);
        let files = TensorFiles::open_file(&path)?;
        let mut stored: BTreeMap<String, String> = BTreeMap::new();
        for name in files.names() {
            let refuse = |found: String, expected: &str| {
                Err(Error::invalid(
                    format!("{}: tensor {name}", path.display()),
                    found,
                    expected,
                    "save the adapter again",
                ))
            };
            let Some(published) = names::canonical_adapter(name) else {
                return refuse("a name that no LLaVA's adapter has".into(), "PEFT's names");
            };
            if let Some(other) = stored.insert(published, name.to_string())
                && files.get(&other).map(|view| view.bytes) != files.get(name).map(|view| view.bytes)
            {
                return refuse(format!("other values than in {other}"), "the same values under both spellings");
            }
        }
        Ok(Self { path, files, stored })
    }

    fn published(&self) -> Vec<String> {
        self.stored.keys().cloned().collect()
    }
}

struct AdapterLoader<'a> {
    files: &'a TensorFiles,
    stored: BTreeMap<String, String>,
    problems: Vec<String>,
    device: &'a Device,
}

impl NamedMapper for AdapterLoader<'_> {
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(stored) = self.stored.remove(&name) else {
            // Everything but LoRA may be absent: an adapter of the language model alone.
            if names::is_lora(&name) {
                self.problems.push(format!("no tensor {name}"));
            }
            return param;
        };
        let Some(view) = self.files.get(&stored) else { return param };
        let shape = param.val().dims();
        if view.shape != shape {
            self.problems.push(format!("tensor {stored} of shape {:?} where the model has {shape:?}", view.shape));
            return param;
        }
        Param::from_tensor(view.to_tensor(WeightDtype::F32, self.device))
    }
}

struct AdapterCollector {
    tensors: Vec<TensorSource<'static>>,
}

impl NamedVisitor for AdapterCollector {
    fn visit<const D: usize>(&mut self, name: String, param: &Param<Tensor<D>>) {
        if !names::is_lora(&name) && !name.starts_with(names::PROJECTOR) {
            return;
        }
        for name in names::adapter_spellings(&name) {
            let tensor = param.val();
            let shape = tensor.dims().to_vec();
            let bytes = Box::new(move || tensor_bytes(tensor, WeightDtype::F32));
            self.tensors.push(TensorSource { name, dtype: WeightDtype::F32, shape, bytes });
        }
    }
}
