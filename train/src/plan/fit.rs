//! Whether a run fits this machine, and which other settings would.

use super::data::TEXT_BYTES;
use super::disk::Disk;
use super::memory::{Memory, Rows, Setting};
use super::text::size;
use super::{Plan, model};
use crate::base_format;
use crate::collective::launch;
use crate::config::{CacheVisionFeatures, Config, Strategy, TrainType};
use crate::setup;
use clap::ValueEnum;
use kernels::device::DeviceKind;
use shards::{PixelFormat, validation_share};
use std::fmt;

/// A misfit of the data.
const VALIDATION_ROWS: &str = "validation rows";

/// A thing of which the machine has too little.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// `memory`, `disk` or `validation rows`.
    pub what: &'static str,
    /// What is needed, and what is there.
    pub found: String,
    /// Settings that would fit, each by itself.
    pub remedies: Vec<String>,
}

impl Misfit {
    /// Whether a run could begin without it: not without rows to evaluate on.
    pub fn can_be_tried(&self) -> bool {
        self.what != VALIDATION_ROWS
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.found, self.remedies.join(", or "))
    }
}

impl Plan {
    /// The run computes on GPUs.
    pub(super) fn is_on_gpu(&self) -> bool {
        self.config.device_kind().is_ok_and(DeviceKind::is_gpu)
    }

    /// Memory of the ranks on this machine, or of the one that a GPU has, bytes.
    pub(super) fn memory_here(&self) -> f64 {
        self.memory.total() * self.ranks_that_share(self.ranks_here)
    }

    /// Disk that the run still takes, bytes.
    pub(super) fn disk_here(&self) -> u64 {
        self.disk_with(&self.disk, if self.data.is_there { 0 } else { self.disk.shards })
    }

    fn disk_with(&self, disk: &Disk, shards: u64) -> u64 {
        disk.run().saturating_sub(self.of_run) + shards + disk.vision_features
    }

    /// Everything that does not suffice.
    pub fn misfits(&self) -> Vec<Misfit> {
        [self.lacks_memory(), self.lacks_disk(), self.lacks_validation()].into_iter().flatten().collect()
    }

    fn lacks_memory(&self) -> Option<Misfit> {
        // The memory of a GPU is not this machine's.
        let available = if self.is_on_gpu() { self.gpu_memory } else { self.machine.available_memory };
        let available = available? as f64;
        let (needed, ranks) = (self.memory.total() * self.ranks_that_share(self.ranks_here), self.ranks_here);
        (needed > available).then(|| {
            let (who, there) = match (self.is_on_gpu(), ranks) {
                (true, _) => ("a rank needs".to_string(), "of its GPU"),
                (_, 1) => ("the run needs".to_string(), "available"),
                _ => (format!("the {ranks} ranks here need"), "available"),
            };
            let found = format!("{who} {}, {} are {there}", size(needed), size(available));
            Misfit { what: "memory", found, remedies: self.memory_remedies(available) }
        })
    }

    /// Ranks that divide a memory between them: of one machine all, of a GPU one.
    fn ranks_that_share(&self, ranks_here: usize) -> f64 {
        if self.is_on_gpu() { 1.0 } else { ranks_here as f64 }
    }

    /// Changes that bring the memory below `available`: each by itself, else all of them.
    fn memory_remedies(&self, available: f64) -> Vec<String> {
        let Config { nproc, gradient_checkpointing, per_device_train_batch_size: rows, .. } = self.config;
        let accumulation = self.config.gradient_accumulation_steps * rows;
        let mut changes: Vec<(String, Change)> = Vec::new();
        if nproc > 1 && self.ranks_here > 1 && !self.is_on_gpu() {
            changes.push(("--nproc 1".into(), Box::new(|config| config.nproc = 1)));
        }
        if !gradient_checkpointing {
            let change: Change = Box::new(|config| config.gradient_checkpointing = true);
            changes.push(("--gradient_checkpointing true".into(), change));
        }
        if rows > 1 {
            let words = format!("--per_device_train_batch_size 1 --gradient_accumulation_steps {accumulation}");
            let change: Change = Box::new(move |config| {
                config.per_device_train_batch_size = 1;
                config.gradient_accumulation_steps = accumulation;
            });
            changes.push((words, change));
        }
        if self.config.train_type.uses_lora() && !self.config.load_in_4bit && !self.config.load_in_8bit {
            changes.push(("--load_in_4bit true".into(), Box::new(|config| config.load_in_4bit = true)));
        }
        let types = self.other_train_types().map(|(words, train_type)| -> (String, Change) {
            (words, Box::new(move |config| config.train_type = train_type))
        });
        let types: Vec<(String, Change)> = types.collect();
        let needs = |changes: &[&(String, Change)]| {
            let mut config = self.config.clone();
            changes.iter().for_each(|(_, change)| change(&mut config));
            self.memory_with(&config).filter(|&needed| needed <= available)
        };
        let single = changes.iter().chain(&types);
        let helps: Vec<String> =
            single.filter_map(|change| Some(format!("{} ({})", change.0, size(needs(&[change])?)))).collect();
        if !helps.is_empty() {
            return helps;
        }
        let all: Vec<&(String, Change)> = changes.iter().collect();
        let together = std::iter::once(all.clone()).chain(types.iter().map(|of| [&all[..], &[of]].concat()));
        let mut together = together.filter(|changes| !changes.is_empty());
        let fits = together.find_map(|changes| Some((needs(&changes)?, changes)));
        match fits {
            Some((needed, changes)) => {
                let words: Vec<&str> = changes.iter().map(|change| change.0.as_str()).collect();
                vec![format!("{} ({})", words.join(" "), size(needed))]
            }
            None => vec!["a machine with more memory, or ranks on several machines (docs/distributed.md)".to_string()],
        }
    }

    /// Train types with fewer trained values than the one in use.
    fn other_train_types(&self) -> impl Iterator<Item = (String, TrainType)> {
        let trained = self.trained_values();
        let values = TrainType::value_variants().iter().copied();
        let fewer = values.filter(move |&train_type| {
            let config = Config { train_type, ..self.config.clone() };
            let lora = model::lora(&config, &self.model).ok().flatten();
            let parts = super::parameters(&self.model, train_type, lora.as_ref());
            parts.iter().map(|part| part.trained).sum::<usize>() < trained
        });
        fewer.filter_map(|train_type| {
            let name = train_type.to_possible_value()?.get_name().to_owned();
            Some((format!("--train_type {name}"), train_type))
        })
    }

    /// Memory of the ranks here with other settings, bytes.
    fn memory_with(&self, config: &Config) -> Option<f64> {
        let lora = model::lora(config, &self.model).ok()?;
        let (world_size, here) = launch::ranks(config.nproc);
        let in_bf16 = setup::wants_bf16(config).ok()?;
        let base = base_format::of_run(config, &self.model, lora.as_ref()).ok()?;
        let (lora, base) = (lora.as_ref(), base.as_ref());
        let setting = Setting { config, model: &self.model, lora, world_size, in_bf16, base };
        let rows = Rows { count: self.data.all_rows, mean: self.data.row };
        Some(Memory::estimate(setting, rows).total() * self.ranks_that_share(here))
    }

    fn lacks_disk(&self) -> Option<Misfit> {
        let free = self.machine.free_disk?;
        let needed = self.disk_here();
        (needed > free).then(|| {
            let place = self.machine.disk_of.display();
            let (needed, there) = (size(needed as f64), size(free as f64));
            let found = format!("checkpoints, final model and data need {needed}, {there} are free at {place}");
            Misfit { what: "disk", found, remedies: self.disk_remedies(free) }
        })
    }

    fn disk_remedies(&self, free: u64) -> Vec<String> {
        let shards = if self.data.is_there { 0 } else { self.disk.shards };
        let jpeg =
            self.data.all_rows as u64 * (PixelFormat::Jpeg.expected_bytes(self.model.vision.image_size) + TEXT_BYTES);
        let mut helps = Vec::new();
        let mut offer = |words: String, change: &dyn Fn(&mut Config), shards: u64| {
            let mut config = self.config.clone();
            change(&mut config);
            let needed = self.disk_of(&config).map(|disk| self.disk_with(&disk, shards));
            helps.extend(
                needed.filter(|&needed| needed <= free).map(|needed| format!("{words} ({})", size(needed as f64))),
            );
        };
        if self.config.save_strategy != Strategy::No {
            offer("--save_total_limit 1".into(), &|config| config.save_total_limit = 1, shards);
            offer("--save_strategy no".into(), &|config| config.save_strategy = Strategy::No, shards);
        }
        if shards > jpeg {
            offer("--pixels jpeg for preprocess shards".into(), &|_| {}, jpeg);
        }
        if self.disk.vision_features > 0 {
            let no = |config: &mut Config| config.cache_vision_features = CacheVisionFeatures::No;
            offer("without --cache_vision_features".into(), &no, shards);
        }
        for (words, train_type) in self.other_train_types() {
            offer(words, &|config| config.train_type = train_type, shards);
        }
        helps.push("another --output_dir, on a larger file system".to_string());
        helps
    }

    /// Disk with other settings.
    fn disk_of(&self, config: &Config) -> Option<Disk> {
        let lora = model::lora(config, &self.model).ok()?;
        let parts = super::parameters(&self.model, config.train_type, lora.as_ref());
        let per_epoch = self.batches.steps_per_epoch();
        Some(Disk::estimate(config, &self.model, &parts, &self.data, self.max_steps, per_epoch))
    }

    fn lacks_validation(&self) -> Option<Misfit> {
        let is_wanted = self.config.eval_strategy != Strategy::No;
        (is_wanted && self.data.validation_rows == Some(0)).then(|| {
            let with_share = |share| format!("make the shards with preprocess shards --validation-fraction {share}");
            let remedies = validation_share(self.data.all_rows).map(with_share).into_iter();
            Misfit {
                what: VALIDATION_ROWS,
                found: format!("--eval_strategy wants some, {} has none", self.config.data_path),
                remedies: remedies.chain(["--eval_strategy no".to_string()]).collect(),
            }
        })
    }
}

/// A change of settings.
type Change = Box<dyn Fn(&mut Config)>;
