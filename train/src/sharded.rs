//! ZeRO-2 of ranks that exchange where they compute: gradients, masters and moments are on the devices, each rank has its slices of
//! them, and nothing of it passes through the host.

use crate::adamw::AdamW;
use crate::collective::background::Communicator;
use crate::config::Accumulate;
use crate::device_buffer::{DeviceBuffer, DeviceMemory};
use crate::exchange::Exchanges;
use crate::layout::Layout;
use crate::on_device::{DeviceGradient, DevicePartitions, added, joined, part, zeros};
use crate::parameters;
use anyhow::{Result, anyhow};
use burn::tensor::{Device, Tensor};
use model::Llava;
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
    pub partitions: DevicePartitions,
    /// Gradients and parameters that are exchanged.
    pub exchanges: Exchanges<DeviceBuffer>,
    memory: Arc<DeviceMemory>,
    device: Device,
    accumulate: Accumulate,
    /// This rank's part of the gradient, as a vector for each block; none before the first micro-step.
    gradient: Vec<Option<Tensor<1>>>,
    /// Whole gradients of this rank alone, with `accumulate = local`.
    local: Vec<Option<Tensor<1>>>,
}

impl Sharded {
    /// From moments (and masters) of zero or of a checkpoint; `device` has no autodiff.
    pub fn new(
        layout: Arc<Layout>,
        partitions: DevicePartitions,
        ranks: DeviceRanks,
        device: Device,
        accumulate: Accumulate,
    ) -> Self {
        let (DeviceRanks { communicator, memory }, blocks) = (ranks, layout.blocks.len());
        let exchanges = Exchanges::new(communicator, Arc::clone(&layout), Arc::clone(&memory));
        let none = vec![None; blocks];
        Self { layout, partitions, exchanges, memory, device, accumulate, gradient: none.clone(), local: none }
    }

    /// Takes a block's gradient of a micro-step, zeros where there is none: the sum over the ranks is begun. With `accumulate = local`
    /// only the step's last micro-step is summed.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn reduce(&mut self, block: usize, gradient: DeviceGradient, is_last: bool) -> Result<()> {
        let of_block = &self.layout.blocks[block];
        let (partition_len, mut flat) = (of_block.partition_len(), gradient.into_flat(of_block, &self.device));
        if self.accumulate == Accumulate::Local {
            let sum = added(self.local[block].take(), Some(flat.clone()));
            match sum {
                Some(sum) if is_last => flat = sum,
                sum => {
                    self.local[block] = sum;
                    return Ok(());
                }
            }
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

    /// Sums of squares whose sum is that of this rank's gradient, `[1]` each.
    pub fn squares(&self) -> Vec<Tensor<1>> {
        self.gradient.iter().flatten().map(kernels::sum_of_squares).collect()
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
            pieces.push(state.update_in_f32(of_model, gradient, adamw, weight_decay));
            filled = end;
        }
        if of_block.partition_len() > filled {
            pieces.push(zeros(of_block.partition_len() - filled, &self.device));
        }
        Ok(self.exchanges.gather(block, DeviceBuffer::of(joined(pieces), &self.memory))?)
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
