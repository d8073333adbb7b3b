//! From the files' many spellings to one validated configuration.

use super::attention::require_full_attention;
use super::raw::{RawClip, RawLlava, RawModelType, RawRope, RawText, RawVision, defaults};
use super::{Activation, FeatureSelect, LlavaConfig, TextConfig, VisionConfig, WeightDtype, fields};
use base::json::OneOrMany;
use base::{Error, Result, json, names};
use serde_json::{Map, Value};
use std::path::Path;

/// `model_type` of a LLaVA, of CLIP, of its vision tower, of Qwen2.
pub(super) const LLAVA: &str = "llava";
const CLIP: &str = "clip";
pub(super) const CLIP_VISION: &str = "clip_vision_model";
pub(super) const QWEN2: &str = "qwen2";

impl LlavaConfig {
    /// Reads and validates `dir/config.json`.
    ///
    /// # Errors
    /// Not a LLaVA of CLIP and Qwen2, or values that do not fit each other; the key is named.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(names::CONFIG_FILE);
        let at = At(path.display().to_string());
        expect_model_type(&path, &at, &[LLAVA])?;
        let object: Map<String, Value> = json::read(&path)?;
        let raw: RawLlava = json::read(&path)?;
        expect_families(&raw, &at)?;
        fields::check(&object, fields::LLAVA, &at, "a LLaVA's configuration")?;
        check_tower(object.get("vision_config"), &at.key("vision_config"))?;
        check_text(object.get("text_config"), &at.key("text_config"))?;
        from_raw(raw, &at)
    }
}

impl VisionConfig {
    /// Reads the vision tower of a CLIPModel or CLIPVisionModel directory, and the format of its weights.
    pub fn read_clip(dir: &Path) -> Result<(Self, WeightDtype)> {
        let path = dir.join(names::CONFIG_FILE);
        let at = At(path.display().to_string());
        let model_type = expect_model_type(&path, &at, &[CLIP, CLIP_VISION])?;
        let object: Value = json::read(&path)?;
        if model_type == CLIP_VISION {
            check_tower(Some(&object), &at)?;
            let raw: RawVision = json::read(&path)?;
            return Ok((vision(&raw, &at)?, dtype([&raw.dtype, &raw.torch_dtype], &at)?));
        }
        if let Some(object) = object.as_object() {
            fields::check(object, fields::CLIP, &at, "a CLIP's configuration")?;
        }
        let raw: RawClip = json::read(&path)?;
        for key in ["vision_config_dict", "vision_config"] {
            check_tower(object.get(key), &at.key(key))?;
        }
        let tower = raw.vision_config_dict.or(raw.vision_config).ok_or_else(|| {
            at.invalid("vision_config", "nothing", "the vision tower's settings", "take another CLIP")
        })?;
        Ok((vision(&tower, &at.key("vision_config"))?, dtype([&raw.dtype, &raw.torch_dtype], &at)?))
    }
}

impl TextConfig {
    /// Reads a Qwen2ForCausalLM directory, and the format of its weights.
    pub fn read_qwen2(dir: &Path) -> Result<(Self, WeightDtype)> {
        let path = dir.join(names::CONFIG_FILE);
        let at = At(path.display().to_string());
        expect_model_type(&path, &at, &[QWEN2])?;
        check_text(Some(&json::read(&path)?), &at)?;
        let raw: RawText = json::read(&path)?;
        Ok((text(&raw, raw.tie_word_embeddings.unwrap_or(false), &at)?, dtype([&raw.dtype, &raw.torch_dtype], &at)?))
    }
}

/// The place of a value: file and keys.
pub(super) struct At(pub(super) String);

impl At {
    pub(super) fn key(&self, key: &str) -> Self {
        Self(format!("{}: {key}", self.0))
    }

    pub(super) fn invalid(&self, key: &str, found: impl ToString, expected: impl ToString, remedy: &str) -> Error {
        Error::invalid(format!("{}: {key}", self.0), found, expected, remedy)
    }

    pub(super) fn check(&self, holds: bool, key: &str, found: impl ToString, expected: impl ToString) -> Result<()> {
        if holds { Ok(()) } else { Err(self.invalid(key, found, expected, "correct config.json")) }
    }

    /// A probability that is written back; it is not applied, and training says so.
    fn check_dropout(&self, found: f64) -> Result<()> {
        self.check((0.0..1.0).contains(&found), "attention_dropout", found, "a probability from 0 to below 1")
    }
}

/// Refuses other architectures by name, before their keys are looked at.
fn expect_model_type(path: &Path, at: &At, expected: &[&'static str]) -> Result<&'static str> {
    let raw: RawModelType = json::read(path)?;
    let found = raw.model_type.as_ref().and_then(|value| value.as_str());
    expected.iter().copied().find(|&known| Some(known) == found).ok_or_else(|| {
        let found = raw.model_type.as_ref().map_or("nothing".to_string(), ToString::to_string);
        at.invalid("model_type", found, expected.join(" or "), "give the directory of such a model")
    })
}

/// Refuses other towers and language models by name, before their keys are looked at.
fn expect_families(raw: &RawLlava, at: &At) -> Result<()> {
    let text = raw.text_config.as_ref().ok_or_else(|| no_text_config(at))?;
    let text_type = text.model_type.as_deref().unwrap_or("llama");
    at.key("text_config").check(text_type == QWEN2, "model_type", text_type, QWEN2)?;
    let tower = raw.vision_config.as_ref().and_then(|tower| tower.model_type.as_deref()).unwrap_or(CLIP_VISION);
    at.key("vision_config").check(tower == CLIP_VISION, "model_type", tower, CLIP_VISION)
}

fn no_text_config(at: &At) -> Error {
    at.invalid("text_config", "nothing (llama by transformers' default)", QWEN2, "take a LLaVA with a Qwen2")
}

/// Checks the fields of a vision tower's object, where there is one.
fn check_tower(tower: Option<&Value>, at: &At) -> Result<()> {
    let Some(object) = tower.and_then(Value::as_object) else { return Ok(()) };
    fields::check(object, fields::VISION, at, "a CLIP vision tower's configuration")
}

/// Checks the fields of a language model's object, where there is one.
fn check_text(text: Option<&Value>, at: &At) -> Result<()> {
    let Some(object) = text.and_then(Value::as_object) else { return Ok(()) };
    fields::check(object, fields::TEXT, at, "a Qwen2's configuration")
}

fn from_raw(raw: RawLlava, at: &At) -> Result<LlavaConfig> {
    let (text_at, image_token_index) = (at.key("text_config"), image_token_index(&raw, at)?);
    let raw_text = raw.text_config.ok_or_else(|| no_text_config(at))?;
    // 4.x never wrote the outer key when it was true (its default there), so where it stands it means what 5.x means by it.
    let tied = [raw.tie_word_embeddings, raw_text.tie_word_embeddings].contains(&Some(true));
    let vision = match &raw.vision_config {
        Some(tower) => vision(tower, &at.key("vision_config"))?,
        None => llava_default_vision(),
    };
    let (layers, is_scalar) = match raw.vision_feature_layer {
        None => (vec![-2], true),
        Some(OneOrMany::One(layer)) => (vec![layer], true),
        Some(OneOrMany::Many(layers)) => (layers, false),
    };
    let dtypes = [&raw.dtype, &raw.torch_dtype, &raw_text.dtype, &raw_text.torch_dtype];
    let config = LlavaConfig {
        vision,
        text: text(&raw_text, tied, &text_at)?,
        image_token_index,
        pad_token_id: raw.pad_token_id,
        vision_feature_layers: layers,
        vision_feature_layer_is_scalar: is_scalar,
        vision_feature_select_strategy: feature_select(raw.vision_feature_select_strategy.as_deref(), at)?,
        projector_hidden_act: activation(raw.projector_hidden_act.as_deref(), "gelu", &at.key("projector_hidden_act"))?,
        multimodal_projector_bias: raw.multimodal_projector_bias.unwrap_or(true),
        dtype: dtype(dtypes, at)?,
    };
    validate(&config, at)?;
    Ok(config)
}

fn image_token_index(raw: &RawLlava, at: &At) -> Result<u32> {
    let (index, id) = (raw.image_token_index, raw.image_token_id);
    let differ = index.zip(id).is_some_and(|(index, id)| index != id);
    at.check(
        !differ,
        "image_token_id",
        id.unwrap_or_default(),
        format!("image_token_index {}", index.unwrap_or_default()),
    )?;
    Ok(index.or(id).unwrap_or_else(defaults::image_token_index))
}

fn validate(config: &LlavaConfig, at: &At) -> Result<()> {
    let states = config.vision.num_hidden_layers as i64 + 1;
    let layers = &config.vision_feature_layers;
    at.check(!layers.is_empty(), "vision_feature_layer", "an empty list", "at least one layer")?;
    for &layer in layers {
        at.check(
            (-states..states).contains(&layer),
            "vision_feature_layer",
            layer,
            format!("{} to {}", -states, states - 1),
        )?;
    }
    let (image, vocab) = (config.image_token_index as usize, config.text.vocab_size);
    at.check(image < vocab, "image_token_index", image, format!("an id below vocab_size {vocab}"))
}

/// What transformers takes when a LLaVA's config says nothing of the tower: CLIP ViT-L/14 at 336 pixels.
fn llava_default_vision() -> VisionConfig {
    VisionConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        image_size: 336,
        patch_size: 14,
        num_channels: defaults::num_channels(),
        projection_dim: 768,
        hidden_act: Activation::QuickGelu,
        layer_norm_eps: defaults::layer_norm_eps(),
        attention_dropout: 0.0,
    }
}

fn vision(raw: &RawVision, at: &At) -> Result<VisionConfig> {
    let config = VisionConfig {
        hidden_size: raw.hidden_size,
        intermediate_size: raw.intermediate_size,
        num_hidden_layers: raw.num_hidden_layers,
        num_attention_heads: raw.num_attention_heads,
        image_size: square(&raw.image_size, "image_size", at)?,
        patch_size: square(&raw.patch_size, "patch_size", at)?,
        num_channels: raw.num_channels,
        projection_dim: raw.projection_dim,
        hidden_act: activation(raw.hidden_act.as_deref(), "quick_gelu", &at.key("hidden_act"))?,
        layer_norm_eps: raw.layer_norm_eps,
        attention_dropout: raw.attention_dropout.unwrap_or(0.0),
    };
    at.check_dropout(config.attention_dropout)?;
    let VisionConfig { hidden_size, num_attention_heads: heads, image_size, patch_size, .. } = config;
    at.check(
        heads > 0 && hidden_size.is_multiple_of(heads),
        "num_attention_heads",
        heads,
        format!("a divisor of hidden_size {hidden_size}"),
    )?;
    let divides = patch_size > 0 && image_size >= patch_size && image_size.is_multiple_of(patch_size);
    at.check(divides, "patch_size", patch_size, format!("a divisor of image_size {image_size}"))?;
    at.check(config.num_channels == 3, "num_channels", config.num_channels, "3 (RGB)")?;
    Ok(config)
}

fn square(size: &OneOrMany<usize>, key: &str, at: &At) -> Result<usize> {
    let sides = size.to_vec();
    let all_equal = sides.windows(2).all(|pair| pair[0] == pair[1]);
    match sides.first() {
        Some(&side) if all_equal => Ok(side),
        _ => Err(at.invalid(key, format!("{sides:?}"), "one side of a square", "take a tower with square input")),
    }
}

fn text(raw: &RawText, tie_word_embeddings: bool, at: &At) -> Result<TextConfig> {
    let config = TextConfig {
        hidden_size: raw.hidden_size,
        intermediate_size: raw.intermediate_size,
        num_hidden_layers: raw.num_hidden_layers,
        num_attention_heads: raw.num_attention_heads,
        num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
        vocab_size: raw.vocab_size,
        max_position_embeddings: raw.max_position_embeddings,
        rope_theta: rope_theta(raw, at)?,
        rms_norm_eps: raw.rms_norm_eps,
        tie_word_embeddings,
        bos_token_id: raw.bos_token_id,
        eos_token_id: raw.eos_token_id.as_ref().map_or_else(Vec::new, OneOrMany::to_vec),
        attention_dropout: raw.attention_dropout.unwrap_or(0.0),
    };
    at.check_dropout(config.attention_dropout)?;
    let TextConfig { hidden_size, num_attention_heads: heads, num_key_value_heads: kv_heads, .. } = config;
    let fits = heads > 0 && hidden_size.is_multiple_of(heads) && config.head_dim().is_multiple_of(2);
    at.check(
        fits,
        "num_attention_heads",
        heads,
        format!("a divisor of hidden_size {hidden_size} with an even quotient"),
    )?;
    at.check(
        kv_heads > 0 && heads.is_multiple_of(kv_heads),
        "num_key_value_heads",
        kv_heads,
        format!("a divisor of num_attention_heads {heads}"),
    )?;
    let head_dim = raw.head_dim.unwrap_or(config.head_dim());
    at.check(
        head_dim == config.head_dim(),
        "head_dim",
        head_dim,
        format!("{} (hidden_size / heads)", config.head_dim()),
    )?;
    let act = raw.hidden_act.as_deref();
    at.check(
        activation(act, "silu", &at.key("hidden_act"))? == Activation::Silu,
        "hidden_act",
        act.unwrap_or(""),
        "silu",
    )?;
    require_full_attention(raw, at)?;
    Ok(config)
}

/// The base of the rotary embedding; scaled and partial ones, and two different bases, are refused by name.
///
/// # Source
/// transformers 5.24, `modeling_rope_utils.py`, `convert_rope_params_to_dict`: `rope_scaling`, if not empty, replaces
/// `rope_parameters`; `rope_theta` beside them is the default of the one that counts.
fn rope_theta(raw: &RawText, at: &At) -> Result<f64> {
    for (key, rope) in [("rope_parameters", &raw.rope_parameters), ("rope_scaling", &raw.rope_scaling)] {
        let Some(rope) = rope else { continue };
        let expected = "the default rotary embedding: scaled ones are not implemented";
        at.check(rope.scaled_type().is_none(), key, rope.scaled_type().unwrap_or_default(), expected)?;
        let factor = rope.partial_rotary_factor.unwrap_or(1.0);
        at.check(factor == 1.0, key, format!("partial_rotary_factor {factor}"), "1: all of a head is rotated")?;
        fields::check_rope(&rope.others, &at.key(key))?;
    }
    let nested = |rope: &Option<RawRope>| rope.as_ref().and_then(|rope| rope.rope_theta);
    let given = [
        ("rope_scaling.rope_theta", nested(&raw.rope_scaling)),
        ("rope_parameters.rope_theta", nested(&raw.rope_parameters)),
        ("rope_theta", raw.rope_theta),
    ];
    let mut given = given.into_iter().filter_map(|(key, theta)| Some((key, theta?)));
    if let Some((key, theta)) = given.next()
        && let Some((other_key, other)) = given.find(|(_, other)| *other != theta)
    {
        let found = format!("{key} {theta} and {other_key} {other}");
        return Err(at.invalid("rope_theta", found, "one value", "keep the one that the weights were trained with"));
    }
    let is_given = |rope: &&RawRope| !rope.is_empty();
    let rope = raw.rope_scaling.as_ref().filter(is_given).or(raw.rope_parameters.as_ref());
    let theta = rope.and_then(|rope| rope.rope_theta).or(raw.rope_theta).unwrap_or_else(defaults::rope_theta);
    at.check(theta > 0.0, "rope_theta", theta, "a positive number")?;
    Ok(theta)
}

fn activation(name: Option<&str>, default: &str, at: &At) -> Result<Activation> {
    match name.unwrap_or(default) {
        "gelu" => Ok(Activation::Gelu),
        "quick_gelu" => Ok(Activation::QuickGelu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(Error::invalid(&at.0, other, "gelu, quick_gelu or silu", "take a model with one of these")),
    }
}

fn feature_select(name: Option<&str>, at: &At) -> Result<FeatureSelect> {
    match name.unwrap_or("default") {
        "default" => Ok(FeatureSelect::Default),
        "full" => Ok(FeatureSelect::Full),
        other => Err(at.invalid("vision_feature_select_strategy", other, "default or full", "correct config.json")),
    }
}

/// The first key that is there; float32 when none is, as in transformers.
fn dtype<const N: usize>(keys: [&Option<String>; N], at: &At) -> Result<WeightDtype> {
    let found = keys.into_iter().find_map(|key| key.as_deref()).unwrap_or("float32");
    WeightDtype::from_torch_name(found)
        .ok_or_else(|| at.invalid("dtype", found, "float32, bfloat16 or float16", "convert the weights"))
}
