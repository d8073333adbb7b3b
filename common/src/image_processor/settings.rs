//! `preprocessor_config.json`: which image processor a model wants, in the spellings of all transformers versions.

use super::ImageProcessor;
use crate::{Error, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::Path;

/// PIL's number of bicubic resampling.
const BICUBIC: f64 = 3.0;
/// What the model's images are multiplied by before normalising.
pub(super) const RESCALE_FACTOR: f64 = 1.0 / 255.0;
/// CLIP's defaults, for configs that leave them out.
const CLIP_SIZE: usize = 224;
const CLIP_MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const CLIP_STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];
/// Largest size accepted, pixels: a typing error must not ask for gigabytes.
const MAX_SIZE: usize = 4096;

#[derive(Deserialize)]
struct Settings {
    size: Option<Size>,
    crop_size: Option<Size>,
    resample: Option<f64>,
    rescale_factor: Option<f64>,
    do_resize: Option<bool>,
    do_center_crop: Option<bool>,
    do_rescale: Option<bool>,
    do_normalize: Option<bool>,
    do_convert_rgb: Option<bool>,
    do_pad: Option<bool>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
}

/// `processor_config.json` of newer versions holds the same settings one level down.
#[derive(Deserialize)]
struct ProcessorConfig {
    image_processor: Settings,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Integer(usize),
    Named { shortest_edge: Option<usize>, longest_edge: Option<usize>, height: Option<usize>, width: Option<usize> },
}

/// Reads the settings of a model directory.
pub(super) fn from_dir(dir: &Path) -> Result<ImageProcessor> {
    let own = dir.join("preprocessor_config.json");
    let nested = dir.join("processor_config.json");
    if !own.exists() && nested.exists() {
        let config: ProcessorConfig = read_json(&nested)?;
        return config.image_processor.validate(&nested);
    }
    read_json::<Settings>(&own)?.validate(&own)
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|error| {
        Error::invalid(
            path.display(),
            error,
            "a CLIP image processor's settings",
            "copy the file from the vision model",
        )
    })
}

impl Settings {
    fn validate(self, path: &Path) -> Result<ImageProcessor> {
        let refuse = |found: String, expected: &str| {
            Error::invalid(path.display(), found, expected, "use a CLIP image processor's settings")
        };
        let switches = [
            ("do_resize", self.do_resize),
            ("do_center_crop", self.do_center_crop),
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
            ("do_convert_rgb", self.do_convert_rgb),
        ];
        if let Some((name, _)) = switches.iter().find(|(_, value)| *value == Some(false)) {
            return Err(refuse(format!("{name} false"), "true"));
        }
        if self.do_pad == Some(true) {
            return Err(refuse("do_pad true".into(), "false"));
        }
        if self.resample.is_some_and(|resample| resample != BICUBIC) {
            return Err(refuse(format!("resample {:?}", self.resample.unwrap_or_default()), "3 (bicubic)"));
        }
        if self.rescale_factor.is_some_and(|factor| factor != RESCALE_FACTOR) {
            return Err(refuse(format!("rescale_factor {:?}", self.rescale_factor.unwrap_or_default()), "1/255"));
        }
        let shortest_edge = match self.size.unwrap_or(Size::Integer(CLIP_SIZE)) {
            Size::Integer(size) => size,
            Size::Named { shortest_edge: Some(size), longest_edge: None, height: None, width: None } => size,
            other => return Err(refuse(format!("size {other:?}"), "an integer or shortest_edge alone")),
        };
        let crop_size = match self.crop_size.unwrap_or(Size::Integer(CLIP_SIZE)) {
            Size::Integer(size) => size,
            Size::Named { height: Some(height), width: Some(width), shortest_edge: None, longest_edge: None }
                if height == width =>
            {
                height
            }
            other => return Err(refuse(format!("crop_size {other:?}"), "an integer or equal height and width")),
        };
        for (name, size) in [("size", shortest_edge), ("crop_size", crop_size)] {
            if !(1..=MAX_SIZE).contains(&size) {
                return Err(refuse(format!("{name} {size}"), &format!("1 to {MAX_SIZE} pixels")));
            }
        }
        let (image_mean, image_std) = (self.image_mean.unwrap_or(CLIP_MEAN), self.image_std.unwrap_or(CLIP_STD));
        if !image_mean.iter().all(|v| v.is_finite()) || !image_std.iter().all(|v| v.is_finite() && *v > 0.0) {
            return Err(refuse(format!("mean {image_mean:?}, std {image_std:?}"), "finite numbers, std above 0"));
        }
        Ok(ImageProcessor::new(shortest_edge, crop_size, image_mean, image_std))
    }
}

/// SHA-256 of everything that decides about a pixel, in a fixed spelling.
pub(super) fn fingerprint(
    shortest_edge: usize,
    crop_size: usize,
    image_mean: &[f64; 3],
    image_std: &[f64; 3],
) -> String {
    let canonical = format!(
        "convert_rgb over white; shortest_edge {shortest_edge} bicubic; center_crop {crop_size}; \
         rescale 1/255; mean {image_mean:?}; std {image_std:?}"
    );
    Sha256::digest(canonical.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ImageProcessor> {
        let settings: Settings = serde_json::from_str(text).expect("valid JSON");
        settings.validate(Path::new("preprocessor_config.json"))
    }

    #[test]
    fn old_and_new_spellings_mean_the_same() {
        let old = parse(r#"{"size": 336, "crop_size": 336, "resample": 3}"#).expect("old spelling");
        let new = r#"{"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_resize": true}"#;
        assert_eq!(old, parse(new).expect("new spelling"));
        assert_eq!((old.shortest_edge, old.crop_size), (336, 336));
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let cases = [
            (r#"{"resample": 2}"#, "resample 2"),
            (r#"{"do_resize": false}"#, "do_resize false"),
            (r#"{"size": {"height": 384, "width": 384}}"#, "size"),
            (r#"{"crop_size": {"height": 3, "width": 4}}"#, "crop_size"),
            (r#"{"image_std": [0, 1, 1]}"#, "std"),
            (r#"{"size": 100000000}"#, "size 100000000"),
        ];
        for (text, word) in cases {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
