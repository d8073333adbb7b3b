//! AdamW, sums of gradients and their norm for parameters that are tensors, on a GPU.

use crate::cpu::AdamWCoefficients;
use burn::tensor::{DType, Tensor};
use std::ops::Range;

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

/// An update, as [`crate::cpu::adamw`] computes it; weight decay acts on the first `decaying` values. Without a gradient, moments
/// decay all the same. Tensors that nobody else holds are written in place.
pub fn adamw(
    state: AdamWUpdate,
    gradient: Option<Tensor<1>>,
    coefficients: AdamWCoefficients,
    decaying: usize,
    rounded: Option<DType>,
) -> AdamWUpdate {
    #[cfg(feature = "cube")]
    let (state, gradient) = match crate::cube::adamw::adamw(state, gradient, coefficients, decaying, rounded) {
        Ok(update) => return update,
        Err(declined) => declined,
    };
    composed(state, gradient, coefficients, decaying, rounded)
}

/// By burn's operations, in the order of the kernels.
fn composed(
    AdamWUpdate { values, exp_avg, exp_avg_sq, .. }: AdamWUpdate,
    gradient: Option<Tensor<1>>,
    c: AdamWCoefficients,
    decaying: usize,
    rounded: Option<DType>,
) -> AdamWUpdate {
    let (len, device) = (values.dims()[0], values.device());
    let factor = |count: usize, factor: f32| Tensor::<1>::full([count], factor, (&device, DType::F32));
    let (mut exp_avg, mut exp_avg_sq) = (exp_avg * c.beta1, exp_avg_sq * c.beta2);
    if let Some(gradient) = gradient {
        let gradient = gradient * c.gradient_scale;
        exp_avg = exp_avg + gradient.clone() * c.one_minus_beta1;
        exp_avg_sq = exp_avg_sq + gradient.clone() * c.one_minus_beta2 * gradient;
    }
    let step = exp_avg.clone() * c.step_size / (exp_avg_sq.clone().sqrt() * c.root_scale + c.epsilon);
    let kept = match decaying {
        0 => values,
        _ if decaying >= len => values * c.keep,
        _ => values * Tensor::cat(vec![factor(decaying, c.keep), factor(len - decaying, 1.0)], 0),
    };
    let values = kept - step;
    let rounded = rounded.map(|dtype| values.clone().cast(dtype));
    AdamWUpdate { values, exp_avg, exp_avg_sq, rounded }
}

/// Values of a parameter's gradient, and where they stand in the flat gradient of a block.
#[derive(Clone, Debug)]
pub struct GradientPart {
    /// Of the flat gradient: the values, and zeros where there are fewer.
    pub range: Range<usize>,
    /// `None` stands for zeros.
    pub values: Option<Tensor<2>>,
}

/// `sum` (f32, zeros if it is not there yet) plus `parts`, whose ranges follow one another. The parts may be in any dtype and must be
/// without autodiff. `None` if there is nothing to sum up.
pub fn accumulate(sum: Option<Tensor<1>>, parts: Vec<GradientPart>) -> Option<Tensor<1>> {
    if parts.iter().all(|part| part.values.is_none()) {
        return sum;
    }
    #[cfg(feature = "cube")]
    let (sum, parts) = match crate::cube::accumulate::accumulate(sum, parts) {
        Ok(sum) => return Some(sum),
        Err(declined) => declined,
    };
    let device = parts.iter().find_map(|part| part.values.as_ref().map(Tensor::device))?;
    let padded = parts.into_iter().flat_map(|GradientPart { range, values }| {
        let values = values.map(|values| values.cast(DType::F32).flatten::<1>(0, 1));
        let zeros = range.len() - values.as_ref().map_or(0, |values| values.dims()[0]);
        let zeros = (zeros > 0).then(|| Tensor::zeros([zeros], (&device, DType::F32)));
        [values, zeros].into_iter().flatten()
    });
    let flat = Tensor::cat(padded.collect(), 0);
    Some(match sum {
        Some(sum) => sum + flat,
        None => flat,
    })
}

/// The sum of squares of all tensors, f32 `[1]`; not finite if a value is not. `None` without tensors.
pub fn sum_of_squares(tensors: &[&Tensor<1>]) -> Option<Tensor<1>> {
    #[cfg(feature = "cube")]
    if let Some(sum) = crate::cube::sum_of_squares(tensors) {
        return Some(sum);
    }
    tensors.iter().map(|&tensor| tensor.clone().square().sum()).reduce(|sum, of_tensor| sum + of_tensor)
}
