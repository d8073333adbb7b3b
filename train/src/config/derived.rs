//! What follows from the settings.

use super::{Config, Extent, Resume};
use crate::interval::Interval;
use base::Result;
use cli::options::is_nothing;
use cli::values::boolean;
use kernels::Quantization;
use kernels::device::DeviceKind;
use model::config::LlavaConfig;
use model::lora::{LoraConfig, TEXT_PROJECTIONS};
use std::path::PathBuf;
use store::adapter::{ALL_LINEAR, AdapterOptions};

impl Config {
    /// How the run begins.
    pub fn resume(&self) -> Resume {
        match self.resume_from_checkpoint.as_deref() {
            None | Some("") => Resume::No,
            Some(text) => match boolean(text) {
                Ok(true) => Resume::Newest,
                Ok(false) => Resume::No,
                Err(_) => Resume::From(PathBuf::from(text)),
            },
        }
    }

    /// Time between evaluations.
    pub fn eval_interval(&self) -> Interval {
        if self.eval_steps.is_none() { self.logging_steps } else { self.eval_steps }
    }

    /// Where to compute.
    ///
    /// # Errors
    /// A name that no device has.
    pub fn device_kind(&self) -> Result<DeviceKind> {
        self.device.parse()
    }

    /// The settings of a new adapter for a model.
    ///
    /// # Errors
    /// Settings that no model can have; modules that this one does not have.
    pub fn lora(&self, model: &LlavaConfig) -> Result<LoraConfig> {
        self.adapter_options()?.resolve(model)
    }

    pub(super) fn adapter_options(&self) -> Result<AdapterOptions> {
        let all_linear = self.is_all_linear();
        let lora = LoraConfig {
            r: self.lora_r,
            lora_alpha: self.lora_alpha,
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            lora_dropout: self.lora_dropout,
            target_modules: if all_linear {
                TEXT_PROJECTIONS.map(String::from).to_vec()
            } else {
                self.lora_target_modules.clone()
            },
            lora_vision: self.lora_vision,
            modules: None,
        };
        lora.validate()?;
        Ok(AdapterOptions {
            lora,
            all_linear,
            modules_to_save: self.saved_modules(),
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
        })
    }

    /// LoRA on every linear layer.
    pub fn is_all_linear(&self) -> bool {
        matches!(self.lora_target_modules.as_slice(), [target] if target.eq_ignore_ascii_case(ALL_LINEAR))
    }

    /// Whether anything of the vision tower is trained, as far as the settings say: an adapter to go on from may train it, too.
    pub fn trains_vision(&self) -> bool {
        match self.train_type.parts().vision_tower {
            Extent::Frozen => false,
            Extent::Lora => self.lora_vision || self.init_adapter.is_none() && self.is_all_linear(),
            Extent::Whole => true,
        }
    }

    /// Names of the modules that are trained in full beside LoRA.
    pub fn saved_modules(&self) -> Vec<String> {
        self.modules_to_save.iter().filter(|name| !is_nothing(name)).cloned().collect()
    }

    /// Names of layers that are not rounded.
    pub fn skipped_modules(&self) -> Vec<String> {
        self.llm_int8_skip_modules.iter().filter(|name| !is_nothing(name)).cloned().collect()
    }

    /// The format that the frozen base is rounded to, if it is.
    pub fn quantization(&self) -> Option<Quantization> {
        match (self.load_in_8bit, self.load_in_4bit) {
            (true, _) => Some(Quantization::Int8),
            (_, true) => Some(Quantization::Nf4 { double_quant: self.bnb_4bit_use_double_quant }),
            _ => None,
        }
    }

    /// Rows of a global batch with `world_size` ranks.
    pub fn global_batch_size(&self, world_size: usize) -> usize {
        self.per_device_train_batch_size * self.gradient_accumulation_steps * world_size
    }

    /// Steps of warm-up in a run of `max_steps`.
    pub fn resolved_warmup_steps(&self, max_steps: u64) -> u64 {
        if self.warmup_steps >= 1.0 {
            return self.warmup_steps as u64;
        }
        let fraction = if self.warmup_steps > 0.0 { self.warmup_steps } else { self.warmup_ratio };
        (max_steps as f64 * fraction).ceil() as u64
    }
}
