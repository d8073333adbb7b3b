//! The ids that end an answer: `generation_config.json`, or `config.json` if it has none.

use base::fields::{self, Place, generation};
use base::json::OneOrMany;
use base::{Result, json, names};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

#[derive(Deserialize)]
struct EosOnly {
    eos_token_id: Option<OneOrMany<u32>>,
    text_config: Option<Box<EosOnly>>,
}

/// `eos_token_id` of a model directory: of `generation_config.json`, else of `config.json` (the whole model's, else its
/// language model's). Empty when none of them says any.
///
/// # Errors
/// A file that is not JSON, ids that are no ids, and a field of `generation_config.json` that asks for something that is not
/// done here.
/// # Source
/// transformers 5.24, `generation/configuration_utils.py`, `GenerationConfig.from_model_config`.
pub fn eos_token_ids(dir: &Path) -> Result<Vec<u32>> {
    let generation = generation_config(dir)?.and_then(|config| config.eos_token_id);
    let of_config = || -> Result<_> {
        let config: Option<EosOnly> = json::read_if_there(&dir.join(names::CONFIG_FILE))?;
        Ok(config.and_then(|config| config.eos_token_id.or_else(|| config.text_config?.eos_token_id)))
    };
    let ids = match generation {
        Some(ids) => Some(ids),
        None => of_config()?,
    };
    Ok(ids.map_or_else(Vec::new, |ids| ids.to_vec()))
}

/// What `generation_config.json` asks for and the programs leave to their options ([`generation::unused`]).
///
/// # Errors
/// A file that is not JSON.
pub fn unused_settings(dir: &Path) -> Result<Vec<String>> {
    let object: Option<Map<String, Value>> = json::read_if_there(&dir.join(names::GENERATION_CONFIG_FILE))?;
    Ok(object.map_or_else(Vec::new, |object| generation::unused(&object)))
}

/// `generation_config.json`, if there is one.
fn generation_config(dir: &Path) -> Result<Option<EosOnly>> {
    let path = dir.join(names::GENERATION_CONFIG_FILE);
    let Some(object) = json::read_if_there::<Map<String, Value>>(&path)? else { return Ok(None) };
    let place = path.display().to_string();
    let place = Place { place: &place, kind: "a generation_config.json", remedy: "remove the field from the file" };
    fields::check(&object, &[generation::FIELDS], place)?;
    json::read(&path).map(Some)
}
