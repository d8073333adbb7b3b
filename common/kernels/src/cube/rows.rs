//! Picking rows of a matrix and putting them back: one launch forward, one backward, without atomics. The host sends four bytes a row.

use super::{
    Backend, MOST_VALUES, UNITS, cubes_of_units, element, empty, incoming, matrix, record, rows_and_width, vector_size,
};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// See [`crate::embedding`].
pub fn embedding(weight: &Tensor<2>, ids: &[u32]) -> Option<Tensor<2>> {
    pick(weight, ids.to_vec())
}

/// See [`crate::select_rows`].
pub fn select_rows(x: &Tensor<2>, positions: &[usize]) -> Option<Tensor<2>> {
    pick(x, positions.iter().map(|&position| position as u32).collect())
}

fn pick(table: &Tensor<2>, rows: Vec<u32>) -> Option<Tensor<2>> {
    let table = matrix(table)?;
    let [available, width] = rows_and_width(&table.values);
    // A row that is not there: the plain composition says so in its own words.
    if rows.iter().any(|&row| row as usize >= available) || rows.len() * width > MOST_VALUES {
        return None;
    }
    let output = gathered(&table.values, &numbers(&table.values, &rows), rows.len());
    Some(record(Pick, [table.node], || (rows, available), output))
}

/// Numbers on the device of `like`.
fn numbers(like: &CubeTensor, numbers: &[u32]) -> CubeTensor {
    let handle = like.client.create_from_slice(bytemuck::cast_slice(numbers));
    CubeTensor::new_contiguous(like.client.clone(), like.device.clone(), [numbers.len()].into(), handle, DType::U32)
}

/// Rows of `table`.
fn gathered(table: &CubeTensor, rows: &CubeTensor, count: usize) -> CubeTensor {
    let [_, width] = rows_and_width(table);
    let output = empty(table, [count, width], table.dtype);
    let size = vector_size(width, &[table]);
    let units = count * width / size;
    if units > 0 {
        gather::launch(
            &table.client,
            cubes_of_units(table, units),
            CubeDim::new_1d(UNITS),
            size,
            table.clone().into_tensor_arg(),
            rows.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            units as u32,
            (width / size) as u32,
            element(table),
        );
    }
    output
}

/// A unit for each vector of the output.
#[cube(launch)]
fn gather<F: Float, N: Size>(
    table: &Buffer<Vector<F, N>>,
    rows: &Buffer<u32>,
    output: &mut Buffer<Vector<F, N>>,
    units: u32,
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS as u32;
    if unit < units {
        let row = rows[(unit / vectors) as usize];
        output[unit as usize] = table[row as usize * vectors as usize + (unit % vectors) as usize];
    }
}

/// A unit for each vector of the table: the sum of the gradients of its row's copies, in their order.
#[cube(launch)]
fn sum_of_copies<F: Float, N: Size>(
    gradient: &Buffer<Vector<F, N>>,
    starts: &Buffer<u32>,
    copies: &Buffer<u32>,
    output: &mut Buffer<Vector<F, N>>,
    units: u32,
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS as u32;
    if unit < units {
        let row = unit / vectors;
        let at = unit % vectors;
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for copy in starts[row as usize]..starts[row as usize + 1] {
            sum += Vector::<f32, N>::cast_from(gradient[(copies[copy as usize] * vectors + at) as usize]);
        }
        output[unit as usize] = Vector::cast_from(sum);
    }
}

#[derive(Debug)]
struct Pick;

impl Backward<Backend, 1> for Pick {
    type State = (Vec<u32>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let (rows, available) = ops.state;
        let [_, width] = rows_and_width(&gradient);
        let output = empty(&gradient, [available, width], gradient.dtype);
        let size = vector_size(width, &[&gradient]);
        let units = available * width / size;
        if units > 0 {
            let mut starts = vec![0u32; available + 1];
            rows.iter().for_each(|&row| starts[row as usize + 1] += 1);
            (0..available).for_each(|row| starts[row + 1] += starts[row]);
            let mut copies: Vec<u32> = (0..rows.len() as u32).collect();
            copies.sort_by_key(|&copy| rows[copy as usize]);
            // Memory of no bytes cannot be shown to a kernel; of no copies nothing is read.
            copies.push(0);
            let from = if rows.is_empty() { empty(&gradient, [1, width], gradient.dtype) } else { gradient.clone() };
            sum_of_copies::launch(
                &gradient.client,
                cubes_of_units(&gradient, units),
                CubeDim::new_1d(UNITS),
                size,
                from.into_tensor_arg(),
                numbers(&gradient, &starts).into_tensor_arg(),
                numbers(&gradient, &copies).into_tensor_arg(),
                output.clone().into_tensor_arg(),
                units as u32,
                (width / size) as u32,
                element(&gradient),
            );
        }
        if let [Some(parent)] = ops.parents {
            gradients.register::<Backend>(parent.id, output);
        }
    }
}

/// See [`crate::replace_rows`].
pub fn replace_rows(x: &Tensor<2>, positions: &[usize], rows: &Tensor<2>) -> Option<Tensor<2>> {
    let (x, rows) = (matrix(x)?, matrix(rows)?);
    let [tokens, width] = rows_and_width(&x.values);
    let fits = rows_and_width(&rows.values) == [positions.len(), width] && rows.values.dtype == x.values.dtype;
    if !fits || positions.iter().any(|&position| position >= tokens) {
        return None;
    }
    // For each token 0, or the number of its row in `rows` from 1 on.
    let mut sources = vec![0u32; tokens];
    (1..).zip(positions).for_each(|(row, &position)| sources[position] = row);
    let sources = numbers(&x.values, &sources);
    // Memory of no bytes cannot be shown to a kernel.
    let from = if positions.is_empty() { &x.values } else { &rows.values };
    let output = merged(&x.values, from, &sources, false);
    let positions = positions.iter().map(|&position| position as u32).collect();
    Some(record(Replace, [x.node, rows.node], || (positions, sources), output))
}

/// x with rows replaced as `sources` say: by those of `rows`, or by zeros.
fn merged(x: &CubeTensor, rows: &CubeTensor, sources: &CubeTensor, zeros: bool) -> CubeTensor {
    let [tokens, width] = rows_and_width(x);
    let output = empty(x, [tokens, width], x.dtype);
    let size = vector_size(width, &[x, rows]);
    let units = tokens * width / size;
    if units > 0 {
        merge::launch(
            &x.client,
            cubes_of_units(x, units),
            CubeDim::new_1d(UNITS),
            size,
            x.clone().into_tensor_arg(),
            rows.clone().into_tensor_arg(),
            sources.clone().into_tensor_arg(),
            output.clone().into_tensor_arg(),
            units as u32,
            (width / size) as u32,
            zeros,
            element(x),
        );
    }
    output
}

/// A unit for each vector.
#[cube(launch)]
fn merge<F: Float, N: Size>(
    x: &Buffer<Vector<F, N>>,
    rows: &Buffer<Vector<F, N>>,
    sources: &Buffer<u32>,
    output: &mut Buffer<Vector<F, N>>,
    units: u32,
    vectors: u32,
    #[comptime] zeros: bool,
    #[define(F)] _dtype: ElemType,
) {
    let unit = ABSOLUTE_POS as u32;
    if unit < units {
        let source = sources[(unit / vectors) as usize];
        let at = unit as usize;
        if source == 0 {
            output[at] = x[at];
        } else if zeros {
            output[at] = Vector::cast_from(Vector::<f32, N>::new(0.0f32));
        } else {
            output[at] = rows[((source - 1) * vectors + unit % vectors) as usize];
        }
    }
}

#[derive(Debug)]
struct Replace;

impl Backward<Backend, 2> for Replace {
    type State = (Vec<u32>, CubeTensor);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let (positions, sources) = ops.state;
        let [x, rows] = ops.parents;
        if let Some(rows) = rows {
            let taken = gathered(&gradient, &numbers(&gradient, &positions), positions.len());
            gradients.register::<Backend>(rows.id, taken);
        }
        if let Some(x) = x {
            gradients.register::<Backend>(x.id, merged(&gradient, &gradient, &sources, true));
        }
    }
}
