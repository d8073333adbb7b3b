//! A block's gradient between the backward pass and the optimizer. A table of rows of which a batch touches few (the
//! token embeddings) has a gradient of these rows only.

use crate::buffers::Buffers;
use crate::on_device::DeviceGradient;
use burn::module::ParamId;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Values in a task of the passes over a gradient: fixed, so that sums are the same for any number of threads.
const CHUNK: usize = 1 << 16;

const STAYS: &str = "a gradient on a device is taken by the optimizer there";

/// What a backward pass found for a block.
#[derive(Clone)]
pub enum BlockGradient {
    /// For each of the block's parameters, in the layout's order, a value for each of its own.
    Params(Vec<Vec<f32>>),
    /// Rows of the block's only parameter, by their number; all others' gradient is zero.
    Rows(BTreeMap<usize, Vec<f32>>),
    /// Tensors, where the optimizer is on the model's device.
    OnDevice(Box<DeviceGradient>),
}

impl BlockGradient {
    /// The values of all parameters, one after another, and the block's padding: `padded_len` in all.
    pub fn into_flat(self, padded_len: usize, buffers: &Buffers) -> Vec<f32> {
        let mut flat = buffers.take(padded_len);
        match self {
            Self::Params(params) => {
                let mut filled = 0;
                for values in params {
                    flat[filled..filled + values.len()].copy_from_slice(&values);
                    filled += values.len();
                }
                flat[filled..].fill(0.0);
            }
            Self::Rows(rows) => {
                flat.fill(0.0);
                add_rows(&mut flat, &rows);
            }
            Self::OnDevice(_) => unreachable!("{STAYS}"),
        }
        flat
    }

    /// Its slices, in order; between them there are only zeros.
    pub fn slices(&self) -> Vec<&[f32]> {
        match self {
            Self::Params(params) => params.iter().map(Vec::as_slice).collect(),
            Self::Rows(rows) => rows.values().map(Vec::as_slice).collect(),
            Self::OnDevice(_) => unreachable!("{STAYS}"),
        }
    }

    /// Adds a gradient of the same block.
    pub fn add(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Params(sums), Self::Params(params)) => {
                sums.iter_mut().zip(&params).for_each(|(sum, values)| add_values(sum, values));
            }
            (Self::Params(sums), Self::Rows(rows)) => sums.iter_mut().for_each(|sum| add_rows(sum, &rows)),
            (Self::Rows(rows), Self::Params(mut params)) => {
                params.iter_mut().for_each(|values| add_rows(values, rows));
                *self = Self::Params(params);
            }
            (Self::Rows(sums), Self::Rows(rows)) => {
                for (row, values) in rows {
                    match sums.get_mut(&row) {
                        Some(sum) => add_values(sum, &values),
                        None => _ = sums.insert(row, values),
                    }
                }
            }
            (Self::OnDevice(sum), Self::OnDevice(other)) => sum.add(*other),
            (Self::OnDevice(_), _) | (_, Self::OnDevice(_)) => unreachable!("{STAYS}"),
        }
    }
}

/// Sum of squares of gradients, in f64; not finite if a gradient is not.
pub fn squared_norm<'a>(gradients: impl Iterator<Item = &'a [f32]>) -> f64 {
    let chunks: Vec<&[f32]> = gradients.flat_map(|gradient| gradient.chunks(CHUNK)).collect();
    // Within a chunk in eight lanes, over chunks in order.
    let of_chunk = |chunk: &&[f32]| {
        let (lanes, rest) = chunk.as_chunks::<8>();
        let mut totals = [0f64; 8];
        for values in lanes {
            totals.iter_mut().zip(values).for_each(|(total, &value)| *total += f64::from(value) * f64::from(value));
        }
        totals.iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>()
    };
    let totals: Vec<f64> = chunks.par_iter().map(of_chunk).collect();
    totals.into_iter().sum()
}

fn add_values(sum: &mut [f32], values: &[f32]) {
    sum.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(sum, values)| {
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    });
}

fn add_rows(sum: &mut [f32], rows: &BTreeMap<usize, Vec<f32>>) {
    for (row, values) in rows {
        sum[row * values.len()..][..values.len()].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
}

/// Which rows of a table have ever had a gradient: all others' moments are zero, and without weight decay an update leaves
/// them as they are.
#[derive(Default)]
pub struct TouchedRows(BTreeMap<ParamId, Vec<bool>>);

impl TouchedRows {
    /// Adds `rows` to those of a parameter and says of each of its rows whether it is one. `moments` (first and second, whole
    /// rows of `width`) tell which rows had a gradient before anything was noted here.
    pub fn of(
        &mut self,
        param: ParamId,
        rows: impl Iterator<Item = usize>,
        moments: [&[f32]; 2],
        width: usize,
    ) -> &[bool] {
        let touched = self.0.entry(param).or_insert_with(|| {
            let [first, second] = moments.map(|moment| moment.par_chunks(width));
            let is_zero = |row: &[f32]| row.iter().all(|value| value.to_bits() == 0);
            first.zip(second).map(|(first, second)| !is_zero(first) || !is_zero(second)).collect()
        });
        rows.for_each(|row| touched[row] = true);
        touched
    }

    /// A parameter was updated in another way.
    pub fn forget(&mut self, param: ParamId) {
        self.0.remove(&param);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(of: &[(usize, [f32; 2])]) -> BlockGradient {
        BlockGradient::Rows(of.iter().map(|&(row, values)| (row, values.to_vec())).collect())
    }

    #[test]
    fn rows_and_whole_gradients_add_up_in_any_order() {
        let parts: [fn() -> BlockGradient; 3] = [
            || rows(&[(0, [1.0, 2.0]), (2, [3.0, 4.0])]),
            || BlockGradient::Params(vec![vec![10.0, 20.0, 30.0, 40.0, 50.0, 60.0]]),
            || rows(&[(1, [5.0, 6.0]), (2, [7.0, 8.0])]),
        ];
        for order in [[0, 1, 2], [1, 0, 2], [0, 2, 1], [2, 1, 0]] {
            let mut sum = parts[order[0]]();
            order[1..].iter().for_each(|&part| sum.add(parts[part]()));
            assert_eq!(sum.into_flat(6, &Buffers::new((), 0)), [11.0, 22.0, 35.0, 46.0, 60.0, 72.0], "{order:?}");
        }
        let mut sum = parts[0]();
        sum.add(parts[2]());
        assert_eq!(squared_norm(sum.slices().into_iter()), 1.0 + 4.0 + 25.0 + 36.0 + 100.0 + 144.0);
    }

    #[test]
    fn rows_touched_before_are_found_in_the_moments() {
        let (first, second) = ([0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1e-30, 0.0, 0.0]);
        let (mut touched, param) = (TouchedRows::default(), ParamId::new());
        let found = touched.of(param, std::iter::once(0), [&first, &second], 2);
        assert_eq!(found, [true, true, true, false]);
    }
}
