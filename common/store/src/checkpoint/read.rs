//! Memory-mapped weights: single `*.safetensors`, parts with an index, or a pickled file rewritten as one.

use super::int8;
use super::nf4::Nf4State;
use super::pickled;
use base::{Error, Result, files, json, names};
use burn::tensor::Device;
use half::{bf16, f16};
use kernels::QuantizedWeight;
use memmap2::{Mmap, UncheckedAdvice};
use model::config::WeightDtype;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

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

/// The mapped `*.safetensors` of a directory (single file or index + parts).
pub struct TensorFiles {
    files: Vec<MappedFile>,
    entries: BTreeMap<String, Entry>,
    /// Weights in NF4 by their names, shapes of those in 8-bit integers, and the tensors that they consist of, which are no others'
    /// business.
    nf4: BTreeMap<String, Nf4State>,
    int8: BTreeMap<String, Vec<usize>>,
    parts: BTreeMap<String, Entry>,
    /// The temporary file that is mapped, if there is one.
    rewritten: Option<pickled::Rewritten>,
}

struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// In what form a model directory has its weights.
enum Stored {
    Single(PathBuf),
    Parts { index: Index, paths: Vec<PathBuf> },
    Pickled(PathBuf),
}

impl Stored {
    /// A single file wins over an index, and both over `pytorch_model.bin`, as in transformers. `None`: no weights.
    fn find(dir: &Path) -> Result<Option<Self>> {
        let single = dir.join(names::WEIGHTS_FILE);
        if single.exists() {
            return Ok(Some(Self::Single(single)));
        }
        let index_path = dir.join(names::WEIGHTS_INDEX_FILE);
        let Some(index) = json::read_if_there::<Index>(&index_path)? else {
            let pickled = dir.join(names::PICKLED_WEIGHTS_FILE);
            return Ok(pickled.exists().then_some(Self::Pickled(pickled)));
        };
        let parts: BTreeSet<&String> = index.weight_map.values().collect();
        let paths = parts.into_iter().map(|part| files::in_folder(dir, part, index_path.display()));
        let paths = paths.collect::<Result<Vec<_>>>()?;
        Ok(Some(Self::Parts { index, paths }))
    }
}

/// The files whose tensors [`TensorFiles::open`] reads; none in a folder without weights.
///
/// # Errors
/// An unusable index.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(match Stored::find(dir)? {
        Some(Stored::Single(path) | Stored::Pickled(path)) => vec![path],
        Some(Stored::Parts { paths, .. }) => paths,
        None => Vec::new(),
    })
}

impl TensorFiles {
    /// Maps every file of a model directory; nothing is read yet. Of several forms of the weights one is read: a single file wins over
    /// an index, and both over `pytorch_model.bin` (which is rewritten into a temporary file), as in transformers.
    ///
    /// # Errors
    /// No weights, a damaged file, a part or tensor of the index that is missing, a dtype that weights cannot have.
    pub fn open(dir: &Path) -> Result<Self> {
        let (index, paths) = match Stored::find(dir)? {
            Some(Stored::Single(path)) => return Self::open_file(&path),
            Some(Stored::Pickled(path)) => return Self::open_pickled_file(&path),
            Some(Stored::Parts { index, paths }) => (index, paths),
            None => return Err(no_weights(dir)),
        };
        let files = Self::open_files(&paths)?;
        match index.weight_map.iter().find(|(name, _)| !files.has(name) && !names::is_stored_buffer(name)) {
            None => Ok(files),
            Some((name, part)) => Err(Error::invalid(
                dir.join(part).display(),
                format!("no tensor {name}"),
                format!("what {} lists", names::WEIGHTS_INDEX_FILE),
                "download the part and the index again",
            )),
        }
    }

    /// One pickled file (`pytorch_model.bin`, `adapter_model.bin`); errors name it, not the temporary file.
    ///
    /// # Errors
    /// As [`TensorFiles::open`].
    pub fn open_pickled_file(path: &Path) -> Result<Self> {
        let rewritten = pickled::rewrite(path)?;
        let mut opened = Self::open_files(&[rewritten.path()])?;
        opened.files.iter_mut().for_each(|file| file.path = path.to_path_buf());
        opened.rewritten = Some(rewritten);
        Ok(opened)
    }

    /// One file, whatever its name (adapters).
    ///
    /// # Errors
    /// As [`TensorFiles::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::open_files(&[path.to_path_buf()])
    }

    fn open_files(paths: &[PathBuf]) -> Result<Self> {
        let mut opened = Self {
            files: Vec::with_capacity(paths.len()),
            entries: BTreeMap::new(),
            nf4: BTreeMap::new(),
            int8: BTreeMap::new(),
            parts: BTreeMap::new(),
            rewritten: None,
        };
        for path in paths {
            opened.add(path)?;
        }
        opened.take_nf4()?;
        opened.take_int8()?;
        for (name, entry) in &opened.entries {
            weight_dtype(entry.dtype, &opened.files[entry.file].path, name)?;
        }
        Ok(opened)
    }

    /// Takes the weights in NF4 out of the other tensors. Their parts may lie in several files.
    fn take_nf4(&mut self) -> Result<()> {
        let weights = self.entries.keys().filter_map(|name| name.strip_suffix(names::nf4::STATE).map(str::to_string));
        for weight in weights.collect::<Vec<_>>() {
            let parts = names::nf4::PARTS.map(|part| format!("{weight}{part}"));
            for name in parts.into_iter().chain([weight.clone()]) {
                if let Some(entry) = self.entries.remove(&name) {
                    self.parts.insert(name, entry);
                }
            }
            let state = Nf4State::read(self, &weight)?;
            self.nf4.insert(weight, state);
        }
        Ok(())
    }

    /// The same for weights in 8-bit integers.
    fn take_int8(&mut self) -> Result<()> {
        for weight in self.entries.keys().filter_map(|name| int8::weight_of(name)).collect::<Vec<_>>() {
            for name in int8::parts_of(&weight).into_iter().chain([weight.clone()]) {
                if let Some(entry) = self.entries.remove(&name) {
                    self.parts.insert(name, entry);
                }
            }
            let shape = int8::shape(self, &weight)?;
            self.int8.insert(weight, shape);
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name) || self.parts.contains_key(name)
    }

    /// A weight in few bits by the name that stands in the files; `None` for other tensors.
    pub(super) fn in_few_bits(&self, name: &str, device: &Device) -> Option<Result<QuantizedWeight>> {
        if self.int8.contains_key(name) {
            return Some(int8::weight(self, name, device).map(QuantizedWeight::from));
        }
        Some(self.nf4.get(name)?.weight(self, name, device).map(QuantizedWeight::from))
    }

    /// Dtype, shape and bytes of a tensor that a weight in few bits consists of.
    pub(super) fn part(&self, name: &str) -> Option<(Dtype, &[usize], &[u8])> {
        let Entry { file, range, dtype, shape } = self.parts.get(name)?;
        Some((*dtype, shape.as_slice(), &self.files[*file].map[range.clone()]))
    }

    /// The shape of a tensor, in few bits or not, by the name that stands in the files.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let of_nf4 = self.nf4.get(name).map(|state| &state.shape[..]);
        let in_few_bits = of_nf4.or_else(|| self.int8.get(name).map(Vec::as_slice));
        in_few_bits.or_else(|| self.entries.get(name).map(|entry| &entry.shape[..]))
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: the map is read-only. Whoever truncates the file under a running program gets SIGBUS, as with any mapped
        // file; nothing in this project writes weights in place.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(|error| {
            let (found, remedy) = match map.starts_with(names::LFS_POINTER) {
                true => ("a pointer of Git LFS".to_string(), "download the file itself: git lfs pull, or hf download"),
                false => (format!("{error} ({} bytes)", map.len()), "copy or download it again"),
            };
            Error::invalid(path.display(), found, "a complete safetensors file", remedy)
        })?;
        let data_start = size_of::<u64>() + header_len;
        for (name, info) in metadata.tensors() {
            if names::is_stored_buffer(&name) {
                continue;
            }
            let (start, end) = info.data_offsets;
            let entry = Entry {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                range: data_start + start..data_start + end,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                let place = format!("{}: tensor {name}", path.display());
                return Err(Error::invalid(place, "a second one", "each tensor in one file", "remove a part"));
            }
        }
        self.files.push(MappedFile { path: path.to_path_buf(), map });
        Ok(())
    }

    /// Names as they stand in the files.
    pub fn names(&self) -> Vec<&str> {
        self.entries.keys().chain(self.nf4.keys()).chain(self.int8.keys()).map(String::as_str).collect()
    }

    /// A tensor by the name that stands in the files; `None` for one in few bits.
    pub fn get(&self, name: &str) -> Option<TensorView<'_>> {
        let Entry { file, dtype, shape, range } = self.entries.get(name)?;
        let MappedFile { path, map } = &self.files[*file];
        Some(TensorView { dtype: weight_dtype(*dtype, path, name).ok()?, shape, bytes: &map[range.clone()] })
    }

    /// The file that holds a tensor.
    pub fn path_of(&self, name: &str) -> Option<&Path> {
        let entry = self.entries.get(name).or_else(|| self.parts.get(name));
        entry.map(|entry| self.files[entry.file].path.as_path())
    }

    /// Gives back the memory of a tensor's pages after it has been copied; reading it again is allowed and reads the file.
    pub fn release(&self, name: &str) {
        let entry = self.entries.get(name).or_else(|| self.parts.get(name));
        let Some(Entry { file, range, .. }) = entry else { return };
        // SAFETY: the map is read-only and backed by a file, so dropped pages come back with the same bytes.
        let advised = unsafe {
            self.files[*file].map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        if let Err(error) = advised {
            // Costs memory, not correctness.
            tracing::debug!("madvise: {error}");
        }
    }
}

fn no_weights(dir: &Path) -> Error {
    let is_pickle = |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "bin");
    let pickled = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.any(|e| e.is_ok_and(|e| is_pickle(&e))));
    let found = if pickled { "PyTorch's pickled weights in parts" } else { "no weights" };
    Error::invalid(
        dir.display(),
        found,
        format!("{}, {} or {}", names::WEIGHTS_FILE, names::WEIGHTS_INDEX_FILE, names::PICKLED_WEIGHTS_FILE),
        "download the safetensors files, or convert with transformers' save_pretrained",
    )
}

fn weight_dtype(dtype: Dtype, path: &Path, name: &str) -> Result<WeightDtype> {
    match dtype {
        Dtype::F32 => Ok(WeightDtype::F32),
        Dtype::BF16 => Ok(WeightDtype::Bf16),
        Dtype::F16 => Ok(WeightDtype::F16),
        other => Err(Error::invalid(
            format!("{}: tensor {name}", path.display()),
            format!("{other:?}"),
            "F32, BF16 or F16",
            "convert the weights; of quantized ones, bitsandbytes' NF4 and 8-bit integers are read",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_files_beside_it_and_no_others() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let model = dir.path().join("model");
        std::fs::create_dir(&model).expect("created");
        let header = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
        for place in [dir.path().join("x.safetensors"), model.join("model-00001-of-00001.safetensors")] {
            std::fs::write(place, &file).expect("written");
        }
        let elsewhere = dir.path().join("x.safetensors").display().to_string();
        for (part, is_read) in [
            ("model-00001-of-00001.safetensors", true),
            ("../x.safetensors", false),
            ("model-/../../x.safetensors", false),
            (elsewhere.as_str(), false),
        ] {
            let index = serde_json::json!({"weight_map": {"a": part}}).to_string();
            std::fs::write(model.join(names::WEIGHTS_INDEX_FILE), index).expect("written");
            match TensorFiles::open(&model) {
                Ok(files) => assert!(is_read && files.get("a").is_some(), "{part} was read"),
                Err(error) => {
                    assert!(!is_read && error.to_string().contains("index.json: found the file name"), "{error}")
                }
            }
        }
    }
}
