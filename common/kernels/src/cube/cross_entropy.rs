//! Projection and cross entropy together, some rows at a time: the logits of all rows never exist at once. Gradients are made in
//! the forward pass, from the logits while they are there; the backward step multiplies them by the incoming number.

use super::accumulate::accumulate;
use super::{
    Backend, UNITS, cube_max, cube_sum, cubes, cubes_of_units, element, empty, matrix, record, rows_and_width, total,
    vector_size,
};
use crate::{CrossEntropies, GradientPart, product};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// Logits that exist at once: 128 MB in bf16.
const LOGITS: usize = 64 << 20;

/// See [`crate::cross_entropy_sum`].
pub fn cross_entropy_sum(hidden: &Tensor<2>, weight: &Tensor<2>, targets: &[u32]) -> Option<CrossEntropies> {
    in_chunks(hidden, weight, targets, LOGITS)
}

/// With so many logits at once.
pub(super) fn in_chunks(
    hidden: &Tensor<2>,
    weight: &Tensor<2>,
    targets: &[u32],
    logits: usize,
) -> Option<CrossEntropies> {
    let (hidden, weight) = (matrix(hidden)?, matrix(weight)?);
    let ([rows, _], [vocabulary, _]) = (rows_and_width(&hidden.values), rows_and_width(&weight.values));
    let is_for_this = hidden.values.dtype == weight.values.dtype && targets.len() == rows && rows > 0;
    if !is_for_this || targets.iter().any(|&target| target as usize >= vocabulary) {
        return None;
    }
    let like = &hidden.values;
    let handle = like.client.create_from_slice(bytemuck::cast_slice(targets));
    let targets =
        CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), [rows].into(), handle, DType::U32);
    let losses = empty(like, [rows], DType::F32);
    let tensor = |values: &CubeTensor| Tensor::<2>::from_primitive::<Backend>(values.clone());
    let (all, head) = (tensor(&hidden.values), tensor(&weight.values));
    let (mut of_hidden, mut of_weight) = (Vec::new(), OfWeight::None);
    let is_tracked = hidden.node.tracked() || weight.node.tracked();
    let at_once = rows.div_ceil(rows.div_ceil((logits / vocabulary).max(1)));
    for first in (0..rows).step_by(at_once) {
        let count = at_once.min(rows - first);
        let hidden_rows = all.clone().narrow(0, first, count);
        let logits = product(hidden_rows.clone(), head.clone().transpose()).try_into_primitive::<Backend>().ok()?;
        let logits = with_dense_rows(logits);
        losses_of(&logits, &targets, &losses, first, is_tracked);
        let logits = Tensor::<2>::from_primitive::<Backend>(logits);
        if weight.node.tracked() {
            of_weight = of_weight.add(product(logits.clone().transpose(), hidden_rows))?;
        }
        if hidden.node.tracked() {
            of_hidden.push(product(logits, head.clone()));
        }
    }
    let primitive = |tensor: Tensor<2>| tensor.try_into_primitive::<Backend>().ok().map(into_contiguous);
    let of_hidden = if of_hidden.is_empty() { None } else { Some(primitive(Tensor::cat(of_hidden, 0))?) };
    let [_, width] = rows_and_width(&weight.values);
    let of_weight = match of_weight {
        OfWeight::None => None,
        OfWeight::One(part) => Some(primitive(part)?),
        OfWeight::Sum(sum) => Some(primitive(sum.reshape([vocabulary, width]))?),
    };
    let state = Saved { of_hidden, of_weight, weight_dtype: weight.values.dtype };
    let sum = total(&losses, rows, false);
    let rows = Tensor::from_primitive::<Backend>(losses);
    Some(CrossEntropies { sum: record(CrossEntropy, [hidden.node, weight.node], || state, sum), rows })
}

/// The gradient of the weight so far: that of one chunk of rows in its dtype, the sum of several in f32.
enum OfWeight {
    None,
    One(Tensor<2>),
    Sum(Tensor<1>),
}

impl OfWeight {
    fn add(self, part: Tensor<2>) -> Option<Self> {
        let added = |sum: Option<Tensor<1>>, part: Tensor<2>| {
            let range = 0..part.shape().num_elements();
            accumulate(sum, vec![GradientPart { range, values: Some(part) }]).ok()
        };
        Some(match self {
            Self::None => Self::One(part),
            Self::One(first) => Self::Sum(added(Some(added(None, first)?), part)?),
            Self::Sum(sum) => Self::Sum(added(Some(sum), part)?),
        })
    }
}

/// The matrix with values that lie side by side in every row; rows may lie apart.
fn with_dense_rows(x: CubeTensor) -> CubeTensor {
    if x.meta.strides()[1] == 1 && !x.meta.is_tiled() { x } else { into_contiguous(x) }
}

/// Writes the losses of rows `first..` of the batch from their logits; with `gradient`, the logits become the gradients of the loss.
fn losses_of(logits: &CubeTensor, targets: &CubeTensor, losses: &CubeTensor, first: usize, gradient: bool) {
    let [rows, vocabulary] = rows_and_width(logits);
    let stride = if rows > 1 { logits.meta.strides()[0] } else { vocabulary };
    let size = vector_size(vocabulary, &[logits]);
    let size = if stride.is_multiple_of(size) { size } else { 1 };
    row_losses::launch(
        &logits.client,
        cubes(logits, rows),
        CubeDim::new_1d(UNITS),
        size,
        logits.clone().into_tensor_arg(),
        targets.clone().into_tensor_arg(),
        losses.clone().into_tensor_arg(),
        first as u32,
        rows as u32,
        (stride / size) as u32,
        (vocabulary / size) as u32,
        gradient,
        element(logits),
    );
}

/// A cube for each row.
#[cube(launch)]
fn row_losses<F: Float, N: Size>(
    logits: &mut Buffer<Vector<F, N>>,
    targets: &Buffer<u32>,
    losses: &mut Buffer<f32>,
    first: u32,
    rows: u32,
    stride: u32,
    vectors: u32,
    #[comptime] gradient: bool,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS as u32;
    if row < rows {
        let lanes = N::value() as u32;
        let base = (row * stride) as usize;
        let steps = vectors.div_ceil(CUBE_DIM);
        let target = targets[(first + row) as usize];
        // Below every finite logit. Exponentials are summed relative to the largest so far.
        let mut largest = Vector::<f32, N>::new(-3.402_823_5e38f32);
        let mut sums = Vector::<f32, N>::new(0.0f32);
        for step in 0..steps {
            let at = step * CUBE_DIM + UNIT_POS;
            if at < vectors {
                let logit = Vector::<f32, N>::cast_from(logits[base + at as usize]);
                let larger = largest.max(logit);
                sums = sums * (largest - larger).exp() + (logit - larger).exp();
                largest = larger;
            }
        }
        let mut of_unit = largest.extract(0usize);
        #[unroll]
        for lane in 1..N::value() {
            of_unit = of_unit.max(largest.extract(lane));
        }
        let of_row = cube_max(of_unit);
        let sum = cube_sum((sums * (largest - Vector::new(of_row)).exp()).vector_sum());
        if UNIT_POS == 0 {
            let picked = Vector::<f32, N>::cast_from(logits[base + (target / lanes) as usize]);
            let picked = picked.extract_dynamic((target % lanes) as usize);
            losses[(first + row) as usize] = sum.ln() + of_row - picked;
        }
        if gradient {
            sync_cube();
            let inverse = 1.0f32 / sum;
            for step in 0..steps {
                let at = step * CUBE_DIM + UNIT_POS;
                if at < vectors {
                    let logit = Vector::<f32, N>::cast_from(logits[base + at as usize]);
                    let mut value = (logit - Vector::new(of_row)).exp() * Vector::new(inverse);
                    if at == target / lanes {
                        #[unroll]
                        for lane in 0..N::value() {
                            let one = select(target % lanes == lane as u32, 1.0f32, 0.0f32);
                            value.insert(lane, value.extract(lane) - one);
                        }
                    }
                    logits[base + at as usize] = Vector::cast_from(value);
                }
            }
        }
    }
}

/// `factor · x` in another dtype; a unit for each value.
#[cube(launch)]
fn multiply<F: Float, O: Float>(
    x: &Buffer<F>,
    factor: &Buffer<f32>,
    output: &mut Buffer<O>,
    values: u32,
    #[define(F, O)] _dtypes: [ElemType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < values as usize {
        output[at] = O::cast_from(f32::cast_from(x[at]) * factor[0]);
    }
}

fn multiplied(x: &CubeTensor, factor: &CubeTensor, dtype: DType) -> CubeTensor {
    let [rows, width] = rows_and_width(x);
    let output = empty(x, [rows, width], dtype);
    if rows * width > 0 {
        multiply::launch(
            &x.client,
            cubes_of_units(x, rows * width),
            CubeDim::new_1d(UNITS),
            x.clone().into_tensor_arg(),
            factor.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            (rows * width) as u32,
            [element(x), element(&output)],
        );
    }
    output
}

#[derive(Clone, Debug)]
struct Saved {
    of_hidden: Option<CubeTensor>,
    /// In the weight's dtype, or f32.
    of_weight: Option<CubeTensor>,
    weight_dtype: DType,
}

#[derive(Debug)]
struct CrossEntropy;

impl Backward<Backend, 2> for CrossEntropy {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let factor = super::incoming(&ops, gradients);
        let Saved { of_hidden, of_weight, weight_dtype } = ops.state;
        let [hidden, weight] = ops.parents;
        if let (Some(hidden), Some(gradient)) = (hidden, of_hidden) {
            gradients.register::<Backend>(hidden.id, multiplied(&gradient, &factor, gradient.dtype));
        }
        if let (Some(weight), Some(gradient)) = (weight, of_weight) {
            gradients.register::<Backend>(weight.id, multiplied(&gradient, &factor, weight_dtype));
        }
    }
}
