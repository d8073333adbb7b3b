//! ZeRO-2 of ranks that exchange where they compute: gradients, masters and moments are on the devices, each rank has its slices of
//! them, and nothing of it passes through the host.

use crate::adamw::AdamW;
use crate::collective::background::Communicator;
use crate::config::Accumulate;
use crate::device_buffer::{DeviceBuffer, DeviceMemory};
use crate::exchange::Exchanges;
use crate::layout::{BlockLayout, Layout};
use crate::on_device::{DeviceGradient, zeros};
use crate::parameters;
use crate::partitions::Partitions;
use anyhow::{Result, anyhow};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use kernels::{AdamWUpdate, GradientPart};
use model::Llava;
use replace_with::replace_with_or_abort_and_return;
use std::ops::Range;
use std::sync::Arc;

/// The ranks' connection from device to device.
pub struct DeviceRanks {
    /// Exchanges gradients and parameters.
    pub communicator: Communicator<DeviceBuffer>,
    /// Where this rank's are.
    pub memory: Arc<DeviceMemory>,
}

/// One rank of the optimizer.
pub struct Sharded {
    layout: Arc<Layout>,
    /// What this rank owns.
    pub partitions: ShardedPartitions,
    /// Gradients and parameters that are exchanged.
    pub exchanges: Exchanges<DeviceBuffer>,
    memory: Arc<DeviceMemory>,
    device: Device,
    accumulate: Accumulate,
    /// This rank's part of the gradient, as a vector for each block; none before the first micro-step.
    gradient: Vec<Option<Tensor<1>>>,
    /// Whole gradients of this rank alone, with `accumulate = local`.
    local: Vec<Option<Tensor<1>>>,
    /// See [`parameters::dtypes`]; empty before the first update.
    dtypes: Vec<DType>,
}

impl Sharded {
    /// From moments (and masters) of zero or of a checkpoint; `device` has no autodiff.
    pub fn new(
        layout: Arc<Layout>,
        partitions: ShardedPartitions,
        ranks: DeviceRanks,
        device: Device,
        accumulate: Accumulate,
    ) -> Self {
        let (DeviceRanks { communicator, memory }, blocks) = (ranks, layout.blocks.len());
        let exchanges = Exchanges::new(communicator, Arc::clone(&layout), Arc::clone(&memory));
        let none = vec![None; blocks];
        Self {
            layout,
            partitions,
            exchanges,
            memory,
            device,
            accumulate,
            gradient: none.clone(),
            local: none,
            dtypes: Vec::new(),
        }
    }

    /// Takes a block's gradient of a micro-step, zeros where there is none: the sum over the ranks is begun. With `accumulate = local`
    /// only the step's last micro-step is summed.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn reduce(&mut self, block: usize, gradient: DeviceGradient, is_last: bool) -> Result<()> {
        let of_block = &self.layout.blocks[block];
        let (partition_len, mut flat) = (of_block.partition_len(), flattened(gradient, of_block, &self.device));
        if self.accumulate == Accumulate::Local {
            let sum = match self.local[block].take() {
                Some(sum) => sum + flat,
                None => flat,
            };
            if !is_last {
                self.local[block] = Some(sum);
                return Ok(());
            }
            flat = sum;
        }
        while !self.exchanges.has_room_to_reduce(block) {
            self.take_reduced()?;
        }
        let own = DeviceBuffer::for_sum(self.gradient[block].take(), partition_len, &self.memory);
        Ok(self.exchanges.reduce(block, DeviceBuffer::of(flat, &self.memory), own)?)
    }

    /// Whether a sum was under way: it is here now.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn take_reduced(&mut self) -> Result<bool> {
        let Some((block, own)) = self.exchanges.take_reduced()? else { return Ok(false) };
        self.gradient[block] = Some(own.into_tensor()?);
        Ok(true)
    }

    /// The sum of squares of this rank's gradient, `[1]`. `None` without a gradient.
    pub fn squares(&self) -> Option<Tensor<1>> {
        kernels::sum_of_squares(&self.gradient.iter().flatten().collect::<Vec<_>>())
    }

    /// Forgets the gradient.
    pub fn clear(&mut self) {
        self.gradient.fill(None);
    }

    /// Updates this rank's part of a block and begins to gather the block's new values.
    ///
    /// # Errors
    /// The exchanging thread is gone.
    pub fn update(&mut self, model: &Llava, block: usize, adamw: &AdamW, weight_decay: f64) -> Result<()> {
        if self.dtypes.is_empty() {
            self.dtypes = parameters::dtypes(model, &self.layout);
        }
        let of_block = &self.layout.blocks[block];
        let gradient = self.gradient[block].take();
        let states = &mut self.partitions.0[block];
        let old = match states.iter().all(|state| state.master.is_some()) {
            true => Vec::new(),
            false => parameters::on_model_device(model, &self.layout, block),
        };
        let (mut pieces, mut filled) = (Vec::with_capacity(states.len() + 1), 0);
        for (slice, state) in self.layout.slices(block).into_iter().zip(states) {
            let (slot, end) = (&of_block.params[slice.param], slice.start + slice.range.len());
            let weight_decay = if slot.decays { weight_decay } else { 0.0 };
            let of_model = || match old.get(slice.param).and_then(Option::as_ref) {
                Some(values) => part(values, slice.range.clone()),
                // Every trained parameter is one of the model's.
                None => zeros(slice.range.len(), &self.device),
            };
            let gradient = gradient.as_ref().map(|gradient| part(gradient, slice.start..end));
            if slice.start > filled {
                pieces.push(zeros(slice.start - filled, &self.device));
            }
            pieces.push(state.update(of_model, gradient, adamw, weight_decay));
            filled = end;
        }
        if of_block.partition_len() > filled {
            pieces.push(zeros(of_block.partition_len() - filled, &self.device));
        }
        let values = joined(pieces).cast(self.dtypes[block]);
        Ok(self.exchanges.gather(block, DeviceBuffer::of(values, &self.memory))?)
    }

    /// Puts the values that began to be gathered first into the model; waits for them. Whether there were any.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn take_gathered(&mut self, model: &mut Llava) -> Result<bool> {
        let Some((block, values)) = self.exchanges.take_gathered()? else { return Ok(false) };
        parameters::set_on_device(model, &self.layout, block, &values.into_tensor()?);
        Ok(true)
    }

    /// Ends the connection, as [`Communicator::finish`].
    ///
    /// # Errors
    /// As there.
    pub fn finish(self) -> Result<()> {
        self.exchanges.communicator.finish().map_err(|error| anyhow!(error))
    }
}

/// A block's gradient in f32, its parameters one after another, and zeros where it has none: `[padded_len]`.
fn flattened(gradient: DeviceGradient, layout: &BlockLayout, device: &Device) -> Tensor<1> {
    let mut params = gradient.params;
    params.resize(layout.params.len(), None);
    let ends = layout.params.iter().skip(1).map(|slot| slot.offset).chain([layout.padded_len]);
    let parts = layout.params.iter().zip(ends).zip(params);
    let parts = parts.map(|((slot, end), values)| GradientPart { range: slot.offset..end, values });
    let sum = kernels::accumulate(None, parts.collect());
    match (gradient.rows, layout.params.first()) {
        (Some(rows), Some(slot)) => rows.added_to(sum, slot.len, layout.padded_len),
        _ => sum.unwrap_or_else(|| zeros(layout.padded_len, device)),
    }
}

/// Vectors one after another.
fn joined(mut pieces: Vec<Tensor<1>>) -> Tensor<1> {
    if pieces.len() == 1 { pieces.remove(0) } else { Tensor::cat(pieces, 0) }
}

/// Part of a vector.
fn part(values: &Tensor<1>, range: Range<usize>) -> Tensor<1> {
    if range == (0..values.dims()[0]) { values.clone() } else { values.clone().slice(range) }
}

/// What AdamW keeps of a slice of a parameter, in f32. A clone shares it.
#[derive(Clone)]
pub struct SliceState {
    /// The slice's values, where the model computes with rounded ones.
    pub master: Option<Tensor<1>>,
    /// First moments.
    pub exp_avg: Tensor<1>,
    /// Second moments.
    pub exp_avg_sq: Tensor<1>,
}

impl SliceState {
    /// Updates the slice and gives its new values in f32; `of_model` are its old ones, wanted without a master only. Without a
    /// gradient, moments decay all the same.
    fn update(
        &mut self,
        of_model: impl FnOnce() -> Tensor<1>,
        gradient: Option<Tensor<1>>,
        adamw: &AdamW,
        weight_decay: f64,
    ) -> Tensor<1> {
        let coefficients = adamw.coefficients(weight_decay);
        // Moved out and in again: a tensor with one owner is changed where it is.
        replace_with_or_abort_and_return(self, |Self { master, exp_avg, exp_avg_sq }| {
            let (is_kept, len) = (master.is_some(), exp_avg.dims()[0]);
            let state = AdamWUpdate { values: master.unwrap_or_else(of_model), exp_avg, exp_avg_sq, rounded: None };
            let AdamWUpdate { values, exp_avg, exp_avg_sq, .. } =
                kernels::adamw(state, gradient, coefficients, len, None);
            (values.clone(), Self { master: is_kept.then_some(values), exp_avg, exp_avg_sq })
        })
    }
}

/// What AdamW keeps: for each block of the layout, of each slice that the rank owns ([`Layout::slices`]). A clone shares it.
#[derive(Clone)]
pub struct ShardedPartitions(pub Vec<Vec<SliceState>>);

impl ShardedPartitions {
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
                SliceState { master, exp_avg: tensor(&exp_avg), exp_avg_sq: tensor(&exp_avg_sq) }
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
    blocks: Vec<Vec<Option<SliceState>>>,
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
            self.blocks[block][index] = Some(SliceState {
                master: values.as_ref().map(|values| part(values, slice.range)),
                exp_avg: zeros(len, &device),
                exp_avg_sq: zeros(len, &device),
            });
        }
    }
}
