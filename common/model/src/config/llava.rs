//! Reading and writing a LLaVA's `config.json`.
//!
//! # Source
//! transformers 4.37 to 5.24, `configuration_llava.py`.

use super::quantization;
use super::reader::{At, Fields, dtype};
use super::{Activation, FeatureSelect, LlavaConfig, TextConfig, VisionConfig};
use base::fields::Row;
use base::fields::Rule::{Harmless, Only, Read};
use base::json::OneOrMany;
use base::{Result, json, names};
use serde_json::{Map, Value, json};
use std::path::Path;

/// `model_type`.
const LLAVA: &str = "llava";

/// `LlavaConfig`.
const FIELDS: &[Row] = &[
    ("vision_config", Read),
    ("text_config", Read),
    ("image_token_index", Read),
    ("image_token_id", Read),
    ("pad_token_id", Read),
    ("vision_feature_layer", Read),
    ("vision_feature_select_strategy", Read),
    ("projector_hidden_act", Read),
    ("multimodal_projector_bias", Read),
    // Follows from the tower and the strategy.
    ("image_seq_length", Harmless),
    // Copies of the language model's.
    ("vocab_size", Harmless),
    ("hidden_size", Harmless),
    ("quantization_config", Read),
    ("ignore_index", Only(&["-100"], "labels of tokens without supervision are -100")),
];

impl LlavaConfig {
    /// Reads and validates `dir/config.json`.
    ///
    /// # Errors
    /// Not a LLaVA of known families, or values that do not fit each other; the key is named.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(names::CONFIG_FILE);
        let object: Map<String, Value> = json::read(&path)?;
        let fields = Fields::new(&object, At::file(&path));
        let found = fields.model_type()?;
        if found != Some(LLAVA) {
            return Err(fields.at.wrong_model_type(found, &[LLAVA]));
        }
        let no_fields = Map::new();
        let text = fields.object("text_config")?.unwrap_or_else(|| Fields::new(&no_fields, fields.at.clone()));
        let tied = fields.get("tie_word_embeddings")? == Some(true);
        let text_config = TextConfig::of_llava(&text, tied)?;
        let vision = VisionConfig::of_llava(fields.object("vision_config")?.as_ref())?;
        fields.check(FIELDS, "a LLaVA's configuration")?;
        let layers = fields.get("vision_feature_layer")?.unwrap_or(OneOrMany::One(-2));
        let config = Self {
            vision,
            text: text_config,
            image_token_index: image_token_index(&fields)?,
            pad_token_id: fields.get("pad_token_id")?,
            vision_feature_layer_is_scalar: matches!(layers, OneOrMany::One(_)),
            vision_feature_layers: layers.to_vec(),
            vision_feature_select_strategy: feature_select(&fields)?,
            projector_hidden_act: fields.activation("projector_hidden_act", Activation::Gelu)?,
            multimodal_projector_bias: fields.get("multimodal_projector_bias")?.unwrap_or(true),
            dtype: dtype(&[&fields, &text])?,
            quantization: quantization::read(&fields)?,
        };
        config.validate(&fields.at)?;
        Ok(config)
    }

    fn validate(&self, at: &At) -> Result<()> {
        let states = self.vision.num_hidden_layers as i64 + 1;
        let layers = &self.vision_feature_layers;
        at.check(!layers.is_empty(), "vision_feature_layer", "an empty list", "at least one layer")?;
        for &layer in layers {
            let expected = format!("{} to {}", -states, states - 1);
            at.check((-states..states).contains(&layer), "vision_feature_layer", layer, expected)?;
        }
        let (strategy, family) = (self.vision_feature_select_strategy, self.vision.family);
        at.check(
            strategy == FeatureSelect::Full || family.has_class_token(),
            "vision_feature_select_strategy",
            strategy.name(),
            format!("full: {} has no class token to drop", family.model_type()),
        )?;
        let (image, vocab) = (self.image_token_index as usize, self.text.vocab_size);
        at.check(image < vocab, "image_token_index", image, format!("an id below vocab_size {vocab}"))
    }

    /// Writes `dir/config.json` with the keys that transformers 4.41 and 5.x both understand.
    pub fn write(&self, dir: &Path) -> Result<()> {
        json::write(&dir.join(names::CONFIG_FILE), &self.to_json())
    }

    fn to_json(&self) -> Value {
        let layers = &self.vision_feature_layers;
        let mut config = json!({
            "architectures": ["LlavaForConditionalGeneration"],
            "image_seq_length": self.image_seq_length(),
            "image_token_index": self.image_token_index,
            "model_type": LLAVA,
            "multimodal_projector_bias": self.multimodal_projector_bias,
            "pad_token_id": self.pad_token_id,
            "projector_hidden_act": self.projector_hidden_act.name(),
            "text_config": self.text.to_json(self.dtype),
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "torch_dtype": self.dtype.torch_name(),
            "vision_config": self.vision.to_json(self.dtype),
            "vision_feature_layer": match (self.vision_feature_layer_is_scalar, &layers[..]) {
                (true, [layer]) => json!(layer),
                _ => json!(layers),
            },
            "vision_feature_select_strategy": self.vision_feature_select_strategy.name(),
        });
        if let Some(quantization) = self.quantization {
            config["quantization_config"] = quantization::to_json(quantization);
        }
        config
    }
}

fn image_token_index(fields: &Fields<'_>) -> Result<u32> {
    let (index, id): (Option<u32>, Option<u32>) = (fields.get("image_token_index")?, fields.get("image_token_id")?);
    let differ = index.zip(id).is_some_and(|(index, id)| index != id);
    fields.at.check(
        !differ,
        "image_token_id",
        id.unwrap_or_default(),
        format!("image_token_index {}", index.unwrap_or_default()),
    )?;
    Ok(index.or(id).unwrap_or(32_000))
}

fn feature_select(fields: &Fields<'_>) -> Result<FeatureSelect> {
    let key = "vision_feature_select_strategy";
    let Some(name) = fields.get::<String>(key)? else { return Ok(FeatureSelect::Default) };
    [FeatureSelect::Default, FeatureSelect::Full]
        .into_iter()
        .find(|strategy| strategy.name() == name)
        .ok_or_else(|| fields.at.invalid(key, name, "default or full", "correct config.json"))
}
