//! Weights in NF4 as bitsandbytes stores them: the codes under the weight's name, the rest beside it.
//!
//! # Source
//! bitsandbytes 0.50, `functional.QuantState`.

use super::read::TensorFiles;
use super::write::{TensorDtype, TensorSource, from_f32};
use base::names::nf4::{ABSMAX, NESTED_ABSMAX, NESTED_QUANT_MAP, QUANT_MAP, STATE};
use base::{Error, Result};
use burn::tensor::{Device, Tensor};
use kernels::nf4::{Absmax, Nf4Weight, VALUES};
use model::config::WeightDtype;
use serde::{Deserialize, Serialize};

/// The JSON text beside a weight.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nf4State {
    quant_type: String,
    blocksize: usize,
    /// What bitsandbytes gives the values in; here they are f32.
    dtype: String,
    pub(super) shape: Vec<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f64>,
}

fn wrong(files: &TensorFiles, name: &str, found: impl ToString, expected: impl ToString) -> Error {
    let path = files.path_of(name).map(|path| path.display().to_string()).unwrap_or_default();
    let remedy = "save the model again with bitsandbytes, or take the original one with --load_in_4bit";
    Error::invalid(format!("{path}: tensor {name}"), found, expected, remedy)
}

impl Nf4State {
    /// Of the weight with this name.
    pub(super) fn read(files: &TensorFiles, weight: &str) -> Result<Self> {
        let name = format!("{weight}{STATE}");
        let state: Self = serde_json::from_slice(files.part(&name).map_or(&[][..], |(.., bytes)| bytes))
            .map_err(|error| wrong(files, &name, error, "bitsandbytes' description of a weight"))?;
        if state.quant_type != "nf4" {
            return Err(wrong(files, &name, format!("quant_type {}", state.quant_type), "nf4"));
        }
        if state.blocksize == 0 || !state.blocksize.is_multiple_of(2) {
            return Err(wrong(files, &name, format!("blocksize {}", state.blocksize), "an even number above 0"));
        }
        Ok(state)
    }

    /// The weight itself.
    pub(super) fn weight(&self, files: &TensorFiles, name: &str, device: &Device) -> Result<Nf4Weight> {
        let shape = <[usize; 2]>::try_from(&self.shape[..])
            .map_err(|_| wrong(files, name, format!("shape {:?}", self.shape), "a matrix"))?;
        let device = &device.clone().without_autodiff();
        let values = shape[0] * shape[1];
        let codes = self.bytes(files, name, "", values.div_ceil(2))?;
        let map = self.floats(files, name, QUANT_MAP, VALUES.len())?;
        if map != VALUES {
            return Err(wrong(files, &format!("{name}{QUANT_MAP}"), "other values", "the sixteen of NF4"));
        }
        let blocks = values.div_ceil(self.blocksize);
        let absmax = match (self.nested_blocksize, self.nested_offset) {
            (Some(block), Some(offset)) if block > 0 => {
                let codes = self.bytes(files, name, ABSMAX, blocks)?;
                let map = self.floats(files, name, NESTED_QUANT_MAP, 256)?;
                let absmax = self.floats(files, name, NESTED_ABSMAX, blocks.div_ceil(block))?;
                Absmax::of_codes((codes.to_vec(), map), absmax, block, offset as f32, device)
            }
            _ => Absmax::of_values(self.floats(files, name, ABSMAX, blocks)?, device),
        };
        Ok(Nf4Weight::from_parts(codes.to_vec(), absmax, self.blocksize, shape, device))
    }

    fn bytes<'a>(&self, files: &'a TensorFiles, name: &str, part: &str, len: usize) -> Result<&'a [u8]> {
        let name = format!("{name}{part}");
        match files.part(&name) {
            Some((.., bytes)) if bytes.len() == len => Ok(bytes),
            found => {
                let found = found.map_or("none".into(), |(.., bytes)| format!("{} bytes", bytes.len()));
                Err(wrong(files, &name, found, format!("{len} bytes")))
            }
        }
    }

    fn floats(&self, files: &TensorFiles, name: &str, part: &str, len: usize) -> Result<Vec<f32>> {
        let bytes = self.bytes(files, name, part, len * size_of::<f32>())?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect())
    }
}

/// A weight's tensors, to be written; `dtype` is that of the weights beside it, which bitsandbytes gives the values in.
pub(super) fn sources(name: &str, weight: &Nf4Weight, dtype: WeightDtype) -> Result<Vec<TensorSource<'static>>> {
    let mut state = Nf4State {
        quant_type: "nf4".into(),
        blocksize: weight.block,
        dtype: dtype.torch_name().into(),
        shape: weight.shape.to_vec(),
        nested_blocksize: None,
        nested_dtype: None,
        nested_offset: None,
    };
    let codes = weight.codes.clone().into_data().bytes().to_vec();
    let mut sources = vec![bytes(name.to_string(), vec![codes.len(), 1], codes)];
    match &weight.absmax {
        Absmax::Plain(absmax) => sources.push(floats(format!("{name}{ABSMAX}"), absmax.clone())),
        Absmax::Nested { codes, map, absmax, block, offset } => {
            state.nested_blocksize = Some(*block);
            state.nested_dtype = Some(WeightDtype::F32.torch_name().into());
            state.nested_offset = Some(f64::from(*offset));
            let codes = codes.clone().into_data().bytes().to_vec();
            sources.push(bytes(format!("{name}{ABSMAX}"), vec![codes.len()], codes));
            sources.push(floats(format!("{name}{NESTED_ABSMAX}"), absmax.clone()));
            sources.push(floats(format!("{name}{NESTED_QUANT_MAP}"), map.clone()));
        }
    }
    let map = from_f32(&VALUES, WeightDtype::F32);
    let shape = vec![VALUES.len()];
    let (map_name, dtype) = (format!("{name}{QUANT_MAP}"), WeightDtype::F32.into());
    sources.push(TensorSource { name: map_name, dtype, shape, bytes: Box::new(|| Ok(map)) });
    let state = serde_json::to_vec(&state).map_err(|error| Error::invalid(name, error, "JSON", "report this"))?;
    sources.push(bytes(format!("{name}{STATE}"), vec![state.len()], state));
    Ok(sources)
}

fn bytes(name: String, shape: Vec<usize>, bytes: Vec<u8>) -> TensorSource<'static> {
    TensorSource { name, dtype: TensorDtype::U8, shape, bytes: Box::new(|| Ok(bytes)) }
}

fn floats(name: String, values: Tensor<1>) -> TensorSource<'static> {
    let shape = values.dims().to_vec();
    let bytes = Box::new(move || Ok(values.into_data().bytes().to_vec()));
    TensorSource { name, dtype: WeightDtype::F32.into(), shape, bytes }
}
