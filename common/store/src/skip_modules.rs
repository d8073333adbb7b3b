//! `llm_int8_skip_modules`: layers of the language model that stay as they are where the others are rounded.

use crate::adapter::{is_match, regex};
use crate::checkpoint::expected_tensors;
use base::{Error, Result, names};
use model::config::LlavaConfig;
use model::lora::can_carry_lora;
use std::collections::BTreeSet;

/// The option.
pub const OPTION: &str = "llm_int8_skip_modules";

/// The layers that names mean, by published paths: a name is a regular expression for the beginning of a module's path, up to a
/// dot or the path's end, or the end of one, in any of transformers' spellings.
///
/// # Errors
/// A name that no linear layer of the model has; no regular expression.
/// # Source
/// transformers 5.24, `quantizers/quantizers_utils.py`, `should_convert_module`.
pub fn skipped_layers(skip: &[String], config: &LlavaConfig) -> Result<BTreeSet<String>> {
    let tensors = expected_tensors(config).into_iter().map(|tensor| tensor.name);
    let head = [names::LM_HEAD.to_string()];
    let layers: BTreeSet<String> = tensors
        .chain(head)
        .filter(|name| can_carry_lora(name))
        .filter_map(|name| Some(name.strip_suffix(".weight")?.to_string()))
        .collect();
    let mut skipped = BTreeSet::new();
    for name in skip {
        let pattern = regex(&format!(r"\A(?:{name})(?:(?<=\.)|(?=\.|\z))"), name, OPTION)?;
        let fits = |path: &String| path.ends_with(name.as_str()) || is_match(&pattern, path);
        let found = layers.iter().filter(|layer| names::module_spellings(layer).iter().any(fits));
        let found: Vec<String> = found.cloned().collect();
        if found.is_empty() {
            let expected = "the beginning or the end of the path of a linear layer of this model: down_proj, \
                            model.language_model.layers.0, …";
            return Err(Error::invalid(OPTION, format!("\"{name}\""), expected, "correct it, or leave it out"));
        }
        skipped.extend(found);
    }
    Ok(skipped)
}
