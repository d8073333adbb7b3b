//! AdamW on flat f32 slices, as torch's.

use rayon::prelude::*;

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

/// Elements that one task updates: large enough to hide the cost of a task, small enough to share work.
const CHUNK: usize = 1 << 14;

/// The numbers of [`AdamW`] in the form that the loop uses.
#[derive(Clone, Copy)]
struct Coefficients {
    gradient_scale: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    keep: f32,
    step_size: f32,
    root_scale: f32,
    epsilon: f32,
}

impl AdamW {
    /// Updates values and moments in place. Elementwise, so the result does not depend on threads.
    ///
    /// # Source
    /// torch `optim/adamw.py`, single tensor: decoupled decay, epsilon outside the root after bias correction.
    pub fn update(&self, slices: Slices<'_>, weight_decay: f64) {
        let coefficients = self.coefficients(weight_decay);
        let Slices { values, gradient, exp_avg, exp_avg_sq } = slices;
        values
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(exp_avg.par_chunks_mut(CHUNK).zip(exp_avg_sq.par_chunks_mut(CHUNK)))
            .for_each(|((values, gradient), (exp_avg, exp_avg_sq))| {
                update_chunk(values, gradient, exp_avg, exp_avg_sq, coefficients);
            });
    }

    fn coefficients(&self, weight_decay: f64) -> Coefficients {
        let steps = self.step as f64;
        Coefficients {
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

fn update_chunk(values: &mut [f32], gradient: &[f32], exp_avg: &mut [f32], exp_avg_sq: &mut [f32], c: Coefficients) {
    for (((value, gradient), m), v) in values.iter_mut().zip(gradient).zip(exp_avg).zip(exp_avg_sq) {
        let gradient = gradient * c.gradient_scale;
        *m = c.beta1 * *m + c.one_minus_beta1 * gradient;
        *v = c.beta2 * *v + c.one_minus_beta2 * gradient * gradient;
        *value = *value * c.keep - c.step_size * *m / (v.sqrt() * c.root_scale + c.epsilon);
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

    const TORCH: [f32; 3] = [0.689_769_3, -1.784_869_8, 2.800_655];
}
