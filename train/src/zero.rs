//! ZeRO-2: this rank's part of gradients, masters and moments, and how it is exchanged with the others'.

use crate::adamw::{AdamW, Slices};
use crate::collective::{Collective, Place};
use crate::layout::{Layout, ParamSlot};
use anyhow::{Result, anyhow};
use burn::backend::Flex;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use common::model::Llava;
use rayon::prelude::*;

/// What this rank owns, a vector per block of the layout (padding included).
pub struct Partitions {
    /// Gradient of the loss sum, accumulated over micro-steps.
    pub gradient: Vec<Vec<f32>>,
    /// AdamW's first moment.
    pub exp_avg: Vec<Vec<f32>>,
    /// AdamW's second moment.
    pub exp_avg_sq: Vec<Vec<f32>>,
    /// Bytes that this rank has sent since the start.
    pub bytes_sent: u64,
}

impl Partitions {
    /// Zeros.
    pub fn new(layout: &Layout) -> Self {
        let zeros = || layout.zero_partitions();
        Self { gradient: zeros(), exp_avg: zeros(), exp_avg_sq: zeros(), bytes_sent: 0 }
    }

    /// Starts the next step.
    pub fn clear_gradient(&mut self) {
        self.gradient.iter_mut().for_each(|block| block.fill(0.0));
    }

    /// Sums a block's gradients over the ranks and keeps this rank's part (reduce-scatter). The sum is in rank order, so
    /// that it does not depend on how the ranks are connected.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn reduce(
        &mut self,
        layout: &Layout,
        block: usize,
        flat: Vec<f32>,
        collective: &mut dyn Collective,
    ) -> Result<()> {
        let own = &mut self.gradient[block];
        if layout.world_size == 1 {
            own.iter_mut().zip(&flat).for_each(|(sum, gradient)| *sum += gradient);
            return Ok(());
        }
        let name = &layout.blocks[block].name;
        let place = Place { operation: "reduce-scatter", block: name.clone() };
        for bucket in &layout.blocks[block].buckets {
            let mut send = flat[bucket.range.clone()].to_vec();
            send.resize(bucket.partition_len * layout.world_size, 0.0);
            let mut receive = vec![0.0; send.len()];
            collective.all_to_all(&place, send, &mut receive)?;
            let others = (layout.world_size - 1) * bucket.partition_len;
            self.bytes_sent += (others * size_of::<f32>()) as u64;
            let part = &mut own[bucket.partition_offset..][..bucket.partition_len];
            for (index, sum) in part.iter_mut().enumerate() {
                let over_ranks = receive.iter().skip(index).step_by(bucket.partition_len);
                *sum += over_ranks.sum::<f32>();
            }
        }
        Ok(())
    }

    /// Sum of squares of this rank's gradient, in f64; not finite if a gradient is not.
    pub fn squared_norm(&self) -> f64 {
        // Fixed chunks, added in order: the same bits for any number of threads.
        const CHUNK: usize = 1 << 16;
        let chunks: Vec<f64> = self
            .gradient
            .par_iter()
            .flat_map_iter(|block| block.chunks(CHUNK))
            .map(|chunk| chunk.iter().map(|&value| f64::from(value) * f64::from(value)).sum())
            .collect();
        chunks.into_iter().sum()
    }

    /// Updates this rank's part of the trained parameters and gathers the others' parts.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn update(
        &mut self,
        model: Llava,
        layout: &Layout,
        adamw: &AdamW,
        weight_decay: f64,
        collective: &mut dyn Collective,
    ) -> Result<Llava> {
        let mut updater = Updater { partitions: self, layout, adamw, weight_decay };
        let model = model.map(&mut updater);
        if layout.world_size == 1 { Ok(model) } else { self.gather(model, layout, collective) }
    }

    /// All-gathers every block's values.
    fn gather(&mut self, mut model: Llava, layout: &Layout, collective: &mut dyn Collective) -> Result<Llava> {
        for (index, block) in layout.blocks.iter().enumerate() {
            let place = Place { operation: "all-gather", block: block.name.clone() };
            let mut flat = values(&model, layout, index)?;
            for bucket in &block.buckets {
                let mut own = flat[bucket.owned(layout.rank)].to_vec();
                own.resize(bucket.partition_len, 0.0);
                let mut full = vec![0.0; bucket.partition_len * layout.world_size];
                collective.all_gather(&place, own, &mut full)?;
                self.bytes_sent += ((layout.world_size - 1) * bucket.partition_len * size_of::<f32>()) as u64;
                flat[bucket.range.clone()].copy_from_slice(&full[..bucket.range.len()]);
            }
            model = model.map(&mut Setter { layout, block: index, flat: &flat });
        }
        Ok(model)
    }
}

/// The values of a block's parameters, one after another.
///
/// # Errors
/// A backend that cannot give its values as f32.
pub fn values(model: &Llava, layout: &Layout, block: usize) -> Result<Vec<f32>> {
    let mut getter = Getter { layout, block, flat: vec![0.0; layout.blocks[block].len], error: None };
    model.visit(&mut getter);
    match getter.error {
        None => Ok(getter.flat),
        Some(error) => Err(anyhow!("values of {}: {error}", layout.blocks[block].name)),
    }
}

/// Puts the values of a block's parameters back into the model.
pub fn set_values(model: Llava, layout: &Layout, block: usize, flat: &[f32]) -> Llava {
    model.map(&mut Setter { layout, block, flat })
}

struct Getter<'a> {
    layout: &'a Layout,
    block: usize,
    flat: Vec<f32>,
    error: Option<String>,
}

impl ModuleVisitor for Getter<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((block, slot)) = self.layout.find(param.id).filter(|(block, _)| *block == self.block) else { return };
        debug_assert_eq!(block, self.block);
        let data = param.val().into_data();
        match data.as_slice::<f32>() {
            Ok(values) => self.flat[slot.offset..slot.offset + slot.len].copy_from_slice(values),
            Err(error) => self.error = Some(format!("{}: {error:?}", slot.name)),
        }
    }
}

struct Setter<'a> {
    layout: &'a Layout,
    block: usize,
    flat: &'a [f32],
}

impl ModuleMapper for Setter<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some((_, slot)) = self.layout.find(param.id).filter(|(block, _)| *block == self.block) else {
            return param;
        };
        let new = &self.flat[slot.offset..slot.offset + slot.len];
        edit(param, |values| values.copy_from_slice(new))
    }
}

struct Updater<'a> {
    partitions: &'a mut Partitions,
    layout: &'a Layout,
    adamw: &'a AdamW,
    weight_decay: f64,
}

impl ModuleMapper for Updater<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some((block, slot)) = self.layout.find(param.id) else { return param };
        edit(param, |values| self.update(block, slot, values))
    }
}

impl Updater<'_> {
    fn update(&mut self, block: usize, slot: &ParamSlot, values: &mut [f32]) {
        let Partitions { gradient, exp_avg, exp_avg_sq, .. } = &mut *self.partitions;
        let weight_decay = if slot.decays { self.weight_decay } else { 0.0 };
        for (range, start) in self.layout.blocks[block].owned_ranges(slot, self.layout.rank) {
            let part = start..start + range.len();
            let slices = Slices {
                values: &mut values[range],
                gradient: &gradient[block][part.clone()],
                exp_avg: &mut exp_avg[block][part.clone()],
                exp_avg_sq: &mut exp_avg_sq[block][part],
            };
            self.adamw.update(slices, weight_decay);
        }
    }
}

/// Changes a parameter's values: in place on the CPU, through a copy elsewhere.
fn edit<const D: usize>(param: Param<Tensor<D>>, change: impl FnOnce(&mut [f32])) -> Param<Tensor<D>> {
    let (id, tensor, mapper) = param.consume();
    let (trained, device) = (tensor.is_require_grad(), tensor.device());
    let on_cpu = device.clone().inner() == common::device::cpu();
    let tensor = if device.is_autodiff() { tensor.inner() } else { tensor };
    let tensor = if on_cpu { edit_in_place(tensor, change) } else { edit_copy(tensor, change) };
    let tensor = if device.is_autodiff() { Tensor::from_inner(tensor) } else { tensor };
    Param::from_mapped_value(id, tensor.set_require_grad(trained), mapper)
}

fn edit_in_place<const D: usize>(tensor: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    match tensor.try_into_primitive::<Flex>() {
        Ok(mut primitive) => {
            change(primitive.storage_mut::<f32>());
            Tensor::from_primitive::<Flex>(primitive)
        }
        Err(error) => unreachable!("a tensor of the CPU device is a tensor of its backend: {error:?}"),
    }
}

fn edit_copy<const D: usize>(tensor: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let (shape, device) = (tensor.dims(), tensor.device());
    let mut values: Vec<f32> = tensor.into_data().iter::<f32>().collect();
    change(&mut values);
    Tensor::from_data(TensorData::new(values, shape), &device)
}
