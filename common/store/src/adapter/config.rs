//! `adapter_config.json`: read strictly, written with few fields.

use super::fields;
use super::patterns::LayerPattern;
use super::targets::RawTargets;
use base::fields::{Place, check};
use base::{Error, Result, json, names};
use model::lora::{LM_HEAD_TARGET, LoraConfig};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The fields that are read.
pub struct AdapterFile {
    /// The file, for errors.
    pub place: String,
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Dropout on the branch's input.
    pub lora_dropout: f64,
    /// The scale falls with the root of the rank.
    pub use_rslora: bool,
    /// Every layer with LoRA has magnitudes.
    pub use_dora: bool,
    /// Fields about modules.
    pub targets: RawTargets,
    /// A tied pair of embedding and output weights stays one when it is saved in full.
    pub ensure_weight_tying: bool,
    /// Why training cannot go on from it, if so.
    pub untrainable: Option<&'static str>,
    /// PEFT gives matrices that the weights lack random values, of which the product is not 0: `init_lora_weights: false`.
    pub has_random_init: bool,
    /// Ranks of single layers.
    pub rank_pattern: LayerPattern<usize>,
    /// Numerators of the scales of single layers.
    pub alpha_pattern: LayerPattern<f64>,
    /// Fields about modules that are set in the file, unchanged.
    pub module_fields: Vec<(String, Value)>,
}

impl AdapterFile {
    /// Rank, scale and dropout; no projections.
    pub fn settings(&self) -> LoraConfig {
        LoraConfig {
            r: self.r,
            lora_alpha: self.lora_alpha,
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            lora_dropout: self.lora_dropout,
            target_modules: Vec::new(),
            lora_vision: false,
            modules: None,
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    /// Absent numbers mean 8, as in PEFT.
    r: Option<usize>,
    lora_alpha: Option<f64>,
    lora_dropout: Option<f64>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    #[serde(flatten)]
    targets: RawTargets,
    ensure_weight_tying: Option<bool>,
    rank_pattern: Option<LayerPattern<usize>>,
    alpha_pattern: Option<LayerPattern<f64>>,
    #[serde(default)]
    init_lora_weights: Value,
}

/// Fields that say which modules an adapter is about, in PEFT's words.
const MODULE_FIELDS: [&str; 8] = [
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "ensure_weight_tying",
    RANK_PATTERN,
    ALPHA_PATTERN,
];

/// The field of the ranks of single layers.
pub const RANK_PATTERN: &str = "rank_pattern";
/// The field of the scales of single layers.
pub const ALPHA_PATTERN: &str = "alpha_pattern";

/// PEFT's rank and alpha where the file says none.
const DEFAULT_RANK: usize = 8;

/// Refuses a folder that is not there, and one without an adapter.
fn require(dir: &Path, path: &Path) -> Result<()> {
    let expected = "an adapter, as train --train_type use_lora writes one";
    if !dir.exists() {
        let remedy = format!("{}check the path", base::did_you_mean(dir));
        return Err(Error::invalid(dir.display(), "no such folder", expected, remedy));
    }
    if path.exists() {
        return Ok(());
    }
    let (found, remedy) = match dir.join(names::CONFIG_FILE).exists() {
        true => (
            "a whole model".to_string(),
            "an adapter is trained on a model: give this one as the model (infer --model, train --model_name_or_path) alone",
        ),
        false => (
            format!("no {}", names::ADAPTER_CONFIG_FILE),
            "check the path: the output folder of the run, or a checkpoint-… in it",
        ),
    };
    Err(Error::invalid(dir.display(), found, expected, remedy))
}

/// Reads `dir/adapter_config.json`.
///
/// # Errors
/// Fields that no version of PEFT has, and fields whose effect is not implemented.
pub fn read(dir: &Path) -> Result<AdapterFile> {
    let path = dir.join(names::ADAPTER_CONFIG_FILE);
    require(dir, &path)?;
    let place = path.display().to_string();
    let object: Map<String, Value> = json::read(&path)?;
    let remedy = "give a plain LoRA adapter";
    check(&object, &[fields::LORA], Place { place: &place, kind: "PEFT's LoraConfig", remedy })?;
    let is_set = |value: &Value| !(value.is_null() || [json!(false), json!({})].contains(value));
    let module_fields = MODULE_FIELDS.into_iter().filter_map(|field| Some((field, object.get(field)?)));
    let module_fields = module_fields.filter(|(_, value)| is_set(value));
    let module_fields = module_fields.map(|(field, value)| (field.to_string(), value.clone())).collect();
    let raw: Raw = json::read(&path)?;
    Ok(AdapterFile {
        untrainable: initialisation(&raw.init_lora_weights, &place)?,
        has_random_init: raw.init_lora_weights == json!(false),
        r: raw.r.unwrap_or(DEFAULT_RANK),
        lora_alpha: raw.lora_alpha.unwrap_or(DEFAULT_RANK as f64),
        lora_dropout: raw.lora_dropout.unwrap_or_default(),
        use_rslora: raw.use_rslora.unwrap_or_default(),
        use_dora: raw.use_dora.unwrap_or_default(),
        rank_pattern: raw.rank_pattern.unwrap_or_default(),
        alpha_pattern: raw.alpha_pattern.unwrap_or_default(),
        targets: raw.targets,
        ensure_weight_tying: raw.ensure_weight_tying.unwrap_or_default(),
        module_fields,
        place,
    })
}

/// Refuses initialisations that change the base's weights; PEFT repeats that whenever it loads such an adapter.
///
/// # Source
/// peft 0.21, `tuners/lora/layer.py`: `pissa_init`, `olora_init`, `corda_init`, `loftq_init`, `lora_ga_init` write the base's
/// weight; `orthogonal_init`, `mica_init`, EVA and the random ones do not.
fn initialisation(value: &Value, place: &str) -> Result<Option<&'static str>> {
    const OF_THE_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    let kind = match value {
        Value::Null | Value::Bool(_) => return Ok(None),
        Value::String(kind) => kind.to_lowercase(),
        other => other.to_string(),
    };
    if OF_THE_BASE.iter().any(|prefix| kind.starts_with(prefix)) {
        let expected = "an initialisation that leaves the base model's weights alone (true, gaussian, eva, orthogonal)";
        let remedy = "convert the adapter with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...) writes \
                      one for the unchanged base model";
        return Err(Error::invalid(place, format!("init_lora_weights {value}"), expected, remedy));
    }
    match kind.as_str() {
        "gaussian" | "eva" | "orthogonal" => Ok(None),
        "mica" => Ok(Some("init_lora_weights mica (lora_B stays as it is)")),
        _ => {
            let expected = "true, false, gaussian, eva, orthogonal or mica";
            Err(Error::invalid(place, format!("init_lora_weights {value}"), expected, "give a plain LoRA adapter"))
        }
    }
}

/// Writes the fields that every PEFT generation knows: an unknown one is an error in older versions.
pub fn write(config: &LoraConfig, base_model: &str, dir: &Path) -> Result<()> {
    let mut value = json!({
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
    if let Some(modules) = &config.modules {
        value["modules_to_save"] = Value::Null;
        for (field, found) in &modules.fields {
            value[field] = found.clone();
        }
    }
    for (field, is_used) in [("use_rslora", config.use_rslora), ("use_dora", config.use_dora)] {
        if is_used {
            value[field] = json!(true);
        }
    }
    json::write(&dir.join(names::ADAPTER_CONFIG_FILE), &value)
}

/// PEFT declares `lora_alpha` as an integer; a whole number is written as one.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 2f64.powi(53) { json!(value as i64) } else { json!(value) }
}

/// A regular expression for PEFT: plain names would also hit the vision tower's q, k and v.
pub fn target_pattern(config: &LoraConfig) -> String {
    let projections = config.target_modules.iter().filter(|target| *target != LM_HEAD_TARGET);
    let projections = projections.map(String::as_str).collect::<Vec<_>>().join("|");
    let of_layers = (!projections.is_empty()).then(|| format!(r".*language_model.*\.({projections})"));
    let of_tower = config.lora_vision.then(|| r".*vision_tower.*\.(q_proj|k_proj|v_proj)".to_string());
    // The head stands beside the language model, or in it, depending on the version of transformers.
    let of_head = config.targets_head().then(|| format!(r"(.*\.)?{LM_HEAD_TARGET}"));
    of_layers.into_iter().chain(of_tower).chain(of_head).collect::<Vec<_>>().join("|")
}
