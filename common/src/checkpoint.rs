//! Model directories: memory-mapped safetensors in, safetensors (sharded when large) out.

use crate::Result;
use crate::config::{LlavaConfig, WeightDtype};
use crate::model::Llava;
use burn::tensor::Device;
use std::path::Path;

/// A tensor in a mapped file.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Format in the file.
    pub dtype: WeightDtype,
    /// Shape in the file.
    pub shape: &'a [usize],
    /// Little-endian bytes.
    pub bytes: &'a [u8],
}

/// The mapped `*.safetensors` of a directory (single file or index + parts).
pub struct TensorFiles {}

impl TensorFiles {
    /// Maps every file; nothing is read yet.
    pub fn open(_dir: &Path) -> Result<Self> {
        todo!()
    }

    /// Names as they stand in the files.
    pub fn names(&self) -> Vec<&str> {
        todo!()
    }

    /// A tensor by the name that stands in the files.
    pub fn get(&self, _name: &str) -> Option<TensorView<'_>> {
        todo!()
    }
}

/// How weights are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadAs {
    /// f32, whatever the file holds (training).
    F32,
    /// As in the file (inference).
    Stored,
}

/// Reads config and weights; a missing, extra or misshapen tensor is an error that names it.
pub fn load_model(_dir: &Path, _load_as: LoadAs, _device: &Device) -> Result<(LlavaConfig, Llava)> {
    todo!()
}

/// Writes `config.json` and the weights (published names) into an existing folder; parts of at most `max_part_bytes`.
pub fn save_model(_model: &Llava, _config: &LlavaConfig, _dir: &Path, _max_part_bytes: usize) -> Result<()> {
    todo!()
}

/// Copies tokenizer, template, processor and generation config files from one model directory to another.
pub fn copy_processor_files(_from: &Path, _to: &Path) -> Result<()> {
    todo!()
}
