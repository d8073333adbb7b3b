//! Memory-mapped safetensors of a directory.

use crate::config::WeightDtype;
use crate::names;
use crate::{Error, Result};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
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

impl TensorView<'_> {
    /// The values in f32 (exact: both half formats are subsets of f32).
    pub fn to_f32(&self) -> Vec<f32> {
        let halves = self.bytes.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        match self.dtype {
            WeightDtype::F32 => self
                .bytes
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
                .collect(),
            WeightDtype::Bf16 => halves.map(|pair| bf16::from_le_bytes(pair).to_f32()).collect(),
            WeightDtype::F16 => halves.map(|pair| f16::from_le_bytes(pair).to_f32()).collect(),
        }
    }
}

/// Where a tensor lies.
struct Entry {
    part: usize,
    dtype: WeightDtype,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

/// The mapped `*.safetensors` of a directory (single file or index + parts).
pub struct TensorFiles {
    parts: Vec<Mmap>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl TensorFiles {
    /// Maps every file; nothing but headers is read yet.
    ///
    /// # Errors
    /// No weights, a part that is missing or damaged, a tensor of another number format.
    pub fn open(dir: &Path) -> Result<Self> {
        let index = dir.join(names::WEIGHTS_INDEX_FILE);
        let mut files = Self { parts: Vec::new(), tensors: BTreeMap::new() };
        if dir.join(names::WEIGHTS_FILE).exists() {
            files.map(&dir.join(names::WEIGHTS_FILE))?;
        } else if index.exists() {
            let text = std::fs::read_to_string(&index).map_err(Error::io(&index))?;
            let remedy = "copy the index again";
            let index: Index = serde_json::from_str(&text)
                .map_err(|error| Error::invalid(index.display(), error, "a weight_map", remedy))?;
            for part in index.weight_map.values().collect::<BTreeSet<_>>() {
                files.map(&dir.join(part))?;
            }
            if let Some((tensor, part)) = index.weight_map.iter().find(|(name, _)| !files.tensors.contains_key(*name)) {
                let found = format!("no tensor {tensor} in {part}");
                return Err(Error::invalid(dir.display(), found, "what the index lists", "copy the parts again"));
            }
        } else {
            let expected = format!("{} or {}", names::WEIGHTS_FILE, names::WEIGHTS_INDEX_FILE);
            let remedy =
                "give a directory with safetensors weights (convert .bin files with transformers' save_pretrained)";
            return Err(Error::invalid(dir.display(), "no weights", expected, remedy));
        }
        Ok(files)
    }

    /// One file, whatever its name (adapters).
    ///
    /// # Errors
    /// As [`TensorFiles::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut files = Self { parts: Vec::new(), tensors: BTreeMap::new() };
        files.map(path)?;
        Ok(files)
    }

    /// Names as they stand in the files.
    pub fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    /// A tensor by the name that stands in the files.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let entry = self.tensors.get(name)?;
        let bytes = &self.parts[entry.part][entry.start..entry.end];
        Some(TensorView { dtype: entry.dtype, shape: &entry.shape, bytes })
    }

    fn map(&mut self, path: &Path) -> Result<()> {
        let damaged = |found: String| {
            let remedy = "the file is cut or damaged: copy it again";
            Error::invalid(path.display(), found, "a safetensors file", remedy)
        };
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: checkpoints are published by rename and never changed in place, here and by transformers' tools.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|error| damaged(error.to_string()))?;
        let data = header + size_of::<u64>();
        for (name, info) in metadata.tensors() {
            let dtype = match info.dtype {
                Dtype::F32 => WeightDtype::F32,
                Dtype::BF16 => WeightDtype::Bf16,
                Dtype::F16 => WeightDtype::F16,
                _ if names::is_stored_buffer(&name) => continue,
                other => return Err(damaged(format!("tensor {name} of {other:?} (F32, BF16 and F16 are read)"))),
            };
            let (start, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
            if end > map.len() {
                return Err(damaged(format!("tensor {name} ends at byte {end} of {}", map.len())));
            }
            let entry = Entry { part: self.parts.len(), dtype, shape: info.shape.clone(), start, end };
            self.tensors.insert(name, entry);
        }
        self.parts.push(map);
        Ok(())
    }
}
