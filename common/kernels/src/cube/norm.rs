//! RMSNorm and LayerNorm: one launch forward, one for the gradient of x, two for those of weight and bias where they are trained.

use super::reduce::column_totals;
use super::{
    Backend, UNITS, cube_of_row, cube_sum, cubes, element, empty, incoming, matrix, record, rows_and_width, vector,
    vector_size,
};
use crate::LinearInput;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// See [`crate::rms_norm`].
pub fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, eps: f64) -> Option<LinearInput> {
    let x = matrix(x)?;
    let [_, width] = rows_and_width(&x.values);
    let weight = vector(weight, width)?;
    let (output, saved) = forward(x.values, weight.values, None, eps as f32);
    let output: Tensor<2> = record(Norm, [x.node, weight.node], || saved, output);
    Some(output.into())
}

/// See [`crate::layer_norm`].
pub fn layer_norm(x: &Tensor<2>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f64) -> Option<LinearInput> {
    let x = matrix(x)?;
    let [_, width] = rows_and_width(&x.values);
    let (weight, bias) = (vector(weight, width)?, vector(bias, width)?);
    if bias.values.dtype != weight.values.dtype {
        return None;
    }
    let (output, saved) = forward(x.values, weight.values, Some(bias.values), eps as f32);
    let output: Tensor<2> = record(Norm, [x.node, weight.node, bias.node], || saved, output);
    Some(output.into())
}

/// What the backward steps need.
#[derive(Clone, Debug)]
struct Saved {
    x: CubeTensor,
    weight: CubeTensor,
    /// Mean and inverse deviation of every row, f32 `[rows, 2]`; the mean is 0 in RMSNorm.
    statistics: CubeTensor,
    /// LayerNorm.
    centre: bool,
}

fn forward(x: CubeTensor, weight: CubeTensor, bias: Option<CubeTensor>, eps: f32) -> (CubeTensor, Saved) {
    let [rows, width] = rows_and_width(&x);
    let (output, statistics) = (empty(&x, [rows, width], x.dtype), empty(&x, [rows, 2], DType::F32));
    let size = vector_size(width, &[&x, &weight]);
    let centre = bias.is_some();
    if rows * width > 0 {
        let bias = bias.unwrap_or_else(|| weight.clone());
        let size = bias_fits(size, width, &bias);
        norm_forward::launch(
            &x.client,
            cubes(&x, rows),
            cube_of_row(width / size),
            size,
            x.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            bias.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            statistics.clone().into_tensor_arg(),
            rows as u32,
            (width / size) as u32,
            width as f32,
            eps,
            centre,
            [element(&x), element(&weight)],
        );
    }
    (output, Saved { x, weight, statistics, centre })
}

fn bias_fits(size: usize, width: usize, bias: &CubeTensor) -> usize {
    size.min(vector_size(width, &[bias]))
}

/// A cube for each row.
#[cube(launch)]
fn norm_forward<F: Float, W: Float, N: Size>(
    x: &Buffer<Vector<F, N>>,
    weight: &Buffer<Vector<W, N>>,
    bias: &Buffer<Vector<W, N>>,
    output: &mut Buffer<Vector<F, N>>,
    statistics: &mut Buffer<f32>,
    rows: u32,
    vectors: u32,
    width: f32,
    eps: f32,
    #[comptime] centre: bool,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row < rows as usize {
        let base = row * vectors as usize;
        let steps = vectors.div_ceil(CUBE_DIM);
        let mut mean = 0.0f32;
        if centre {
            let mut sum = 0.0f32;
            for step in 0..steps {
                let at = step * CUBE_DIM + UNIT_POS;
                if at < vectors {
                    sum += Vector::<f32, N>::cast_from(x[base + at as usize]).vector_sum();
                }
            }
            mean = cube_sum(sum) / width;
        }
        let mut squares = 0.0f32;
        for step in 0..steps {
            let at = step * CUBE_DIM + UNIT_POS;
            if at < vectors {
                let centred = Vector::<f32, N>::cast_from(x[base + at as usize]) - Vector::new(mean);
                squares += (centred * centred).vector_sum();
            }
        }
        let inverse = 1.0f32 / (cube_sum(squares) / width + eps).sqrt();
        for step in 0..steps {
            let at = step * CUBE_DIM + UNIT_POS;
            if at < vectors {
                let centred = Vector::<f32, N>::cast_from(x[base + at as usize]) - Vector::new(mean);
                let normed = centred * Vector::new(inverse);
                if centre {
                    let weight = Vector::<f32, N>::cast_from(weight[at as usize]);
                    let bias = Vector::<f32, N>::cast_from(bias[at as usize]);
                    output[base + at as usize] = Vector::cast_from(normed * weight + bias);
                } else {
                    // As the definition: normed values and weight are in the activations' dtype when they are multiplied.
                    let weight = Vector::<f32, N>::cast_from(Vector::<F, N>::cast_from(weight[at as usize]));
                    let normed = Vector::<f32, N>::cast_from(Vector::<F, N>::cast_from(normed));
                    output[base + at as usize] = Vector::cast_from(normed * weight);
                }
            }
        }
        if UNIT_POS == 0 {
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = inverse;
        }
    }
}

/// A cube for each row: `(g ∘ w − mean(g ∘ w) − x̂ · mean(g ∘ w ∘ x̂)) · inverse`, without the first mean in RMSNorm.
#[cube(launch)]
fn input_gradient<F: Float, W: Float, N: Size>(
    x: &Buffer<Vector<F, N>>,
    weight: &Buffer<Vector<W, N>>,
    gradient: &Buffer<Vector<F, N>>,
    statistics: &Buffer<f32>,
    of_x: &mut Buffer<Vector<F, N>>,
    rows: u32,
    vectors: u32,
    width: f32,
    #[comptime] centre: bool,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let row = CUBE_POS;
    if row < rows as usize {
        let base = row * vectors as usize;
        let steps = vectors.div_ceil(CUBE_DIM);
        let mean = statistics[2 * row];
        let inverse = statistics[2 * row + 1];
        let mut level = 0.0f32;
        let mut along = 0.0f32;
        for step in 0..steps {
            let at = step * CUBE_DIM + UNIT_POS;
            if at < vectors {
                let weighted = Vector::<f32, N>::cast_from(gradient[base + at as usize])
                    * Vector::<f32, N>::cast_from(weight[at as usize]);
                let centred = Vector::<f32, N>::cast_from(x[base + at as usize]) - Vector::new(mean);
                along += (weighted * (centred * Vector::new(inverse))).vector_sum();
                if centre {
                    level += weighted.vector_sum();
                }
            }
        }
        let along = cube_sum(along) / width;
        let mut level_mean = 0.0f32;
        if centre {
            level_mean = cube_sum(level) / width;
        }
        for step in 0..steps {
            let at = step * CUBE_DIM + UNIT_POS;
            if at < vectors {
                let weighted = Vector::<f32, N>::cast_from(gradient[base + at as usize])
                    * Vector::<f32, N>::cast_from(weight[at as usize]);
                let centred = Vector::<f32, N>::cast_from(x[base + at as usize]) - Vector::new(mean);
                let normed = centred * Vector::new(inverse);
                let value = (weighted - Vector::new(level_mean) - normed * Vector::new(along)) * Vector::new(inverse);
                of_x[base + at as usize] = Vector::cast_from(value);
            }
        }
    }
}

/// Columns of a cube of [`parameter_gradients`], each shared by [`LANES`] units.
const COLUMNS: u32 = 32;
/// Units that share a column.
const LANES: u32 = UNITS / COLUMNS;
/// Cubes that keep a large GPU busy.
const CUBES: usize = 512;

/// A cube for each group of rows and each [`COLUMNS`] columns: Σ g ∘ x̂ and Σ g over the group's rows, `[groups, width]` each.
#[cube(launch)]
fn parameter_gradients<F: Float>(
    x: &Buffer<F>,
    gradient: &Buffer<F>,
    statistics: &Buffer<f32>,
    of_weight: &mut Buffer<f32>,
    of_bias: &mut Buffer<f32>,
    rows: u32,
    width: u32,
    group_rows: u32,
    column_cubes: u32,
    #[comptime] with_bias: bool,
    #[define(F)] _dtype: ElemType,
) {
    let mut weight_sums = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut bias_sums = Shared::<[f32]>::new_slice(UNITS as usize);
    let group = CUBE_POS as u32 / column_cubes;
    let column = CUBE_POS as u32 % column_cubes * COLUMNS + UNIT_POS % COLUMNS;
    let lane = UNIT_POS / COLUMNS;
    let mut weight_sum = 0.0f32;
    let mut bias_sum = 0.0f32;
    if column < width {
        for step in 0..group_rows.div_ceil(LANES) {
            let row_of_group = step * LANES + lane;
            let row = group * group_rows + row_of_group;
            if row_of_group < group_rows && row < rows {
                let at = row as usize * width as usize + column as usize;
                let g = f32::cast_from(gradient[at]);
                let normed = (f32::cast_from(x[at]) - statistics[2 * row as usize]) * statistics[2 * row as usize + 1];
                weight_sum += g * normed;
                bias_sum += g;
            }
        }
    }
    weight_sums[UNIT_POS as usize] = weight_sum;
    bias_sums[UNIT_POS as usize] = bias_sum;
    sync_cube();
    if lane == 0 && column < width && group * group_rows < rows {
        let mut weight_total = 0.0f32;
        let mut bias_total = 0.0f32;
        for lane in 0..LANES {
            weight_total += weight_sums[(lane * COLUMNS + UNIT_POS) as usize];
            bias_total += bias_sums[(lane * COLUMNS + UNIT_POS) as usize];
        }
        let at = group as usize * width as usize + column as usize;
        of_weight[at] = weight_total;
        if with_bias {
            of_bias[at] = bias_total;
        }
    }
}

impl Saved {
    fn input_gradient(&self, gradient: &CubeTensor) -> CubeTensor {
        let Self { x, weight, statistics, centre } = self;
        let [rows, width] = rows_and_width(x);
        let output = empty(x, [rows, width], x.dtype);
        let size = vector_size(width, &[x, weight, gradient]);
        if rows * width > 0 {
            input_gradient::launch(
                &x.client,
                cubes(x, rows),
                cube_of_row(width / size),
                size,
                x.clone().into_tensor_arg(),
                weight.clone().into_tensor_arg(),
                gradient.clone().into_tensor_arg(),
                statistics.clone().into_tensor_arg(),
                output.clone().into_tensor_arg(),
                rows as u32,
                (width / size) as u32,
                width as f32,
                *centre,
                [element(x), element(weight)],
            );
        }
        output
    }

    /// Gradients of weight and bias.
    fn parameter_gradients(&self, gradient: &CubeTensor) -> (CubeTensor, Option<CubeTensor>) {
        let Self { x, weight, statistics, centre } = self;
        let [rows, width] = rows_and_width(x);
        let column_cubes = width.div_ceil(COLUMNS as usize).max(1);
        let group_rows = rows.div_ceil((CUBES / column_cubes).max(1)).max(LANES as usize);
        let groups = rows.div_ceil(group_rows);
        let sums = || empty(x, [groups, width], DType::F32);
        let (of_weight, of_bias) = (sums(), if *centre { sums() } else { empty(x, [1, 1], DType::F32) });
        if groups * width > 0 {
            parameter_gradients::launch(
                &x.client,
                cubes(x, groups * column_cubes),
                CubeDim::new_1d(UNITS),
                x.clone().into_tensor_arg(),
                gradient.clone().into_tensor_arg(),
                statistics.clone().into_tensor_arg(),
                of_weight.clone().into_tensor_arg(),
                of_bias.clone().into_tensor_arg(),
                rows as u32,
                width as u32,
                group_rows as u32,
                column_cubes as u32,
                *centre,
                element(x),
            );
        }
        let totals = |partial: CubeTensor| column_totals(&partial, groups, width, weight.dtype);
        (totals(of_weight), centre.then(|| totals(of_bias)))
    }
}

/// Parents are x, weight and, in LayerNorm, bias.
#[derive(Debug)]
struct Norm;

impl<const N: usize> Backward<Backend, N> for Norm {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let mut parents = ops.parents.into_iter();
        let mut next = || parents.next().flatten();
        let (x, weight, bias) = (next(), next(), next());
        if let Some(x) = x {
            gradients.register::<Backend>(x.id, ops.state.input_gradient(&gradient));
        }
        if weight.is_some() || bias.is_some() {
            let (of_weight, of_bias) = ops.state.parameter_gradients(&gradient);
            if let Some(weight) = weight {
                gradients.register::<Backend>(weight.id, of_weight);
            }
            if let (Some(bias), Some(of_bias)) = (bias, of_bias) {
                gradients.register::<Backend>(bias.id, of_bias);
            }
        }
    }
}
