//! Fields of `preprocessor_config.json` and `processor_config.json`.
//!
//! # Source
//! transformers 4.21 to 5.24, `image_processing_clip.py`, `processing_utils.py` (`ImagesKwargs`), `processing_llava.py`.

use base::fields::Rule::{Harmless, Only, Read};
use base::fields::{Row, empty, off};

/// `CLIPImageProcessor`, `CLIPFeatureExtractor`, `SiglipImageProcessor`.
pub const IMAGE: &[Row] = &[
    ("image_processor_type", Only(TYPES, "other processors make other pixels; Siglip2ImageProcessor is NaFlex")),
    ("feature_extractor_type", Only(TYPES, "other processors make other pixels; Siglip2ImageProcessor is NaFlex")),
    ("size", Read),
    ("crop_size", Read),
    ("resample", Read),
    ("rescale_factor", Read),
    ("image_mean", Read),
    ("image_std", Read),
    ("do_resize", Read),
    ("do_center_crop", Read),
    ("do_rescale", Read),
    ("do_normalize", Read),
    ("do_convert_rgb", Read),
    ("do_pad", Read),
    ("pad_size", Only(&[], "pictures are not padded")),
    ("default_to_square", Read),
    ("use_square_size", off("the aspect ratio is kept")),
    ("processor_class", Harmless),
    ("image_seq_length", Harmless),
    ("auto_map", empty("code that comes with the model is not run")),
    // Where and how it is computed; the pixels are the same.
    ("device", Harmless),
    ("disable_grouping", Harmless),
    ("return_tensors", Harmless),
    ("data_format", Only(CHANNELS_FIRST, "the model takes planes")),
    ("input_data_format", Harmless),
    ("_valid_processor_keys", Harmless),
    ("_processor_class", Harmless),
    ("_name_or_path", Harmless),
    ("transformers_version", Harmless),
];

/// The names of CLIP's and SigLIP's processors in all versions.
const TYPES: &[&str] = &[
    "\"CLIPImageProcessor\"",
    "\"CLIPImageProcessorPil\"",
    "\"CLIPImageProcessorFast\"",
    "\"CLIPFeatureExtractor\"",
    "\"SiglipImageProcessor\"",
    "\"SiglipImageProcessorPil\"",
    "\"SiglipImageProcessorFast\"",
];
const CHANNELS_FIRST: &[&str] = &["\"channels_first\""];

/// `LlavaProcessor`, `CLIPProcessor`, `SiglipProcessor`.
pub const PROCESSOR: &[Row] = &[
    ("image_processor", Read),
    ("image_token", Only(&["\"<image>\""], "the placeholder of a picture is <image>")),
    ("processor_class", Only(CLASSES, "another processor")),
    // Follow from config.json.
    ("patch_size", Harmless),
    ("num_additional_image_tokens", Harmless),
    ("vision_feature_select_strategy", Harmless),
    ("image_seq_length", Harmless),
    // The template and the tokenizer have files of their own.
    ("chat_template", Harmless),
    ("tokenizer", Harmless),
    ("tokenizer_class", Harmless),
    ("auto_map", empty("code that comes with the model is not run")),
    ("_name_or_path", Harmless),
    ("transformers_version", Harmless),
];

const CLASSES: &[&str] = &["\"LlavaProcessor\"", "\"CLIPProcessor\"", "\"SiglipProcessor\""];
