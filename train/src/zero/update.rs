//! The update of the optimizer: blocks get their new values and are gathered in the order of the next forward pass.

use super::{OnDevice, Optimizer};
use crate::adamw::{AdamW, Slices};
use crate::gradient::BlockGradient;
use crate::layout::ParamSlot;
use crate::learning_rates::LearningRates;
use crate::parameters;
use anyhow::Result;
use model::Llava;
use std::ops::Range;
use std::sync::Arc;

/// An update that blocks still have before them.
pub(super) struct Update {
    /// Of each block.
    adamw: Vec<AdamW>,
    /// First block that has not begun.
    next: usize,
}

impl Optimizer {
    /// Begins an update, each block at the rate of its part; a block has its new values after `wait_for_params`. A rank by
    /// itself updates at once.
    pub fn begin_update(&mut self, model: &mut Llava, adamw: AdamW, rates: LearningRates) {
        let of_block = |block| AdamW { learning_rate: rates.of_block(self.layout.block_of_model(block)), ..adamw };
        let adamw: Vec<AdamW> = (0..self.layout.blocks.len()).map(of_block).collect();
        if self.layout.world_size > 1 || self.sharded.is_some() {
            self.update = Some(Update { adamw, next: 0 });
            return;
        }
        let layout = Arc::clone(&self.layout);
        if let Some(OnDevice { partitions, sums }) = &mut self.on_device {
            partitions.update(model, &layout, sums, &adamw, self.weight_decay);
            return;
        }
        match self.partitions.masters.take() {
            None => parameters::edit(model, &layout, None, |block, slot, values| {
                self.update_whole_param(adamw[block], block, slot, values);
            }),
            Some(mut masters) => {
                for (block, masters) in masters.iter_mut().enumerate() {
                    let masters = Arc::make_mut(masters);
                    for slot in &layout.blocks[block].params {
                        self.update_whole_param(adamw[block], block, slot, &mut masters[slot.offset..][..slot.len]);
                    }
                    parameters::set(model, &layout, block, masters);
                }
                self.partitions.masters = Some(masters);
            }
        }
        self.whole.fill(None);
    }

    /// Waits until the first `blocks` blocks have their new values; more are begun.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub(super) fn wait_for_params(&mut self, model: &mut Llava, blocks: usize) -> Result<()> {
        while let Some(mut update) = self.update.take() {
            self.begin_gathers(&mut update, model)?;
            // None: the update is over.
            let Some(first) = self.first_gathering() else { break };
            self.update = Some(update);
            if first >= blocks || !self.take_gathered(model)? {
                break;
            }
        }
        Ok(())
    }

    fn first_gathering(&self) -> Option<usize> {
        match &self.sharded {
            Some(sharded) => sharded.exchanges.first_gathering(),
            None => self.exchanges.first_gathering(),
        }
    }

    /// Puts the values that began to be gathered first into the model. Whether there were any.
    fn take_gathered(&mut self, model: &mut Llava) -> Result<bool> {
        if let Some(sharded) = &mut self.sharded {
            return sharded.take_gathered(model);
        }
        let Some((block, values)) = self.exchanges.take_gathered()? else { return Ok(false) };
        parameters::set(model, &self.layout, block, &values);
        self.exchanges.buffers.give(values);
        Ok(true)
    }

    /// Waits until the whole model has its new values.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn wait_for_all_params(&mut self, model: &mut Llava) -> Result<()> {
        self.wait_for_params(model, self.layout.blocks.len())
    }

    /// Updates this rank's part of the next blocks and begins to gather them, as many as there is room for.
    fn begin_gathers(&mut self, update: &mut Update, model: &mut Llava) -> Result<()> {
        while update.next < self.layout.blocks.len() {
            let block = update.next;
            if let Some(sharded) = &mut self.sharded {
                if !sharded.exchanges.has_room_to_gather(block) {
                    break;
                }
                sharded.update(model, block, &update.adamw[block], self.weight_decay)?;
            } else {
                if !self.exchanges.has_room_to_gather(block) {
                    break;
                }
                let own = self.update_own(update.adamw[block], model, block);
                self.gradient[block].fill(0.0);
                self.exchanges.gather(block, own)?;
            }
            update.next += 1;
        }
        Ok(())
    }

    /// Updates this rank's part of a block and gives a copy of it.
    fn update_own(&mut self, adamw: AdamW, model: &mut Llava, block: usize) -> Vec<f32> {
        let layout = Arc::clone(&self.layout);
        let of_block = &layout.blocks[block];
        if let Some(mut masters) = self.partitions.masters.take() {
            let own = Arc::make_mut(&mut masters[block]);
            for slot in &of_block.params {
                for (range, start) in of_block.owned_ranges(slot, layout.rank) {
                    let part = start..start + range.len();
                    self.update_part(adamw, block, slot, part.clone(), &mut own[part]);
                }
            }
            let own = own.clone();
            self.partitions.masters = Some(masters);
            return own;
        }
        let mut own = vec![0.0; of_block.partition_len()];
        parameters::edit(model, &layout, Some(block), |_, slot, values| {
            for (range, start) in of_block.owned_ranges(slot, layout.rank) {
                let part = start..start + range.len();
                self.update_part(adamw, block, slot, part.clone(), &mut values[range.clone()]);
                own[part].copy_from_slice(&values[range]);
            }
        });
        own
    }

    /// A parameter of the only rank.
    fn update_whole_param(&mut self, adamw: AdamW, block: usize, slot: &ParamSlot, values: &mut [f32]) {
        let weight_decay = self.weight_decay_of(slot);
        let [exp_avg, exp_avg_sq] = self.partitions.moments(block, slot.offset..slot.offset + slot.len);
        let gradient = match (self.whole[block].take(), &slot.shape[..]) {
            (Some(BlockGradient::Rows(rows)), &[_, width]) if adamw.epsilon > 0.0 => {
                let touched = self.touched.of(slot.id, rows.keys().copied(), [exp_avg, exp_avg_sq], width);
                adamw.update_rows(values, [exp_avg, exp_avg_sq], &rows, touched, width, weight_decay);
                return;
            }
            (Some(BlockGradient::Params(mut params)), _) => {
                let gradient = std::mem::take(&mut params[self.layout.blocks[block].index_of(slot)]);
                self.whole[block] = Some(BlockGradient::Params(params));
                gradient
            }
            (Some(rows), _) => rows.into_flat(slot.len, &self.exchanges.buffers),
            // Moments decay all the same.
            (None, _) => vec![0.0; slot.len],
        };
        self.touched.forget(slot.id);
        adamw.update(Slices { values, gradient: &gradient, exp_avg, exp_avg_sq }, weight_decay);
    }

    /// A slice of a parameter, which is `part` of what this rank owns of the block.
    fn update_part(&mut self, adamw: AdamW, block: usize, slot: &ParamSlot, part: Range<usize>, values: &mut [f32]) {
        let weight_decay = self.weight_decay_of(slot);
        let gradient = &self.gradient[block][part.clone()];
        let [exp_avg, exp_avg_sq] = self.partitions.moments(block, part);
        adamw.update(Slices { values, gradient, exp_avg, exp_avg_sq }, weight_decay);
    }

    fn weight_decay_of(&self, slot: &ParamSlot) -> f64 {
        if slot.decays { self.weight_decay } else { 0.0 }
    }
}
