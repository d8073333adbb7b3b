//! ZeRO-2: this rank's part of gradients, masters and moments, and how it is exchanged with the others' while the rank
//! computes.
//!
//! A block's gradient goes to reduce-scatter as soon as the backward pass has it, and the block before it is computed
//! meanwhile. After the step's norm is known, blocks are updated and gathered in the order of the next forward pass, a little
//! ahead of it.

mod update;

use crate::backward::BlockHooks;
use crate::collective::background::{Communicator, Traffic};
use crate::config::Accumulate;
use crate::exchange::Exchanges;
use crate::gradient::{self, BlockGradient, TouchedRows};
use crate::layout::Layout;
use crate::on_device::{self, DevicePartitions, Sums};
use crate::partitions::Partitions;
use crate::sharded::{DeviceRanks, Sharded, ShardedPartitions};
use anyhow::{Result, anyhow};
use base::names::Block;
use burn::tensor::{Device, Tensor};
use model::Llava;
use std::sync::Arc;
use update::Update;

/// One rank of the optimizer; the rank's connection to the others is its.
pub struct Optimizer {
    layout: Arc<Layout>,
    partitions: Partitions,
    exchanges: Exchanges,
    accumulate: Accumulate,
    weight_decay: f64,
    /// This rank's part of the gradient of the loss sum, accumulated over micro-steps; empty before the first.
    gradient: Vec<Vec<f32>>,
    /// Whole gradients of this rank alone, with `accumulate = local`.
    local: Vec<Option<Vec<f32>>>,
    /// Gradients of the only rank.
    whole: Vec<Option<BlockGradient>>,
    touched: TouchedRows,
    micro_step: MicroStep,
    update: Option<Update>,
    /// In place of gradients and partitions here, where the only rank's optimizer is on its device.
    on_device: Option<OnDevice>,
    /// In place of gradients, partitions and exchanges here, where ranks exchange from device to device.
    sharded: Option<Sharded>,
}

/// What is on the device.
struct OnDevice {
    partitions: DevicePartitions,
    sums: Sums,
}

/// The optimizer's state, for a checkpoint; it is shared until the next update.
pub enum OptimizerState {
    /// In the host's memory.
    Host(Partitions),
    /// On the device of the only rank.
    OnDevice(DevicePartitions),
    /// On the device of a rank that exchanges from there.
    Sharded(ShardedPartitions),
}

impl OptimizerState {
    /// Whether masters are kept beside the model.
    pub fn has_masters(&self) -> bool {
        match self {
            Self::Host(partitions) => partitions.masters.is_some(),
            Self::OnDevice(partitions) => partitions.has_masters(),
            Self::Sharded(partitions) => partitions.has_masters(),
        }
    }
}

/// The micro-step whose gradients are taken.
struct MicroStep {
    /// Whether it is the step's last.
    is_last: bool,
    /// For each block, whether it had a gradient.
    reduced: Vec<bool>,
}

impl Optimizer {
    /// From moments (and masters) of zero or of a checkpoint; `device` is the model's. With `ranks`, gradients and parameters are
    /// exchanged by them, and `communicator` has the rest.
    pub fn new(
        layout: Arc<Layout>,
        state: OptimizerState,
        device: &Device,
        communicator: Communicator,
        accumulate: Accumulate,
        weight_decay: f64,
        ranks: Option<DeviceRanks>,
    ) -> Self {
        let (blocks, applies) = (layout.blocks.len(), on_device::applies(device, layout.world_size));
        let device = device.clone().inner();
        let state = match (state, &ranks) {
            (OptimizerState::Host(partitions), Some(_)) => {
                OptimizerState::Sharded(ShardedPartitions::new(partitions, &layout, &device))
            }
            (OptimizerState::Host(partitions), None) if applies => {
                OptimizerState::OnDevice(DevicePartitions::new(partitions, &layout, &device))
            }
            (state, _) => state,
        };
        let (mut partitions, mut on_device, mut sharded) = (Partitions::none(), None, None);
        match (state, ranks) {
            (OptimizerState::Sharded(of_rank), Some(ranks)) => {
                sharded = Some(Sharded::new(Arc::clone(&layout), of_rank, ranks, device, accumulate));
            }
            (OptimizerState::OnDevice(partitions), _) => {
                on_device = Some(OnDevice { partitions, sums: Sums::new(&layout) });
            }
            (OptimizerState::Host(of_host), _) => partitions = of_host,
            // Made for ranks that are there: see `load`.
            (OptimizerState::Sharded(_), None) => debug_assert!(false, "slices without ranks to exchange them"),
        }
        Self {
            on_device,
            sharded,
            exchanges: Exchanges::new(communicator, Arc::clone(&layout), ()),
            layout,
            partitions,
            accumulate,
            weight_decay,
            gradient: vec![Vec::new(); blocks],
            local: vec![None; blocks],
            whole: vec![None; blocks],
            touched: TouchedRows::default(),
            micro_step: MicroStep { is_last: true, reduced: vec![false; blocks] },
            update: None,
        }
    }

    /// Where every trained value is.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// What this rank owns; a block's part is the new one after `wait_for_params`.
    pub fn state(&self) -> OptimizerState {
        match (&self.on_device, &self.sharded) {
            (Some(OnDevice { partitions, .. }), _) => OptimizerState::OnDevice(partitions.clone()),
            (None, Some(Sharded { partitions, .. })) => OptimizerState::Sharded(partitions.clone()),
            (None, None) => OptimizerState::Host(self.partitions.clone()),
        }
    }

    /// Whether gradients stay on the model's device.
    pub fn is_on_device(&self) -> bool {
        self.on_device.is_some() || self.sharded.is_some()
    }

    /// The connection to the other ranks.
    pub fn communicator(&mut self) -> &mut Communicator {
        &mut self.exchanges.communicator
    }

    /// What exchanging has cost since the last call.
    pub fn take_traffic(&mut self) -> Traffic {
        let of_host = self.exchanges.communicator.take_traffic();
        let of_devices = self.sharded.as_mut().map(|sharded| sharded.exchanges.communicator.take_traffic());
        of_devices.map_or(of_host, |traffic| traffic.plus(of_host))
    }

    /// Ends the connections, as [`Communicator::finish`].
    ///
    /// # Errors
    /// As there.
    pub fn finish(self) -> Result<()> {
        self.sharded.map_or(Ok(()), Sharded::finish)?;
        Ok(self.exchanges.communicator.finish()?)
    }

    /// Gradients are those of another micro-step from here on.
    pub fn begin_micro_step(&mut self, is_last: bool) {
        self.micro_step.is_last = is_last;
        self.micro_step.reduced.fill(false);
    }

    /// A batch without images gives the projector and the tower no gradient, no batch gives no block any, but the other ranks
    /// wait for this one's part of every block.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn end_micro_step(&mut self, model: &mut Llava) -> Result<()> {
        self.wait_for_params(model, self.layout.blocks.len())?;
        if self.layout.world_size == 1 && self.sharded.is_none() {
            return Ok(());
        }
        for block in (0..self.layout.blocks.len()).rev() {
            if !self.micro_step.reduced[block] {
                let zeros = match self.sharded.is_some() {
                    true => BlockGradient::OnDevice(Box::default()),
                    false => BlockGradient::Params(vec![vec![0.0; self.layout.blocks[block].padded_len]]),
                };
                self.reduce(block, zeros)?;
            }
        }
        Ok(())
    }

    /// Takes a block's gradient of the micro-step: the sum over the ranks is begun, and this rank's part of it will be added to
    /// what it owns. With `accumulate = local` only the last micro-step is summed.
    fn reduce(&mut self, block: usize, gradient: BlockGradient) -> Result<()> {
        let gradient = match (gradient, &mut self.on_device, &mut self.sharded) {
            (BlockGradient::OnDevice(gradient), Some(on_device), _) => {
                on_device.sums.add(block, &self.layout.blocks[block], *gradient);
                return Ok(());
            }
            (BlockGradient::OnDevice(gradient), None, Some(sharded)) => {
                return sharded.reduce(block, *gradient, self.micro_step.is_last);
            }
            (gradient, ..) => gradient,
        };
        if self.layout.world_size == 1 {
            match &mut self.whole[block] {
                Some(sum) => sum.add(gradient),
                none => *none = Some(gradient),
            }
            return Ok(());
        }
        let layout = &self.layout.blocks[block];
        let (partition_len, buffers) = (layout.partition_len(), &self.exchanges.buffers);
        let mut flat = gradient.into_flat(layout.padded_len, buffers);
        if self.accumulate == Accumulate::Local {
            let sum = &mut self.local[block];
            buffers.add(sum, flat);
            match sum.take_if(|_| self.micro_step.is_last) {
                Some(sum) => flat = sum,
                None => return Ok(()),
            }
        }
        while !self.exchanges.has_room_to_reduce(block) {
            self.take_reduced()?;
        }
        let mut own = std::mem::take(&mut self.gradient[block]);
        own.resize(partition_len, 0.0);
        Ok(self.exchanges.reduce(block, flat, own)?)
    }

    /// Whether a sum was under way: it is here now.
    fn take_reduced(&mut self) -> Result<bool> {
        if let Some(sharded) = &mut self.sharded {
            return sharded.take_reduced();
        }
        let reduced = self.exchanges.take_reduced()?;
        Ok(reduced.map(|(block, own)| self.gradient[block] = own).is_some())
    }

    /// Waits for all sums; then gives the values of `losses` (`[1]` each) and the sum of squares of this rank's gradient, in
    /// f64, not finite if a gradient is not. What is on a device is read at once.
    ///
    /// # Errors
    /// A rank that failed or did not come; a device that failed.
    pub fn sums(&mut self, losses: Vec<Tensor<1>>) -> Result<(Vec<f64>, f64)> {
        while self.take_reduced()? {}
        let squares = match (&self.on_device, &self.sharded) {
            (Some(on_device), _) => on_device.sums.squares(),
            (_, Some(sharded)) => sharded.squares(),
            _ => None,
        };
        let count = losses.len();
        let mut numbers = read(losses.into_iter().chain(squares).collect())?;
        let of_device: f64 = numbers.drain(count..).sum();
        let whole = self.whole.iter().flatten().flat_map(BlockGradient::slices);
        let of_host = gradient::squared_norm(self.gradient.iter().map(Vec::as_slice).chain(whole));
        Ok((numbers, of_host + of_device))
    }

    /// Forgets a gradient that is not to be used.
    pub fn discard_gradient(&mut self) {
        self.gradient.iter_mut().for_each(Vec::clear);
        self.whole.fill(None);
        if let Some(on_device) = &mut self.on_device {
            on_device.sums.clear();
        }
        if let Some(sharded) = &mut self.sharded {
            sharded.clear();
        }
    }
}

/// The values of tensors `[1]`, read in one piece.
fn read(numbers: Vec<Tensor<1>>) -> Result<Vec<f64>> {
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let data = Tensor::cat(numbers, 0).into_data();
    let values = data.as_slice::<f32>().map_err(|error| anyhow!("losses and norms are not f32: {error:?}"))?;
    Ok(values.iter().map(|&value| f64::from(value)).collect())
}

impl BlockHooks for Optimizer {
    fn before_forward(&mut self, model: &mut Llava, block: Block) -> Result<()> {
        self.wait_for_params(model, self.layout.blocks_through(block))
    }

    fn after_backward(&mut self, block: usize, gradient: BlockGradient) -> Result<()> {
        self.micro_step.reduced[block] = true;
        self.reduce(block, gradient)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::layout;

    /// Two micro-steps on three ranks: the sum's norm is the same whichever gradient accumulates, and so are the bytes of
    /// the formulas (K + 1)·P·(N−1)/N and 2·P·(N−1)/N, without their all-gather.
    #[test]
    fn both_ways_to_accumulate_give_the_same_sums_and_their_bytes() {
        const LENS: [usize; 3] = [9, 300, 12];
        for (accumulate, reductions) in [(Accumulate::Shard, 2), (Accumulate::Local, 1)] {
            let results = crate::collective::threads::run(3, std::time::Duration::from_secs(5), |rank| {
                let communicator = Communicator::start(Box::new(rank))?;
                let rank = communicator.rank();
                let layout = Arc::new(layout(rank, 3, &LENS));
                let (state, device) = (OptimizerState::Host(Partitions::new(&layout)), kernels::device::cpu());
                let mut optimizer =
                    Optimizer::new(Arc::clone(&layout), state, &device, communicator, accumulate, 0.0, None);
                for micro_step in 0..2 {
                    optimizer.begin_micro_step(micro_step == 1);
                    for block in (0..LENS.len()).rev() {
                        let flat = vec![(micro_step + rank) as f32; layout.blocks[block].padded_len];
                        optimizer.after_backward(block, BlockGradient::Params(vec![flat]))?;
                    }
                }
                let (_, squares) = optimizer.sums(Vec::new())?;
                let communicator = optimizer.communicator();
                Ok((communicator.all_reduce("squares", [squares])?[0], communicator.take_traffic().bytes_sent))
            });
            for result in results {
                // Each value is 0 + 1 + 2 + 1 + 2 + 3 = 9; a third of the values goes to each of two ranks.
                let values = LENS.iter().sum::<usize>();
                let bytes = reductions * (values / 3) as u64 * 2 * 4;
                assert_eq!(result.expect("no rank fails"), (81.0 * values as f64, bytes), "{accumulate:?}");
            }
        }
    }
}
