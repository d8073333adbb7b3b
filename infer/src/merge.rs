//! `infer merge`: an adapter's changes added into its model's weights, written as a full checkpoint.

use crate::args::MergeArgs;
use crate::engine::{Engine, Processors, single_question};
use crate::new_directory::{NewDirectory, ensure_free};
use anyhow::{Context, Result};
use images::image_processor::ProcessedImage;
use kernels::device::DeviceKind;
use model::batch::PackedBatch;
use model::config::{LlavaConfig, WeightDtype};
use serde::Serialize;
use std::path::{Path, PathBuf};
use store::adapter::require_own_model;
use store::checkpoint::{LoadAs, copy_processor_files, save_model};
use store::hub::{self, Wanted};

/// Last positions of the test question that are compared: enough to see a wrong merge, few enough for a large vocabulary.
const COMPARED_POSITIONS: usize = 16;

/// What the merge changed in the logits of a test question about a test picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MergeReport {
    /// The directory written.
    pub output: PathBuf,
    /// Format of the weights written.
    pub dtype: String,
    /// Logits compared: positions × vocabulary.
    pub logits: usize,
    /// Largest |logit of the model with the adapter − logit of the merged checkpoint as read back|.
    pub largest_logit_difference: f32,
    /// Largest |logit| with the adapter, to judge the difference by.
    pub largest_logit: f32,
    /// Positions where the most likely token is the same, of `positions`.
    pub same_argmax: usize,
    /// Positions compared.
    pub positions: usize,
    /// Largest difference that rounding to the written dtype explains.
    pub rounding_bound: f32,
    /// Whether the difference is within it.
    pub fine: bool,
}

/// Share of the largest logit that rounding explains: f32 sums in another order, and weights rounded to 11 and 8 significant bits,
/// with errors that add up over some dozen layers.
fn rounding_share(dtype: WeightDtype) -> f32 {
    match dtype {
        WeightDtype::F32 => 1e-4,
        WeightDtype::F16 => 5e-3,
        WeightDtype::Bf16 => 4e-2,
    }
}

impl MergeReport {
    /// The difference in words.
    fn verdict(&self) -> String {
        let Self {
            largest_logit_difference: difference,
            largest_logit,
            rounding_bound,
            same_argmax,
            positions,
            dtype,
            ..
        } = self;
        let found = format!(
            "logits differ by at most {difference:.2e} from those with the adapter (largest logit {largest_logit:.3})"
        );
        let same = format!("the most likely token is the same at {same_argmax} of {positions} positions");
        match self.fine {
            true => format!("{found}: fine, rounding to {dtype} explains up to {rounding_bound:.1e}; {same}"),
            false => format!(
                "{found}: NOT fine, rounding to {dtype} explains up to {rounding_bound:.1e} only; {same}; compare answers of both \
                 (infer generate) before you use the merged model"
            ),
        }
    }
}

/// Merges, writes, reads back, compares. Returns the report as JSON.
///
/// # Errors
/// A tensor missing in model or adapter; an output directory with something in it; a full disk.
pub fn run(args: &MergeArgs) -> Result<String> {
    ensure_free(&args.output)?;
    require_exact_weights(&args.model, "infer merge")?;
    require_own_model(&args.adapter, &hub::resolve(&args.model, Wanted::Llava)?, args.force)?;
    let engine = Engine::load(&args.model, Some(&args.adapter), LoadAs::F32, DeviceKind::Cpu)?;
    let prompt = test_prompt(&engine.processors)?;
    let before = engine.last_logits(&prompt, COMPARED_POSITIONS)?;
    let vocabulary = engine.processors.config.text.vocab_size;

    let directory = NewDirectory::create(&args.output)?;
    let processors = engine.processors.clone();
    let merged = model::lora::merge(engine.into_model());
    let config = &processors.config;
    save_model(&merged, config, directory.path(), args.max_part_bytes).context("writing the merged model")?;
    copy_processor_files(&hub::resolve(&args.model, Wanted::Llava)?, directory.path())
        .context("copying tokenizer and processor")?;
    drop(merged);

    let after = Engine::load(directory.path(), None, LoadAs::F32, DeviceKind::Cpu)
        .context("reading the merged model back")?
        .last_logits(&prompt, COMPARED_POSITIONS)?;
    let report = compare(&before, &after, vocabulary, &args.output, config.dtype);
    directory.publish()?;
    match report.fine {
        true => tracing::info!("{}", report.verdict()),
        false => tracing::warn!("{}", report.verdict()),
    }
    Ok(serde_json::to_string(&report)?)
}

/// Refuses a model whose files are in few bits: what is made of it would have their rounding.
pub(crate) fn require_exact_weights(model: &Path, command: &str) -> Result<()> {
    let dir = hub::resolve(model, Wanted::Llava)?;
    match LlavaConfig::read(&dir)?.quantization {
        None => Ok(()),
        Some(format) => {
            let place = format!("{}: quantization_config", dir.display());
            let remedy = format!("give {command} the original model, which was rounded");
            Err(base::Error::invalid(place, format, "weights that are not rounded", remedy).into())
        }
    }
}

/// A question about a picture of smooth colours: passes through every part of the model.
fn test_prompt(processors: &Processors) -> Result<PackedBatch> {
    let size = processors.images.crop_size;
    let code = |index: usize| {
        let (channel, y, x) = (index / (size * size), index / size % size, index % size);
        (255 * match channel {
            0 => x,
            1 => y,
            _ => (x + y) / 2,
        } / size) as u8
    };
    let codes = (0..3 * size * size).map(code).collect();
    let image = ProcessedImage { codes, width: size as u32, height: size as u32 };
    let system = if processors.chat.takes_system() { chat::SYSTEM_PROMPT } else { "" };
    processors.prompt(&single_question(system, "Describe the picture in detail.", 1), &[image])
}

fn compare(before: &[f32], after: &[f32], vocabulary: usize, output: &Path, dtype: WeightDtype) -> MergeReport {
    let largest =
        |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |a, b| if b.is_nan() { b } else { a.max(b) });
    let same = |(a, b): &(&[f32], &[f32])| model::sampling::argmax(a) == model::sampling::argmax(b);
    let difference = largest(&mut before.iter().zip(after).map(|(a, b)| (a - b).abs()));
    let largest_logit = largest(&mut before.iter().map(|a| a.abs()));
    let rounding_bound = rounding_share(dtype) * largest_logit;
    MergeReport {
        output: output.to_path_buf(),
        dtype: format!("{dtype:?}").to_lowercase(),
        logits: before.len(),
        largest_logit_difference: difference,
        largest_logit,
        rounding_bound,
        fine: difference <= rounding_bound,
        same_argmax: before.chunks_exact(vocabulary).zip(after.chunks_exact(vocabulary)).filter(same).count(),
        positions: before.len() / vocabulary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_fine_where_rounding_explains_it() {
        let before = [1.0f32, -2.0, 0.5, 4.0];
        for (change, dtype, fine) in [
            (1e-4, WeightDtype::F32, true),
            (1e-2, WeightDtype::F32, false),
            (1e-2, WeightDtype::F16, true),
            (1e-1, WeightDtype::F16, false),
            (1e-1, WeightDtype::Bf16, true),
            (1.0, WeightDtype::Bf16, false),
            (f32::NAN, WeightDtype::Bf16, false),
        ] {
            let after = before.map(|logit| logit + change);
            let report = compare(&before, &after, 2, Path::new("merged"), dtype);
            assert_eq!(report.fine, fine, "{change} {dtype:?}: {}", report.verdict());
            assert_eq!(report.verdict().contains("NOT fine"), !fine);
        }
    }
}
