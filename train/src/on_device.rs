//! The optimizer of a rank by itself on a GPU: gradients, masters and moments are tensors there and never leave it, but into a
//! checkpoint. The host reads losses and the gradient's norm, once a step. A block's values are one flat tensor of each kind, so that
//! norm and update take a launch for a block.

use crate::adamw::AdamW;
use crate::layout::{BlockLayout, Layout};
use crate::parameters;
use crate::partitions::Partitions;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};
use kernels::device::computes_in_bf16;
use kernels::{AdamWUpdate, GradientPart};
use model::Llava;
use replace_with::replace_with_or_abort_and_return;
use std::ops::Range;

/// Whether the optimizer of a rank that does not exchange from device to device is on the device of its model: where other ranks take part, values pass through the host, and on
/// the CPU, which computes in f32, slices need no tensors.
pub fn applies(device: &Device, world_size: usize) -> bool {
    world_size == 1 && (device.clone().inner() != kernels::device::cpu() || computes_in_bf16(device))
}

/// What a backward pass found for a block, on the device.
#[derive(Clone, Default)]
pub struct DeviceGradient {
    /// For each of the block's parameters, in the layout's order, its values as a matrix; `None` stands for zeros.
    pub params: Vec<Option<Tensor<2>>>,
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
}

fn added(sum: Option<Tensor<2>>, values: Option<Tensor<2>>) -> Option<Tensor<2>> {
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

    /// The sum of a block whose only parameter has `len` values, with these rows added, followed by zeros up to `padded_len`.
    pub fn added_to(self, sum: Option<Tensor<1>>, len: usize, padded_len: usize) -> Tensor<1> {
        let ([_, width], device) = (self.values.dims(), self.values.device());
        let table = match sum {
            Some(sum) if padded_len == len => sum,
            Some(sum) => sum.narrow(0, 0, len),
            None => zeros(len, &device),
        };
        let rows = indices(self.numbers.iter().map(|&number| number as i64), &device);
        let table = table.reshape([len / width, width]).select_assign(0, rows, self.values, IndexingUpdateOp::Add);
        let table = table.reshape([len]);
        if padded_len == len { table } else { Tensor::cat(vec![table, zeros(padded_len - len, &device)], 0) }
    }
}

/// Values of parameters begin at multiples of this in a flat tensor: 512 bytes in bf16, so that their part of it is a view on CUDA.
const ALIGNMENT: usize = 256;

/// Where a block's parameters stand in its flat tensors: those with weight decay first, zeros between them.
pub struct Flat {
    /// Of each parameter, in the layout's order.
    starts: Vec<usize>,
    /// Parameters in the order in which they stand.
    order: Vec<usize>,
    /// Values.
    len: usize,
    /// The first ones, on which weight decay acts.
    decaying: usize,
}

impl Flat {
    /// Of a block.
    pub fn of(layout: &BlockLayout) -> Self {
        let mut order: Vec<usize> = (0..layout.params.len()).collect();
        order.sort_by_key(|&param| !layout.params[param].decays);
        let (mut flat, mut decaying) = (Self { starts: vec![0; order.len()], order, len: 0, decaying: 0 }, 0);
        for &param in &flat.order {
            flat.starts[param] = flat.len;
            flat.len += layout.params[param].len.next_multiple_of(ALIGNMENT);
            decaying = if layout.params[param].decays { flat.len } else { decaying };
        }
        Self { decaying, ..flat }
    }

    /// Where a parameter begins.
    pub fn start(&self, param: usize) -> usize {
        self.starts[param]
    }

    /// A parameter's range, with the zeros behind it.
    fn padded(&self, layout: &BlockLayout, param: usize) -> Range<usize> {
        self.starts[param]..self.starts[param] + layout.params[param].len.next_multiple_of(ALIGNMENT)
    }

    /// A parameter's values of a flat tensor.
    fn part(&self, values: &Tensor<1>, layout: &BlockLayout, param: usize) -> Tensor<1> {
        values.clone().narrow(0, self.starts[param], layout.params[param].len)
    }

    /// One flat tensor of values of all parameters, in the layout's order.
    fn join(&self, mut params: Vec<Option<Tensor<1>>>, layout: &BlockLayout) -> Option<Tensor<1>> {
        let parts = self.order.iter().map(|&param| {
            let values = params[param].take().map(|values| values.unsqueeze());
            GradientPart { range: self.padded(layout, param), values }
        });
        kernels::accumulate(None, parts.collect())
    }
}

/// A step's gradient of all blocks, f32, each as [`Flat`] says; `None` stands for zeros.
pub struct Sums(Vec<Option<Tensor<1>>>);

impl Sums {
    /// Zeros.
    pub fn new(layout: &Layout) -> Self {
        Self(vec![None; layout.blocks.len()])
    }

    /// Adds the gradient of a micro-step.
    pub fn add(&mut self, block: usize, layout: &BlockLayout, gradient: DeviceGradient) {
        let (flat, mut params) = (Flat::of(layout), gradient.params);
        params.resize(layout.params.len(), None);
        let part = |values: &mut Vec<Option<Tensor<2>>>, param: usize| GradientPart {
            range: flat.padded(layout, param),
            values: values[param].take(),
        };
        let parts = flat.order.iter().map(|&param| part(&mut params, param));
        let sum = kernels::accumulate(self.0[block].take(), parts.collect());
        self.0[block] = match (gradient.rows, layout.params.first()) {
            (Some(rows), Some(slot)) => Some(rows.added_to(sum, slot.len, slot.len.next_multiple_of(ALIGNMENT))),
            _ => sum,
        };
    }

    /// Zeros again.
    pub fn clear(&mut self) {
        self.0.fill(None);
    }

    /// The sum of squares of the whole gradient, `[1]`; not finite if a gradient is not. `None` without a gradient.
    pub fn squares(&self) -> Option<Tensor<1>> {
        kernels::sum_of_squares(&self.0.iter().flatten().collect::<Vec<_>>())
    }

    /// Takes a block's.
    pub fn take(&mut self, block: usize) -> Option<Tensor<1>> {
        self.0[block].take()
    }
}

/// What AdamW keeps of a block, in f32, each as [`Flat`] says. A clone shares it.
#[derive(Clone)]
pub struct BlockState {
    /// The parameters, where the model computes with rounded ones.
    pub master: Option<Tensor<1>>,
    /// First moments.
    pub exp_avg: Tensor<1>,
    /// Second moments.
    pub exp_avg_sq: Tensor<1>,
}

/// New values of a block's parameters.
struct Updated {
    /// In f32: the masters, or what the model has from here on.
    values: Tensor<1>,
    /// In bf16, with masters.
    rounded: Option<Tensor<1>>,
}

impl BlockState {
    /// Updates the parameters; `of_model` are their old values where there are no masters. Without a gradient, moments decay all
    /// the same.
    fn update(
        &mut self,
        of_model: Option<Tensor<1>>,
        gradient: Option<Tensor<1>>,
        adamw: &AdamW,
        weight_decay: f64,
        decaying: usize,
    ) -> Option<Updated> {
        let coefficients = adamw.coefficients(weight_decay);
        // Moved out and in again: a tensor with one owner is changed where it is.
        replace_with_or_abort_and_return(self, |Self { master, exp_avg, exp_avg_sq }| {
            let rounded = master.is_some().then_some(DType::BF16);
            let Some(values) = master.or(of_model) else {
                return (None, Self { master: None, exp_avg, exp_avg_sq });
            };
            let state = AdamWUpdate { values, exp_avg, exp_avg_sq, rounded: None };
            let AdamWUpdate { values, exp_avg, exp_avg_sq, rounded } =
                kernels::adamw(state, gradient, coefficients, decaying, rounded);
            let master = rounded.is_some().then(|| values.clone());
            (Some(Updated { values, rounded }), Self { master, exp_avg, exp_avg_sq })
        })
    }
}

/// What AdamW keeps of each block of the layout. A clone shares it.
#[derive(Clone)]
pub struct DevicePartitions(pub Vec<BlockState>);

impl DevicePartitions {
    /// Moments of zero, for a run that begins: the host holds none of them. With `keep_masters`, the model's values (f32) are
    /// masters from here on: the model may be rounded then.
    pub fn fresh(model: &Llava, layout: &Layout, keep_masters: bool) -> Self {
        let device = model.device().inner();
        let masters = if keep_masters { values_of(model, layout) } else { vec![None; layout.blocks.len()] };
        let states = layout.blocks.iter().zip(masters).map(|(block, master)| {
            let len = Flat::of(block).len;
            BlockState { master, exp_avg: zeros(len, &device), exp_avg_sq: zeros(len, &device) }
        });
        Self(states.collect())
    }

    /// Puts a rank's partitions, which are everything, on the device.
    pub fn new(partitions: Partitions, layout: &Layout, device: &Device) -> Self {
        let Partitions { masters, exp_avg, exp_avg_sq } = partitions;
        let mut masters = masters.map(Vec::into_iter);
        let blocks = layout.blocks.iter().zip(exp_avg.into_iter().zip(exp_avg_sq));
        let blocks = blocks.map(|(block, (exp_avg, exp_avg_sq))| {
            let flat = Flat::of(block);
            let tensor = |of_layout: &[f32]| {
                let mut values = vec![0.0; flat.len];
                for (slot, &start) in block.params.iter().zip(&flat.starts) {
                    values[start..][..slot.len].copy_from_slice(&of_layout[slot.offset..][..slot.len]);
                }
                Tensor::from_data(TensorData::new(values, [flat.len]), (device, DType::F32))
            };
            let master = masters.as_mut().and_then(Iterator::next).map(|master| tensor(&master));
            BlockState { master, exp_avg: tensor(&exp_avg), exp_avg_sq: tensor(&exp_avg_sq) }
        });
        Self(blocks.collect())
    }

    /// Whether masters are kept.
    pub fn has_masters(&self) -> bool {
        self.0.iter().any(|state| state.master.is_some())
    }

    /// Updates the model, a block after another, and uses up its gradient.
    pub fn update(&mut self, model: &mut Llava, layout: &Layout, sums: &mut Sums, adamw: &[AdamW], weight_decay: f64) {
        let mut old = if self.has_masters() { vec![None; layout.blocks.len()] } else { values_of(model, layout) };
        let mut new: Vec<Option<Updated>> = layout.blocks.iter().map(|_| None).collect();
        parameters::replace(model, layout, |block, slot, values| {
            let of_block = &layout.blocks[block];
            let flat = Flat::of(of_block);
            if new[block].is_none() {
                let gradient = sums.take(block);
                let state = &mut self.0[block];
                new[block] = state.update(old[block].take(), gradient, &adamw[block], weight_decay, flat.decaying);
            }
            // A block with masters or values has new ones.
            let Some(Updated { values: masters, rounded }) = &new[block] else { return values };
            match rounded {
                Some(rounded) if values.dtype() == rounded.dtype() => {
                    flat.part(rounded, of_block, of_block.index_of(slot))
                }
                // A copy: the masters change.
                Some(_) => flat.part(masters, of_block, of_block.index_of(slot)) * 1.0,
                None => flat.part(masters, of_block, of_block.index_of(slot)),
            }
        });
    }
}

/// The trained values of each block in f32, flat; `None` for a block that the model does not have.
fn values_of(model: &Llava, layout: &Layout) -> Vec<Option<Tensor<1>>> {
    let unknown = |block: &BlockLayout| vec![None; block.params.len()];
    let mut reader = Reader { layout, params: layout.blocks.iter().map(unknown).collect(), flat: Vec::new() };
    reader.flat.resize(layout.blocks.len(), None);
    model.visit(&mut reader);
    reader.flat
}

struct Reader<'a> {
    layout: &'a Layout,
    /// Of blocks that are not complete yet.
    params: Vec<Vec<Option<Tensor<1>>>>,
    flat: Vec<Option<Tensor<1>>>,
}

impl ModuleVisitor for Reader<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((block, slot)) = self.layout.find(param.id) else { return };
        let tensor = param.val();
        let tensor = if tensor.device().is_autodiff() { tensor.inner() } else { tensor };
        let (layout, params) = (&self.layout.blocks[block], &mut self.params[block]);
        if params.is_empty() {
            return;
        }
        params[layout.index_of(slot)] = Some(tensor.cast(DType::F32).reshape([slot.len]));
        if params.iter().all(Option::is_some) {
            self.flat[block] = Flat::of(layout).join(std::mem::take(params), layout);
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
        let mut state = BlockState { master: None, exp_avg: tensor(&first), exp_avg_sq: tensor(&second) };
        let mut found = tensor(&weights);
        let decaying = 50;
        for step in 1..=4 {
            let adamw =
                AdamW { learning_rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, step, gradient_scale: 0.3 };
            let gradient = if step == 3 { vec![0.0; 97] } else { vector(1 + step) };
            let of_step = (step != 3).then(|| tensor(&gradient));
            found = state.update(Some(found), of_step, &adamw, 0.1, decaying).expect("values to update").values;
            for (part, weight_decay) in [(0..decaying, 0.1), (decaying..97, 0.0)] {
                let (values, exp_avg) = (&mut weights[part.clone()], &mut first[part.clone()]);
                let (gradient, exp_avg_sq) = (&gradient[part.clone()], &mut second[part]);
                adamw.update(Slices { values, gradient, exp_avg, exp_avg_sq }, weight_decay);
            }
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
        let squares = values(sums.squares().expect("a gradient"));
        let sum = values(sums.take(0).expect("a gradient"));
        assert_eq!(sum[..8], [10.0, 20.0, 33.0, 44.0, 0.0, 0.0, 6.0, 8.0]);
        assert!(sum[8..].iter().all(|&padding| padding == 0.0));
        assert_eq!(squares, [sum.iter().map(|value| value * value).sum::<f32>()]);
    }

    #[test]
    fn parameters_stand_in_their_places_with_decaying_ones_first() {
        let mut layout = crate::layout::tests::layout(0, 1, &[300]).blocks.remove(0);
        let first = layout.params[0].clone();
        let slot = |offset: usize, len: usize, decays: bool| crate::layout::ParamSlot {
            shape: vec![len],
            offset,
            len,
            decays,
            ..first.clone()
        };
        layout.params = vec![slot(0, 3, false), slot(3, 300, true), slot(303, 4, true)];
        let flat = Flat::of(&layout);
        assert_eq!((flat.decaying, flat.len), (768, 1024));
        let given = [vec![1.0, 2.0, 3.0], (0..300).map(|i| i as f32).collect(), vec![7.0; 4]];
        let joined = flat.join(given.iter().map(|values| Some(tensor(values))).collect(), &layout).expect("values");
        for (param, given) in given.iter().enumerate() {
            assert_eq!(&values(flat.part(&joined, &layout, param)), given);
        }
        assert_eq!(values(joined).iter().sum::<f32>(), given.iter().flatten().sum::<f32>());
    }
}
