//! Model directories: memory-mapped safetensors (or a pickled file) in, safetensors (in parts when large) out.

mod int8;
mod nf4;
mod pickled;
mod read;
mod resolve;
mod write;

pub use model::expected::{ExpectedTensor, expected_projector, expected_tensors, expected_text, expected_vision};
pub use read::{TensorFiles, TensorView, weight_files};
pub use resolve::Weights;
pub use write::{
    TensorDtype, TensorSource, from_f32, model_tensors, module_tensors, renamed_tensors, replace_rounded, save_model,
    write_file, write_tensors,
};

use base::{Error, Result, names, pulse};
use burn::module::Param;
use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use kernels::QuantizedWeight;
use model::Llava;
use model::config::{LlavaConfig, TextConfig, WeightDtype};
use model::named::{NamedMapper, map_named};
use model::quantized::{self, Rounding};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Parts that transformers makes by default, bytes.
pub const DEFAULT_MAX_PART_BYTES: usize = 5_000_000_000;

/// How weights are held in memory.
#[derive(Clone, Copy)]
pub enum LoadAs<'a> {
    /// f32, whatever the file holds (training).
    F32,
    /// As in the file; when the file mixes formats, all in the config's (inference).
    Stored,
    /// bf16, but f32 where this holds for a tensor's name (training in bf16: the f32 values become masters). Rounded as they are
    /// read, so that a device never holds more than one frozen tensor in f32.
    Bf16Except(&'a dyn Fn(&str) -> bool),
}

impl fmt::Debug for LoadAs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::Stored => "Stored",
            Self::Bf16Except(_) => "Bf16Except",
        })
    }
}

/// Reads config and weights; a missing, extra or misshapen tensor is an error that names it.
///
/// The files are mapped and each tensor is copied once, its pages given back before the next one, so that no second whole copy
/// exists at any time.
///
/// # Errors
/// Unreadable files, and the first tensor that does not fit the config.
pub fn load_model(dir: &Path, load_as: LoadAs<'_>, device: &Device) -> Result<(LlavaConfig, Llava)> {
    load_rounded(dir, load_as, None, device)
}

/// As [`load_model`]; the matrices that `rounding` names are rounded as they are read, so that no float copy of the model exists. Matrices that are stored in few bits stay as they are.
///
/// # Errors
/// As [`load_model`].
pub fn load_rounded(
    dir: &Path,
    load_as: LoadAs<'_>,
    rounding: Option<&Rounding>,
    device: &Device,
) -> Result<(LlavaConfig, Llava)> {
    let config = LlavaConfig::read(dir)?;
    let files = TensorFiles::open(dir)?;
    let expected = expected_tensors(&config);
    let is_unused = |stored: &str| is_tied_head(&config.text, &files, stored) || names::is_pooling_head(stored);
    let weights = Weights::resolve(&files, &expected, is_unused)?;
    let mixed = is_mixed(&weights, &expected).then_some(config.dtype);
    let dtype = |name: &str, stored: WeightDtype| match load_as {
        LoadAs::F32 => WeightDtype::F32,
        LoadAs::Stored => mixed.unwrap_or(stored),
        LoadAs::Bf16Except(is_f32) => {
            if is_f32(name) {
                WeightDtype::F32
            } else {
                WeightDtype::Bf16
            }
        }
    };
    let mut loader =
        Loader { weights: &weights, dtype: &dtype, rounding, device, rounded: BTreeMap::new(), error: None };
    let mut model = map_named(Llava::zeros(&config, device), &mut loader);
    if let Some(error) = loader.error {
        return Err(error);
    }
    quantized::place(&mut model, loader.rounded);
    Ok((config, model))
}

/// A head that is stored although it is tied: harmless as long as it equals the embedding.
pub fn is_tied_head(config: &TextConfig, files: &TensorFiles, stored: &str) -> bool {
    let is = |name: &str, published: &str| names::canonical(name).as_deref() == Some(published);
    let embedding = || files.names().into_iter().find(|name| is(name, names::EMBED_TOKENS));
    let bytes = |name: &str| files.get(name).map(|view| view.bytes);
    config.tie_word_embeddings && is(stored, names::LM_HEAD) && embedding().and_then(bytes) == bytes(stored)
}

fn is_mixed(weights: &Weights<'_>, expected: &[ExpectedTensor]) -> bool {
    let mut dtypes = expected.iter().filter_map(|tensor| Some(weights.get(&tensor.name)?.dtype));
    dtypes.next().is_some_and(|first| dtypes.any(|dtype| dtype != first))
}

struct Loader<'a> {
    weights: &'a Weights<'a>,
    /// Of a tensor in memory, from its name and its dtype in the file.
    dtype: &'a dyn Fn(&str, WeightDtype) -> WeightDtype,
    /// Of the matrices that are rounded.
    rounding: Option<&'a Rounding>,
    device: &'a Device,
    rounded: BTreeMap<String, QuantizedWeight>,
    error: Option<Error>,
}

impl Loader<'_> {
    /// A weight in few bits, as it is stored or as it is to be held.
    fn rounded(&self, name: &str) -> Option<Result<QuantizedWeight>> {
        if let Some(weight) = self.weights.in_few_bits(name, self.device) {
            return Some(weight);
        }
        let (rounding, view) = (self.rounding.filter(|rounding| rounding.rounds(name))?, self.weights.get(name)?);
        let weight = view.to_tensor(view.dtype, &self.device.clone().without_autodiff());
        Some(Ok(QuantizedWeight::quantize(weight, rounding.format)))
    }
}

impl NamedMapper for Loader<'_> {
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if let Some(weight) = self.rounded(&name) {
            match weight {
                Ok(weight) => drop(self.rounded.insert(name.clone(), weight)),
                Err(error) => self.error = Some(error),
            }
            self.weights.release(&name);
            pulse::mark();
            return Param::from_tensor(Tensor::empty([0; D], self.device));
        }
        // `resolve` has checked that every parameter of the model is there.
        let Some(view) = self.weights.get(&name) else { return param };
        let tensor = view.to_tensor((self.dtype)(&name, view.dtype), self.device);
        self.weights.release(&name);
        pulse::mark();
        Param::from_tensor(tensor)
    }
}

impl<'a> TensorView<'a> {
    /// A copy on a device, in the given format.
    ///
    /// # Panics
    /// If the tensor does not have `D` dimensions.
    pub fn to_tensor<const D: usize>(&self, dtype: WeightDtype, device: &Device) -> Tensor<D> {
        let (shape, kind) = (self.shape.to_vec(), burn_dtype(dtype));
        let data = match dtype {
            WeightDtype::F32 => TensorData::new(self.to_f32(), shape),
            _ => TensorData::from_bytes(Bytes::from_bytes_vec(self.to_bytes(dtype).into_owned()), shape, kind),
        };
        Tensor::from_data(data, (device, kind))
    }

    /// The bytes in the given format; borrowed when that is the file's.
    pub fn to_bytes(&self, dtype: WeightDtype) -> Cow<'a, [u8]> {
        if dtype == self.dtype { Cow::Borrowed(self.bytes) } else { Cow::Owned(from_f32(&self.to_f32(), dtype)) }
    }
}

fn burn_dtype(dtype: WeightDtype) -> DType {
    match dtype {
        WeightDtype::F32 => DType::F32,
        WeightDtype::Bf16 => DType::BF16,
        WeightDtype::F16 => DType::F16,
    }
}

/// Copies tokenizer, template, processor and generation config files from one model directory to another.
///
/// # Errors
/// A file that exists and cannot be copied.
pub fn copy_processor_files(from: &Path, to: &Path) -> Result<()> {
    for name in names::PROCESSOR_FILES.into_iter().filter(|name| from.join(name).exists()) {
        let path = from.join(name);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        base::files::write_atomically(&to.join(name), &bytes)?;
    }
    Ok(())
}
