//! A frozen base in few bits: which settings and models allow it.

use crate::config::{Config, TrainType};
use crate::trainable::Choice;
use base::{Error, Result};
use clap::ValueEnum;
use kernels::Quantization;
use model::config::LlavaConfig;
use model::lora::LoraConfig;
use model::quantized::is_rounded;
use store::checkpoint::expected_tensors;

/// Refuses options that contradict each other, and a train type that would change the base or write it.
///
/// # Errors
/// The option, with the remedy.
pub fn check_options(config: &Config) -> Result<()> {
    if config.load_in_8bit && config.load_in_4bit {
        let found = "load_in_4bit as well";
        return Err(Error::invalid("load_in_8bit", found, "one format of the base", "remove one of the two"));
    }
    let option = if config.load_in_8bit { "load_in_8bit" } else { "load_in_4bit" };
    match config.quantization() {
        Some(_) => require_adapter(config.train_type, option),
        None => Ok(()),
    }
}

/// The format that the base of a run is held in: what the options ask for, or what the files have.
///
/// # Errors
/// Files in few bits, together with an option that asks for others or a train type that would change them; an adapter that
/// trains tensors of the base that are rounded.
pub fn of_run(config: &Config, model: &LlavaConfig, lora: Option<&LoraConfig>) -> Result<Option<Quantization>> {
    let (asked, stored) = (config.quantization(), model.quantization);
    if let Some(stored) = stored {
        let place = format!("{}: quantization_config", config.model_name_or_path.display());
        if asked == Some(Quantization::Int8) {
            let remedy = "leave --load_in_8bit out, or give the original model";
            return Err(Error::invalid(place, stored, "weights that are not rounded yet", remedy));
        }
        require_adapter(config.train_type, &place)?;
    }
    let format = stored.or(asked);
    let trained = lora.filter(|_| asked.is_some()).and_then(|lora| {
        let choice = Choice::new(config.train_type, Some(lora));
        let mut tensors = expected_tensors(model).into_iter();
        tensors.find(|tensor| is_rounded(&tensor.name) && choice.is_covered(&tensor.name))
    });
    match trained {
        None => Ok(format),
        Some(tensor) => {
            let place = format!("tensor {}", tensor.name);
            let remedy = "leave its module out of modules_to_save, or train without load_in_8bit and load_in_4bit";
            Err(Error::invalid(place, "trained whole in a base in few bits", "a frozen tensor", remedy))
        }
    }
}

/// Whether a weight of a run's base is held in few bits, by its published name.
pub fn is_held_in_few_bits(name: &str, format: Option<Quantization>) -> bool {
    format.is_some() && is_rounded(name)
}

fn require_adapter(train_type: TrainType, place: &str) -> Result<()> {
    if train_type.uses_lora() {
        return Ok(());
    }
    let name = train_type.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default();
    let found = format!("train_type {name}, which writes the whole model, with a base in few bits");
    let remedy = "train with use_lora, or take the model without rounding";
    Err(Error::invalid(place, found, "train_type use_lora (the base is frozen and not written)", remedy))
}
