//! How long a step takes on this machine: its floating-point operations over the rate of a product that is measured here.

use super::Plan;
use crate::config::Extent;
use crate::parts::Part;
use burn::tensor::{Tensor, TensorData};
use kernels::device::cpu;
use model::config::{TextConfig, VisionConfig};
use std::time::{Duration, Instant};

/// Width of the measured product, about that of the layers of a large model.
const WIDTH: usize = 1024;
/// Rows of its input.
const ROWS: usize = 1024;
/// How long it is repeated.
const MEASURED: Duration = Duration::from_millis(200);

/// Floating-point operations a second of `x Wᵀ` on all cores.
pub(super) fn measure() -> f64 {
    let device = cpu();
    let tensor = |rows: usize| {
        let values: Vec<f32> = (0..rows * WIDTH).map(|index| (index % 17) as f32 / 17.0).collect();
        Tensor::<2>::from_data(TensorData::new(values, [rows, WIDTH]), &device)
    };
    let (x, weight) = (tensor(ROWS), tensor(WIDTH));
    let product = || std::hint::black_box(kernels::linear(&x, weight.clone(), None)).dims();
    product();
    let started = Instant::now();
    let mut products = 0;
    while started.elapsed() < MEASURED {
        product();
        products += 1;
    }
    products as f64 * 2.0 * (ROWS * WIDTH * WIDTH) as f64 / started.elapsed().as_secs_f64()
}

impl Plan {
    /// Seconds of an optimizer step, and of an epoch, on this machine; products and attention alone.
    pub fn seconds(&self) -> Option<(f64, f64)> {
        let of_row = self.operations_of_a_row() / self.speed?;
        // Ranks on other machines work at the same time.
        let here = self.ranks_here as f64 / self.batches.world_size as f64;
        let rows = self.batches.global_batch_size().min(self.data.rows) as f64;
        Some((of_row * rows * here, of_row * self.data.rows as f64 * here))
    }

    /// Floating-point operations of a row's forward and backward pass.
    fn operations_of_a_row(&self) -> f64 {
        let values = |of: Part| self.parts.iter().filter(|part| part.part == of).map(|part| part.values).sum::<usize>();
        let trained = self.config.train_type.parts();
        let row = self.data.row;
        let vision_tokens = row.images * self.model.vision.tokens() as f64;
        let TextConfig { num_hidden_layers, num_attention_heads, head_dim, .. } = self.model.text;
        let VisionConfig { hidden_size, .. } = self.model.vision;
        // Queries by keys and weights by values; half of each is masked in the language model.
        let attention = 2.0 * row.tokens * row.tokens * (num_hidden_layers * num_attention_heads * head_dim) as f64;
        let vision_layers = self.model.computed_vision_layers();
        let vision_attention =
            4.0 * vision_tokens * self.model.vision.tokens() as f64 * (vision_layers * hidden_size) as f64;
        let layers = 2.0 * values(Part::LanguageModel) as f64 * row.tokens;
        let head = 2.0 * (self.model.text.vocab_size * self.model.text.hidden_size) as f64 * row.supervised;
        let projector = 2.0 * values(Part::Projector) as f64 * row.images * self.model.image_seq_length() as f64;
        let vision = 2.0 * values(Part::VisionTower) as f64 * vision_tokens;
        // Each pass: forward; gradients of inputs; gradients of weights.
        let passes = |inputs: bool, weights: bool| 1.0 + f64::from(u8::from(inputs)) + f64::from(u8::from(weights));
        let (text, tower) = (trained.language_model == Extent::Whole, trained.vision_tower);
        let trains_tower = tower == Extent::Whole || tower == Extent::Lora && self.config.lora_vision;
        let again = if self.config.gradient_checkpointing { layers + attention } else { 0.0 };
        layers * passes(true, text)
            + attention * 3.0
            + again
            + head * passes(true, text)
            + projector * passes(trains_tower, trained.projector == Extent::Whole)
            + vision * passes(trains_tower, tower == Extent::Whole)
            + vision_attention * if trains_tower { 3.0 } else { 1.0 }
    }
}
