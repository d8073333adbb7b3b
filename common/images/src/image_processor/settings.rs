//! The image processor of a model: `image_processor` of `processor_config.json`, or `preprocessor_config.json`, in the
//! spellings of all transformers versions.

use super::{ImageProcessor, fields};
use base::fields::{Place, check};
use base::{Error, Result, json, names};
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
    Settings { place, object: &object }.validate()
}

/// An image processor's settings. An absent field has CLIP's default; an explicit null is not absent: transformers takes a
/// switch of null as false and refuses null elsewhere.
struct Settings<'a> {
    place: &'a str,
    object: &'a Map<String, Value>,
}

impl Settings<'_> {
    /// A field's value; `read` gives nothing for a value that is not supported.
    fn field<T>(&self, name: &str, read: impl Fn(&Value) -> Option<T>, expected: &str) -> Result<Option<T>> {
        let Some(value) = self.object.get(name) else { return Ok(None) };
        let refuse = || Error::invalid(self.place, format!("{name} {value}"), expected, REMEDY);
        read(value).ok_or_else(refuse).map(Some)
    }

    fn validate(&self) -> Result<ImageProcessor> {
        for name in ["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"] {
            let expected = "true, or no such field (transformers takes null as false)";
            self.field(name, |value| value.as_bool().filter(|on| *on), expected)?;
        }
        self.field("do_pad", |value| (value.is_null() || *value == false).then_some(()), "false")?;
        let only = |number: f64| move |value: &Value| value.as_f64().filter(|found| *found == number);
        self.field("resample", only(BICUBIC), "3 (bicubic)")?;
        self.field("rescale_factor", only(RESCALE_FACTOR), "1/255")?;
        let in_pixels = |name: &str, read: fn(&Value) -> Option<usize>, expected: &str| {
            let size = self.field(name, read, expected)?.unwrap_or(CLIP_SIZE);
            let is_possible = (1..=MAX_SIZE).contains(&size);
            let expected = format!("1 to {MAX_SIZE} pixels");
            is_possible
                .then_some(size)
                .ok_or_else(|| Error::invalid(self.place, format!("{name} {size}"), expected, REMEDY))
        };
        let shortest_edge = in_pixels("size", shortest_edge, "an integer or shortest_edge alone")?;
        let crop_size = in_pixels("crop_size", square, "an integer or equal height and width")?;
        let image_mean = self.field("image_mean", |value| three(value, |_| true), "three finite numbers")?;
        let image_std =
            self.field("image_std", |value| three(value, |std| std > 0.0), "three finite numbers above 0")?;
        let (image_mean, image_std) = (image_mean.unwrap_or(CLIP_MEAN), image_std.unwrap_or(CLIP_STD));
        Ok(ImageProcessor::new(shortest_edge, crop_size, image_mean, image_std))
    }
}

fn pixels(value: &Value) -> Option<usize> {
    usize::try_from(value.as_u64()?).ok()
}

/// The sides of a size with names, those of null left out.
fn sides(value: &Value) -> Option<Vec<(&str, usize)>> {
    let sides = value.as_object()?.iter().filter(|(_, side)| !side.is_null());
    sides.map(|(name, side)| Some((name.as_str(), pixels(side)?))).collect()
}

/// `size`: an integer, or the shortest edge alone.
fn shortest_edge(value: &Value) -> Option<usize> {
    let named = || match sides(value)?[..] {
        [("shortest_edge", size)] => Some(size),
        _ => None,
    };
    pixels(value).or_else(named)
}

/// `crop_size`: an integer, or equal height and width.
fn square(value: &Value) -> Option<usize> {
    let named = || match sides(value)?[..] {
        [("height", height), ("width", width)] | [("width", width), ("height", height)] if height == width => {
            Some(height)
        }
        _ => None,
    };
    pixels(value).or_else(named)
}

/// A number for each channel.
fn three(value: &Value, holds: impl Fn(f64) -> bool) -> Option<[f64; 3]> {
    let numbers =
        value.as_array()?.iter().map(|number| number.as_f64().filter(|number| number.is_finite() && holds(*number)));
    numbers.collect::<Option<Vec<f64>>>()?.try_into().ok()
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
        let new = r#"{"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_resize": true,
            "do_pad": null}"#;
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
            (r#"{"do_resize": null, "size": 28}"#, "do_resize null"),
            (r#"{"do_center_crop": null, "crop_size": 28}"#, "do_center_crop null"),
            (r#"{"do_rescale": null}"#, "do_rescale null"),
            (r#"{"do_normalize": null}"#, "do_normalize null"),
            (r#"{"do_convert_rgb": null}"#, "do_convert_rgb null"),
            (r#"{"image_mean": null}"#, "image_mean null"),
            (r#"{"image_std": null}"#, "image_std null"),
            (r#"{"size": null}"#, "size null"),
            (r#"{"crop_size": null}"#, "crop_size null"),
            (r#"{"resample": null}"#, "resample null"),
            (r#"{"rescale_factor": null}"#, "rescale_factor null"),
            (r#"{"resample": "lanczos"}"#, "resample \"lanczos\", expected 3 (bicubic)"),
            (r#"{"image_std": [0.5, 0.5]}"#, "image_std [0.5,0.5], expected three"),
            (r#"{"size": {"width": 42, "height": 28}}"#, "size {\"width\":42,\"height\":28}, expected an integer"),
            (r#"{"size": {"shortest_edge": -1}}"#, "size {\"shortest_edge\":-1}, expected an integer"),
            (r#"{"crop_size": {"shortest_edge": 70}}"#, "crop_size {\"shortest_edge\":70}, expected an integer"),
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
