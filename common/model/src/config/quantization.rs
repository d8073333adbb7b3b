//! `quantization_config`: how bitsandbytes has rounded the matrices in a directory's files.
//!
//! # Source
//! transformers 4.41 to 5.24, `quantization_config.py`, `BitsAndBytesConfig`.

use super::reader::Fields;
use base::Result;
use base::fields::Row;
use base::fields::Rule::{Harmless, Only, Read};
use kernels::Quantization;
use serde_json::{Value, json};

/// `BitsAndBytesConfig`.
const FIELDS: &[Row] = &[
    ("quant_method", Only(&["\"bitsandbytes\""], "other quantized weights are not read")),
    ("load_in_4bit", Read),
    ("_load_in_4bit", Harmless),
    ("load_in_8bit", Read),
    ("_load_in_8bit", Harmless),
    ("bnb_4bit_quant_type", Read),
    ("bnb_4bit_use_double_quant", Read),
    // The dtype of products elsewhere.
    ("bnb_4bit_compute_dtype", Harmless),
    // The bytes are the same in tensors of any dtype.
    ("bnb_4bit_quant_storage", Harmless),
    // The tensors say themselves which of them are rounded.
    ("llm_int8_skip_modules", Harmless),
    ("llm_int8_threshold", Harmless),
    ("llm_int8_enable_fp32_cpu_offload", Harmless),
    ("llm_int8_has_fp16_weight", Harmless),
];

/// Modules whose matrices are not rounded here. transformers compares names from their start, which is `model.` from 4.52 on.
const SKIPPED: [&str; 5] =
    ["lm_head", "multi_modal_projector", "vision_tower", "model.multi_modal_projector", "model.vision_tower"];

/// The format of a configuration's files, if they are in few bits.
pub(super) fn read(config: &Fields<'_>) -> Result<Option<Quantization>> {
    let Some(fields) = config.object("quantization_config")? else { return Ok(None) };
    fields.check_only(&[FIELDS], "bitsandbytes' configuration")?;
    let found = fields.get::<String>("quant_method")?;
    fields.at.check(found.is_some(), "quant_method", "nothing", "bitsandbytes")?;
    let [int8, in_4_bits] = [fields.or("load_in_8bit", false)?, fields.or("load_in_4bit", false)?];
    let both = format!("load_in_8bit {int8}, load_in_4bit {in_4_bits}");
    fields.at.require(int8 != in_4_bits, "load_in_8bit, load_in_4bit", both, "one of the two")?;
    if int8 {
        return Ok(Some(Quantization::Int8));
    }
    // Without the field transformers means fp4.
    let quant_type = fields.or("bnb_4bit_quant_type", "fp4".to_string())?;
    fields.at.require(
        quant_type == "nf4",
        "bnb_4bit_quant_type",
        quant_type,
        "nf4 (of the 4-bit formats NF4 is implemented)",
    )?;
    Ok(Some(Quantization::Nf4 { double_quant: fields.or("bnb_4bit_use_double_quant", false)? }))
}

/// As transformers writes it.
pub(super) fn to_json(quantization: Quantization) -> Value {
    let (int8, double_quant) =
        (quantization == Quantization::Int8, quantization == Quantization::Nf4 { double_quant: true });
    json!({
        "_load_in_4bit": !int8,
        "_load_in_8bit": int8,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if int8 { "fp4" } else { "nf4" },
        "bnb_4bit_use_double_quant": double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": SKIPPED,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": !int8,
        "load_in_8bit": int8,
        "quant_method": "bitsandbytes",
    })
}
