//! Safetensors out: one file, or parts with an index; streamed, so that no second copy of the weights is ever held.

use super::read::{TensorFiles, TensorView};
use super::{int8, nf4};
use base::files::AtomicFile;
use base::{Error, Result, json, names};
use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};
use half::{bf16, f16};
use kernels::QuantizedWeight;
use model::Llava;
use model::config::{LlavaConfig, WeightDtype};
use model::named::{NamedVisitor, visit_named_below};
use model::quantized;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// Dtype of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorDtype {
    /// Weights.
    Float(WeightDtype),
    /// Codes.
    U8,
    /// Codes with a sign.
    I8,
}

impl TensorDtype {
    fn size(self) -> usize {
        match self {
            Self::Float(dtype) => dtype.size(),
            Self::U8 | Self::I8 => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Float(WeightDtype::F32) => "F32",
            Self::Float(WeightDtype::Bf16) => "BF16",
            Self::Float(WeightDtype::F16) => "F16",
            Self::U8 => "U8",
            Self::I8 => "I8",
        }
    }
}

impl From<WeightDtype> for TensorDtype {
    fn from(dtype: WeightDtype) -> Self {
        Self::Float(dtype)
    }
}

/// One tensor to write: its place in the file is planned before its bytes are asked for.
pub struct TensorSource<'a> {
    /// Name in the file.
    pub name: String,
    /// Format in the file.
    pub dtype: TensorDtype,
    /// Shape in the file.
    pub shape: Vec<usize>,
    /// Gives the little-endian bytes, when their turn has come.
    pub bytes: Box<dyn FnOnce() -> Result<Vec<u8>> + 'a>,
}

impl TensorSource<'_> {
    fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// Writes `config.json` and the weights (published names) into an existing folder; parts of at most `max_part_bytes`.
///
/// Weights are written in the config's format, those in few bits as bitsandbytes does it; output weights of their own are written, and the config says so, also where
/// `config` has them tied (an adapter may have separated the two).
///
/// # Errors
/// A model with LoRA matrices (they have no place in a full checkpoint), and what the operating system refuses.
pub fn save_model(model: &Llava, config: &LlavaConfig, dir: &Path, max_part_bytes: usize) -> Result<()> {
    let mut tensors = model_tensors(model, config.dtype);
    let rounded: BTreeMap<String, QuantizedWeight> = quantized::weights(model).into_iter().collect();
    tensors.retain(|tensor| !rounded.contains_key(&tensor.name));
    let format = rounded.values().next().map(QuantizedWeight::format);
    for (name, weight) in rounded {
        tensors.extend(in_few_bits(&name, &weight, config.dtype)?);
    }
    if let Some(lora) = tensors.iter().find(|tensor| names::is_lora(&tensor.name)) {
        let found = format!("LoRA matrices ({})", lora.name);
        return Err(Error::invalid(dir.display(), found, "merged weights", "merge first, or save the adapter"));
    }
    let mut config = config.clone();
    config.text.tie_word_embeddings = model.language_model.lm_head.is_none();
    config.quantization = format;
    config.write(dir)?;
    write_tensors(tensors, dir, max_part_bytes)
}

/// A weight's tensors as bitsandbytes names them.
fn in_few_bits(name: &str, weight: &QuantizedWeight, dtype: WeightDtype) -> Result<Vec<TensorSource<'static>>> {
    match weight {
        QuantizedWeight::Nf4(weight) => nf4::sources(name, weight, dtype),
        QuantizedWeight::Int8(weight) => Ok(int8::sources(name, weight)),
    }
}

/// Puts what stands in the files of a base in the place of its weights that are held in few bits: floats, or the same codes.
///
/// # Errors
/// A weight whose description cannot be written.
pub fn replace_rounded<'a>(
    tensors: &mut Vec<TensorSource<'a>>,
    rounded: Vec<(String, QuantizedWeight)>,
    base: &'a TensorFiles,
    dtype: WeightDtype,
) -> Result<()> {
    let stored: BTreeMap<String, TensorView<'a>> =
        base.names().into_iter().filter_map(|name| Some((names::canonical(name)?, base.get(name)?))).collect();
    let rounded: BTreeMap<String, QuantizedWeight> = rounded.into_iter().collect();
    tensors.retain(|tensor| !rounded.contains_key(&tensor.name));
    for (name, weight) in rounded {
        match stored.get(&name) {
            Some(&TensorView { dtype, shape, bytes }) => {
                let (dtype, shape, bytes) = (dtype.into(), shape.to_vec(), Box::new(move || Ok(bytes.to_vec())));
                tensors.push(TensorSource { name, dtype, shape, bytes });
            }
            None => tensors.extend(in_few_bits(&name, &weight, dtype)?),
        }
    }
    Ok(())
}

/// The model's parameters by module path, each copied from its device when its turn has come.
pub fn model_tensors(model: &Llava, dtype: WeightDtype) -> Vec<TensorSource<'static>> {
    module_tensors(model, None, dtype)
}

/// The parameters of a part of a model, whose place in the model is `root`.
pub fn module_tensors(module: &impl Module, root: Option<&str>, dtype: WeightDtype) -> Vec<TensorSource<'static>> {
    renamed_tensors(module, root, dtype, |path| vec![path])
}

/// As [`module_tensors`], each parameter under the names that `names_of` makes of its path; without one it is left out.
pub fn renamed_tensors<I: IntoIterator<Item = String>>(
    module: &impl Module,
    root: Option<&str>,
    dtype: WeightDtype,
    names_of: impl Fn(String) -> I,
) -> Vec<TensorSource<'static>> {
    let mut collector = Collector { dtype, names_of, tensors: Vec::new() };
    visit_named_below(module, root, &mut collector);
    collector.tensors
}

struct Collector<F> {
    dtype: WeightDtype,
    names_of: F,
    tensors: Vec<TensorSource<'static>>,
}

impl<F: Fn(String) -> I, I: IntoIterator<Item = String>> NamedVisitor for Collector<F> {
    fn visit<const D: usize>(&mut self, path: String, param: &Param<Tensor<D>>) {
        for name in (self.names_of)(path) {
            let (tensor, dtype) = (param.val(), self.dtype);
            let shape = tensor.dims().to_vec();
            let bytes = Box::new(move || tensor_bytes(tensor, dtype));
            self.tensors.push(TensorSource { name, dtype: dtype.into(), shape, bytes });
        }
    }
}

/// A tensor's little-endian bytes in a format of choice.
fn tensor_bytes<const D: usize>(tensor: Tensor<D>, dtype: WeightDtype) -> Result<Vec<u8>> {
    let stored = match tensor.dtype() {
        DType::BF16 => WeightDtype::Bf16,
        DType::F16 => WeightDtype::F16,
        _ => WeightDtype::F32,
    };
    if stored == dtype {
        return Ok(tensor.into_data().bytes().to_vec());
    }
    let data = tensor.cast(DType::F32).into_data();
    let values = data.as_slice::<f32>().map_err(|error| {
        Error::invalid("a weight on its way to a file", format!("{error:?}"), "f32 values", "report this")
    })?;
    Ok(from_f32(values, dtype))
}

/// Values in a format of choice (round to nearest even), little-endian.
pub fn from_f32(values: &[f32], dtype: WeightDtype) -> Vec<u8> {
    match dtype {
        WeightDtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        WeightDtype::Bf16 => values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
        WeightDtype::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
    }
}

/// Writes tensors as `model.safetensors`, or as parts and an index when they are larger than `max_part_bytes`. What an
/// earlier save of the other kind left in the folder is removed.
///
/// # Errors
/// What the operating system refuses, and what a tensor's source says.
pub fn write_tensors(tensors: Vec<TensorSource<'_>>, dir: &Path, max_part_bytes: usize) -> Result<()> {
    let total: usize = tensors.iter().map(TensorSource::len).sum();
    let mut parts: Vec<Vec<TensorSource<'_>>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        if parts.is_empty() || tensor.len() > room {
            parts.push(Vec::new());
            room = max_part_bytes;
        }
        room = room.saturating_sub(tensor.len());
        if let Some(part) = parts.last_mut() {
            part.push(tensor);
        }
    }
    let (single, index_path) = (dir.join(names::WEIGHTS_FILE), dir.join(names::WEIGHTS_INDEX_FILE));
    if parts.len() <= 1 {
        write_file(parts.pop().unwrap_or_default(), &single)?;
        return remove(&index_path);
    }
    let count = parts.len();
    let mut weight_map = Map::new();
    for (index, part) in parts.into_iter().enumerate() {
        let name = names::weights_part(index + 1, count);
        weight_map.extend(part.iter().map(|tensor| (tensor.name.clone(), Value::from(name.as_str()))));
        write_file(part, &dir.join(&name))?;
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    json::write(&index_path, &index)?;
    // transformers would read it instead of the index.
    remove(&single)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(error)),
        _ => Ok(()),
    }
}

/// Writes one safetensors file, tensor by tensor, atomically.
///
/// # Errors
/// As [`write_tensors`].
pub fn write_file(mut tensors: Vec<TensorSource<'_>>, path: &Path) -> Result<()> {
    // Floats first, so that codes of any number leave them aligned.
    tensors.sort_by_key(|tensor| tensor.dtype.size() == 1);
    let mut header = Map::new();
    header.insert("__metadata__".into(), serde_json::json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in &tensors {
        let dtype = tensor.dtype.name();
        let end = offset + tensor.len();
        let entry = serde_json::json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end] });
        header.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut header = Value::Object(header).to_string();
    // The data is aligned to 8 bytes, as the format's own library does it.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut out = AtomicFile::create(path)?;
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(Error::io(path))?;
    out.write_all(header.as_bytes()).map_err(Error::io(path))?;
    for tensor in tensors {
        let (name, len) = (tensor.name.clone(), tensor.len());
        let bytes = (tensor.bytes)()?;
        if bytes.len() != len {
            let place = format!("{}: tensor {name}", path.display());
            return Err(Error::invalid(
                place,
                format!("{} bytes", bytes.len()),
                len,
                "report this: a mistake of the program",
            ));
        }
        out.write_all(&bytes).map_err(Error::io(path))?;
    }
    out.commit()
}
