//! `infer merge`: an adapter's changes added into its model's weights, written as a full checkpoint.

use crate::args::MergeArgs;
use crate::engine::{Engine, Processors, single_question};
use anyhow::{Context, Result, ensure};
use images::image_processor::ProcessedImage;
use kernels::device::DeviceKind;
use model::batch::PackedBatch;
use serde::Serialize;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
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
}

/// Merges, writes, reads back, compares. Returns the report as JSON.
///
/// # Errors
/// A tensor missing in model or adapter; an output directory with something in it; a full disk.
pub fn run(args: &MergeArgs) -> Result<String> {
    ensure_free(&args.output)?;
    let engine = Engine::load(&args.model, Some(&args.adapter), LoadAs::F32, DeviceKind::Cpu)?;
    let prompt = test_prompt(&engine.processors)?;
    let before = engine.last_logits(&prompt, COMPARED_POSITIONS)?;
    let vocabulary = engine.processors.config.text.vocab_size;

    let temporary = temporary_sibling(&args.output)?;
    let processors = engine.processors.clone();
    let merged = model::lora::merge(engine.into_model());
    let config = &processors.config;
    save_model(&merged, config, temporary.path(), args.max_part_bytes).context("writing the merged model")?;
    copy_processor_files(&hub::resolve(&args.model, Wanted::Llava)?, temporary.path())
        .context("copying tokenizer and processor")?;
    drop(merged);

    let after = Engine::load(temporary.path(), None, LoadAs::F32, DeviceKind::Cpu)
        .context("reading the merged model back")?
        .last_logits(&prompt, COMPARED_POSITIONS)?;
    let report = compare(&before, &after, vocabulary, &args.output, format!("{:?}", config.dtype).to_lowercase());
    if args.output.exists() {
        std::fs::remove_dir(&args.output).map_err(base::Error::io(&args.output))?;
    }
    base::files::publish(&temporary.keep(), &args.output)?;
    Ok(serde_json::to_string(&report)?)
}

fn ensure_free(output: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(output) {
        Ok(mut entries) => entries.next(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(base::Error::io(output)(error).into()),
    };
    ensure!(entries.is_none(), "{}: not empty; give a new directory as --output", output.display());
    Ok(())
}

/// Beside the output, so that a rename puts it in place; readable for whom the umask lets.
fn temporary_sibling(output: &Path) -> Result<tempfile::TempDir> {
    let parent = output.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(base::Error::io(parent))?;
    Ok(tempfile::Builder::new()
        .prefix(".merge-")
        .permissions(Permissions::from_mode(0o777))
        .tempdir_in(parent)
        .map_err(base::Error::io(parent))?)
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

fn compare(before: &[f32], after: &[f32], vocabulary: usize, output: &Path, dtype: String) -> MergeReport {
    let largest =
        |values: &mut dyn Iterator<Item = f32>| values.fold(0f32, |a, b| if b.is_nan() { b } else { a.max(b) });
    let same = |(a, b): &(&[f32], &[f32])| model::sampling::argmax(a) == model::sampling::argmax(b);
    MergeReport {
        output: output.to_path_buf(),
        dtype,
        logits: before.len(),
        largest_logit_difference: largest(&mut before.iter().zip(after).map(|(a, b)| (a - b).abs())),
        largest_logit: largest(&mut before.iter().map(|a| a.abs())),
        same_argmax: before.chunks_exact(vocabulary).zip(after.chunks_exact(vocabulary)).filter(same).count(),
        positions: before.len() / vocabulary,
    }
}
