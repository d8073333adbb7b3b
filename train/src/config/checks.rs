//! What the types of the settings cannot say: missing, out of range, not supported, or not together.

use super::{CacheVisionFeatures, Config, ScheduleType, Strategy};
use crate::base_format;
use crate::best::Best;
use crate::domains;
use crate::learning_rates::LearningRates;
use base::{Error, Result};
use clap::ValueEnum;

impl Config {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The first setting that is missing, out of range or not supported, with the remedy.
    pub fn validate(&self) -> Result<()> {
        self.require_paths()?;
        self.check_settings()
    }

    /// As [`Self::validate`], without requiring that paths are given.
    ///
    /// # Errors
    /// As [`Self::validate`], except for missing paths.
    pub fn check_settings(&self) -> Result<()> {
        domains::check(self)?;
        self.require_schedule()?;
        self.require_supported()
    }

    fn require_schedule(&self) -> Result<()> {
        let place = "lr_scheduler_type";
        match self.lr_scheduler_type {
            ScheduleType::ReduceLrOnPlateau | ScheduleType::Greedy => {
                let expected = "a schedule that is a function of the step (no rate depends on losses here)";
                return Err(Error::invalid(place, "one that follows losses", expected, "see train --help"));
            }
            ScheduleType::Polynomial => {
                let lr_end = self.lr_scheduler_kwargs.lr_end.unwrap_or(self.lr_end);
                if lr_end >= self.learning_rate {
                    let expected = format!("below learning_rate, {}", domains::number(self.learning_rate));
                    return Err(Error::invalid("lr_end", domains::number(lr_end), expected, "give a smaller --lr_end"));
                }
            }
            _ => {}
        }
        if let Some((option, rate)) =
            LearningRates::of(self).of_parts().next().filter(|_| self.deepspeed_scheduler.is_some())
        {
            let found = format!(
                "{}, and a scheduler in the DeepSpeed file, which sets one rate for all parts",
                domains::number(rate)
            );
            let expected = "one of the two";
            let remedy = "remove scheduler from the file and give --lr_scheduler_type (linear is WarmupDecayLR, \
                          constant_with_warmup is WarmupLR)";
            return Err(Error::invalid(option, found, expected, remedy));
        }
        self.lr_scheduler_kwargs.check(self.lr_scheduler_type, self.learning_rate)
    }

    fn require_paths(&self) -> Result<()> {
        let paths = [
            (
                "model_name_or_path",
                self.model_name_or_path.as_os_str().is_empty(),
                "a model directory (preprocess model writes one)",
            ),
            ("data_path", self.data_path.is_empty(), "a folder of shards (preprocess shards writes one)"),
            ("output_dir", self.output_dir.as_os_str().is_empty(), "a folder for the run"),
        ];
        for (name, is_missing, expected) in paths {
            if is_missing {
                return Err(Error::invalid(name, "nothing", expected, format!("give --{name}")));
            }
        }
        Ok(())
    }

    fn require_supported(&self) -> Result<()> {
        if self.fp16 {
            let remedy = "use --bf16 true";
            return Err(Error::invalid("fp16", true, "false (fp16 needs loss scaling, bf16 does not)", remedy));
        }
        self.device_kind()?;
        if self.train_type.uses_lora() {
            self.adapter_options()?;
        }
        base_format::check_options(self)?;
        if self.init_adapter.is_some() && !self.train_type.uses_lora() {
            let remedy = "use --train_type use_lora, or merge the adapter first (infer merge)";
            return Err(Error::invalid("init_adapter", "an adapter with another train_type", "use_lora", remedy));
        }
        if self.cache_vision_features != CacheVisionFeatures::No && self.trains_vision() {
            return Err(Self::no_cache_of_a_trained_tower());
        }
        let needs_eval = self.load_best_model_at_end || self.early_stopping_patience > 0;
        if needs_eval && self.eval_strategy == Strategy::No {
            let place = "load_best_model_at_end / early_stopping_patience";
            return Err(Error::invalid(place, "eval_strategy no", "steps or epoch", "give --eval_strategy"));
        }
        if self.eval_metric.is_some() && self.eval_strategy == Strategy::No {
            return Err(Error::invalid("eval_metric", "eval_strategy no", "steps or epoch", "give --eval_strategy"));
        }
        Best::of(self)?;
        self.require_saved_best()
    }

    /// The best model can only be loaded if it was saved.
    fn require_saved_best(&self) -> Result<()> {
        if !self.load_best_model_at_end {
            return Ok(());
        }
        let place = "load_best_model_at_end";
        if self.save_strategy != self.eval_strategy {
            let word = |strategy: Strategy| {
                strategy.to_possible_value().map_or(String::new(), |value| value.get_name().to_string())
            };
            let found =
                format!("save_strategy {}, eval_strategy {}", word(self.save_strategy), word(self.eval_strategy));
            let remedy = "give --save_strategy and --eval_strategy the same value";
            return Err(Error::invalid(place, found, "equal strategies", remedy));
        }
        let eval_steps = self.eval_interval();
        if self.eval_strategy == Strategy::Steps && !self.save_steps.is_multiple_of(eval_steps) {
            let found = format!("save_steps {}, eval_steps {eval_steps}", self.save_steps);
            let remedy = "make --save_steps a multiple of --eval_steps";
            return Err(Error::invalid(place, found, "an evaluation whenever a checkpoint is written", remedy));
        }
        Ok(())
    }

    /// Why features are not kept when the tower is trained.
    pub fn no_cache_of_a_trained_tower() -> Error {
        let found = "a vision tower that is trained, so that its features change with every step";
        let remedy = "leave --cache-vision-features out, or take a --train_type that freezes the tower (train --help lists them)";
        Error::invalid("cache_vision_features", found, "a frozen vision tower", remedy)
    }
}
