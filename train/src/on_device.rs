//! The optimizer on a GPU: gradients, masters and moments are tensors there and never leave it, but into a checkpoint. The host reads
//! losses and the gradient's norm, once a step. A rank by itself has whole parameters; ranks that exchange through NCCL have slices
//! ([`crate::sharded`]).

use crate::adamw::AdamW;
use crate::layout::{BlockLayout, Layout};
use crate::partitions::Partitions;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};
use kernels::AdamWUpdate;
use kernels::device::computes_in_bf16;
use model::Llava;
use replace_with::replace_with_or_abort_and_return;
use std::ops::Range;
use std::sync::Arc;

/// Whether the optimizer of a rank that does not exchange through NCCL is on the device of its model: where other ranks take part,
/// values pass through the host, and on the CPU, which computes in f32, slices need no tensors.
pub fn applies(device: &Device, world_size: usize) -> bool {
    world_size == 1 && (device.clone().inner() != kernels::device::cpu() || computes_in_bf16(device))
}

/// What a backward pass found for a block, on the device.
#[derive(Clone, Default)]
pub struct DeviceGradient {
    /// For each of the block's parameters, in the layout's order, a value for each of its own; `None` stands for zeros.
    pub params: Vec<Option<Tensor<1>>>,
    /// To be added to rows of the block's only parameter.
    pub rows: Option<Rows>,
}

impl DeviceGradient {
    /// Adds a gradient of the same block; at most one of the two has rows.
    pub fn add(&mut self, other: Self) {
        if self.params.is_empty() {
            self.params = other.params;
        } else {
            let pairs = self.params.iter_mut().zip(other.params);
            pairs.for_each(|(sum, values)| *sum = added(sum.take(), values));
        }
        debug_assert!(self.rows.is_none() || other.rows.is_none());
        self.rows = self.rows.take().or(other.rows);
    }

    /// The values of all parameters in f32, one after another, and the block's padding: `[padded_len]`.
    pub fn into_flat(self, layout: &BlockLayout, device: &Device) -> Tensor<1> {
        let mut params = self.params.into_iter();
        let mut pieces: Vec<Tensor<1>> = Vec::with_capacity(layout.params.len() + 1);
        for slot in &layout.params {
            let values = params.next().flatten().map(|values| values.cast(DType::F32));
            pieces.push(values.unwrap_or_else(|| zeros(slot.len, device)));
        }
        if let Some(rows) = self.rows {
            pieces[0] = rows.added_to(pieces[0].clone());
        }
        if layout.padded_len > layout.len {
            pieces.push(zeros(layout.padded_len - layout.len, device));
        }
        joined(pieces)
    }
}

/// Vectors one after another.
pub fn joined(mut pieces: Vec<Tensor<1>>) -> Tensor<1> {
    if pieces.len() == 1 { pieces.remove(0) } else { Tensor::cat(pieces, 0) }
}

/// Part of a vector.
pub fn part(values: &Tensor<1>, range: Range<usize>) -> Tensor<1> {
    if range == (0..values.dims()[0]) { values.clone() } else { values.clone().slice(range) }
}

/// A sum, where nothing counts as zeros.
pub fn added(sum: Option<Tensor<1>>, values: Option<Tensor<1>>) -> Option<Tensor<1>> {
    match (sum, values) {
        (Some(sum), Some(values)) => Some(sum + values),
        (sum, values) => sum.or(values),
    }
}

/// Gradients of rows of a table.
#[derive(Clone)]
pub struct Rows {
    /// Their numbers, each once.
    pub numbers: Vec<usize>,
    /// `[numbers, width]`
    pub values: Tensor<2>,
}

impl Rows {
    /// Sums, by row, the gradients `values` `[T, width]` of embedded tokens. A product with a matrix of zeros and ones, whose sums
    /// have one order; adding to rows of a table in memory would have any.
    pub fn sum(ids: &[usize], values: Tensor<2>) -> Self {
        let mut numbers = ids.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        let place = |id: &usize| numbers.partition_point(|number| number < id) as i64;
        let places = indices(ids.iter().map(place), &values.device()).unsqueeze_dim::<2>(0);
        let every = Tensor::<1, Int>::arange(0..numbers.len() as i64, &values.device()).unsqueeze_dim::<2>(1);
        let shape = [numbers.len(), ids.len()];
        let is_of_row = every.expand(shape).equal(places.expand(shape)).float().cast(DType::F32);
        Self { numbers, values: is_of_row.matmul(values.cast(DType::F32)) }
    }

    /// The table `[rows · width]` with these rows added to its own.
    fn added_to(self, table: Tensor<1>) -> Tensor<1> {
        let ([_, width], [len], device) = (self.values.dims(), table.dims(), self.values.device());
        let rows = indices(self.numbers.iter().map(|&number| number as i64), &device);
        let table = table.reshape([len / width, width]).select_assign(0, rows, self.values, IndexingUpdateOp::Add);
        table.reshape([len])
    }
}

/// A step's gradient of all blocks, in f32.
pub struct Sums(Vec<Vec<Option<Tensor<1>>>>);

impl Sums {
    /// Zeros.
    pub fn new(layout: &Layout) -> Self {
        Self(layout.blocks.iter().map(|block| vec![None; block.params.len()]).collect())
    }

    /// Adds the gradient of a micro-step.
    pub fn add(&mut self, block: usize, layout: &BlockLayout, gradient: DeviceGradient) {
        let sums = &mut self.0[block];
        for (sum, values) in sums.iter_mut().zip(gradient.params) {
            *sum = added(sum.take(), values.map(|values| values.cast(DType::F32)));
        }
        let (Some(rows), Some(slot)) = (gradient.rows, layout.params.first()) else { return };
        let table = sums[0].take().unwrap_or_else(|| zeros(slot.len, &rows.values.device()));
        sums[0] = Some(rows.added_to(table));
    }

    /// Zeros again.
    pub fn clear(&mut self) {
        self.0.iter_mut().flatten().for_each(|sum| *sum = None);
    }

    /// Sums of squares whose sum is that of the whole gradient, `[1]` each; not finite if a gradient is not.
    pub fn squares(&self) -> Vec<Tensor<1>> {
        self.0.iter().flatten().flatten().map(kernels::sum_of_squares).collect()
    }

    /// Takes a parameter's.
    pub fn take(&mut self, block: usize, param: usize) -> Option<Tensor<1>> {
        self.0[block][param].take()
    }
}

/// What AdamW keeps of a parameter, in f32. A clone shares it.
#[derive(Clone)]
pub struct ParamState {
    /// The parameter, where the model computes with a rounded one.
    pub master: Option<Tensor<1>>,
    /// First moment.
    pub exp_avg: Tensor<1>,
    /// Second moment.
    pub exp_avg_sq: Tensor<1>,
}

impl ParamState {
    /// Updates the parameter and gives its new values, rounded to the model's dtype where a master is kept; `of_model` are its old
    /// ones. Without a gradient, moments decay all the same.
    pub fn update(
        &mut self,
        of_model: Tensor<1>,
        gradient: Option<Tensor<1>>,
        adamw: &AdamW,
        weight_decay: f64,
    ) -> Tensor<1> {
        let coefficients = adamw.coefficients(weight_decay);
        // Moved out and in again: a tensor with one owner is changed where it is.
        replace_with_or_abort_and_return(self, |Self { master, exp_avg, exp_avg_sq }| {
            let rounded = master.is_some().then(|| of_model.dtype());
            let values = master.unwrap_or(of_model);
            let state = AdamWUpdate { values, exp_avg, exp_avg_sq, rounded: None };
            let AdamWUpdate { values, exp_avg, exp_avg_sq, rounded } =
                kernels::adamw(state, gradient, coefficients, rounded);
            match rounded {
                Some(rounded) => (rounded, Self { master: Some(values), exp_avg, exp_avg_sq }),
                None => (values, Self { master: None, exp_avg, exp_avg_sq }),
            }
        })
    }

    /// The same, but gives the new values in f32, whatever the model computes in; `of_model` are wanted without a master only.
    pub fn update_in_f32(
        &mut self,
        of_model: impl FnOnce() -> Tensor<1>,
        gradient: Option<Tensor<1>>,
        adamw: &AdamW,
        weight_decay: f64,
    ) -> Tensor<1> {
        let coefficients = adamw.coefficients(weight_decay);
        replace_with_or_abort_and_return(self, |Self { master, exp_avg, exp_avg_sq }| {
            let is_kept = master.is_some();
            let state = AdamWUpdate { values: master.unwrap_or_else(of_model), exp_avg, exp_avg_sq, rounded: None };
            let AdamWUpdate { values, exp_avg, exp_avg_sq, .. } = kernels::adamw(state, gradient, coefficients, None);
            (values.clone(), Self { master: is_kept.then_some(values), exp_avg, exp_avg_sq })
        })
    }
}

/// What AdamW keeps: for each block of the layout, of each slice that the rank owns ([`Layout::slices`]). A clone shares it.
#[derive(Clone)]
pub struct DevicePartitions(pub Vec<Vec<ParamState>>);

impl DevicePartitions {
    /// Moments of zero, for a run that begins: the host holds none of them. With `keep_masters`, the model's values (f32) are
    /// masters from here on: the model may be rounded then.
    pub fn fresh(model: &Llava, layout: &Layout, keep_masters: bool) -> Self {
        let blocks = (0..layout.blocks.len()).map(|block| vec![None; layout.slices(block).len()]);
        let mut maker = Maker { layout, keep_masters, blocks: blocks.collect() };
        model.visit(&mut maker);
        // Every trained parameter is one of the model's.
        Self(maker.blocks.into_iter().map(|block| block.into_iter().flatten().collect()).collect())
    }

    /// Puts a rank's partitions on the device.
    pub fn new(partitions: Partitions, layout: &Layout, device: &Device) -> Self {
        let Partitions { masters, exp_avg, exp_avg_sq } = partitions;
        let mut masters = masters.map(Vec::into_iter);
        let blocks = (0..layout.blocks.len()).zip(exp_avg.into_iter().zip(exp_avg_sq));
        let blocks = blocks.map(|(block, (exp_avg, exp_avg_sq))| {
            let master = masters.as_mut().and_then(Iterator::next);
            let states = layout.slices(block).into_iter().map(|slice| {
                let len = slice.range.len();
                let tensor = |flat: &Arc<Vec<f32>>| {
                    let values = flat[slice.start..][..len].to_vec();
                    Tensor::from_data(TensorData::new(values, [len]), (device, DType::F32))
                };
                let master = master.as_ref().map(tensor);
                ParamState { master, exp_avg: tensor(&exp_avg), exp_avg_sq: tensor(&exp_avg_sq) }
            });
            states.collect()
        });
        Self(blocks.collect())
    }

    /// Whether masters are kept.
    pub fn has_masters(&self) -> bool {
        self.0.iter().flatten().any(|state| state.master.is_some())
    }
}

struct Maker<'a> {
    layout: &'a Layout,
    keep_masters: bool,
    blocks: Vec<Vec<Option<ParamState>>>,
}

impl ModuleVisitor for Maker<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((block, slot)) = self.layout.find(param.id) else { return };
        let tensor = param.val();
        let tensor = if tensor.device().is_autodiff() { tensor.inner() } else { tensor };
        let (device, param) = (tensor.device(), self.layout.blocks[block].index_of(slot));
        let values = self.keep_masters.then(|| tensor.cast(DType::F32).reshape([slot.len]));
        for (index, slice) in self.layout.slices(block).into_iter().enumerate().filter(|(_, of)| of.param == param) {
            let len = slice.range.len();
            self.blocks[block][index] = Some(ParamState {
                master: values.as_ref().map(|values| part(values, slice.range)),
                exp_avg: zeros(len, &device),
                exp_avg_sq: zeros(len, &device),
            });
        }
    }
}

/// Zeros in f32.
pub fn zeros(len: usize, device: &Device) -> Tensor<1> {
    Tensor::zeros([len], (device, DType::F32))
}

fn indices(values: impl Iterator<Item = i64>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.collect();
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adamw::Slices;

    fn tensor(values: &[f32]) -> Tensor<1> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &kernels::device::cpu())
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_to_vec().expect("f32")
    }

    #[test]
    fn an_update_has_the_bits_of_the_cpu_kernel() {
        let number = |i: u64, of: u64| (base::mix(of * 1000 + i + 1) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let vector = |of: u64| (0..97).map(|i| number(i, of)).collect::<Vec<f32>>();
        let (mut weights, mut first, mut second) = (vector(1), vec![0.0; 97], vec![0.0; 97]);
        let mut state = ParamState { master: None, exp_avg: tensor(&first), exp_avg_sq: tensor(&second) };
        let mut found = tensor(&weights);
        for step in 1..=4 {
            let adamw =
                AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, step, gradient_scale: 0.3 };
            let gradient = if step == 3 { vec![0.0; 97] } else { vector(1 + step) };
            found = state.update(found, (step != 3).then(|| tensor(&gradient)), &adamw, 0.1);
            let slices =
                Slices { values: &mut weights, gradient: &gradient, exp_avg: &mut first, exp_avg_sq: &mut second };
            adamw.update(slices, 0.1);
        }
        assert_eq!(values(found), weights);
        assert_eq!((values(state.exp_avg), values(state.exp_avg_sq)), (first, second));
    }

    #[test]
    fn gradients_of_equal_tokens_are_summed_and_added_to_their_rows() {
        let device = kernels::device::cpu();
        let table = crate::layout::tests::layout(0, 1, &[8]);
        let gradient = |ids: &[usize], given: &[f32]| DeviceGradient {
            params: Vec::new(),
            rows: Some(Rows::sum(ids, Tensor::from_data(TensorData::new(given.to_vec(), [ids.len(), 2]), &device))),
        };
        let mut sums = Sums::new(&table);
        sums.add(0, &table.blocks[0], gradient(&[3, 1, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        sums.add(0, &table.blocks[0], gradient(&[0, 1], &[10.0, 20.0, 30.0, 40.0]));
        let squares: f32 = sums.squares().into_iter().map(|square| values(square)[0]).sum();
        let sum = values(sums.take(0, 0).expect("a gradient"));
        assert_eq!(sum, [10.0, 20.0, 33.0, 44.0, 0.0, 0.0, 6.0, 8.0]);
        assert_eq!(squares, sum.iter().map(|value| value * value).sum::<f32>());
    }
}
