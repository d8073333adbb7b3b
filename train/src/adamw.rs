//! AdamW on flat f32 slices, as torch's.

use kernels::cpu::{AdamWCoefficients, adamw};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// What one update needs beside the slices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this update.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the bias-corrected second moment.
    pub epsilon: f64,
    /// Updates including this one.
    pub step: u64,
    /// Gradients are multiplied by this first: 1 ÷ denominator of the loss × clipping.
    pub gradient_scale: f32,
}

/// The two moments and the gradient of the values that are updated; all slices are equally long.
pub struct Slices<'a> {
    /// Master weights.
    pub values: &'a mut [f32],
    /// Summed gradient, not yet scaled.
    pub gradient: &'a [f32],
    /// First moment.
    pub exp_avg: &'a mut [f32],
    /// Second moment.
    pub exp_avg_sq: &'a mut [f32],
}

/// Rows of a table that one task looks at.
const ROWS: usize = 256;

impl AdamW {
    /// Updates values and moments in place. Elementwise, so the result does not depend on threads.
    ///
    /// # Source
    /// torch `optim/adamw.py`, single tensor: decoupled decay, epsilon outside the root after bias correction.
    pub fn update(&self, slices: Slices<'_>, weight_decay: f64) {
        let Slices { values, gradient, exp_avg, exp_avg_sq } = slices;
        adamw(values, gradient, exp_avg, exp_avg_sq, self.coefficients(weight_decay));
    }

    /// The same for a table `[touched.len(), width]` with a gradient for some rows only and moments of zero outside the
    /// touched rows, which include these: the same bits as with a gradient of zeros, without reading what does not change.
    /// Epsilon must be above 0.
    pub fn update_rows(
        &self,
        values: &mut [f32],
        moments: [&mut [f32]; 2],
        gradient: &BTreeMap<usize, Vec<f32>>,
        touched: &[bool],
        width: usize,
        weight_decay: f64,
    ) {
        let coefficients = self.coefficients(weight_decay);
        let [exp_avg, exp_avg_sq] = moments;
        let zeros = vec![0.0; width];
        values
            .par_chunks_mut(width)
            .zip(exp_avg.par_chunks_mut(width).zip(exp_avg_sq.par_chunks_mut(width)))
            .zip(touched)
            .enumerate()
            .with_min_len(ROWS)
            .for_each(|(row, ((values, (exp_avg, exp_avg_sq)), &touched))| {
                if touched {
                    let gradient = gradient.get(&row).unwrap_or(&zeros);
                    adamw(values, gradient, exp_avg, exp_avg_sq, coefficients);
                } else if weight_decay > 0.0 {
                    values.iter_mut().for_each(|value| *value *= coefficients.keep);
                }
            });
    }

    /// In the form that updates use.
    pub fn coefficients(&self, weight_decay: f64) -> AdamWCoefficients {
        let steps = self.step as f64;
        AdamWCoefficients {
            gradient_scale: self.gradient_scale,
            beta1: self.beta1 as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            keep: (1.0 - self.learning_rate * weight_decay) as f32,
            step_size: (self.learning_rate / (1.0 - self.beta1.powf(steps))) as f32,
            root_scale: (1.0 / (1.0 - self.beta2.powf(steps)).sqrt()) as f32,
            epsilon: self.epsilon as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of torch 2.15 `AdamW(lr=0.1, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.1)` after 3 steps with gradients
    /// `[0.5, -1, 2]`, `[0.25, 0, -2]`, `[1, 1, 1]`.
    #[test]
    fn equals_torch() {
        let mut values = [1.0f32, -2.0, 3.0];
        let (mut exp_avg, mut exp_avg_sq) = ([0.0f32; 3], [0.0f32; 3]);
        for (step, gradient) in [[0.5f32, -1.0, 2.0], [0.25, 0.0, -2.0], [1.0, 1.0, 1.0]].iter().enumerate() {
            let adamw = AdamW {
                learning_rate: 0.1,
                beta1: 0.9,
                beta2: 0.99,
                epsilon: 1e-3,
                step: step as u64 + 1,
                gradient_scale: 1.0,
            };
            let slices = Slices { values: &mut values, gradient, exp_avg: &mut exp_avg, exp_avg_sq: &mut exp_avg_sq };
            adamw.update(slices, 0.1);
        }
        for (found, expected) in values.iter().zip(TORCH) {
            assert!((found - expected).abs() <= 2e-7, "{found} where {expected} is expected");
        }
    }

    #[test]
    fn rows_without_a_gradient_are_updated_as_with_zeros() {
        let (width, rows) = (3, 5);
        for weight_decay in [0.0, 0.1] {
            let start: Vec<f32> = (0..width * rows).map(|i| i as f32 - 7.0).collect();
            let mut dense = (start.clone(), vec![0.0f32; start.len()], vec![0.0f32; start.len()]);
            let mut sparse = dense.clone();
            let mut touched = vec![false; rows];
            for (step, gradient_rows) in [vec![1, 3], vec![3], vec![0]].into_iter().enumerate() {
                let adamw = AdamW {
                    learning_rate: 0.1,
                    beta1: 0.9,
                    beta2: 0.99,
                    epsilon: 1e-8,
                    step: step as u64 + 1,
                    gradient_scale: 0.5,
                };
                let gradient: BTreeMap<usize, Vec<f32>> =
                    gradient_rows.iter().map(|&row| (row, vec![row as f32 + 0.5, -1.0, 0.0])).collect();
                let mut zeros = vec![0.0; start.len()];
                for (row, values) in &gradient {
                    zeros[row * width..][..width].copy_from_slice(values);
                    touched[*row] = true;
                }
                let (values, exp_avg, exp_avg_sq) = (&mut dense.0[..], &mut dense.1[..], &mut dense.2[..]);
                adamw.update(Slices { values, gradient: &zeros, exp_avg, exp_avg_sq }, weight_decay);
                let moments = [&mut sparse.1[..], &mut sparse.2[..]];
                adamw.update_rows(&mut sparse.0, moments, &gradient, &touched, width, weight_decay);
                assert_eq!(sparse, dense, "step {step}, weight decay {weight_decay}");
            }
        }
    }

    const TORCH: [f32; 3] = [0.689_769_3, -1.784_869_8, 2.800_655];
}
