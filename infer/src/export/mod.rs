//! `infer export`: the model as a pair of GGUF files for llama.cpp, in f16: the language model, and the vision tower with the
//! projector ("mmproj").

mod gguf;
mod language_model;
mod mmproj;
mod tensor;
mod vocabulary;

use crate::args::ExportArgs;
use anyhow::{Context, Result};
use base::Error;
use gguf::{GgufTensor, Value};
use kernels::device;
use model::config::WeightDtype;
use model::lora;
use store::adapter;
use store::checkpoint::{LoadAs, load_model, model_tensors};
use store::hub::{self, Wanted};
use store::processors::Processors;
use tensor::{Source, Target};

/// File of the language model.
pub const LANGUAGE_MODEL_FILE: &str = "model-f16.gguf";
/// File of the vision tower and the projector.
pub const MMPROJ_FILE: &str = "mmproj-model-f16.gguf";

/// llama.cpp's number of "mostly f16".
const MOSTLY_F16: u32 = 1;

/// Writes both files; returns the report for stdout.
///
/// # Errors
/// A model that llama.cpp's LLaVA cannot be (features with CLIP's class token, a tokenizer that splits otherwise); a value that
/// f16 cannot hold; unreadable files, a full disk.
pub fn run(args: &ExportArgs) -> Result<String> {
    let dir = hub::resolve(&args.model, Wanted::Llava)?;
    let config = Processors::read(&dir)?.config;
    mmproj::require_supported(&config)?;
    language_model::require_supported(&config.text)?;
    let (_, mut model) = load_model(&dir, LoadAs::Stored, &device::cpu())?;
    // Weights in few bits are written as the values that they stand for.
    model::quantized::dequantize(&mut model, |_| true);
    if let Some(dir) = &args.adapter {
        adapter::load_adapter(&mut model, dir, &device::cpu())?;
        model = lora::merge(model);
    }
    std::fs::create_dir_all(&args.output).map_err(Error::io(&args.output))?;
    let name = args.model.file_name().map_or("llava".into(), |name| name.to_string_lossy().into_owned());
    let tensors = |target: &dyn Fn(&str) -> Option<Target>| -> Vec<GgufTensor<'static>> {
        Source::pairs(model_tensors(&model, WeightDtype::F16), model_tensors(&model, WeightDtype::F32))
            .filter_map(|source| target(source.name()).map(|target| source.write_as(target)))
            .collect()
    };
    let language_model = args.output.join(LANGUAGE_MODEL_FILE);
    let metadata = language_model::metadata(&dir, &name, &config.text).context("reading the tokenizer")?;
    let mut of_text = tensors(&|name| language_model::target(name, &config.text));
    of_text.extend(language_model::further_tensors(&config.text));
    gguf::write(&language_model, &metadata, of_text)?;
    let mmproj = args.output.join(MMPROJ_FILE);
    let mut of_vision = tensors(&|name| mmproj::target(name, &config));
    of_vision.extend(mmproj::further_tensors(&config));
    gguf::write(&mmproj, &mmproj::metadata(&dir, &name, &config)?, of_vision)?;
    Ok(format!(
        "{}\n{}\nllama-mtmd-cli -m {} --mmproj {} --image PICTURE -p QUESTION",
        language_model.display(),
        mmproj.display(),
        language_model.display(),
        mmproj.display()
    ))
}

/// A metadata entry.
fn entry(key: impl Into<String>, value: Value) -> (String, Value) {
    (key.into(), value)
}

fn number(key: impl Into<String>, value: usize) -> (String, Value) {
    entry(key, Value::U32(value as u32))
}
