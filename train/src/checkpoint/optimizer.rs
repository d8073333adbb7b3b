//! The optimizer's state in a checkpoint: a file for each rank, a tensor for each slice of a parameter that the rank owns.

use crate::layout::{Layout, OwnedSlice};
use crate::on_device::{BlockState, DevicePartitions, Flat};
use crate::parameters;
use crate::partitions::Partitions;
use crate::sharded::ShardedPartitions;
use crate::zero::OptimizerState;
use anyhow::Result;
use model::Llava;
use model::config::WeightDtype;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use store::checkpoint::{TensorFiles, TensorSource, from_f32, write_file};

/// Names of the files start so.
pub const PREFIX: &str = "optimizer-";

/// Name of a rank's file.
pub fn file_name(rank: usize, world_size: usize) -> String {
    format!("{PREFIX}{rank:05}-of-{world_size:05}.safetensors")
}

/// What a tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// First moments.
    ExpAvg,
    /// Second moments.
    ExpAvgSq,
    /// The f32 values, where the model directory holds them rounded.
    Master,
}

impl Kind {
    const ALL: [Self; 3] = [Self::ExpAvg, Self::ExpAvgSq, Self::Master];

    fn name(self) -> &'static str {
        match self {
            Self::ExpAvg => "exp_avg",
            Self::ExpAvgSq => "exp_avg_sq",
            Self::Master => "master",
        }
    }
}

/// A tensor's name: `exp_avg/language_model.model.norm.weight/4096` holds values of that parameter from 4096 on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SliceName<'a> {
    kind: Kind,
    param: &'a str,
    first: usize,
}

impl fmt::Display for SliceName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind.name(), self.param, self.first)
    }
}

impl<'a> SliceName<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let (kind, rest) = name.split_once('/')?;
        let (param, first) = rest.rsplit_once('/')?;
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
        Some(Self { kind, param, first: first.parse().ok()? })
    }
}

/// Where the f32 values of the weights are, for a checkpoint whose model directory may hold them rounded.
pub enum Masters<'a> {
    /// In the model directory: nothing to write.
    InModelDirectory,
    /// In the model itself.
    OfModel(&'a Llava),
    /// With the moments.
    OfOptimizer,
}

/// Writes a rank's file. What is written is freed at once; what is on a device is read a tensor at a time.
///
/// # Errors
/// What the operating system refuses.
pub fn save(masters: &Masters<'_>, layout: &Layout, optimizer: OptimizerState, path: &Path) -> Result<()> {
    let tensors = match optimizer {
        OptimizerState::Host(partitions) => of_host(masters, layout, partitions)?,
        OptimizerState::OnDevice(partitions) => of_device(masters, layout, partitions)?,
        OptimizerState::Sharded(partitions) => of_sharded(masters, layout, partitions)?,
    };
    Ok(write_file(tensors, path)?)
}

fn of_host(masters: &Masters<'_>, layout: &Layout, partitions: Partitions) -> Result<Vec<TensorSource<'static>>> {
    let Partitions { masters: kept, exp_avg, exp_avg_sq } = partitions;
    let mut tensors = Vec::new();
    for (index, (block, (first, second))) in layout.blocks.iter().zip(exp_avg.into_iter().zip(exp_avg_sq)).enumerate() {
        let master = match masters {
            Masters::InModelDirectory => None,
            Masters::OfModel(model) => Some(Arc::new(parameters::owned(model, layout, index)?)),
            Masters::OfOptimizer => kept.as_ref().map(|kept| Arc::clone(&kept[index])),
        };
        let kinds = [(Kind::ExpAvg, Some(first)), (Kind::ExpAvgSq, Some(second)), (Kind::Master, master)];
        for (kind, values) in kinds.into_iter().filter_map(|(kind, values)| Some((kind, values?))) {
            for param in &block.params {
                for (range, start) in block.owned_ranges(param, layout.rank) {
                    let (values, part) = (Arc::clone(&values), start..start + range.len());
                    let name = SliceName { kind, param: &param.name, first: range.start };
                    tensors.push(source(name, part.len(), move || Ok(from_f32(&values[part], WeightDtype::F32))));
                }
            }
        }
    }
    Ok(tensors)
}

fn of_device(
    masters: &Masters<'_>,
    layout: &Layout,
    partitions: DevicePartitions,
) -> Result<Vec<TensorSource<'static>>> {
    let mut tensors = Vec::new();
    for (index, (block, state)) in layout.blocks.iter().zip(partitions.0).enumerate() {
        let of_model = of_model(masters, layout, index)?;
        let BlockState { master, exp_avg, exp_avg_sq } = state;
        let flat = Flat::of(block);
        for (kind, values) in
            [(Kind::ExpAvg, Some(exp_avg)), (Kind::ExpAvgSq, Some(exp_avg_sq)), (Kind::Master, master)]
        {
            for (place, param) in block.params.iter().enumerate() {
                let name = SliceName { kind, param: &param.name, first: 0 };
                if let (Kind::Master, Some(values)) = (kind, &of_model) {
                    let values = values[param.offset..][..param.len].to_vec();
                    tensors.push(source(name, param.len, move || Ok(from_f32(&values, WeightDtype::F32))));
                } else if let Some(values) = values.clone() {
                    let (start, len) = (flat.start(place), param.len);
                    let bytes = move || Ok(values.narrow(0, start, len).into_data().as_bytes().to_vec());
                    tensors.push(source(name, len, bytes));
                }
            }
        }
    }
    Ok(tensors)
}

fn of_sharded(
    masters: &Masters<'_>,
    layout: &Layout,
    partitions: ShardedPartitions,
) -> Result<Vec<TensorSource<'static>>> {
    let mut tensors = Vec::new();
    for (index, (block, states)) in layout.blocks.iter().zip(partitions.0).enumerate() {
        let of_model = of_model(masters, layout, index)?;
        let slices = layout.slices(index);
        for kind in Kind::ALL {
            for (OwnedSlice { param, range, start }, state) in slices.iter().zip(&states) {
                let (param, len) = (&block.params[*param], range.len());
                let name = SliceName { kind, param: &param.name, first: range.start };
                let values = match (kind, &of_model) {
                    (Kind::Master, Some(values)) => {
                        let values = values[*start..start + len].to_vec();
                        tensors.push(source(name, len, move || Ok(from_f32(&values, WeightDtype::F32))));
                        continue;
                    }
                    (Kind::Master, None) => state.master.clone(),
                    (Kind::ExpAvg, _) => Some(state.exp_avg.clone()),
                    (Kind::ExpAvgSq, _) => Some(state.exp_avg_sq.clone()),
                };
                if let Some(values) = values {
                    tensors.push(source(name, len, move || Ok(values.into_data().as_bytes().to_vec())));
                }
            }
        }
    }
    Ok(tensors)
}

/// What this rank owns of a block, where the model's values are to be written.
fn of_model(masters: &Masters<'_>, layout: &Layout, block: usize) -> Result<Option<Vec<f32>>> {
    match masters {
        Masters::OfModel(model) => Ok(Some(parameters::owned(model, layout, block)?)),
        _ => Ok(None),
    }
}

fn source<'a>(
    name: SliceName<'_>,
    len: usize,
    bytes: impl FnOnce() -> Result<Vec<u8>, base::Error> + 'a,
) -> TensorSource<'a> {
    TensorSource { name: name.to_string(), dtype: WeightDtype::F32.into(), shape: vec![len], bytes: Box::new(bytes) }
}

/// The files of all ranks that wrote a checkpoint, indexed by what they hold.
pub struct OptimizerFiles {
    files: Vec<TensorFiles>,
    slices: BTreeMap<(Kind, String), Vec<Slice>>,
}

/// Where a slice of a parameter is stored.
struct Slice {
    first: usize,
    file: usize,
    tensor: String,
}

impl OptimizerFiles {
    /// Opens those of a checkpoint.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut opened = Self { files: Vec::new(), slices: BTreeMap::new() };
        for entry in std::fs::read_dir(dir)?.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            let tensors = TensorFiles::open_file(&entry.path())?;
            for tensor in tensors.names() {
                let Some(SliceName { kind, param, first }) = SliceName::parse(tensor) else { continue };
                let slice = Slice { first, file: opened.files.len(), tensor: tensor.to_string() };
                opened.slices.entry((kind, param.to_string())).or_default().push(slice);
            }
            opened.files.push(tensors);
        }
        Ok(opened)
    }

    /// Copies what is stored of `first..first + values.len()` of a parameter; returns how many values that was.
    pub fn copy(&self, kind: Kind, param: &str, first: usize, values: &mut [f32]) -> usize {
        let slices = self.slices.get(&(kind, param.to_string())).map_or(&[][..], Vec::as_slice);
        let mut copied = 0;
        for Slice { first: start, file, tensor } in slices {
            let Some(view) = self.files[*file].get(tensor) else { continue };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_slices_come_back() {
        for kind in Kind::ALL {
            let name = SliceName { kind, param: "language_model.model.norm.weight", first: 4096 };
            assert_eq!(SliceName::parse(&name.to_string()), Some(name));
        }
        for other in ["exp_avg", "exp_avg/a.weight", "exp_avg/a.weight/b", "momentum/a.weight/0"] {
            assert_eq!(SliceName::parse(other), None, "{other}");
        }
    }
}
