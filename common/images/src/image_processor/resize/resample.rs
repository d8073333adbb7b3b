//! Filters of a resize.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A filter that output samples are weighed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resample {
    /// Triangle: 2 in Pillow.
    Bilinear,
    /// Cubic with a = −0.5: 3 in Pillow.
    #[default]
    Bicubic,
}

impl Resample {
    /// The filter of Pillow's number, `Image.Resampling`.
    pub(in super::super) fn from_pil(number: &Value) -> Option<Self> {
        match number.as_f64()? {
            2.0 => Some(Self::Bilinear),
            3.0 => Some(Self::Bicubic),
            _ => None,
        }
    }

    /// Its name in fingerprints.
    pub(in super::super) fn name(self) -> &'static str {
        match self {
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
        }
    }

    /// Distance from which the weight is zero, output samples.
    pub(super) fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// Weight at a distance.
    ///
    /// # Source
    /// Pillow `Resample.c`, `bilinear_filter` and `bicubic_filter`.
    pub(super) fn weight(self, distance: f64) -> f64 {
        let x = distance.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// The cubic's free parameter.
const A: f64 = -0.5;
