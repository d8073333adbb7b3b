//! The model's description: its own directory, or the two backbones' configuration files.

use super::PlanArgs;
use crate::config::Config;
use crate::setup;
use anyhow::{Context, Result};
use base::{Error, names};
use chat::{IMAGE_TOKEN, TextTokenizer};
use model::config::{Activation, FeatureSelect, LlavaConfig, TextConfig, VisionConfig, WeightDtype};
use model::lora::LoraConfig;
use std::path::{Path, PathBuf};
use store::adapter;
use store::hub::{self, Wanted};
use toml::{Table, Value};

/// What the other stages of a recipe say of model and data.
#[derive(Clone, Debug, Default)]
pub struct RecipeTables {
    /// `[model]`
    pub model: Table,
    /// `[preprocess]`
    pub preprocess: Table,
    /// Folders of shards that the recipe makes: `shards` of `[data]`.
    pub shards: Vec<PathBuf>,
}

impl RecipeTables {
    /// Reads a recipe's tables; none without a recipe.
    ///
    /// # Errors
    /// A recipe that cannot be read.
    pub fn read(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let recipe: Table = text.parse().with_context(|| path.display().to_string())?;
        let table = |name: &str| recipe.get(name).and_then(Value::as_table).cloned().unwrap_or_default();
        let datasets = match recipe.get("data") {
            Some(Value::Table(table)) => vec![table],
            Some(Value::Array(tables)) => tables.iter().filter_map(Value::as_table).collect(),
            _ => Vec::new(),
        };
        let shards = datasets.into_iter().filter_map(|table| table.get("shards")?.as_str().map(PathBuf::from));
        Ok(Self { model: table("model"), preprocess: table("preprocess"), shards: shards.collect() })
    }
}

/// The model, and where its description comes from.
pub fn describe(config: &Config, args: &PlanArgs, recipe: &RecipeTables) -> Result<(LlavaConfig, String)> {
    let dir = &config.model_name_or_path;
    if !dir.as_os_str().is_empty() && dir.join(names::CONFIG_FILE).exists() {
        return Ok((LlavaConfig::read(dir)?, dir.display().to_string()));
    }
    let of_recipe = |key: &str| recipe.model.get(key).and_then(Value::as_str).map(PathBuf::from);
    let vision_tower = args.vision_tower.clone().or_else(|| of_recipe("vision_tower"));
    let language_model = args.language_model.clone().or_else(|| of_recipe("language_model"));
    let (Some(vision_tower), Some(language_model)) = (vision_tower, language_model) else {
        if hub::is_repository(dir) {
            return Ok((LlavaConfig::read(&hub::resolve(dir, Wanted::Config)?)?, dir.display().to_string()));
        }
        let expected = "a LLaVA directory";
        let remedy = format!(
            "give --model_name_or_path an assembled model, or --vision-tower and --language-model the folders of the two (their {} is \
             enough)",
            names::CONFIG_FILE
        );
        if dir.as_os_str().is_empty() {
            return Err(Error::usage("model_name_or_path", "no model", expected, remedy).into());
        }
        let found = if dir.exists() { format!("no {}", names::CONFIG_FILE) } else { "no such folder".to_string() };
        return Err(Error::invalid(dir.display(), found, expected, remedy).into());
    };
    let source = format!("{} and {}, not assembled yet", vision_tower.display(), language_model.display());
    let vision_tower = hub::resolve(&vision_tower, Wanted::Config)?;
    let language_model = hub::resolve(&language_model, Wanted::Config)?;
    Ok((assembled(&vision_tower, &language_model, &recipe.model)?, source))
}

/// What `preprocess model` will make of the two.
fn assembled(vision_tower: &Path, language_model: &Path, options: &Table) -> Result<LlavaConfig> {
    let (vision, _) = VisionConfig::read(vision_tower)?;
    let (mut text, text_dtype) = TextConfig::read(language_model)?;
    // A vocabulary without a spare row grows by the one of `<image>`, as in `preprocess model`.
    if language_model.join(names::TOKENIZER_FILE).exists() {
        let tokenizer = TextTokenizer::from_dir(language_model)?;
        let id = tokenizer.token_id(IMAGE_TOKEN).unwrap_or_else(|| tokenizer.next_free_id());
        text.vocab_size = text.vocab_size.max(id as usize + 1);
    }
    let vision_feature_layers = match options.get("vision_feature_layer") {
        None => vec![-2],
        Some(Value::Integer(layer)) => vec![*layer],
        Some(value) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            let layers = text.trim_matches(['[', ']']).split(',').map(|layer| layer.trim().trim_matches('"').parse());
            layers.collect::<Result<Vec<i64>, _>>().with_context(|| format!("[model] vision_feature_layer {value}"))?
        }
    };
    let strategy = options.get("vision_feature_select_strategy").and_then(Value::as_str);
    let full = strategy == Some("full") || !vision.family.has_class_token();
    Ok(LlavaConfig {
        vision,
        text,
        // The tokenizer decides; nothing here depends on it.
        image_token_index: 0,
        pad_token_id: None,
        vision_feature_layer_is_scalar: vision_feature_layers.len() == 1,
        quantization: None,
        vision_feature_layers,
        vision_feature_select_strategy: if full { FeatureSelect::Full } else { FeatureSelect::Default },
        projector_hidden_act: Activation::Gelu,
        multimodal_projector_bias: true,
        dtype: match options.get("dtype").and_then(Value::as_str) {
            Some("f32") => WeightDtype::F32,
            Some("bf16") => WeightDtype::Bf16,
            Some("f16") => WeightDtype::F16,
            _ => text_dtype,
        },
    })
}

/// The LoRA matrices that the settings ask for.
///
/// # Errors
/// Settings that no model can have; an adapter to start from that cannot be read.
pub fn lora(config: &Config, model: &LlavaConfig) -> Result<Option<LoraConfig>> {
    if !config.train_type.uses_lora() {
        return Ok(None);
    }
    if let Some(dir) = &config.init_adapter {
        let lora = adapter::read_config(dir, model)?;
        setup::require_trainable(&lora, dir)?;
        return Ok(Some(LoraConfig { lora_dropout: config.lora_dropout, ..lora }));
    }
    Ok(Some(config.lora(model)?))
}
