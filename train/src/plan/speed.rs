//! How long a step takes on this machine: its floating-point operations over the rate of a product that is measured here.

use super::Plan;
use burn::tensor::{Tensor, TensorData};
use kernels::device::cpu;
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
}
