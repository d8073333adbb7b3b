//! `infer export`: the model as a pair of GGUF files for llama.cpp, in f16: the language model, and the vision tower with the
//! projector ("mmproj").

mod gguf;
mod language_model;
mod mmproj;
mod vocabulary;

use crate::args::ExportArgs;
use anyhow::{Context, Result};
use base::Error;
use gguf::{GgufTensor, TensorType, Value};
use half::f16;
use kernels::device;
use model::config::WeightDtype;
use model::lora;
use std::collections::BTreeMap;
use store::adapter;
use store::checkpoint::{LoadAs, TensorSource, load_model, model_tensors};
use store::hub::{self, Wanted};
use store::processors::Processors;

/// File of the language model.
pub const LANGUAGE_MODEL_FILE: &str = "model-f16.gguf";
/// File of the vision tower and the projector.
pub const MMPROJ_FILE: &str = "mmproj-model-f16.gguf";

/// llama.cpp's number of "mostly f16".
const MOSTLY_F16: u32 = 1;

/// Writes both files; returns the report for stdout.
///
/// # Errors
/// A model that llama.cpp's LLaVA cannot be (features of several layers, or with the class token); a value that f16 cannot
/// hold; unreadable files, a full disk.
pub fn run(args: &ExportArgs) -> Result<String> {
    let dir = hub::resolve(&args.model, Wanted::Llava)?;
    Processors::read(&dir)?;
    let (config, mut model) = load_model(&dir, LoadAs::Stored, &device::cpu())?;
    mmproj::require_supported(&config)?;
    if let Some(dir) = &args.adapter {
        adapter::load_adapter(&mut model, dir, &device::cpu())?;
        model = lora::merge(model);
    }
    std::fs::create_dir_all(&args.output).map_err(Error::io(&args.output))?;
    let name = args.model.file_name().map_or("llava".into(), |name| name.to_string_lossy().into_owned());
    let sources = || Sources::new(model_tensors(&model, WeightDtype::F16), model_tensors(&model, WeightDtype::F32));
    let language_model = args.output.join(LANGUAGE_MODEL_FILE);
    let metadata = language_model::metadata(&dir, &name, &config.text).context("reading the tokenizer")?;
    gguf::write(&language_model, &metadata, sources().take(language_model::tensor_name)?)?;
    let mmproj = args.output.join(MMPROJ_FILE);
    let metadata = mmproj::metadata(&dir, &name, &config)?;
    let layers = config.computed_vision_layers();
    gguf::write(&mmproj, &metadata, sources().take(|name| mmproj::tensor_name(name, layers))?)?;
    Ok(format!(
        "{}\n{}\nllama-mtmd-cli -m {} --mmproj {} --image PICTURE -p QUESTION",
        language_model.display(),
        mmproj.display(),
        language_model.display(),
        mmproj.display()
    ))
}

/// The model's tensors in both formats; neither is read before it is written.
struct Sources {
    tensors: Vec<(TensorSource<'static>, TensorSource<'static>)>,
}

impl Sources {
    fn new(f16: Vec<TensorSource<'static>>, f32: Vec<TensorSource<'static>>) -> Self {
        Self { tensors: f16.into_iter().zip(f32).collect() }
    }

    /// The tensors that `name_of` has a name for, in llama.cpp's dtypes: matrices in f16, everything else in f32.
    fn take(self, name_of: impl Fn(&str) -> Option<String>) -> Result<Vec<GgufTensor<'static>>> {
        let mut taken: BTreeMap<usize, GgufTensor<'static>> = BTreeMap::new();
        for (index, (f16, f32)) in self.tensors.into_iter().enumerate() {
            let Some(name) = name_of(&f16.name) else { continue };
            // Positions are added to activations, which llama.cpp does in f32.
            let is_matrix = f16.shape.len() > 1 && !name.contains("position_embd");
            let (kind, source) = if is_matrix { (TensorType::F16, f16) } else { (TensorType::F32, f32) };
            let TensorSource { shape, bytes, .. } = source;
            let checked = name.clone();
            let bytes = Box::new(move || finite(&checked, kind, bytes()?));
            taken.insert(index, GgufTensor { name, shape, kind, bytes });
        }
        Ok(taken.into_values().collect())
    }
}

/// Refuses values that f16 cannot hold.
fn finite(name: &str, kind: TensorType, bytes: Vec<u8>) -> base::Result<Vec<u8>> {
    let bits = |pair: &[u8; 2]| f16::from_bits(u16::from_le_bytes(*pair));
    if kind == TensorType::F16 && bytes.as_chunks::<2>().0.iter().any(|pair| !bits(pair).is_finite()) {
        let expected = "values within ±65504";
        return Err(Error::invalid(format!("tensor {name}"), "a value that f16 cannot hold", expected, "report this"));
    }
    Ok(bytes)
}

/// A metadata entry.
fn entry(key: impl Into<String>, value: Value) -> (String, Value) {
    (key.into(), value)
}

fn number(key: impl Into<String>, value: usize) -> (String, Value) {
    entry(key, Value::U32(value as u32))
}
