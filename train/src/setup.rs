//! From settings to a model that is ready to train, with every mismatch refused before work starts.

use crate::config::{Config, TrainType};
use crate::trainable;
use anyhow::{Result, bail};
use burn::tensor::Device;
use common::adapter;
use common::chat::ChatProcessor;
use common::checkpoint::{LoadAs, load_model};
use common::config::LlavaConfig;
use common::image_processor::ImageProcessor;
use common::model::Llava;
use common::model::lora::{self, LoraConfig};
use common::shard::{ShardSet, Split};

/// A model with its trained parts chosen.
pub struct Trainee {
    /// Architecture.
    pub config: LlavaConfig,
    /// Weights; trained parameters collect gradients.
    pub model: Llava,
    /// The adapter's settings, with `use_lora`.
    pub lora: Option<LoraConfig>,
}

/// Loads the model, attaches LoRA where it is asked for, and chooses what is trained.
///
/// # Errors
/// Unreadable or unfitting files; LoRA settings that the model cannot have.
pub fn trainee(config: &Config, device: &Device) -> Result<Trainee> {
    let (llava_config, mut model) = load_model(&config.model_name_or_path, LoadAs::F32, device)?;
    let lora = match (config.train_type, &config.init_adapter) {
        (TrainType::UseLora, Some(dir)) => {
            let mut lora = adapter::load_adapter(&mut model, dir, device)?;
            lora.lora_dropout = config.lora_dropout;
            Some(lora)
        }
        (TrainType::UseLora, None) => {
            let lora = LoraConfig {
                r: config.lora_r,
                lora_alpha: config.lora_alpha,
                lora_dropout: config.lora_dropout,
                target_modules: config.lora_target_modules.clone(),
                lora_vision: config.lora_vision,
            };
            lora.validate()?;
            lora::attach(&mut model, &lora, config.seed, device);
            Some(lora)
        }
        _ => None,
    };
    let model = trainable::select(model, config.train_type, &llava_config);
    Ok(Trainee { config: llava_config, model, lora })
}

/// Opens a split of the shards after checking that they were made for this model.
///
/// # Errors
/// Shards of another tokenizer, template or image processor; no rows.
pub fn shards(config: &Config, split: Split) -> Result<ShardSet> {
    let shards = ShardSet::open(&config.data_path, split)?;
    let chat = ChatProcessor::from_dir(&config.model_name_or_path)?;
    shards.metadata().check(&chat, &ImageProcessor::from_dir(&config.model_name_or_path)?)?;
    if shards.len() == 0 && split == Split::Train {
        bail!("{}: no rows to train on; see its rejected.jsonl", config.data_path.display());
    }
    Ok(shards)
}
