//! The tensors of an adapter by published names.

use crate::checkpoint::{TensorFiles, TensorView};
use base::{Error, Result, names};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The mapped weights of an adapter: published path → name in the file.
pub struct AdapterWeights {
    /// The file.
    pub path: PathBuf,
    files: TensorFiles,
    stored: BTreeMap<String, String>,
}

/// The file that [`AdapterWeights::open`] reads, whether it is there or not: the pickled one where there is no other.
pub fn weights_file(dir: &Path) -> PathBuf {
    let [path, pickled] = [names::ADAPTER_WEIGHTS_FILE, names::PICKLED_ADAPTER_WEIGHTS_FILE].map(|name| dir.join(name));
    if !path.exists() && pickled.exists() { pickled } else { path }
}

impl AdapterWeights {
    /// Maps `adapter_model.safetensors`, or `adapter_model.bin` of older versions.
    ///
    /// # Errors
    /// No such file; trained weights in a file that is not read; tensors of other kinds of adapters; a tensor under two names with different values.
    pub fn open(dir: &Path) -> Result<Self> {
        let beside = dir.join(names::NON_LORA_WEIGHTS_FILE);
        if beside.exists() {
            let expected = "all of the adapter in PEFT's files: these weights would be missing";
            let remedy = "merge the adapter with the code that trained it";
            return Err(Error::invalid(beside.display(), "weights that belong to the adapter", expected, remedy));
        }
        let path = weights_file(dir);
        let files = match path.ends_with(names::PICKLED_ADAPTER_WEIGHTS_FILE) {
            true => TensorFiles::open_pickled_file(&path)?,
            false => TensorFiles::open_file(&path)?,
        };
        let mut opened = Self { path, files, stored: BTreeMap::new() };
        for name in opened.files.names().into_iter().map(String::from).collect::<Vec<_>>() {
            opened.add(&name)?;
        }
        Ok(opened)
    }

    fn add(&mut self, name: &str) -> Result<()> {
        let refuse = |found: String, expected: &str, remedy: &str| {
            Err(Error::invalid(format!("{}: tensor {name}", self.path.display()), found, expected, remedy))
        };
        let Some(published) = names::canonical_adapter(name) else {
            return refuse("a name that no LLaVA's adapter has".into(), "PEFT's names", "save the adapter again");
        };
        if published.contains(".lora_") && !names::is_lora(&published) {
            let expected = "lora_A.weight, lora_B.weight and lora_magnitude_vector of linear layers (LoRA on embeddings and \
                            convolutions is not implemented)";
            return refuse("LoRA of another kind".into(), expected, "merge it with PEFT's merge_and_unload");
        }
        // As of a model: no LLaVA computes it.
        if names::is_pooling_head(&published) {
            return Ok(());
        }
        let bytes = |name: &str| self.files.get(name).map(|view| view.bytes);
        if let Some(other) = self.stored.get(&published)
            && bytes(other) != bytes(name)
        {
            let found = format!("other values than in {other}");
            return refuse(found, "the same values under both spellings", "save the adapter again");
        }
        self.stored.insert(published, name.to_string());
        Ok(())
    }

    /// Layers with LoRA matrices.
    pub fn lora_layers(&self) -> BTreeSet<String> {
        let layer = |name: &str| names::lora_layer(name).map(String::from);
        self.stored.keys().filter_map(|name| layer(name)).collect()
    }

    /// Tensors that stand in the place of the model's.
    pub fn values(&self) -> BTreeSet<String> {
        self.stored.keys().filter(|name| !names::is_lora(name)).cloned().collect()
    }

    /// The name in the file.
    pub fn stored_name(&self, published: &str) -> Option<&str> {
        self.stored.get(published).map(String::as_str)
    }

    /// A tensor by its published name.
    pub fn get(&self, published: &str) -> Option<TensorView<'_>> {
        self.files.get(self.stored.get(published)?)
    }
}
