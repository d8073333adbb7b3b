//! Picking rows of a matrix and putting them back: embedding, selection, replacement.

use super::matrix::Matrix;
use super::operand::{self, floats, incoming, record, zeros};
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Writes rows `[new, heads · width]` behind the first `len` rows of each head of a cache `[heads, capacity, width]`, which is given back
/// unchanged on another backend, or where rows have a gradient.
///
/// # Panics
/// If the cache has no room for the rows.
#[allow(clippy::result_large_err)] // no error: the cache, given back
pub fn append_rows(cache: Tensor<3>, rows: &Tensor<2>, len: usize) -> Result<Tensor<3>, Tensor<3>> {
    let Some(rows) = operand::operand(rows).filter(|rows| !rows.node.tracked()) else { return Err(cache) };
    let Some(operand) = operand::operand(&cache) else { return Err(cache) };
    let shape = cache.dims();
    let ([heads, capacity, width], [new, _]) = (shape, operand::dims(&rows.values));
    assert!(len + new <= capacity, "{len} rows and {new} new ones in a cache for {capacity}");
    // Lets go of the cache's memory, so that it is written in place.
    drop(cache);
    let mut values = operand::own(operand.values);
    for (index, row) in floats(&rows.values).chunks_exact((heads * width).max(1)).enumerate() {
        for (head, row) in row.chunks_exact(width.max(1)).enumerate() {
            values[(head * capacity + len + index) * width..][..width].copy_from_slice(row);
        }
    }
    Ok(operand.node.constant(operand::tensor(values, shape)))
}

/// See [`crate::embedding`].
pub fn embedding(weight: &Tensor<2>, ids: &[u32]) -> Option<Tensor<2>> {
    pick(weight, ids.iter().map(|&id| id as usize).collect())
}

/// See [`crate::select_rows`].
pub fn select_rows(x: &Tensor<2>, positions: &[usize]) -> Option<Tensor<2>> {
    pick(x, positions.to_vec())
}

fn pick(table: &Tensor<2>, rows: Vec<usize>) -> Option<Tensor<2>> {
    let table = operand::operand(table)?;
    let [available, width] = operand::dims(&table.values);
    // A row that is not there: the plain composition says so in its own words.
    if rows.iter().any(|&row| row >= available) {
        return None;
    }
    let values = floats(&table.values);
    let mut output = Vec::with_capacity(rows.len() * width);
    rows.iter().for_each(|&row| output.extend_from_slice(&values[row * width..][..width]));
    let output = operand::tensor(output, [rows.len(), width]);
    Some(record(Pick, [table.node], || (rows, available), output))
}

#[derive(Debug)]
struct Pick;

impl Backward<Flex, 1> for Pick {
    type State = (Vec<usize>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let (rows, available) = ops.state;
        let [_, width] = operand::dims(&gradient);
        let mut table = zeros(available * width);
        for (&row, gradient) in rows.iter().zip(floats(&gradient).chunks_exact(width.max(1))) {
            let to = &mut table[row * width..][..width];
            to.iter_mut().zip(gradient).for_each(|(to, gradient)| *to += gradient);
        }
        if let [Some(parent)] = ops.parents {
            gradients.register::<Flex>(parent.id, operand::tensor(table, [available, width]));
        }
    }
}

/// See [`crate::replace_rows`].
pub fn replace_rows(x: &Tensor<2>, positions: &[usize], rows: &Tensor<2>) -> Option<Tensor<2>> {
    let (x, rows) = (operand::operand(x)?, operand::operand(rows)?);
    let [tokens, width] = operand::dims(&x.values);
    if positions.iter().any(|&position| position >= tokens) || operand::dims(&rows.values) != [positions.len(), width] {
        return None;
    }
    let mut output = floats(&x.values).to_vec();
    for (&position, row) in positions.iter().zip(floats(&rows.values).chunks_exact(width.max(1))) {
        output[position * width..][..width].copy_from_slice(row);
    }
    let output = operand::tensor(output, [tokens, width]);
    Some(record(Replace, [x.node, rows.node], || positions.to_vec(), output))
}

#[derive(Debug)]
struct Replace;

impl Backward<Flex, 2> for Replace {
    type State = Vec<usize>;

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let [tokens, width] = operand::dims(&gradient);
        let mut gradient = operand::own(gradient);
        let [x, rows] = ops.parents;
        if let Some(rows) = rows {
            let taken = ops.state.iter().flat_map(|&position| &gradient[position * width..][..width]).copied();
            let taken = operand::tensor(taken.collect(), [ops.state.len(), width]);
            gradients.register::<Flex>(rows.id, taken);
        }
        if let Some(x) = x {
            ops.state.iter().for_each(|&position| gradient[position * width..][..width].fill(0.0));
            gradients.register::<Flex>(x.id, operand::tensor(gradient, [tokens, width]));
        }
    }
}

/// The total of every column: summed within groups of rows, then over the groups in order.
pub fn column_sums(matrix: Matrix) -> Vec<f32> {
    const ROWS: usize = 64;
    let groups: Vec<Vec<f32>> = (0..matrix.rows.div_ceil(ROWS))
        .into_par_iter()
        .map(|group| {
            let mut totals = vec![0.0; matrix.columns];
            for row in group * ROWS..matrix.rows.min((group + 1) * ROWS) {
                totals.iter_mut().zip(matrix.row(row)).for_each(|(total, value)| *total += value);
            }
            totals
        })
        .collect();
    let mut totals = vec![0.0; matrix.columns];
    for group in groups {
        totals.iter_mut().zip(group).for_each(|(total, value)| *total += value);
    }
    totals
}
