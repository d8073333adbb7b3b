//! `adapter_config.json`.

use crate::model::lora::{LoraConfig, TEXT_PROJECTIONS};
use crate::{Error, Result, json, names};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What is read of the file; everything else that PEFT writes describes variants that are off by default.
#[derive(Deserialize)]
struct RawAdapter {
    peft_type: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Option<Value>,
    bias: Option<String>,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    lora_bias: bool,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
}

impl RawAdapter {
    /// What this adapter needs and nothing here implements.
    fn unsupported(&self) -> Option<String> {
        let is_set = |pattern: &Option<Map<String, Value>>| pattern.as_ref().is_some_and(|pattern| !pattern.is_empty());
        let kind = self.peft_type.as_deref().unwrap_or("LORA");
        let bias = self.bias.as_deref().unwrap_or("none");
        [
            (kind != "LORA", format!("peft_type {kind}")),
            (bias != "none", format!("bias {bias}")),
            (self.use_dora, "use_dora".into()),
            (self.use_rslora, "use_rslora".into()),
            (self.fan_in_fan_out, "fan_in_fan_out".into()),
            (self.lora_bias, "lora_bias".into()),
            (is_set(&self.rank_pattern), "rank_pattern".into()),
            (is_set(&self.alpha_pattern), "alpha_pattern".into()),
        ]
        .into_iter()
        .find_map(|(applies, name)| applies.then_some(name))
    }
}

/// The file's settings with the targets that the weights show: `target_modules` may be a regular expression, which is not
/// evaluated. `stored` are the published paths of the adapter's tensors.
pub fn read(dir: &Path, stored: &[String]) -> Result<LoraConfig> {
    let path = dir.join(names::ADAPTER_CONFIG_FILE);
    let raw: RawAdapter = json::read(&path)?;
    if let Some(variant) = raw.unsupported() {
        return Err(Error::invalid(path.display(), variant, "plain LoRA", "give a LoRA adapter without this variant"));
    }
    let has = |prefix: &str, projection: &str| {
        let part = format!(".{projection}.lora_A.");
        stored.iter().any(|name| name.starts_with(prefix) && name.contains(&part))
    };
    let text = TEXT_PROJECTIONS.into_iter().filter(|projection| has(names::TEXT_MODEL, projection));
    let target_modules: Vec<String> = text.map(String::from).collect();
    if target_modules.is_empty() {
        return Err(Error::invalid(
            dir.join(names::ADAPTER_WEIGHTS_FILE).display(),
            format!("no LoRA of the language model (target_modules {})", raw.target_modules.unwrap_or_default()),
            "lora_A and lora_B of a LLaVA's language model",
            "give an adapter that was trained on this model",
        ));
    }
    let config = LoraConfig {
        r: raw.r,
        lora_alpha: raw.lora_alpha,
        lora_dropout: raw.lora_dropout,
        target_modules,
        lora_vision: has(names::VISION_MODEL, "q_proj"),
    };
    config.validate()?;
    Ok(config)
}

/// Writes the fields that every PEFT generation knows: an unknown one is an error in older versions.
pub fn write(config: &LoraConfig, base_model: &str, dir: &Path) -> Result<()> {
    let value = json!({
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "lora_alpha": number(config.lora_alpha),
        "lora_dropout": config.lora_dropout,
        "modules_to_save": [names::PROJECTOR],
        "peft_type": "LORA",
        "r": config.r,
        "target_modules": target_pattern(config),
        "task_type": "CAUSAL_LM",
    });
    json::write(&dir.join(names::ADAPTER_CONFIG_FILE), &value)
}

/// PEFT declares `lora_alpha` as an integer; a whole number is written as one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 2f64.powi(53) { json!(value as i64) } else { json!(value) }
}

/// A regular expression for PEFT: plain names would also hit the vision tower's q, k and v.
fn target_pattern(config: &LoraConfig) -> String {
    let text = format!(r".*language_model.*\.({})", config.target_modules.join("|"));
    if config.lora_vision { format!(r"{text}|.*vision_tower.*\.(q_proj|k_proj|v_proj)") } else { text }
}
