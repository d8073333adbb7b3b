//! The weights of the assembled model: streamed from the two sources into one directory, never held whole.

use anyhow::{Context, Result};
use base::{Error, names};
use cli::units::bytes;
use kernels::device;
use model::config::{LlavaConfig, TextConfig, WeightDtype};
use model::multi_modal_projector::MultiModalProjector;
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use store::checkpoint::{
    ExpectedTensor, TensorFiles, TensorSource, TensorView, Weights, expected_text, expected_vision, from_f32,
    is_tied_head, module_tensors, write_tensors,
};

/// The mapped weights of both sources.
pub struct Sources<'a> {
    vision: TensorFiles,
    text: TensorFiles,
    config: &'a LlavaConfig,
    source_text: &'a TextConfig,
}

impl<'a> Sources<'a> {
    /// Maps them; `source_text` is the language model before its embeddings were resized.
    pub fn open(vision: &Path, text: &Path, config: &'a LlavaConfig, source_text: &'a TextConfig) -> Result<Self> {
        Ok(Self {
            vision: TensorFiles::open(vision).context("--vision-tower")?,
            text: TensorFiles::open(text).context("--language-model")?,
            config,
            source_text,
        })
    }

    /// Writes tower, projector and language model in the config's format; parts of at most `max_part_bytes`.
    pub fn write(&self, dir: &Path, seed: u64, max_part_bytes: usize) -> Result<()> {
        let (config, dtype) = (self.config, self.config.dtype);
        let vision = Weights::resolve(&self.vision, &expected_vision(&config.vision), names::is_of_two_towers_only)
            .context("--vision-tower")?;
        let is_harmless = |stored: &str| is_tied_head(self.source_text, &self.text, stored);
        let text =
            Weights::resolve(&self.text, &expected_text(self.source_text), is_harmless).context("--language-model")?;

        let mut tensors = Vec::new();
        tensors.extend(expected_vision(&config.vision).into_iter().map(|tensor| copied(tensor, &vision, dtype)));
        tensors.extend(projector(config, seed));
        tensors.extend(expected_text(&config.text).into_iter().map(|tensor| copied(tensor, &text, dtype)));
        let total = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() * dtype.size()).sum();
        let meter = Meter::new(total);
        let tensors = tensors.into_iter().map(|tensor| meter.watch(tensor)).collect();
        Ok(write_tensors(tensors, dir, max_part_bytes)?)
    }
}

/// A source's tensor in another format, longer by some rows if the target is.
fn copied<'a>(tensor: ExpectedTensor, weights: &'a Weights<'a>, dtype: WeightDtype) -> TensorSource<'a> {
    let ExpectedTensor { name, shape } = tensor;
    let (source, rows) = (name.clone(), shape[0]);
    let bytes = Box::new(move || {
        let view = weights.get(&source).ok_or_else(|| {
            Error::invalid(
                format!("tensor {source}"),
                "none",
                "a tensor that was there",
                "do not change files while they are read",
            )
        })?;
        let mut bytes = view.to_bytes(dtype).into_owned();
        if rows > view.shape[0] {
            let mean = from_f32(&mean_row(&view), dtype);
            bytes.extend(mean.repeat(rows - view.shape[0]));
        }
        weights.release(&source);
        Ok(bytes)
    });
    TensorSource { name, dtype, shape, bytes }
}

/// What a new row of an embedding starts with: the mean of the old ones.
///
/// # Source
/// transformers `_init_added_embeddings_weights_with_mean` (`mean_resizing`, its default).
/// # Differs
/// There the row is drawn around the mean with 1e-9 of the old rows' covariance; here it is the mean.
fn mean_row(view: &TensorView<'_>) -> Vec<f32> {
    let (rows, width) = (view.shape[0], view.shape[1..].iter().product::<usize>());
    let mut sums = vec![0f64; width];
    for row in view.bytes.chunks_exact(width * view.dtype.size()) {
        let row = TensorView { bytes: row, ..*view };
        sums.iter_mut().zip(row.to_f32()).for_each(|(sum, value)| *sum += f64::from(value));
    }
    sums.into_iter().map(|sum| (sum / rows as f64) as f32).collect()
}

/// A new projector, as transformers initialises it (normal with 0.02, biases zero).
fn projector(config: &LlavaConfig, seed: u64) -> Vec<TensorSource<'static>> {
    let projector = MultiModalProjector::random(config, seed, &device::cpu());
    module_tensors(&projector, Some(names::PROJECTOR), config.dtype)
}

/// A line every few seconds: assembling gigabytes takes as long as the disks need.
struct Meter {
    total: usize,
    done: Rc<Cell<usize>>,
    last_line: Rc<Cell<Instant>>,
}

impl Meter {
    fn new(total: usize) -> Self {
        Self { total, done: Rc::default(), last_line: Rc::new(Cell::new(Instant::now())) }
    }

    fn watch<'a>(&self, tensor: TensorSource<'a>) -> TensorSource<'a> {
        let (total, done, last_line) = (self.total, self.done.clone(), self.last_line.clone());
        let source = tensor.bytes;
        let watched = move || {
            let made = source()?;
            done.set(done.get() + made.len());
            if last_line.get().elapsed() >= Duration::from_secs(5) {
                last_line.set(Instant::now());
                tracing::info!("model: {} of {} written", bytes(done.get() as u64), bytes(total as u64));
            }
            Ok(made)
        };
        TensorSource { bytes: Box::new(watched), ..tensor }
    }
}
