//! From settings to a model that is ready to train, with every mismatch refused before work starts.

use crate::base_format;
use crate::collective::background::Communicator;
use crate::collective::launch;
use crate::collective::nccl::{self, Chosen, NcclRank};
use crate::collective::roll_call::RollCall;
use crate::config::{AUTO, CacheVisionFeatures, CollectiveChoice, Config};
use crate::device_buffer::DeviceMemory;
use crate::layout::Layout;
use crate::mixture::Mixture;
use crate::plan;
use crate::sharded::DeviceRanks;
use crate::trainable::{self, Choice};
use crate::vision_cache::{CachedAs, CachedRows, VisionFeatureCache};
use anyhow::{Context, Result, anyhow, bail};
use base::names::Block;
use base::{Error, files};
use burn::tensor::Device;
use cli::weighted::WeightedFolder;
use kernels::cuda;
use kernels::device::{DeviceKind, computes_in_bf16};
use model::Llava;
use model::config::LlavaConfig;
use model::lora::{self, LoraConfig};
use model::quantized;
use shards::Split;
use std::path::Path;
use std::sync::Arc;
use store::adapter;
use store::checkpoint::{ExpectedTensor, LoadAs, expected_tensors, load_rounded};
use store::fingerprint;
use store::processors::Processors;

/// A model with its trained parts chosen. A clone shares the values.
#[derive(Clone)]
pub struct Trainee {
    /// Architecture.
    pub config: LlavaConfig,
    /// Weights; trained parameters collect gradients.
    pub model: Llava,
    /// The adapter's settings, with `use_lora`.
    pub lora: Option<LoraConfig>,
}

impl Trainee {
    /// What decides about which of its parameters are trained.
    pub fn choice(&self, config: &Config) -> Choice<'_> {
        Choice::new(config.train_type, self.lora.as_ref())
    }
}

/// Models of so many parameters are trained on the CPU only where that was asked for: a step takes minutes to hours.
const LARGE: usize = 1_000_000_000;

/// Refuses a large model on a CPU that nobody named.
///
/// # Errors
/// Such a model, with what is missing for a GPU; a model without a description.
pub fn require_named_cpu(config: &Config) -> Result<()> {
    if config.device != AUTO || config.device_kind()? != DeviceKind::Cpu {
        return Ok(());
    }
    let dir = &config.model_name_or_path;
    let parameters: usize = expected_tensors(&LlavaConfig::read(dir)?).iter().map(ExpectedTensor::len).sum();
    if parameters < LARGE {
        return Ok(());
    }
    let found = format!("{:.1} billion parameters and no GPU that this build can use", parameters as f64 / 1e9);
    let remedy = "train devices says what is missing; --device cpu trains on the CPU all the same";
    Err(Error::invalid(dir.display(), found, "a GPU for a model of this size", remedy).into())
}

/// Settles the dtype that a device computes in, before anything else makes tensors there.
///
/// # Errors
/// A device that this build or this machine does not have.
pub fn settle_dtype(config: &Config, local_rank: usize) -> Result<()> {
    if wants_bf16(config)? {
        kind_of_rank(config, local_rank)?.open_in_bf16()?;
    }
    Ok(())
}

/// Opens a rank's device, in the dtype that the run computes in.
///
/// # Errors
/// A device that this build or this machine does not have.
pub fn device(config: &Config, local_rank: usize) -> Result<Device> {
    let kind = kind_of_rank(config, local_rank)?;
    let wants_bf16 = wants_bf16(config)?;
    let device = if wants_bf16 { kind.open_in_bf16()? } else { None };
    if device.is_none() && (wants_bf16 || config.bf16) && local_rank == 0 {
        let reason = if kind == DeviceKind::Cpu { "the CPU is no faster at it" } else { "this device has no bf16" };
        tracing::info!("bf16: {reason}, so it computes in f32");
    }
    device.map_or_else(|| Ok(kind.open()?.autodiff()), |device| Ok(device.autodiff()))
}

/// What a rank computes on, by its number on its machine.
///
/// # Errors
/// A device that has no such name.
pub fn kind_of_rank(config: &Config, local_rank: usize) -> Result<DeviceKind> {
    Ok(match config.device_kind()? {
        DeviceKind::Cuda(first) => {
            let gpus = cuda::driver().map_or(0, |driver| driver.gpus.len());
            let may_share = config.collective == CollectiveChoice::Host;
            DeviceKind::Cuda(gpu_of_rank(first, local_rank, gpus, launch::launched_processes() > 1, may_share))
        }
        other => other.of_rank(local_rank),
    })
}

/// GPUs are dealt out from the first one on.
fn gpu_of_rank(first: usize, local_rank: usize, gpus: usize, is_process: bool, may_share: bool) -> usize {
    let index = first + local_rank;
    if index < gpus {
        index
    } else if is_process && gpus == first + 1 {
        // A launcher may show each process a GPU of its own (Slurm: --gpus-per-task).
        first
    } else if may_share && gpus > first {
        first + local_rank % (gpus - first)
    } else {
        index
    }
}

/// Connects the ranks' devices, where they exchange through NCCL.
///
/// # Errors
/// A `collective` that cannot be followed, GPUs that do not fit together, a rank that failed or did not come.
pub fn device_ranks(
    config: &Config,
    device: &Device,
    roll_call: Box<dyn RollCall>,
    communicator: &mut Communicator,
) -> Result<Option<DeviceRanks>> {
    let kind = kind_of_rank(config, launch::local_rank(communicator.rank()))?;
    match nccl::choose(config.collective, kind, communicator)? {
        Chosen::Nccl => {}
        Chosen::Host(reason) => {
            if let Some(reason) = reason.filter(|_| communicator.rank() == 0) {
                tracing::warn!("gradients and parameters pass through the host's memory ({reason})");
            }
            return Ok(None);
        }
    }
    let memory = DeviceMemory::new(device, kind).map_err(|error| anyhow!("{kind}: {error}"))?;
    let rank = NcclRank::connect(communicator, roll_call, Arc::clone(&memory))?;
    Ok(Some(DeviceRanks { communicator: Communicator::start(Box::new(rank))?, memory }))
}

/// Whether the model is to compute in bf16, where its device has it.
///
/// # Errors
/// A device that has no such name.
pub fn wants_bf16(config: &Config) -> Result<bool> {
    let kind = config.device_kind()?;
    Ok(kind == DeviceKind::CpuBf16 || config.bf16 && kind != DeviceKind::Cpu)
}

/// Loads the model, attaches LoRA where it is asked for, and selects the trained parameters. Weights are those of `checkpoint`, if
/// there is one.
///
/// # Errors
/// Unreadable or unfitting files; LoRA settings that the model cannot have, DoRA on rows of zeros.
pub fn trainee(config: &Config, checkpoint: Option<&Path>, device: &Device) -> Result<Trainee> {
    let of_adapter = config.train_type.uses_lora();
    // A run's own adapter is what its options say, in a checkpoint of the run as well.
    let own = match of_adapter && config.init_adapter.is_none() {
        true => Some(config.lora(&LlavaConfig::read(&config.model_name_or_path)?)?),
        false => None,
    };
    let weights = checkpoint.filter(|_| !of_adapter).unwrap_or(&config.model_name_or_path);
    let description = LlavaConfig::read(weights)?;
    let rounding = base_format::of_run(config, &description, None)?;
    let is_f32 = |name: &str| Choice::new(config.train_type, own.as_ref()).is_trained(name, &description);
    // Which parts an adapter with parts of its own trains is known only when it is loaded.
    let load_as = match computes_in_bf16(device) && (own.is_some() || !of_adapter) {
        true => LoadAs::Bf16Except(&is_f32),
        false => LoadAs::F32,
    };
    let (llava_config, mut model) = load_rounded(weights, load_as, rounding.as_ref(), device)?;
    let lora = match (checkpoint.or(config.init_adapter.as_deref()).filter(|_| of_adapter), own) {
        (Some(dir), own) => {
            let loaded = adapter::load_adapter(&mut model, dir, device)?;
            require_trainable(&loaded, dir)?;
            Some(LoraConfig { lora_dropout: config.lora_dropout, ..own.unwrap_or(loaded) })
        }
        (None, Some(lora)) => {
            lora::attach(&mut model, &lora, config.seed, device);
            Some(lora)
        }
        (None, None) => None,
    };
    require_lengths(&mut model)?;
    let choice = Choice::new(config.train_type, lora.as_ref());
    // Files may hold the projector in few bits, too.
    quantized::dequantize(&mut model, |name| choice.is_covered(name));
    let model = trainable::select(model, choice, &llava_config);
    Ok(Trainee { config: llava_config, model, lora })
}

/// Refuses DoRA on matrices with rows of zeros (padding, often): gradients would be NaN from the first step on, as in PEFT.
fn require_lengths(model: &mut Llava) -> Result<()> {
    let found = lora::rows_without_length(model)?;
    let Some((layer, rows)) = found.first() else { return Ok(()) };
    let others = match found.len() {
        1 => String::new(),
        count => format!(" (and {} tensors like it)", count - 1),
    };
    let found = format!("{rows} rows that are all zeros{others}");
    let projection = layer.rsplit('.').next().unwrap_or_default();
    let remedy = format!("leave {projection} out of --lora_target_modules, or train without --use_dora");
    let expected = "rows with a length, by which DoRA divides";
    Err(Error::invalid(format!("tensor {layer}.weight"), found, expected, remedy).into())
}

/// Refuses to go on from an adapter that `infer` can use and training cannot.
///
/// # Errors
/// Its parts that training does not implement.
pub fn require_trainable(lora: &LoraConfig, dir: &Path) -> Result<()> {
    if let Some(reason) = lora.modules.as_ref().and_then(|modules| modules.untrainable) {
        let expected = "an adapter whose parts can all be trained here";
        let remedy = "merge it into its model with infer merge, and train a new adapter on that";
        return Err(Error::invalid(dir.display(), reason, expected, remedy).into());
    }
    Ok(())
}

/// Opens the file of kept vision features beside the shards, if features are to be kept.
///
/// # Errors
/// A tower that is trained, and a file that cannot be made or used, or would not fit on its file system.
pub fn kept_features(
    config: &Config,
    trainee: &Trainee,
    layout: &Layout,
    shards: &Mixture,
) -> Result<Option<VisionFeatureCache>> {
    let Some(format) = cached_as(config.cache_vision_features) else { return Ok(None) };
    // Of several sources, the first one's folder has the file for all.
    let Some(WeightedFolder { dir, .. }) = config.data_path.folders().first() else { return Ok(None) };
    // An adapter to go on from may train the tower too.
    let layers = (0..trainee.config.computed_vision_layers()).map(Block::VisionLayer);
    if layers.chain([Block::VisionEmbeddings]).any(|block| layout.block(block).is_some()) {
        return Err(Config::no_cache_of_a_trained_tower().into());
    }
    let (images_per_row, fingerprint) = (shards.images_per_row()?, shards.fingerprint());
    let images = images_per_row.iter().map(|&images| images as usize).sum();
    let size = plan::size(VisionFeatureCache::bytes_of(images, &trainee.config, format) as f64);
    if layout.rank == 0 {
        let shown = dir.display();
        tracing::info!("vision features of {images} images are kept in {shown}: {size} when all are there");
    }
    let rows =
        CachedRows { dir, fingerprint: &fingerprint, images_per_row: &images_per_row, free_bytes: free_bytes(dir) };
    Ok(Some(VisionFeatureCache::open(rows, &trainee.model, &trainee.config, format)?))
}

/// The dtype of kept features, if any are kept.
pub fn cached_as(setting: CacheVisionFeatures) -> Option<CachedAs> {
    match setting {
        CacheVisionFeatures::No => None,
        CacheVisionFeatures::F16 => Some(CachedAs::F16),
        CacheVisionFeatures::Bf16 => Some(CachedAs::Bf16),
    }
}

/// What a folder's file system has left for this user.
fn free_bytes(dir: &Path) -> Option<u64> {
    let about = rustix::fs::statvfs(dir).ok()?;
    Some(about.f_bavail * about.f_frsize)
}

/// Opens a split of the shards after checking that they were made for this model.
///
/// # Errors
/// Shards of another tokenizer, template or image processor, by their folder; no rows.
pub fn shards(config: &Config, split: Split) -> Result<Mixture> {
    let mixture = Mixture::open(&config.data_path, split)?;
    let Processors { chat, images, .. } = Processors::read(&config.model_name_or_path)?;
    for source in mixture.sources() {
        let checked = source.shards.metadata().check(&chat, &images);
        checked.map_err(|error| error.placed(|_| source.folder.dir.display().to_string()))?;
    }
    Ok(mixture)
}

/// Longest row that the run takes, tokens with images expanded.
///
/// # Errors
/// A limit above what the model was made for.
pub fn max_length(config: &Config, model: &LlavaConfig) -> Result<usize> {
    let positions = model.text.max_position_embeddings;
    if config.model_max_length > positions {
        bail!(
            "model_max_length: found {}, expected at most {positions} (the model's max_position_embeddings); give a smaller \
             --model_max_length, or leave it out",
            config.model_max_length
        );
    }
    Ok(if config.model_max_length == 0 { positions } else { config.model_max_length })
}

/// Refuses to start with rows that are too long, which a run might come upon after days.
///
/// # Errors
/// The longest row; a shard that cannot be read.
pub fn check_lengths(config: &Config, model: &LlavaConfig, shards: &Mixture) -> Result<()> {
    let allowed = max_length(config, model)?;
    for source in shards.sources() {
        let longest = source.shards.longest_row(model.image_token_index, model.image_seq_length())?;
        if let Some(longest) = longest.filter(|longest| longest.tokens > allowed) {
            bail!(
                "{}: row {:?}: {} tokens with its images, more than the {allowed} allowed; give a larger --model_max_length, \
                 or run preprocess shards with --max-length",
                source.folder.dir.display(),
                longest.id,
                longest.tokens
            );
        }
    }
    Ok(())
}

/// Refuses to start when ranks were given different settings, data, models or programs: they would wait for each other at
/// different places, or worse, not.
///
/// # Errors
/// What differs, and on which ranks; what cannot be read.
pub fn agree(config: &Config, data_fingerprint: &str, communicator: &mut Communicator) -> Result<()> {
    if communicator.world_size() == 1 {
        return Ok(());
    }
    let settings = files::sha256(&serde_json::to_vec(config)?);
    require_same(communicator, "settings", settings, "give every rank the same recipe and the same flags")?;
    let data = files::sha256(data_fingerprint.as_bytes());
    require_same(communicator, "data", data, "copy the same shards to every machine, or share the folder")?;
    let model = files::sha256(fingerprint::of_weights(&config.model_name_or_path)?.as_bytes());
    require_same(communicator, "model", model, "copy the same model to every machine, or share the folder")?;
    // Threads of one process run the same code.
    if crate::collective::launch::launched_processes() > 1 {
        let program = std::env::current_exe().context("the path of this program")?;
        let code = files::sha256(files::sha256_of_file(&program)?.as_bytes());
        require_same(communicator, "program", code, "install the same build on every machine")?;
    }
    Ok(())
}

fn require_same(communicator: &mut Communicator, what: &'static str, own: [u8; 32], remedy: &str) -> Result<()> {
    let all = communicator.all_gather_bytes(what, own)?;
    let others: Vec<usize> = (0..all.len()).filter(|&rank| all[rank] != all[0]).collect();
    if !others.is_empty() {
        bail!("ranks disagree: the {what} of ranks {others:?} differ from those of rank 0; {remedy}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::gpu_of_rank;

    #[test]
    fn ranks_get_gpus_of_their_own() {
        // (first, number on the machine, GPUs, a process, sharing allowed) → GPU
        for ((first, local_rank, gpus, is_process, may_share), expected) in [
            ((0, 3, 8, false, false), 3),
            ((2, 1, 8, true, false), 3),
            ((0, 3, 1, true, false), 0),
            ((0, 1, 1, false, false), 1),
            ((0, 1, 1, false, true), 0),
            ((1, 2, 3, false, true), 1),
            ((0, 2, 2, true, false), 2),
            ((0, 0, 0, false, true), 0),
        ] {
            assert_eq!(gpu_of_rank(first, local_rank, gpus, is_process, may_share), expected);
        }
    }
}
