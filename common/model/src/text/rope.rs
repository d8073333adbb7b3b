//! Rotary position embeddings: the base, and how its frequencies are scaled.

use super::TextConfig;
use crate::config::reader::Fields;
use base::Result;
use base::fields::Row;
use base::fields::Rule::{Harmless, Only, Read};
use kernels::Rope;
use serde_json::{Map, Value, json};
use std::f32::consts::TAU;

/// How the frequencies of the rotary embedding are changed for longer sequences (`rope_type`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// All are divided by the factor.
    Linear {
        /// `factor`
        factor: f64,
    },
    /// Long waves are divided by the factor, short ones are not, and those between are interpolated.
    Llama3 {
        /// `factor`
        factor: f64,
        /// `low_freq_factor`: waves longer than the original length divided by this are long.
        low_freq_factor: f64,
        /// `high_freq_factor`: waves shorter than the original length divided by this are short.
        high_freq_factor: f64,
        /// `original_max_position_embeddings`, tokens.
        original_max_position_embeddings: usize,
    },
}

impl TextConfig {
    /// Angle of a rotation from one token to the next, `[head_dim / 2]`, radians.
    ///
    /// # Source
    /// transformers `modeling_rope_utils.py`, `_compute_linear_scaling_rope_parameters`, `_compute_llama3_parameters`.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let plain = Rope::frequencies(self.head_dim, self.rope_theta);
        match self.rope_scaling {
            None => plain,
            Some(scaling) => plain.into_iter().map(|frequency| scaling.scaled(frequency)).collect(),
        }
    }
}

impl RopeScaling {
    fn scaled(self, frequency: f32) -> f32 {
        match self {
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let (factor, low, high) = (factor as f32, low_freq_factor as f32, high_freq_factor as f32);
                let original = original_max_position_embeddings as f32;
                let wavelength = TAU / frequency;
                if wavelength > original / low {
                    return frequency / factor;
                }
                if wavelength < original / high {
                    return frequency;
                }
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }

    /// As transformers 4 has it in `rope_scaling`; 4.41 takes the linear one with these two fields and no other.
    pub(super) fn to_json(self) -> Value {
        match self {
            Self::Linear { factor } => json!({"factor": factor, "type": "linear"}),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => json!({
                "factor": factor,
                "high_freq_factor": high_freq_factor,
                "low_freq_factor": low_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
                "rope_type": "llama3",
            }),
        }
    }
}

/// Length that the frequencies were trained for, tokens.
const ORIGINAL_LENGTH: &str = "original_max_position_embeddings";

/// What `rope_parameters` and `rope_scaling` may hold, with the default type.
const FIELDS: &[Row] = &[
    ("rope_theta", Read),
    ("rope_type", Read),
    ("type", Read),
    ("partial_rotary_factor", Only(&["1"], "all of a head is rotated")),
    ("factor", Read),
    ("low_freq_factor", Read),
    ("high_freq_factor", Read),
    // Read by the type llama3 alone.
    ("original_max_position_embeddings", Harmless),
];

/// Reads base and scaling of the rotary embedding. Types that are not implemented, partial rotation, and two different bases or
/// types are refused by name.
///
/// # Source
/// transformers 5.24, `modeling_rope_utils.py`, `convert_rope_params_to_dict`: `rope_scaling`, if not empty, replaces
/// `rope_parameters`; `rope_theta` beside them is the default of the one that counts. `standardize_rope_params`: a length beside
/// them replaces `original_max_position_embeddings` in them, and without either it is the model's own, `positions`.
pub(super) fn read(fields: &Fields<'_>, default_theta: f64, positions: usize) -> Result<(f64, Option<RopeScaling>)> {
    let original: Option<usize> = fields.get(ORIGINAL_LENGTH)?;
    let scaling_of = |rope: &Fields<'_>| {
        let of_rope = rope.get(ORIGINAL_LENGTH)?;
        scaling_of(rope, original.or(of_rope).unwrap_or(positions))
    };
    let (scaling, parameters) = (fields.object("rope_scaling")?, fields.object("rope_parameters")?);
    let outer: Option<f64> = fields.get("rope_theta")?;
    let mut given: Vec<(&str, f64)> = Vec::new();
    for (key, rope) in [("rope_scaling.rope_theta", &scaling), ("rope_parameters.rope_theta", &parameters)] {
        let Some(rope) = rope else { continue };
        scaling_of(rope)?;
        rope.check_only(&[FIELDS], "a rotary embedding")?;
        given.extend(rope.get("rope_theta")?.map(|theta| (key, theta)));
    }
    given.extend(outer.map(|theta| ("rope_theta", theta)));
    if let Some((key, theta)) = given.first()
        && let Some((other_key, other)) = given.iter().find(|(_, other)| other != theta)
    {
        let found = format!("{key} {theta} and {other_key} {other}");
        let remedy = "keep the one that the weights were trained with";
        return Err(fields.at.invalid("rope_theta", found, "one value", remedy));
    }
    let counts = scaling.filter(|rope| !rope.is_empty()).or(parameters);
    let (theta, scaling) = match &counts {
        Some(rope) => (rope.get("rope_theta")?, scaling_of(rope)?),
        None => (None, None),
    };
    let theta = theta.or(outer).unwrap_or(default_theta);
    fields.at.check(theta > 0.0, "rope_theta", theta, "a positive number")?;
    Ok((theta, scaling))
}

fn scaling_of(rope: &Fields<'_>, original_max_position_embeddings: usize) -> Result<Option<RopeScaling>> {
    // The older name of `rope_type`; some files have both.
    let (new, old): (Option<String>, Option<String>) = (rope.get("rope_type")?, rope.get("type")?);
    let kind = match (new, old) {
        (Some(new), Some(old)) if new != old => {
            let found = format!("rope_type \"{new}\" and type \"{old}\"");
            return Err(rope.at.invalid(
                "rope_type",
                found,
                "one type",
                "keep the one that the weights were trained with",
            ));
        }
        (new, old) => new.or(old).unwrap_or("default".into()),
    };
    let number = |key: &str| -> Result<f64> {
        let value: f64 = rope.get(key)?.ok_or_else(|| missing(rope, key, &kind))?;
        rope.at.check(value > 0.0, key, value, "a positive number")?;
        Ok(value)
    };
    match kind.as_str() {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: number("factor")? })),
        "llama3" => {
            let (low_freq_factor, high_freq_factor) = (number("low_freq_factor")?, number("high_freq_factor")?);
            let expected = format!("above low_freq_factor {low_freq_factor}");
            rope.at.check(high_freq_factor > low_freq_factor, "high_freq_factor", high_freq_factor, expected)?;
            Ok(Some(RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }))
        }
        other => {
            let expected = "default, linear or llama3: other scalings of the rotary embedding are not implemented";
            Err(rope.at.invalid("rope_type", other, expected, "use a model without it"))
        }
    }
}

fn missing(rope: &Fields<'_>, key: &str, kind: &str) -> base::Error {
    rope.at.invalid(key, "nothing", format!("a number: rope_type \"{kind}\" needs it"), "correct config.json")
}

/// Puts the scaling into an object of a configuration.
pub(super) fn write(config: &TextConfig, object: &mut Map<String, Value>) {
    object.extend(config.rope_scaling.map(|scaling| ("rope_scaling".to_string(), scaling.to_json())));
}
