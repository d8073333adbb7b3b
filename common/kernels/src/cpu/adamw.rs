//! AdamW over flat slices: one pass over weights, gradient and moments.

use super::simd::multiversion;
use rayon::prelude::*;

/// Elements that one task updates: large enough to hide the cost of a task, small enough to share work.
const CHUNK: usize = 1 << 14;

/// The numbers of an update in the form that the loop uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWCoefficients {
    /// Gradients are multiplied by this first.
    pub gradient_scale: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// 1 − beta1, from the exact beta1.
    pub one_minus_beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// 1 − beta2, from the exact beta2.
    pub one_minus_beta2: f32,
    /// Weights are multiplied by this: 1 − learning rate · weight decay.
    pub keep: f32,
    /// Learning rate ÷ bias correction of the first moment.
    pub step_size: f32,
    /// 1 ÷ root of the bias correction of the second moment.
    pub root_scale: f32,
    /// Added to the corrected root.
    pub epsilon: f32,
}

/// Updates values and moments in place; all slices are equally long. Elementwise, so the result does not depend on threads.
///
/// # Source
/// torch `optim/adamw.py`, single tensor.
pub fn adamw(
    values: &mut [f32],
    gradient: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    coefficients: AdamWCoefficients,
) {
    if values.len() <= CHUNK {
        return update(values, gradient, exp_avg, exp_avg_sq, coefficients);
    }
    values
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(exp_avg.par_chunks_mut(CHUNK).zip(exp_avg_sq.par_chunks_mut(CHUNK)))
        .for_each(|((values, gradient), (exp_avg, exp_avg_sq))| {
            update(values, gradient, exp_avg, exp_avg_sq, coefficients);
        });
}

multiversion! {
    fn update(
        values: &mut [f32],
        gradient: &[f32],
        exp_avg: &mut [f32],
        exp_avg_sq: &mut [f32],
        c: AdamWCoefficients,
    ) {
        for (((value, gradient), m), v) in values.iter_mut().zip(gradient).zip(exp_avg).zip(exp_avg_sq) {
            let gradient = gradient * c.gradient_scale;
            *m = c.beta1 * *m + c.one_minus_beta1 * gradient;
            *v = c.beta2 * *v + c.one_minus_beta2 * gradient * gradient;
            *value = *value * c.keep - c.step_size * *m / (v.sqrt() * c.root_scale + c.epsilon);
        }
    }
}
