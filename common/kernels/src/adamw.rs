//! AdamW and the norm of a gradient for parameters that are tensors, on a GPU.

use crate::cpu::AdamWCoefficients;
use burn::tensor::{DType, Tensor};

/// What AdamW keeps of a parameter and gives back, f32 vectors of one length without autodiff.
#[derive(Clone, Debug)]
pub struct AdamWUpdate {
    /// The parameter.
    pub values: Tensor<1>,
    /// First moment.
    pub exp_avg: Tensor<1>,
    /// Second moment.
    pub exp_avg_sq: Tensor<1>,
    /// After an update: the parameter in another dtype, where that was asked for.
    pub rounded: Option<Tensor<1>>,
}

/// An update, as [`crate::cpu::adamw`] computes it. Without a gradient, moments decay all the same. Tensors that nobody else holds
/// are written in place.
pub fn adamw(
    state: AdamWUpdate,
    gradient: Option<Tensor<1>>,
    coefficients: AdamWCoefficients,
    rounded: Option<DType>,
) -> AdamWUpdate {
    #[cfg(feature = "cube")]
    let (state, gradient) = match crate::cube::adamw::adamw(state, gradient, coefficients, rounded) {
        Ok(update) => return update,
        Err(declined) => declined,
    };
    composed(state, gradient, coefficients, rounded)
}

/// By burn's operations, in the order of the kernels.
fn composed(
    AdamWUpdate { values, exp_avg, exp_avg_sq, .. }: AdamWUpdate,
    gradient: Option<Tensor<1>>,
    c: AdamWCoefficients,
    rounded: Option<DType>,
) -> AdamWUpdate {
    let (mut exp_avg, mut exp_avg_sq) = (exp_avg * c.beta1, exp_avg_sq * c.beta2);
    if let Some(gradient) = gradient {
        let gradient = gradient * c.gradient_scale;
        exp_avg = exp_avg + gradient.clone() * c.one_minus_beta1;
        exp_avg_sq = exp_avg_sq + gradient.clone() * c.one_minus_beta2 * gradient;
    }
    let step = exp_avg.clone() * c.step_size / (exp_avg_sq.clone().sqrt() * c.root_scale + c.epsilon);
    let values = values * c.keep - step;
    let rounded = rounded.map(|dtype| values.clone().cast(dtype));
    AdamWUpdate { values, exp_avg, exp_avg_sq, rounded }
}

/// The sum of squares, f32 `[1]`; not finite if a value is not.
pub fn sum_of_squares(x: &Tensor<1>) -> Tensor<1> {
    #[cfg(feature = "cube")]
    if let Some(sum) = crate::cube::sum_of_squares(x) {
        return sum;
    }
    x.clone().square().sum()
}
