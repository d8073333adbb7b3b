//! The weights of the assembled model: streamed from the two sources into one directory, never held whole.

use anyhow::{Context, Result};
use base::{Error, names};
use cli::units::bytes;
use kernels::device;
use model::config::{LlavaConfig, TextConfig, WeightDtype};
use model::multi_modal_projector::MultiModalProjector;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
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
        tensors.extend(expected_vision(&config.vision).into_iter().map(|tensor| copied(tensor, &vision, dtype, seed)));
        tensors.extend(projector(config, seed));
        tensors.extend(expected_text(&config.text).into_iter().map(|tensor| copied(tensor, &text, dtype, seed)));
        let total = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() * dtype.size()).sum();
        let meter = Meter::new(total);
        let tensors = tensors.into_iter().map(|tensor| meter.watch(tensor)).collect();
        Ok(write_tensors(tensors, dir, max_part_bytes)?)
    }
}

/// A source's tensor in another format, longer by some rows if the target is.
fn copied<'a>(tensor: ExpectedTensor, weights: &'a Weights<'a>, dtype: WeightDtype, seed: u64) -> TensorSource<'a> {
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
            bytes.extend(from_f32(&new_rows(&view, rows - view.shape[0], &mut generator(seed, &source)), dtype));
        }
        weights.release(&source);
        Ok(bytes)
    });
    TensorSource { name, dtype: dtype.into(), shape, bytes }
}

/// Share of the old rows' covariance that new rows are drawn with.
const COVARIANCE_SHARE: f64 = 1e-9;

/// What new rows of an embedding start with: normal around the mean of the old ones, with [`COVARIANCE_SHARE`] of their covariance.
///
/// # Shapes
/// f32 `[count, width]` for `view` `[rows, width]`.
/// # Source
/// transformers `_init_added_embeddings_weights_with_mean` (`mean_resizing`, its default).
/// # Differs
/// The distribution is the same, the draw is another: the sum of the old rows' deviations, each times a normal number, has their
/// covariance without a matrix of it. Where that matrix is singular, transformers takes the mean alone.
fn new_rows(view: &TensorView<'_>, count: usize, rng: &mut StdRng) -> Vec<f32> {
    let (rows, width) = (view.shape[0], view.shape[1..].iter().product::<usize>());
    let old_rows =
        || view.bytes.chunks_exact(width * view.dtype.size()).map(|bytes| TensorView { bytes, ..*view }.to_f32());
    let mut mean = vec![0f64; width];
    for row in old_rows() {
        mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(value));
    }
    mean.iter_mut().for_each(|sum| *sum /= rows as f64);
    let scale = (COVARIANCE_SHARE / rows as f64).sqrt();
    let mut new = mean.repeat(count);
    for old in old_rows() {
        for new in new.chunks_exact_mut(width) {
            let factor = scale * normal(rng);
            let values = new.iter_mut().zip(old.iter().zip(&mean));
            values.for_each(|(new, (&old, mean))| *new += factor * (f64::from(old) - mean));
        }
    }
    new.into_iter().map(|value| value as f32).collect()
}

/// A normal number with mean 0 and deviation 1 (Box–Muller).
fn normal(rng: &mut StdRng) -> f64 {
    (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// Random numbers of a tensor: those of one do not depend on whether there is another.
fn generator(seed: u64, tensor: &str) -> StdRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let name = tensor.as_bytes();
    let end = name.len().min(24);
    bytes[8..8 + end].copy_from_slice(&name[name.len() - end..]);
    StdRng::from_seed(bytes)
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
