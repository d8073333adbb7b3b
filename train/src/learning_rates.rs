//! Learning rates by part of the model: LLaVA's parameter groups. Weight decay and schedule are shared.

use crate::config::Config;
use crate::domains::number;
use crate::plan::{PartCount, parameters};
use anyhow::Result;
use base::Error;
use base::names::Block;
use model::config::LlavaConfig;
use model::lora::LoraConfig;
use std::fmt;

/// One rate for each part that has its own, and one for everything else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRates {
    /// Of every part without a rate of its own.
    pub learning_rate: f64,
    /// Of the projector.
    pub mm_projector_lr: Option<f64>,
    /// Of the vision tower, LoRA matrices in it included.
    pub vision_tower_lr: Option<f64>,
}

impl LearningRates {
    /// The highest ones of a run.
    pub fn of(config: &Config) -> Self {
        let Config { learning_rate, mm_projector_lr, vision_tower_lr, .. } = *config;
        Self { learning_rate, mm_projector_lr, vision_tower_lr }
    }

    /// That of a block of the model.
    ///
    /// # Source
    /// LLaVA `llava_trainer.py`, `LLaVATrainer.create_optimizer`: a parameter's group is found by `mm_projector` and, in
    /// LLaVA-NeXT, `vision_tower` in its name.
    pub fn of_block(&self, block: Block) -> f64 {
        let own = match block {
            Block::Projector => self.mm_projector_lr,
            Block::VisionEmbeddings | Block::VisionLayer(_) | Block::VisionPostNorm => self.vision_tower_lr,
            Block::TokenEmbeddings | Block::TextLayer(_) | Block::Head => None,
        };
        own.unwrap_or(self.learning_rate)
    }

    /// Every rate put through the schedule.
    #[must_use]
    pub fn map(self, at: impl Fn(f64) -> f64) -> Self {
        Self {
            learning_rate: at(self.learning_rate),
            mm_projector_lr: self.mm_projector_lr.map(&at),
            vision_tower_lr: self.vision_tower_lr.map(&at),
        }
    }

    /// The rates of parts, by the names of their options.
    pub fn of_parts(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let parts = [("mm_projector_lr", self.mm_projector_lr), ("vision_tower_lr", self.vision_tower_lr)];
        parts.into_iter().filter_map(|(name, rate)| Some((name, rate?)))
    }

    /// Refuses a rate of a part that is not trained: it would have no effect.
    ///
    /// # Errors
    /// The option.
    pub fn require_trained(&self, config: &Config, model: &LlavaConfig, lora: Option<&LoraConfig>) -> Result<()> {
        let parts = parameters(model, config.train_type, lora);
        for (option, rate) in self.of_parts() {
            let has_it = |part: &&PartCount| part.part.learning_rate_option() == Some(option);
            if parts.iter().filter(has_it).all(|part| part.trained == 0) {
                return Err(untrained(option, rate).into());
            }
        }
        Ok(())
    }
}

/// A rate of a part that is not trained.
fn untrained(option: &str, rate: f64) -> Error {
    let found = format!("{} for a part that is not trained", number(rate));
    let remedy = format!("leave --{option} out, or take a --train_type that trains it (train --help lists them)");
    Error::invalid(option, found, "a rate of a part that is trained", remedy)
}

impl fmt::Display for LearningRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&number(self.learning_rate))?;
        self.of_parts().try_for_each(|(option, rate)| write!(f, ", {option} {}", number(rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_the_rate_of_their_part() {
        let rates = LearningRates { learning_rate: 2e-4, mm_projector_lr: Some(2e-5), vision_tower_lr: None };
        let of = |rates: LearningRates| {
            [Block::VisionEmbeddings, Block::VisionLayer(3), Block::Projector, Block::TextLayer(0), Block::Head]
                .map(|block| rates.of_block(block))
        };
        assert_eq!(of(rates), [2e-4, 2e-4, 2e-5, 2e-4, 2e-4]);
        assert_eq!(of(LearningRates { vision_tower_lr: Some(0.0), ..rates }), [0.0, 0.0, 2e-5, 2e-4, 2e-4]);
        assert_eq!(of(rates.map(|rate| rate / 2.0)), [1e-4, 1e-4, 1e-5, 1e-4, 1e-4]);
        assert_eq!(rates.to_string(), "0.0002, mm_projector_lr 0.00002");
    }
}
