//! Vision towers: a family is a file, and a row of [`VisionFamily`].

mod clip;
mod siglip;
pub mod vit;

pub use vit::{VISION_LINEARS, VisionContext, VisionLayer, VisionTower, VisionTransformer, select_features};

use crate::config::reader::{At, Fields, dtype};
use crate::config::{Activation, WeightDtype};
use crate::nn::init::Initializer;
use base::Result;
use base::fields::Row;
use base::json::OneOrMany;
use burn::tensor::Device;
use serde_json::{Map, Value};

families! {
    /// A family of vision towers.
    VisionFamily {
        /// OpenAI's CLIP and its relatives.
        Clip = clip,
        /// SigLIP, and SigLIP 2 with a fixed resolution.
        Siglip = siglip,
    }
}

impl VisionFamily {
    /// `model_type` of the tower in a configuration.
    pub fn model_type(self) -> &'static str {
        self.spec().model_type
    }

    /// A learned token before the patches, which [`FeatureSelect::Default`](crate::config::FeatureSelect) drops.
    pub fn has_class_token(self) -> bool {
        self.spec().has_class_token
    }
}

/// What a family's file says of it.
struct Spec {
    /// `model_type` of the tower.
    model_type: &'static str,
    /// `model_type` of the model with a text tower beside it.
    two_towers: &'static str,
    has_class_token: bool,
    /// Values of fields that a file does not have.
    defaults: Defaults,
    /// Fields beside those of all towers.
    fields: &'static [Row],
    /// Fields of the model with two towers.
    two_towers_fields: &'static [Row],
    /// Reads the family's own fields.
    read: fn(&mut VisionConfig, &Fields<'_>) -> Result<()>,
    /// The family's own fields of `config.json`.
    write: fn(&VisionConfig, &mut Map<String, Value>),
    init: fn(&VisionConfig, &mut Initializer<'_>) -> VisionTransformer,
}

/// Values of fields that a file does not have.
struct Defaults {
    patch_size: usize,
    hidden_act: Activation,
    layer_norm_eps: f64,
}

/// A vision tower's sizes.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// What it is.
    pub family: VisionFamily,
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers in the checkpoint (those after the selected one are not computed).
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Side of the square input, pixels.
    pub image_size: usize,
    /// Side of a patch, pixels.
    pub patch_size: usize,
    /// Colour channels.
    pub num_channels: usize,
    /// Width of CLIP's joint space; unused by LLaVA, kept for the config file.
    pub projection_dim: Option<usize>,
    /// MLP activation.
    pub hidden_act: Activation,
    /// Epsilon of every LayerNorm.
    pub layer_norm_eps: f64,
    /// Dropout of attention weights in training; not applied here, kept for the config file.
    pub attention_dropout: f64,
}

impl VisionConfig {
    /// Patches of an image; a border that fills none is left out.
    pub fn patches(&self) -> usize {
        let side = self.image_size / self.patch_size;
        side * side
    }

    /// Tokens of an image: patches and, where there is one, the class token.
    pub fn tokens(&self) -> usize {
        self.patches() + usize::from(self.family.has_class_token())
    }

    /// From the configuration of a vision tower, or of a model with a text tower beside it, with the dtype of its weights.
    pub(crate) fn of_directory(fields: &Fields<'_>) -> Result<(Self, WeightDtype)> {
        let found = fields.model_type()?;
        for family in VisionFamily::all() {
            let Spec { model_type, two_towers, two_towers_fields, .. } = family.spec();
            if found == Some(*model_type) {
                return Ok((Self::from_fields(family, fields)?, dtype(&[fields])?));
            }
            if found == Some(*two_towers) {
                fields.check(two_towers_fields, "a model of a vision tower and a text tower")?;
                // Early conversions of CLIP wrote the second key beside the first, and it counts.
                let tower = match fields.object("vision_config_dict")? {
                    Some(tower) => tower,
                    None => fields.object("vision_config")?.ok_or_else(|| {
                        fields.at.invalid(
                            "vision_config",
                            "nothing",
                            "the vision tower's settings",
                            "take another model",
                        )
                    })?,
                };
                return Ok((Self::from_fields(family, &tower)?, dtype(&[fields])?));
            }
        }
        let known = VisionFamily::all().flat_map(|family| [family.spec().two_towers, family.spec().model_type]);
        Err(fields.at.wrong_model_type(found, &known.collect::<Vec<_>>()))
    }

    /// From the tower of a LLaVA's configuration; nothing there means CLIP ViT-L/14 at 336 pixels.
    pub(crate) fn of_llava(fields: Option<&Fields<'_>>) -> Result<Self> {
        let Some(fields) = fields else { return Ok(clip::vit_large_336()) };
        let found = fields.model_type()?.unwrap_or(VisionFamily::Clip.model_type());
        let family = VisionFamily::all().find(|family| family.model_type() == found).ok_or_else(|| {
            let known: Vec<_> = VisionFamily::all().map(VisionFamily::model_type).collect();
            fields.at.wrong_model_type(Some(found), &known)
        })?;
        Self::from_fields(family, fields)
    }

    fn from_fields(family: VisionFamily, fields: &Fields<'_>) -> Result<Self> {
        let spec = family.spec();
        let Defaults { patch_size, hidden_act, layer_norm_eps } = spec.defaults;
        let kind = format!("a vision tower of type {}", spec.model_type);
        fields.check_all(&[spec.fields, FIELDS], &kind)?;
        let mut config = Self {
            family,
            hidden_size: fields.or("hidden_size", 768)?,
            intermediate_size: fields.or("intermediate_size", 3072)?,
            num_hidden_layers: fields.or("num_hidden_layers", 12)?,
            num_attention_heads: fields.or("num_attention_heads", 12)?,
            image_size: square(fields, "image_size", 224)?,
            patch_size: square(fields, "patch_size", patch_size)?,
            num_channels: fields.or("num_channels", 3)?,
            projection_dim: None,
            hidden_act: fields.activation("hidden_act", hidden_act)?,
            layer_norm_eps: fields.or("layer_norm_eps", layer_norm_eps)?,
            attention_dropout: fields.dropout("attention_dropout")?,
        };
        (spec.read)(&mut config, fields)?;
        config.validate(&fields.at)?;
        Ok(config)
    }

    fn validate(&self, at: &At) -> Result<()> {
        let Self { hidden_size, num_attention_heads: heads, image_size, patch_size, .. } = *self;
        at.check(
            heads > 0 && hidden_size.is_multiple_of(heads),
            "num_attention_heads",
            heads,
            format!("a divisor of hidden_size {hidden_size}"),
        )?;
        at.check(
            (1..=image_size).contains(&patch_size),
            "patch_size",
            patch_size,
            format!("1 to image_size {image_size}"),
        )?;
        at.check(self.num_channels == 3, "num_channels", self.num_channels, "3 (RGB)")
    }

    /// The tower's object in `config.json`.
    pub fn to_json(&self, dtype: WeightDtype) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.to_string(), value);
        put("attention_dropout", self.attention_dropout.into());
        put("hidden_act", self.hidden_act.name().into());
        put("hidden_size", self.hidden_size.into());
        put("image_size", self.image_size.into());
        put("initializer_range", 0.02.into());
        put("intermediate_size", self.intermediate_size.into());
        put("layer_norm_eps", self.layer_norm_eps.into());
        put("model_type", self.family.model_type().into());
        put("num_attention_heads", self.num_attention_heads.into());
        put("num_channels", self.num_channels.into());
        put("num_hidden_layers", self.num_hidden_layers.into());
        put("patch_size", self.patch_size.into());
        put("torch_dtype", dtype.torch_name().into());
        (self.family.spec().write)(self, &mut object);
        object.sort_keys();
        object.into()
    }
}

/// Fields of all vision towers.
const FIELDS: &[Row] = {
    use base::fields::Rule::{Harmless, Read};
    &[
        ("hidden_size", Read),
        ("intermediate_size", Read),
        ("num_hidden_layers", Read),
        ("num_attention_heads", Read),
        ("image_size", Read),
        ("patch_size", Read),
        ("num_channels", Read),
        ("hidden_act", Read),
        ("layer_norm_eps", Read),
        ("attention_dropout", Read),
        // No module of a CLIP has used it.
        ("dropout", Harmless),
        // Of the text tower, where LLaVA's conversion left it.
        ("vocab_size", Harmless),
    ]
};

fn square(fields: &Fields<'_>, key: &str, default: usize) -> Result<usize> {
    let sides = fields.or(key, OneOrMany::One(default))?.to_vec();
    let all_equal = sides.windows(2).all(|pair| pair[0] == pair[1]);
    match sides.first() {
        Some(&side) if all_equal => Ok(side),
        _ => {
            Err(fields.at.invalid(key, format!("{sides:?}"), "one side of a square", "take a tower with square input"))
        }
    }
}

impl VisionTower {
    /// A tower of the config's shapes, to be filled.
    pub fn zeros(config: &VisionConfig, device: &Device) -> Self {
        Self::init(config, &mut Initializer::zeros(device))
    }

    /// Fresh weights, or zeros to be filled.
    pub(crate) fn init(config: &VisionConfig, init: &mut Initializer<'_>) -> Self {
        Self { vision_model: (config.family.spec().init)(config, init) }
    }
}
