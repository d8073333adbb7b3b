//! From a checkpoint's files into the ranks' partitions, whatever the number of ranks that wrote it.

use super::Found;
use crate::checkpoint::{EXP_AVG, EXP_AVG_SQ, MASTER, OPTIMIZER};
use crate::layout::Layout;
use crate::parameters;
use crate::partitions::Partitions;
use anyhow::{Result, bail};
use base::pulse;
use model::Llava;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use store::checkpoint::TensorFiles;

/// Puts the checkpoint's moments into the partitions, and into the model the f32 values of weights that the checkpoint's
/// model directory holds rounded. (The weights themselves were loaded with the model.)
///
/// # Errors
/// Files that do not fit the model.
pub fn restore(found: &Found, model: &mut Llava, layout: &Layout, partitions: &mut Partitions) -> Result<()> {
    let shards = Stretches::open(&found.dir)?;
    for (index, block) in layout.blocks.iter().enumerate() {
        let (first, second) =
            (Arc::make_mut(&mut partitions.exp_avg[index]), Arc::make_mut(&mut partitions.exp_avg_sq[index]));
        for param in &block.params {
            pulse::mark();
            for (range, start) in block.owned_ranges(param, layout.rank) {
                let part = start..start + range.len();
                let of_first = shards.copy(EXP_AVG, &param.name, range.start, &mut first[part.clone()]);
                let of_second = shards.copy(EXP_AVG_SQ, &param.name, range.start, &mut second[part]);
                if of_first + of_second != 2 * range.len() {
                    bail!("{}: no optimizer state of {}; choose another checkpoint", found.dir.display(), param.name);
                }
            }
        }
    }
    parameters::edit(model, layout, None, |_, slot, values| {
        pulse::mark();
        shards.copy(MASTER, &slot.name, 0, values);
    });
    Ok(())
}

/// Where a stretch is stored: its first value, the file, the tensor.
type Place = (usize, usize, String);

/// The optimizer shards of a checkpoint, indexed by what they hold.
struct Stretches {
    files: Vec<TensorFiles>,
    /// By (kind, parameter).
    index: BTreeMap<(String, String), Vec<Place>>,
}

impl Stretches {
    fn open(dir: &Path) -> Result<Self> {
        let mut stretches = Self { files: Vec::new(), index: BTreeMap::new() };
        for entry in std::fs::read_dir(dir)?.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(OPTIMIZER) {
                continue;
            }
            let file = TensorFiles::open_file(&entry.path())?;
            for name in file.names() {
                let mut parts = name.splitn(3, '/');
                let (Some(kind), Some(param), Some(first)) = (parts.next(), parts.next(), parts.next()) else {
                    continue;
                };
                let Ok(first) = first.parse() else { continue };
                let key = (kind.to_string(), param.to_string());
                let place = (first, stretches.files.len(), name.to_string());
                stretches.index.entry(key).or_default().push(place);
            }
            stretches.files.push(file);
        }
        Ok(stretches)
    }

    /// Copies what is stored of `first..first + values.len()` of a parameter; returns how many values that was.
    fn copy(&self, kind: &str, param: &str, first: usize, values: &mut [f32]) -> usize {
        let places = self.index.get(&(kind.to_string(), param.to_string())).map_or(&[][..], Vec::as_slice);
        let mut copied = 0;
        for (start, file, name) in places {
            let Some(view) = self.files[*file].get(name) else { continue };
            let (from, to) = ((*start).max(first), (start + view.shape[0]).min(first + values.len()));
            if from < to {
                let stored = view.to_f32();
                values[from - first..to - first].copy_from_slice(&stored[from - start..to - start]);
                copied += to - from;
            }
        }
        copied
    }
}
