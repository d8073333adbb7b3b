//! AdamW over the parameters of a block, in one launch.

use super::operand::{into_values, is_float_vector};
use super::{Backend, UNITS, cubes_of_units, element, empty, vector_size};
use crate::AdamWUpdate;
use crate::cpu::AdamWCoefficients;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// State and gradient of an update.
type Inputs = (AdamWUpdate, Option<Tensor<1>>);

/// See [`crate::adamw`]. Gives the inputs back on another backend.
#[allow(clippy::result_large_err)] // no error: the inputs, once for each parameter and step
pub(crate) fn adamw(
    state: AdamWUpdate,
    gradient: Option<Tensor<1>>,
    coefficients: AdamWCoefficients,
    decaying: usize,
    rounded: Option<DType>,
) -> Result<AdamWUpdate, Inputs> {
    let tensors = [&state.values, &state.exp_avg, &state.exp_avg_sq].into_iter().chain(&gradient);
    if !tensors.into_iter().all(is_float_vector) {
        return Err((state, gradient));
    }
    let AdamWUpdate { values, exp_avg, exp_avg_sq, .. } = state;
    let vectors = (into_values(values), into_values(exp_avg), into_values(exp_avg_sq));
    let (Some(values), Some(first), Some(second)) = vectors else { unreachable!("the tensors were looked at") };
    let gradient = gradient.and_then(into_values);
    let c = coefficients;
    let len = values.meta.num_elements();
    let kept = |of: &CubeTensor| if of.can_mut() { None } else { Some(empty(of, [len], DType::F32)) };
    let outputs = [kept(&values), kept(&first), kept(&second)];
    let rounded = rounded.map(|dtype| empty(&values, [len], dtype));
    let narrow = rounded.clone().unwrap_or_else(|| empty(&values, [1], DType::F32));
    let read = gradient.clone().unwrap_or_else(|| values.clone());
    let size = vector_size(len, &[&values, &first, &second, &read, &narrow]);
    let size = if decaying.is_multiple_of(size) { size } else { 1 };
    if len > 0 {
        let written = |input: &CubeTensor, output: &Option<CubeTensor>, position: usize| match output {
            Some(output) => output.clone().into_tensor_arg(),
            None => input.as_tensor_alias(position),
        };
        update::launch(
            &values.client,
            cubes_of_units(&values, len / size),
            CubeDim::new_1d(UNITS),
            size,
            values.clone().into_tensor_arg(),
            first.clone().into_tensor_arg(),
            second.clone().into_tensor_arg(),
            read.into_tensor_arg(),
            written(&values, &outputs[0], 0),
            written(&first, &outputs[1], 1),
            written(&second, &outputs[2], 2),
            narrow.clone().into_tensor_arg(),
            (len / size) as u32,
            (decaying / size) as u32,
            c.gradient_scale,
            c.beta1,
            c.one_minus_beta1,
            c.beta2,
            c.one_minus_beta2,
            c.keep,
            c.step_size,
            c.root_scale,
            c.epsilon,
            gradient.is_some(),
            rounded.is_some(),
            element(&narrow),
        );
    }
    let [of_values, of_first, of_second] = outputs;
    let tensor = |values: CubeTensor| Tensor::<1>::from_primitive::<Backend>(values);
    Ok(AdamWUpdate {
        values: tensor(of_values.unwrap_or(values)),
        exp_avg: tensor(of_first.unwrap_or(first)),
        exp_avg_sq: tensor(of_second.unwrap_or(second)),
        rounded: rounded.map(tensor),
    })
}

/// A unit for each vector; the operations and their order are those of `cpu::adamw`.
#[cube(launch)]
fn update<R: Float, N: Size>(
    values: &Buffer<Vector<f32, N>>,
    exp_avg: &Buffer<Vector<f32, N>>,
    exp_avg_sq: &Buffer<Vector<f32, N>>,
    gradient: &Buffer<Vector<f32, N>>,
    new_values: &mut Buffer<Vector<f32, N>>,
    new_exp_avg: &mut Buffer<Vector<f32, N>>,
    new_exp_avg_sq: &mut Buffer<Vector<f32, N>>,
    rounded: &mut Buffer<Vector<R, N>>,
    vectors: u32,
    decaying: u32,
    gradient_scale: f32,
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    keep: f32,
    step_size: f32,
    root_scale: f32,
    epsilon: f32,
    #[comptime] with_gradient: bool,
    #[comptime] with_rounded: bool,
    #[define(R)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at < vectors as usize {
        let mut first = Vector::new(beta1) * exp_avg[at];
        let mut second = Vector::new(beta2) * exp_avg_sq[at];
        if with_gradient {
            let scaled = gradient[at] * Vector::new(gradient_scale);
            first += Vector::new(one_minus_beta1) * scaled;
            second += Vector::new(one_minus_beta2) * scaled * scaled;
        }
        let root = second.sqrt() * Vector::new(root_scale) + Vector::new(epsilon);
        let keep = select((at as u32) < decaying, keep, 1.0f32);
        let value = values[at] * Vector::new(keep) - Vector::new(step_size) * first / root;
        new_exp_avg[at] = first;
        new_exp_avg_sq[at] = second;
        new_values[at] = value;
        if with_rounded {
            rounded[at] = Vector::cast_from(value);
        }
    }
}
