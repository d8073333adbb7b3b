//! Model directories: memory-mapped safetensors in, safetensors (in parts when large) out.

mod expected;
mod read;
mod write;

pub use expected::{ExpectedTensor, expected_tensors};
pub use read::{TensorFiles, TensorView};
pub use write::{TensorSource, save_model, write_tensors};
pub(crate) use write::{tensor_bytes, write_file};

use crate::config::{LlavaConfig, WeightDtype};
use crate::model::Llava;
use crate::names;
use crate::{Error, Result};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use std::collections::BTreeMap;
use std::path::Path;

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadAs {
    /// f32, whatever the file holds (training).
    F32,
    /// As in the file (inference).
    Stored,
}

/// Reads config and weights; a missing, extra or misshapen tensor is an error that names it.
///
/// The files are mapped and each tensor is copied once, so that no second whole copy exists at any time.
///
/// # Errors
/// Unreadable files, and all tensors that do not fit the config.
pub fn load_model(dir: &Path, load_as: LoadAs, device: &Device) -> Result<(LlavaConfig, Llava)> {
    let config = LlavaConfig::read(dir)?;
    let files = TensorFiles::open(dir)?;
    let stored = stored_names(dir, &config, &files)?;
    let mut loader = Loader { path: Vec::new(), files: &files, stored, load_as, device };
    let model = Llava::zeros(&config, device).map(&mut loader);
    Ok((config, model))
}

/// Published name → name in the files, after checking that both sides have the same tensors.
fn stored_names(dir: &Path, config: &LlavaConfig, files: &TensorFiles) -> Result<BTreeMap<String, String>> {
    let mut stored = BTreeMap::new();
    let mut extra = Vec::new();
    for name in files.names().into_iter().filter(|name| !names::is_stored_buffer(name)) {
        match names::canonical(name) {
            Some(canonical) => {
                stored.insert(canonical, name.to_string());
            }
            None => extra.push(name.to_string()),
        }
    }
    // A tied head is sometimes stored as well; the embedding is what counts.
    if config.text.tie_word_embeddings {
        stored.remove(names::LM_HEAD);
    }
    let mut problems = Vec::new();
    let mut known = BTreeMap::new();
    for tensor in expected_tensors(config) {
        let Some(name) = stored.remove(&tensor.name) else {
            problems.push(format!("missing tensor {} {:?}", tensor.name, tensor.shape));
            continue;
        };
        let shape = files.get(&name).map(|view| view.shape.to_vec()).unwrap_or_default();
        if shape != tensor.shape {
            problems.push(format!("tensor {name} has shape {shape:?}, config.json wants {:?}", tensor.shape));
        }
        known.insert(tensor.name, name);
    }
    extra.extend(stored.into_values());
    problems.extend(extra.into_iter().map(|name| format!("extra tensor {name}")));
    if problems.is_empty() {
        return Ok(known);
    }
    let shown = problems.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
    let more = if problems.len() > 5 { format!("; and {} more", problems.len() - 5) } else { String::new() };
    let remedy = "check that config.json belongs to these weights and that every part was copied";
    Err(Error::invalid(dir.display(), shown + &more, "the tensors of config.json", remedy))
}

struct Loader<'a> {
    path: Vec<String>,
    files: &'a TensorFiles,
    stored: BTreeMap<String, String>,
    load_as: LoadAs,
    device: &'a Device,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let view = self.stored.get(&self.path.join(".")).and_then(|name| self.files.get(name));
        match view {
            Some(view) => Param::from_tensor(view.to_tensor(self.load_as, self.device)),
            // `stored_names` has checked that every parameter of the model is there.
            None => param,
        }
    }
}

impl TensorView<'_> {
    /// A copy on a device.
    pub fn to_tensor<const D: usize>(&self, load_as: LoadAs, device: &Device) -> Tensor<D> {
        let dtype = match (load_as, self.dtype) {
            (LoadAs::F32, _) | (_, WeightDtype::F32) => DType::F32,
            (LoadAs::Stored, WeightDtype::Bf16) => DType::BF16,
            (LoadAs::Stored, WeightDtype::F16) => DType::F16,
        };
        let data = match dtype {
            DType::F32 => TensorData::new(self.to_f32(), self.shape.to_vec()),
            _ => TensorData::from_bytes(Bytes::from_bytes_vec(self.bytes.to_vec()), self.shape.to_vec(), dtype),
        };
        Tensor::from_data(data, (device, dtype))
    }
}

/// Copies tokenizer, template, processor and generation config files from one model directory to another.
///
/// # Errors
/// A file that exists and cannot be copied.
pub fn copy_processor_files(from: &Path, to: &Path) -> Result<()> {
    let names = [
        names::TOKENIZER_FILE,
        names::TOKENIZER_CONFIG_FILE,
        names::CHAT_TEMPLATE_FILE,
        names::CHAT_TEMPLATE_JSON_FILE,
        names::PREPROCESSOR_CONFIG_FILE,
        names::PROCESSOR_CONFIG_FILE,
        names::GENERATION_CONFIG_FILE,
    ];
    for name in names.into_iter().filter(|name| from.join(name).exists()) {
        let path = from.join(name);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        crate::files::write_atomically(&to.join(name), &bytes)?;
    }
    Ok(())
}
