//! `infer export`: the model as a pair of GGUF files for llama.cpp: the language model, in f16 or quantised, and the vision tower
//! with the projector ("mmproj") in f16. Beside them a Modelfile for Ollama.

mod blocks;
mod check;
mod gguf;
mod language_model;
mod mmproj;
mod modelfile;
mod read;
mod tensor;
mod types;
mod vocabulary;
mod warnings;

use crate::args::{ExportArgs, ExportType};
use crate::engine::Engine;
use crate::new_directory::{NewDirectory, ensure_free};
use anyhow::{Context, Result};
use blocks::TensorType;
use check::Check;
use gguf::{GgufTensor, Value};
use kernels::device::DeviceKind;
use model::Llava;
use model::config::{LlavaConfig, WeightDtype};
use model::lora;
use std::path::Path;
use store::adapter::require_own_model;
use store::checkpoint::{LoadAs, model_tensors};
use store::hub::{self, Wanted};
use store::processors::Processors;
use tensor::{Source, Target};
use types::Types;

/// File of the vision tower and the projector.
pub const MMPROJ_FILE: &str = "mmproj-model-f16.gguf";

/// File of the language model.
pub fn language_model_file(to: ExportType) -> String {
    format!("model-{}.gguf", to.name())
}

/// llama.cpp's number of "mostly f16".
const MOSTLY_F16: u32 = 1;

/// Writes the files, and compares them with the model if that is wanted; returns the report for stdout.
///
/// # Errors
/// An output directory with something in it; a model that llama.cpp's LLaVA cannot be (features with CLIP's class token, a tokenizer
/// that splits otherwise); a value that the type cannot hold; unreadable files, a full disk.
pub fn run(args: &ExportArgs) -> Result<String> {
    ensure_free(&args.output)?;
    let dir = hub::resolve(&args.model, Wanted::Llava)?;
    if let Some(adapter) = &args.adapter {
        require_own_model(adapter, &dir, args.force)?;
    }
    let config = Processors::read(&dir)?.config;
    mmproj::require_supported(&config)?;
    language_model::require_supported(&config.text)?;
    let mut engine = Engine::load(&dir, args.adapter.as_deref(), LoadAs::Stored, DeviceKind::Cpu)?;
    let check = Check::open(args, &engine.processors)?;
    // Weights in few bits are written as the values that they stand for.
    engine = engine.with_model(|mut model| {
        model::quantized::dequantize(&mut model, |_| true);
        Ok(if args.adapter.is_some() { lora::merge(model) } else { model })
    })?;
    let name = args.model.file_name().map_or("llava".into(), |name| name.to_string_lossy().into_owned());
    let directory = NewDirectory::create(&args.output)?;
    write(engine.model(), &config, args.quantize, &dir, &name, directory.path())?;
    let modelfile = modelfile::text(&engine.processors, &language_model_file(args.quantize), MMPROJ_FILE)?;
    base::files::write_atomically(&directory.path().join(modelfile::FILE), modelfile.as_bytes())?;
    let language_model = language_model_file(args.quantize);
    let checked = check
        .map(|check| check.run(engine, &directory.path().join(&language_model), &directory.path().join(MMPROJ_FILE)));
    let checked = checked.transpose().context("comparing the files with the model")?;
    directory.publish()?;
    warnings::tell(&config);
    let [language_model, mmproj] = [language_model.as_str(), MMPROJ_FILE].map(|file| args.output.join(file));
    let (language_model, mmproj, modelfile) =
        (language_model.display(), mmproj.display(), args.output.join(modelfile::FILE));
    let mut report = format!(
        "{language_model}\n{mmproj}\n{}\nllama-mtmd-cli -m {language_model} --mmproj {mmproj} --image PICTURE -p QUESTION",
        modelfile.display()
    );
    report.extend(checked.map(|checked| format!("\n{checked}")));
    Ok(report)
}

/// Writes both files into a directory.
fn write(model: &Llava, config: &LlavaConfig, to: ExportType, dir: &Path, name: &str, output: &Path) -> Result<()> {
    let types = Types::new(to, &config.text);
    let tensors = |target: &dyn Fn(&str) -> Option<Target>, kind_of: &dyn Fn(&str, usize) -> TensorType| {
        Source::pairs(model_tensors(model, WeightDtype::F16), model_tensors(model, WeightDtype::F32))
            .filter_map(|source| target(source.name()).map(|target| source.write_as(target, kind_of)))
            .collect::<Vec<GgufTensor<'static>>>()
    };
    let metadata =
        language_model::metadata(dir, name, types.file_type(), &config.text).context("reading the tokenizer")?;
    let mut of_text = tensors(&|name| language_model::target(name, &config.text), &|name, width| types.of(name, width));
    of_text.extend(language_model::further_tensors(&config.text));
    gguf::write(&output.join(language_model_file(to)), &metadata, of_text)?;
    let mut of_vision = tensors(&|name| mmproj::target(name, config), &|_, _| TensorType::F16);
    of_vision.extend(mmproj::further_tensors(config));
    Ok(gguf::write(&output.join(MMPROJ_FILE), &mmproj::metadata(dir, name, config)?, of_vision)?)
}

/// A metadata entry.
fn entry(key: impl Into<String>, value: Value) -> (String, Value) {
    (key.into(), value)
}

fn number(key: impl Into<String>, value: usize) -> (String, Value) {
    entry(key, Value::U32(value as u32))
}
