//! The image processor of a model: `image_processor` of `processor_config.json`, or `preprocessor_config.json`, in the
//! spellings of all transformers versions.

use super::{ImageProcessor, Resample, fields};
use base::fields::{Place, check};
use base::{Error, Result, json, names};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::path::Path;

/// What the model's images are multiplied by before normalising.
pub(super) const RESCALE_FACTOR: f64 = 1.0 / 255.0;
/// Both families' default of `size` and `crop_size`, pixels.
const DEFAULT_SIZE: usize = 224;
/// Largest size accepted, pixels: a typing error must not ask for gigabytes.
const MAX_SIZE: usize = 4096;

/// Key of the image processor's settings in `processor_config.json`.
const IMAGE_PROCESSOR: &str = "image_processor";
const REMEDY: &str = "use the settings of a CLIP or SigLIP image processor";

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
        let remedy = "use the processor of a LLaVA with a CLIP or SigLIP";
        let kind = "a LLaVA's, CLIP's or SigLIP's processor";
        check(&object, &[fields::PROCESSOR], Place { place: &place, kind, remedy })?;
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
        let remedy = "copy it from the vision tower's repository: it says how pictures become pixels";
        return Err(Error::invalid(own.display(), "no such file", names, remedy));
    }
    Ok((own.display().to_string(), json::read(&own)?))
}

fn parse(place: &str, object: Map<String, Value>) -> Result<ImageProcessor> {
    let kind = "a CLIP or SigLIP image processor";
    check(&object, &[fields::IMAGE], Place { place, kind, remedy: REMEDY })?;
    Settings { place, object: &object, family: Family::of(&object) }.validate()
}

/// Whose defaults stand for what a file leaves out.
///
/// # Source
/// transformers 5.24, `image_processing_pil_clip.py`, `image_processing_pil_siglip.py`: the steps are the same.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Clip,
    Siglip,
}

impl Family {
    /// By the type that the file names; files without a type are CLIP's.
    fn of(object: &Map<String, Value>) -> Self {
        let types =
            ["image_processor_type", "feature_extractor_type"].into_iter().filter_map(|field| object.get(field));
        match types.filter_map(Value::as_str).any(|name| name.starts_with("Siglip")) {
            true => Self::Siglip,
            false => Self::Clip,
        }
    }

    /// Mean and standard deviation.
    fn normalisation(self) -> ([f64; 3], [f64; 3]) {
        match self {
            Self::Clip => ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
            Self::Siglip => ([0.5; 3], [0.5; 3]),
        }
    }

    /// `size`.
    fn size(self) -> Size {
        match self {
            Self::Clip => Size::ShortestEdge(DEFAULT_SIZE),
            Self::Siglip => Size::Square(DEFAULT_SIZE),
        }
    }
}

/// `size`.
#[derive(Clone, Copy)]
enum Size {
    /// The aspect ratio is kept.
    ShortestEdge(usize),
    /// Height and width, whatever the picture's.
    Square(usize),
}

/// An image processor's settings. An absent field has the family's default; an explicit null is not absent: transformers takes a
/// switch of null as false and refuses null elsewhere.
struct Settings<'a> {
    place: &'a str,
    object: &'a Map<String, Value>,
    family: Family,
}

impl Settings<'_> {
    /// A field's value; `read` gives nothing for a value that is not supported.
    fn field<T>(&self, name: &str, read: impl Fn(&Value) -> Option<T>, expected: &str) -> Result<Option<T>> {
        let Some(value) = self.object.get(name) else { return Ok(None) };
        read(value).ok_or_else(|| self.refused(name, expected)).map(Some)
    }

    fn refused(&self, name: &str, expected: impl std::fmt::Display) -> Error {
        let value = self.object.get(name).map_or("absent".to_owned(), Value::to_string);
        Error::invalid(self.place, format!("{name} {value}"), expected, REMEDY)
    }

    fn validate(&self) -> Result<ImageProcessor> {
        for name in ["do_resize", "do_rescale", "do_normalize"] {
            let expected = "true, or no such field (transformers takes null as false)";
            self.field(name, |value| value.as_bool().filter(|on| *on), expected)?;
        }
        self.check_conversion()?;
        self.field("do_pad", |value| (value.is_null() || *value == false).then_some(()), "false")?;
        self.field("rescale_factor", |value| value.as_f64().filter(|factor| *factor == RESCALE_FACTOR), "1/255")?;
        let resample = self.field("resample", Resample::from_pil, "2 (bilinear) or 3 (bicubic)")?;
        let (shortest_edge, crop_size) = self.geometry()?;
        let (mean, std) = self.family.normalisation();
        let image_mean = self.field("image_mean", |value| three(value, |_| true), "three finite numbers")?;
        let image_std =
            self.field("image_std", |value| three(value, |std| std > 0.0), "three finite numbers above 0")?;
        let resample = resample.unwrap_or(Resample::Bicubic);
        let (mean, std) = (image_mean.unwrap_or(mean), image_std.unwrap_or(std));
        Ok(ImageProcessor::new(shortest_edge, crop_size, resample, mean, std))
    }

    /// Sees that pictures are converted to RGB.
    ///
    /// # Differs
    /// Published SigLIP2 processors have `do_convert_rgb` null, with which transformers fails on any other picture than an RGB one;
    /// here those are converted.
    fn check_conversion(&self) -> Result<()> {
        let is_optional = self.family == Family::Siglip;
        let accepts =
            |value: &Value| (*value == true || is_optional && (value.is_null() || *value == false)).then_some(());
        self.field("do_convert_rgb", accepts, "true, or no such field (transformers takes null as false)").map(drop)
    }

    /// The shortest edge, if the aspect ratio is kept, and the side of the result.
    fn geometry(&self) -> Result<(Option<usize>, usize)> {
        let is_integer = self.object.get("size").is_some_and(Value::is_number);
        if is_integer && self.object.get("default_to_square").is_some_and(|value| *value == true) {
            return Err(
                self.refused("default_to_square", "false, or size with names: its meaning changed between versions")
            );
        }
        let size = self.field("size", |value| size(value, self.family), self.expected_size())?;
        let size = self.possible("size", size.unwrap_or(self.family.size()), |size| match size {
            Size::ShortestEdge(size) | Size::Square(size) => size,
        })?;
        let crop = self.crop_size()?;
        match (size, crop) {
            (Size::ShortestEdge(shortest_edge), Some(crop)) => Ok((Some(shortest_edge), crop)),
            (Size::Square(side), None) => Ok((None, side)),
            (Size::Square(side), Some(crop)) if side == crop => Ok((None, side)),
            (Size::Square(side), Some(_)) => {
                Err(self.refused("crop_size", format!("size's {side} pixels, or no crop")))
            }
            (Size::ShortestEdge(_), None) => {
                Err(self.refused("do_center_crop", "true: all pictures become squares of one size"))
            }
        }
    }

    fn expected_size(&self) -> &'static str {
        match self.family {
            Family::Clip => "an integer, shortest_edge alone, or equal height and width",
            Family::Siglip => "equal height and width",
        }
    }

    /// `crop_size`, if pictures are cropped.
    fn crop_size(&self) -> Result<Option<usize>> {
        let switch = |value: &Value| value.as_bool().or(value.is_null().then_some(false));
        let is_on = self.field("do_center_crop", switch, "true or false")?.unwrap_or(self.family == Family::Clip);
        let expected = "an integer or equal height and width";
        match is_on {
            false => Ok(None),
            true => {
                let size = self.field("crop_size", square, expected)?.unwrap_or(DEFAULT_SIZE);
                self.possible("crop_size", size, |size| size).map(Some)
            }
        }
    }

    /// The size, if its pixels are within bounds.
    fn possible<T: Copy>(&self, name: &str, size: T, pixels: impl Fn(T) -> usize) -> Result<T> {
        let is_possible = (1..=MAX_SIZE).contains(&pixels(size));
        is_possible.then_some(size).ok_or_else(|| self.refused(name, format!("1 to {MAX_SIZE} pixels")))
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

/// `size`: the shortest edge alone, or equal height and width; CLIP's also as an integer, which is the shortest edge.
fn size(value: &Value, family: Family) -> Option<Size> {
    let shortest_edge = || match sides(value)?[..] {
        [("shortest_edge", size)] => Some(size),
        _ => None,
    };
    match family {
        Family::Clip => pixels(value).or_else(shortest_edge).map(Size::ShortestEdge).or_else(|| equal_sides(value)),
        Family::Siglip => equal_sides(value),
    }
}

/// Equal height and width.
fn equal_sides(value: &Value) -> Option<Size> {
    value.as_object().and_then(|_| square(value)).map(Size::Square)
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
pub(super) fn fingerprint(processor: &ImageProcessor) -> String {
    let ImageProcessor { shortest_edge, crop_size, resample, image_mean, image_std, .. } = processor;
    let resample = resample.name();
    let geometry = match shortest_edge {
        Some(shortest_edge) => format!("shortest_edge {shortest_edge} {resample}; center_crop {crop_size}"),
        None => format!("height and width {crop_size} {resample}"),
    };
    let canonical =
        format!("convert_rgb over white; {geometry}; rescale 1/255; mean {image_mean:?}; std {image_std:?}");
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
        assert_eq!((old.shortest_edge, old.crop_size, old.resample), (Some(336), 336, Resample::Bicubic));
    }

    #[test]
    fn published_siglip_settings_are_read() {
        // google/siglip-so400m-patch14-384, google/siglip2-so400m-patch16-384, and what a fast processor of transformers 4.5x saves.
        let siglip = r#"{"do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "SiglipImageProcessor", "image_std": [0.5, 0.5, 0.5], "processor_class": "SiglipProcessor",
            "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"height": 384, "width": 384}}"#;
        let siglip2 = r#"{"do_convert_rgb": null, "do_normalize": true, "do_rescale": true, "do_resize": true,
            "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "SiglipImageProcessor", "image_std": [0.5, 0.5, 0.5],
            "processor_class": "SiglipProcessor", "resample": 2, "rescale_factor": 0.00392156862745098,
            "size": {"height": 384, "width": 384}}"#;
        let fast = r#"{"crop_size": null, "data_format": "channels_first", "default_to_square": true, "device": null,
            "disable_grouping": null, "do_center_crop": null, "do_convert_rgb": true, "do_normalize": true, "do_rescale": true,
            "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "SiglipImageProcessorFast",
            "image_std": [0.5, 0.5, 0.5], "input_data_format": null, "resample": 3, "rescale_factor": 0.00392156862745098,
            "return_tensors": null, "size": {"height": 384, "width": 384}}"#;
        let expected = |resample| ImageProcessor::new(None, 384, resample, [0.5; 3], [0.5; 3]);
        assert_eq!(parse(siglip).expect("SigLIP"), expected(Resample::Bicubic));
        assert_eq!(parse(siglip2).expect("SigLIP 2"), expected(Resample::Bilinear));
        assert_eq!(parse(fast).expect("saved by a fast processor"), expected(Resample::Bicubic));
        let defaults = parse(r#"{"image_processor_type": "SiglipImageProcessorPil"}"#).expect("defaults");
        assert_eq!(defaults, ImageProcessor::new(None, 224, Resample::Bicubic, [0.5; 3], [0.5; 3]));
    }

    #[test]
    fn a_clip_may_squeeze_or_resample_otherwise() {
        let text = r#"{"size": {"height": 336, "width": 336}, "crop_size": 336, "resample": 2}"#;
        let squeezed = parse(text).expect("read");
        assert_eq!((squeezed.shortest_edge, squeezed.crop_size, squeezed.resample), (None, 336, Resample::Bilinear));
        let without_crop = parse(&text.replace(r#""crop_size": 336"#, r#""do_center_crop": false"#)).expect("read");
        assert_eq!(without_crop, squeezed);
        let clip = parse(r#"{"size": 336, "crop_size": 336}"#).expect("read");
        assert_ne!(clip.sha256, parse(r#"{"size": 336, "crop_size": 336, "resample": 2}"#).expect("read").sha256);
        // The fingerprint in shards of CLIP's pixels.
        assert!(clip.sha256.starts_with("02f52fc8cbfd9221"), "{}", clip.sha256);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let cases = [
            (r#"{"resample": 1}"#, "resample 1, expected 2 (bilinear) or 3 (bicubic)"),
            (r#"{"do_resize": false}"#, "do_resize false"),
            (r#"{"size": {"height": 384, "width": 384}}"#, "crop_size absent, expected size's 384 pixels"),
            (r#"{"size": 336, "do_center_crop": false}"#, "do_center_crop false, expected true"),
            (r#"{"size": 336, "default_to_square": true}"#, "default_to_square true"),
            (r#"{"crop_size": {"height": 3, "width": 4}}"#, "crop_size"),
            (r#"{"image_std": [0, 1, 1]}"#, "std"),
            (r#"{"size": 100000000}"#, "size 100000000"),
            (
                r#"{"image_processor_type": "SiglipImageProcessor", "size": 56}"#,
                "size 56, expected equal height and width",
            ),
            (
                r#"{"image_processor_type": "SiglipImageProcessor", "size": {"shortest_edge": 56}}"#,
                "size {\"shortest_edge\":56}, expected equal height and width",
            ),
            (
                r#"{"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 256}}"#,
                "expected equal height and width",
            ),
            (
                r#"{"image_processor_type": "SiglipImageProcessor", "do_center_crop": true, "crop_size": 56}"#,
                "crop_size 56",
            ),
            (r#"{"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 256}"#, "Siglip2ImageProcessor"),
            (r#"{"image_processor_type": "Siglip2ImageProcessorFast"}"#, "NaFlex"),
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
            (r#"{"resample": "lanczos"}"#, "resample \"lanczos\", expected 2 (bilinear) or 3 (bicubic)"),
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
                &["preprocessor_config.json", "image_processor in processor_config.json", "vision tower's repository"]
                    [..],
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
                &[(processor, r#"{"image_processor": {"image_processor_type": "Siglip2ImageProcessor"}}"#)],
                &["processor_config.json: image_processor", "Siglip2ImageProcessor"],
            ),
        ] {
            let error = mean_of(files).expect_err("refused");
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} not in: {error}");
        }
    }
}
