//! A frozen base in few bits: which settings and models allow it.

use crate::config::{Config, Extent, TrainType};
use crate::trainable::Choice;
use base::{Error, Result};
use clap::ValueEnum;
use kernels::Quantization;
use model::config::LlavaConfig;
use model::lora::LoraConfig;
use model::quantized::Rounding;
use store::checkpoint::expected_tensors;
use store::skip_modules::{OPTION as SKIP, skipped_layers};

/// Refuses options that contradict each other, and a train type that would change the base.
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
        Some(_) => require_frozen(config.train_type, option),
        None if config.skipped_modules().is_empty() => Ok(()),
        None => {
            let expected = "load_in_8bit or load_in_4bit beside it";
            Err(Error::invalid(SKIP, config.skipped_modules().join(", "), expected, "give one, or leave it out"))
        }
    }
}

/// How the base of a run is held, if it is in few bits: what the options ask for, or what the files have.
///
/// # Errors
/// Files in few bits, together with an option that asks for others or a train type that would change them; an adapter that
/// trains tensors of the base that are rounded; modules to skip that the model does not have.
pub fn of_run(config: &Config, model: &LlavaConfig, lora: Option<&LoraConfig>) -> Result<Option<Rounding>> {
    let (asked, stored) = (config.quantization(), model.quantization);
    if let Some(stored) = stored {
        let place = format!("{}: quantization_config", config.model_name_or_path.display());
        let skips = !config.skipped_modules().is_empty();
        if skips || asked.is_some_and(|asked| !is_same_kind(asked, stored)) {
            let option = match (skips, config.load_in_8bit) {
                (true, _) => SKIP,
                (_, true) => "load_in_8bit",
                _ => "load_in_4bit",
            };
            let remedy = format!("leave --{option} out, or give the original model");
            return Err(Error::invalid(place, stored, "weights that are not rounded yet", remedy));
        }
        require_frozen(config.train_type, &place)?;
    }
    let Some(format) = stored.or(asked) else { return Ok(None) };
    let rounding = Rounding { format, skipped: skipped_layers(&config.skipped_modules(), model)? };
    let trained = lora.filter(|_| asked.is_some()).and_then(|lora| {
        let choice = Choice::new(config.train_type, Some(lora));
        let mut tensors = expected_tensors(model).into_iter();
        tensors.find(|tensor| rounding.rounds(&tensor.name) && choice.is_covered(&tensor.name))
    });
    match trained {
        None => Ok(Some(rounding)),
        Some(tensor) => {
            let place = format!("tensor {}", tensor.name);
            let remedy = "leave its module out of modules_to_save, or train without load_in_8bit and load_in_4bit";
            Err(Error::invalid(place, "trained whole in a base in few bits", "a frozen tensor", remedy))
        }
    }
}

/// Whether an option asks for what files have.
fn is_same_kind(asked: Quantization, stored: Quantization) -> bool {
    (asked == Quantization::Int8) == (stored == Quantization::Int8)
}

fn require_frozen(train_type: TrainType, place: &str) -> Result<()> {
    if train_type.parts().language_model != Extent::Whole {
        return Ok(());
    }
    let name = train_type.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default();
    let found = format!("train_type {name}, which changes the language model, with a base in few bits");
    let remedy = "train with use_lora or projector, or take the model without rounding";
    Err(Error::invalid(place, found, "a train_type that leaves the language model's weights as they are", remedy))
}
