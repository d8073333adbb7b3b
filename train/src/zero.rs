//! ZeRO-2: this rank's part of gradients, masters and moments, and how it is exchanged with the others' while the rank
//! computes.
//!
//! A block's gradient goes to reduce-scatter as soon as the backward pass has it, and the block before it is computed
//! meanwhile. After the step's norm is known, blocks are updated and gathered in the order of the next forward pass, a little
//! ahead of it. Never more than about two blocks are on their way.

use crate::adamw::{AdamW, Slices};
use crate::buffers::Buffers;
use crate::collective::Place;
use crate::collective::background::{Communicator, Pending};
use crate::config::Accumulate;
use crate::gradient::{self, BlockGradient, TouchedRows};
use crate::layout::{Layout, ParamSlot};
use crate::parameters;
use anyhow::Result;
use model::Llava;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// What this rank owns, a vector per block of the layout (padding included).
pub struct Partitions {
    /// Master weights, where the model computes with rounded ones; otherwise they are the model's own values.
    pub masters: Option<Vec<Arc<Vec<f32>>>>,
    /// AdamW's first moment; shared with a checkpoint that is being written.
    pub exp_avg: Vec<Arc<Vec<f32>>>,
    /// AdamW's second moment.
    pub exp_avg_sq: Vec<Arc<Vec<f32>>>,
    /// Gradient of the loss sum, accumulated over micro-steps; empty before the first.
    gradient: Vec<Vec<f32>>,
    /// Whole gradients of this rank alone, with `accumulate = local`.
    local: Vec<Vec<f32>>,
    /// Gradients of the only rank.
    whole: Vec<Option<BlockGradient>>,
    touched: TouchedRows,
    accumulate: Accumulate,
    reducing: VecDeque<Exchange>,
    gathering: VecDeque<Exchange>,
    update: Option<Update>,
    buffers: Buffers,
}

/// A block on its way: its gradient's sum (reduce-scatter) or its whole values (all-gather).
struct Exchange {
    block: usize,
    pending: Pending<Vec<f32>>,
}

/// An update that blocks still have before them.
struct Update {
    adamw: AdamW,
    weight_decay: f64,
    /// First block that has not begun.
    next: usize,
}

impl Partitions {
    /// Zeros.
    pub fn new(layout: &Layout, accumulate: Accumulate) -> Self {
        // Memory that is never written takes none: rows of a table without a gradient cost nothing.
        let zeros = || layout.zero_partitions().into_iter().map(Arc::new).collect();
        let empty = || vec![Vec::new(); layout.blocks.len()];
        Self {
            masters: None,
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
            gradient: empty(),
            local: empty(),
            whole: vec![None; layout.blocks.len()],
            touched: TouchedRows::default(),
            accumulate,
            reducing: VecDeque::new(),
            gathering: VecDeque::new(),
            update: None,
            buffers: Buffers::new(2),
        }
    }

    /// Keeps the model's values (f32) as masters from here on: the model may be rounded then.
    ///
    /// # Errors
    /// As [`parameters::owned`].
    pub fn keep_masters(&mut self, model: &Llava, layout: &Layout) -> Result<()> {
        let owned = |block| Ok(Arc::new(parameters::owned(model, layout, block)?));
        self.masters = Some((0..layout.blocks.len()).map(owned).collect::<Result<_>>()?);
        Ok(())
    }

    /// Takes a block's gradient of one micro-step: the sum over the ranks is begun, and this
    /// rank's part of it will be added to what it owns. With `accumulate = local` only the last micro-step is summed.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn reduce(
        &mut self,
        layout: &Layout,
        communicator: &mut Communicator,
        block: usize,
        gradient: BlockGradient,
        is_last: bool,
    ) -> Result<()> {
        if layout.world_size == 1 {
            match &mut self.whole[block] {
                Some(sum) => sum.add(gradient),
                none => *none = Some(gradient),
            }
            return Ok(());
        }
        let mut flat = gradient.into_flat(layout.blocks[block].padded_len, &self.buffers);
        if self.accumulate == Accumulate::Local {
            self.buffers.add(&mut self.local[block], flat);
            if !is_last {
                return Ok(());
            }
            flat = std::mem::take(&mut self.local[block]);
        }
        let of_block = &layout.blocks[block];
        let on_the_way = |reducing: &VecDeque<Exchange>| -> usize {
            reducing.iter().map(|exchange| layout.blocks[exchange.block].padded_len).sum()
        };
        while !self.reducing.is_empty() && on_the_way(&self.reducing) + of_block.padded_len > layout.largest_block()
            || self.reducing.iter().any(|exchange| exchange.block == block)
        {
            self.finish_reduction(communicator)?;
        }
        let place = Place { operation: "reduce-scatter", block: of_block.name.clone() };
        let (parts, mut own) = (of_block.parts(), std::mem::take(&mut self.gradient[block]));
        own.resize(of_block.partition_len(), 0.0);
        let buffers = self.buffers.clone();
        let pending = communicator.submit(move |collective| {
            buffers.give(collective.reduce_scatter(&place, &parts, flat, &mut own)?);
            Ok(own)
        })?;
        self.reducing.push_back(Exchange { block, pending });
        Ok(())
    }

    /// Takes part in a block's sum without a gradient.
    ///
    /// # Errors
    /// As [`Partitions::reduce`].
    pub fn reduce_nothing(
        &mut self,
        layout: &Layout,
        communicator: &mut Communicator,
        block: usize,
        is_last: bool,
    ) -> Result<()> {
        if layout.world_size == 1 {
            return Ok(());
        }
        let zeros = vec![0.0; layout.blocks[block].padded_len];
        self.reduce(layout, communicator, block, BlockGradient::Params(vec![zeros]), is_last)
    }

    fn finish_reduction(&mut self, communicator: &mut Communicator) -> Result<()> {
        if let Some(Exchange { block, pending }) = self.reducing.pop_front() {
            self.gradient[block] = communicator.wait(pending)?;
        }
        Ok(())
    }

    /// Waits for all sums; then gives the sum of squares of this rank's gradient, in f64, not finite if a gradient is not.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn squared_norm(&mut self, communicator: &mut Communicator) -> Result<f64> {
        while !self.reducing.is_empty() {
            self.finish_reduction(communicator)?;
        }
        let whole = self.whole.iter().flatten().flat_map(BlockGradient::stretches);
        Ok(gradient::squared_norm(self.gradient.iter().map(Vec::as_slice).chain(whole)))
    }

    /// Forgets a gradient that is not to be used.
    pub fn discard_gradient(&mut self) {
        self.gradient.iter_mut().for_each(Vec::clear);
        self.whole.fill(None);
    }

    /// Begins an update; a block has its new values after [`Self::settle`]. A rank by itself updates at once.
    pub fn begin_update(&mut self, model: &mut Llava, layout: &Layout, adamw: AdamW, weight_decay: f64) {
        let update = Update { adamw, weight_decay, next: 0 };
        if layout.world_size > 1 {
            self.update = Some(update);
            return;
        }
        match self.masters.take() {
            None => parameters::edit(model, layout, None, |block, slot, values| {
                self.update_whole_param(layout, &update, block, slot, values);
            }),
            Some(mut masters) => {
                for (block, masters) in masters.iter_mut().enumerate() {
                    let masters = Arc::make_mut(masters);
                    for slot in &layout.blocks[block].params {
                        let values = &mut masters[slot.offset..][..slot.len];
                        self.update_whole_param(layout, &update, block, slot, values);
                    }
                    parameters::set(model, layout, block, masters);
                }
                self.masters = Some(masters);
            }
        }
        self.whole.fill(None);
    }

    /// Waits until the first `blocks` blocks have their new values; more are begun.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn settle(
        &mut self,
        model: &mut Llava,
        layout: &Layout,
        communicator: &mut Communicator,
        blocks: usize,
    ) -> Result<()> {
        while let Some(mut update) = self.update.take() {
            self.begin_gathers(&mut update, model, layout, communicator)?;
            let Some(first) = self.gathering.front() else { break };
            self.update = Some(update);
            if first.block >= blocks {
                break;
            }
            let Some(Exchange { block, pending }) = self.gathering.pop_front() else { break };
            let values = communicator.wait(pending)?;
            parameters::set(model, layout, block, &values);
            self.buffers.give(values);
        }
        Ok(())
    }

    /// Updates this rank's part of the next blocks and begins to gather them, as many as fit into two blocks.
    fn begin_gathers(
        &mut self,
        update: &mut Update,
        model: &mut Llava,
        layout: &Layout,
        communicator: &mut Communicator,
    ) -> Result<()> {
        while let Some(of_block) = layout.blocks.get(update.next) {
            let on_the_way: usize = self.gathering.iter().map(|e| layout.blocks[e.block].padded_len).sum();
            if !self.gathering.is_empty() && on_the_way + of_block.padded_len > 2 * layout.largest_block() {
                break;
            }
            let block = update.next;
            let own = self.update_own(update, model, layout, block);
            self.gradient[block].fill(0.0);
            let place = Place { operation: "all-gather", block: of_block.name.clone() };
            let (parts, len) = (of_block.parts(), of_block.padded_len);
            let buffers = self.buffers.clone();
            let pending = communicator.submit(move |collective| {
                let mut full = buffers.take(len);
                collective.all_gather(&place, &parts, own, &mut full)?;
                Ok(full)
            })?;
            self.gathering.push_back(Exchange { block, pending });
            update.next += 1;
        }
        Ok(())
    }

    /// Updates this rank's part of a block and gives a copy of it.
    fn update_own(&mut self, update: &Update, model: &mut Llava, layout: &Layout, block: usize) -> Vec<f32> {
        let of_block = &layout.blocks[block];
        if let Some(mut masters) = self.masters.take() {
            let own = Arc::make_mut(&mut masters[block]);
            for slot in &of_block.params {
                for (range, start) in of_block.owned_ranges(slot, layout.rank) {
                    let part = start..start + range.len();
                    self.update_part(update, block, slot, part.clone(), &mut own[part]);
                }
            }
            let own = own.clone();
            self.masters = Some(masters);
            return own;
        }
        let mut own = vec![0.0; of_block.partition_len()];
        parameters::edit(model, layout, Some(block), |_, slot, values| {
            for (range, start) in of_block.owned_ranges(slot, layout.rank) {
                let part = start..start + range.len();
                self.update_part(update, block, slot, part.clone(), &mut values[range.clone()]);
                own[part].copy_from_slice(&values[range]);
            }
        });
        own
    }

    /// A parameter of the only rank.
    fn update_whole_param(
        &mut self,
        layout: &Layout,
        update: &Update,
        block: usize,
        slot: &ParamSlot,
        values: &mut [f32],
    ) {
        let weight_decay = if slot.decays { update.weight_decay } else { 0.0 };
        let part = slot.offset..slot.offset + slot.len;
        let exp_avg = &mut Arc::make_mut(&mut self.exp_avg[block])[part.clone()];
        let exp_avg_sq = &mut Arc::make_mut(&mut self.exp_avg_sq[block])[part];
        let gradient = match (self.whole[block].take(), &slot.shape[..]) {
            (Some(BlockGradient::Rows(rows)), &[_, width]) if update.adamw.epsilon > 0.0 => {
                let touched = self.touched.of(slot.id, rows.keys().copied(), [exp_avg, exp_avg_sq], width);
                update.adamw.update_rows(values, [exp_avg, exp_avg_sq], &rows, touched, width, weight_decay);
                return;
            }
            (Some(BlockGradient::Params(mut params)), _) => {
                let gradient = std::mem::take(&mut params[layout.blocks[block].index_of(slot)]);
                self.whole[block] = Some(BlockGradient::Params(params));
                gradient
            }
            (Some(rows), _) => rows.into_flat(slot.len, &self.buffers),
            // Moments decay all the same.
            (None, _) => vec![0.0; slot.len],
        };
        self.touched.forget(slot.id);
        update.adamw.update(Slices { values, gradient: &gradient, exp_avg, exp_avg_sq }, weight_decay);
    }

    /// A stretch of a parameter, which is `part` of what this rank owns of the block.
    fn update_part(&mut self, update: &Update, block: usize, slot: &ParamSlot, part: Range<usize>, values: &mut [f32]) {
        let weight_decay = if slot.decays { update.weight_decay } else { 0.0 };
        let slices = Slices {
            values,
            gradient: &self.gradient[block][part.clone()],
            exp_avg: &mut Arc::make_mut(&mut self.exp_avg[block])[part.clone()],
            exp_avg_sq: &mut Arc::make_mut(&mut self.exp_avg_sq[block])[part],
        };
        update.adamw.update(slices, weight_decay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::BlockLayout;
    use base::names::Block;
    use burn::module::ParamId;

    fn layout(rank: usize, world_size: usize, lens: &[usize]) -> Layout {
        let slot =
            |len| ParamSlot { id: ParamId::new(), name: String::new(), shape: vec![len], offset: 0, len, decays: true };
        let block = |(index, &len)| {
            (Block::TextLayer(index), BlockLayout::new(format!("layer {index}"), vec![slot(len)], world_size, 1 << 20))
        };
        Layout::new(lens.iter().enumerate().map(block).collect(), rank, world_size)
    }

    /// Two micro-steps on three ranks: the sum's norm is the same whichever gradient accumulates, and so are the bytes of
    /// the formulas (K + 1)·P·(N−1)/N and 2·P·(N−1)/N, without their all-gather.
    #[test]
    fn both_ways_to_accumulate_give_the_same_sums_and_their_bytes() {
        const LENS: [usize; 3] = [9, 300, 12];
        for (accumulate, reductions) in [(Accumulate::Shard, 2), (Accumulate::Local, 1)] {
            let results = crate::collective::threads::run(3, std::time::Duration::from_secs(5), |rank| {
                let mut communicator = Communicator::start(Box::new(rank))?;
                let layout = layout(communicator.rank(), 3, &LENS);
                let mut partitions = Partitions::new(&layout, accumulate);
                for micro_step in 0..2 {
                    for block in (0..LENS.len()).rev() {
                        let flat = vec![(micro_step + communicator.rank()) as f32; layout.blocks[block].padded_len];
                        let gradient = BlockGradient::Params(vec![flat]);
                        partitions.reduce(&layout, &mut communicator, block, gradient, micro_step == 1)?;
                    }
                }
                let squares = partitions.squared_norm(&mut communicator)?;
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
