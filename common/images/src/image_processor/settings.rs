//! Which image processor a model wants: `image_processor` of `processor_config.json`, or `preprocessor_config.json`, in the
//! spellings of all transformers versions.

use super::{ImageProcessor, fields};
use base::fields::{Place, check};
use base::{Error, Result, json, names};
use serde::Deserialize;
use serde_json::{Map, Value};
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

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Size {
    Integer(usize),
    Named { shortest_edge: Option<usize>, longest_edge: Option<usize>, height: Option<usize>, width: Option<usize> },
}

/// Key of the image processor's settings in `processor_config.json`.
const IMAGE_PROCESSOR: &str = "image_processor";
const REMEDY: &str = "use a CLIP image processor's settings";

/// Reads the settings of a model directory.
pub(super) fn from_dir(dir: &Path) -> Result<ImageProcessor> {
    let (place, object) = settings_of(dir)?;
    parse(&place, object)
}

/// The settings of a model directory as they stand there, and where.
///
/// # Source
/// transformers 5.24, `image_processing_base.py`, `get_image_processor_dict`: `processor_config.json` comes first, because
/// `save_pretrained` of 5.x writes it alone and leaves an older `preprocessor_config.json` as it was.
pub(super) fn settings_of(dir: &Path) -> Result<(String, Map<String, Value>)> {
    let processor = dir.join(names::PROCESSOR_CONFIG_FILE);
    let own = dir.join(names::PREPROCESSOR_CONFIG_FILE);
    if let Some(mut object) = json::read_if_there::<Map<String, Value>>(&processor)? {
        let place = processor.display().to_string();
        let remedy = "use the processor of a LLaVA with a CLIP";
        check(&object, &[fields::PROCESSOR], Place { place: &place, kind: "a LLaVA's or CLIP's processor", remedy })?;
        match object.remove(IMAGE_PROCESSOR) {
            Some(Value::Object(settings)) => return Ok((format!("{place}: {IMAGE_PROCESSOR}"), settings)),
            None | Some(Value::Null) => {}
            Some(other) => {
                let place = format!("{place}: {IMAGE_PROCESSOR}");
                return Err(Error::invalid(place, other, "an object with the settings", REMEDY));
            }
        }
    }
    if !own.exists() {
        let names =
            format!("{}, or {IMAGE_PROCESSOR} in {}", names::PREPROCESSOR_CONFIG_FILE, names::PROCESSOR_CONFIG_FILE);
        let remedy = "copy it from the CLIP's repository: it says how pictures become pixels";
        return Err(Error::invalid(own.display(), "no such file", names, remedy));
    }
    Ok((own.display().to_string(), json::read(&own)?))
}

fn parse(place: &str, object: Map<String, Value>) -> Result<ImageProcessor> {
    check(&object, &[fields::IMAGE], Place { place, kind: "a CLIP image processor", remedy: REMEDY })?;
    let settings: Settings = serde_json::from_value(Value::Object(object)).map_err(|error| {
        let expected = "a CLIP image processor's settings";
        Error::invalid(place, error, expected, "copy the file from the vision model")
    })?;
    settings.validate(place)
}

impl Settings {
    fn validate(self, place: &str) -> Result<ImageProcessor> {
        let refuse = |found: String, expected: &str| Error::invalid(place, found, expected, REMEDY);
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
        super::parse("preprocessor_config.json", serde_json::from_str(text).expect("valid JSON"))
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
            (r#"{"image_processor_type": "SiglipImageProcessor", "size": 56}"#, "SiglipImageProcessor"),
            (r#"{"image_processor_type": "LlavaImageProcessorFast", "size": 56}"#, "LlavaImageProcessorFast"),
            (r#"{"feature_extractor_type": "ViTFeatureExtractor"}"#, "feature_extractor_type \"ViT"),
            (r#"{"image_processor_type": "CLIPImageProcessor", "do_pad": true}"#, "do_pad true"),
            (r#"{"pad_size": {"height": 56, "width": 56}}"#, "pad_size"),
            (r#"{"do_reduce_labels": false}"#, "unknown field do_reduce_labels"),
            (r#"{"imagemean": [0.5, 0.5, 0.5]}"#, "did you mean image_mean?"),
        ];
        for (text, word) in cases {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
    /// Means of the settings that a folder with these files gives, or the error.
    fn mean_of(files: &[(&str, &str)]) -> Result<f64, String> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        from_dir(folder.path()).map(|processor| processor.image_mean[0]).map_err(|error| error.to_string())
    }

    #[test]
    fn the_processor_s_settings_come_before_an_older_file() {
        const OWN: &str = r#"{"size": 56, "crop_size": 56, "image_mean": [0.25, 0.5, 0.5], "feature_extractor_type": "CLIPFeatureExtractor"}"#;
        const NESTED: &str = r#"{"processor_class": "LlavaProcessor", "image_processor": {"size": {"shortest_edge": 56},
            "crop_size": {"height": 56, "width": 56}, "image_mean": [0.75, 0.5, 0.5], "image_processor_type": "CLIPImageProcessor"}}"#;
        const WITHOUT: &str = r#"{"processor_class": "LlavaProcessor", "patch_size": 14, "image_token": "<image>"}"#;
        let (own, processor) = ("preprocessor_config.json", "processor_config.json");
        assert_eq!(mean_of(&[(own, OWN)]), Ok(0.25));
        assert_eq!(mean_of(&[(processor, NESTED)]), Ok(0.75));
        assert_eq!(mean_of(&[(own, OWN), (processor, NESTED)]), Ok(0.75), "as transformers 5");
        assert_eq!(mean_of(&[(own, OWN), (processor, WITHOUT)]), Ok(0.25));
        for (files, words) in [
            (
                &[][..],
                &["preprocessor_config.json", "image_processor in processor_config.json", "CLIP's repository"][..],
            ),
            (&[(processor, WITHOUT)], &["preprocessor_config.json", "no such file"]),
            (&[(own, OWN), (processor, r#"{"image_token": "<|image_pad|>"}"#)], &["image_token", "<|image_pad|>"]),
            (&[(own, OWN), (processor, r#"{"processor_class": "LlavaNextProcessor"}"#)], &["LlavaNextProcessor"]),
            (&[(own, OWN), (processor, r#"{"video_processor": {}}"#)], &["unknown field video_processor"]),
            (
                &[(own, OWN), (processor, r#"{"image_processor": "CLIPImageProcessor"}"#)],
                &["processor_config.json: image_processor"],
            ),
            (
                &[(processor, r#"{"image_processor": {"image_processor_type": "SiglipImageProcessor"}}"#)],
                &["processor_config.json: image_processor", "SiglipImageProcessor"],
            ),
        ] {
            let error = mean_of(files).expect_err("refused");
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} not in: {error}");
        }
    }
}
