//! `infer quantize`: a model whose language model's matrices are in NF4 or 8-bit integers, written as bitsandbytes writes it.

use crate::args::QuantizeArgs;
use crate::merge::require_exact_weights;
use crate::new_directory::{NewDirectory, ensure_free};
use anyhow::{Context, Result};
use kernels::{Quantization, device};
use model::quantized;
use serde::Serialize;
use std::path::PathBuf;
use store::adapter;
use store::checkpoint::{LoadAs, copy_processor_files, load_model, load_rounded, save_model};
use store::hub::{self, Wanted};

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizeReport {
    /// The directory written.
    pub output: PathBuf,
    /// Matrices in few bits.
    pub matrices: usize,
    /// Their values.
    pub values: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Rounds and writes. Returns the report as JSON.
///
/// # Errors
/// A model that is rounded already; a tensor missing in model or adapter; an output directory with something in it; a full disk.
pub fn run(args: &QuantizeArgs) -> Result<String> {
    ensure_free(&args.output)?;
    require_exact_weights(&args.model, "infer quantize")?;
    let format = match args.load_in_8bit {
        true => Quantization::Int8,
        false => Quantization::Nf4 { double_quant: args.bnb_4bit_use_double_quant },
    };
    let (dir, device) = (hub::resolve(&args.model, Wanted::Llava)?, device::cpu());
    let (config, model) = match &args.adapter {
        None => load_rounded(&dir, LoadAs::Stored, Some(&format.into()), &device).context("loading the model")?,
        Some(adapter) => {
            adapter::require_own_model(adapter, &dir, args.force)?;
            adapter::warn_of_another_model(adapter, &dir, "--model");
            // The adapter's matrices become part of the weights before these are rounded.
            let (config, mut model) = load_model(&dir, LoadAs::Stored, &device).context("loading the model")?;
            adapter::load_adapter(&mut model, adapter, &device).context("loading the adapter")?;
            let mut model = model::lora::merge(model);
            model.language_model.quantize_layers(format);
            (config, model)
        }
    };
    let directory = NewDirectory::create(&args.output)?;
    save_model(&model, &config, directory.path(), args.max_part_bytes).context("writing the rounded model")?;
    copy_processor_files(&dir, directory.path()).context("copying tokenizer and processor")?;
    directory.publish()?;
    let shapes: Vec<[usize; 2]> = quantized::weights(&model).iter().map(|(_, weight)| weight.dims()).collect();
    let report = QuantizeReport {
        output: args.output.clone(),
        matrices: shapes.len(),
        values: shapes.iter().map(|[rows, width]| rows * width).sum(),
        bytes: shapes.iter().map(|shape| format.bytes_of(*shape)).sum(),
    };
    Ok(serde_json::to_string(&report)?)
}
