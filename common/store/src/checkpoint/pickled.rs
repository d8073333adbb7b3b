//! `pytorch_model.bin`, as older repositories (CLIP ViT-L/14-336 among them) still publish weights.
//!
//! The pickle is read by a parser that runs none of its code. Its tensors are rewritten once into a temporary safetensors
//! file, one at a time, and mapped like any other; the pages are the file system's, not the program's memory.

use super::write::{TensorSource, write_file};
use base::{Error, Result, names};
use model::config::WeightDtype;
use pytorch_reader::{DType, PytorchReader, Tensor};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A temporary safetensors file; removed when this is dropped.
pub struct Rewritten {
    folder: TempDir,
}

impl Rewritten {
    /// The file.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(names::WEIGHTS_FILE)
    }
}

/// Rewrites the tensors of a pickled file into safetensors, bit for bit, in the folder for temporary files.
///
/// # Errors
/// A file that is no PyTorch checkpoint or is damaged, a dtype that weights cannot have, a full disk.
pub fn rewrite(path: &Path) -> Result<Rewritten> {
    let damaged = |error: &dyn std::fmt::Display| {
        Error::invalid(path.display(), error, "a complete state dict as torch.save writes it", "download it again")
    };
    let tensors = PytorchReader::new(path).map_err(|error| damaged(&error))?.into_tensors();
    let mut tensors: Vec<(String, Tensor)> =
        tensors.into_iter().filter(|(name, _)| !names::is_stored_buffer(name)).collect();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let source = |(name, tensor): (String, Tensor)| -> Result<TensorSource<'_>> {
        let dtype = weight_dtype(tensor.dtype(), path, &name)?;
        let shape = tensor.shape().to_vec();
        let bytes = Box::new(move || tensor.read().map_err(|error| damaged(&error)));
        Ok(TensorSource { name, dtype: dtype.into(), shape, bytes })
    };
    let sources = tensors.into_iter().map(source).collect::<Result<Vec<_>>>()?;
    let folder = TempDir::new().map_err(Error::io(&std::env::temp_dir()))?;
    let rewritten = Rewritten { folder };
    write_file(sources, &rewritten.path())?;
    Ok(rewritten)
}

fn weight_dtype(dtype: DType, path: &Path, name: &str) -> Result<WeightDtype> {
    match dtype {
        DType::F32 => Ok(WeightDtype::F32),
        DType::BF16 => Ok(WeightDtype::Bf16),
        DType::F16 => Ok(WeightDtype::F16),
        other => Err(Error::invalid(
            format!("{}: tensor {name}", path.display()),
            format!("{other:?}"),
            "F32, BF16 or F16",
            "convert the weights; quantized ones are not read",
        )),
    }
}
