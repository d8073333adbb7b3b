//! Blocks that ranks exchange while they compute: their gradients' sums on the way to the owners, their new values on the way
//! back. Nothing here looks at the values, wherever they are.

use crate::buffers::{Buffer, Buffers, HostBuffer};
use crate::collective::background::{Communicator, Pending};
use crate::collective::{Place, Result};
use crate::layout::Layout;
use std::collections::VecDeque;
use std::sync::Arc;

/// Blocks whose exchange is under way, in the order in which it was begun. More than about two blocks at a time would take
/// memory that grows with the model's depth.
pub struct Exchanges<B: Buffer = HostBuffer> {
    /// The connection to the other ranks.
    pub communicator: Communicator<B>,
    /// Buffers of whole blocks.
    pub buffers: Arc<Buffers<B>>,
    layout: Arc<Layout>,
    reducing: VecDeque<Exchange<B>>,
    gathering: VecDeque<Exchange<B>>,
}

struct Exchange<B> {
    block: usize,
    pending: Pending<B>,
}

impl<B: Buffer> Exchanges<B> {
    /// None yet.
    pub fn new(communicator: Communicator<B>, layout: Arc<Layout>, memory: B::Memory) -> Self {
        let buffers = Arc::new(Buffers::new(memory, 2));
        Self { communicator, buffers, layout, reducing: VecDeque::new(), gathering: VecDeque::new() }
    }

    /// Whether a block's sum can begin before another is finished.
    pub fn has_room_to_reduce(&self, block: usize) -> bool {
        // Two sums of one block, of one micro-step and the next, add to the same partition.
        !self.reducing.iter().any(|exchange| exchange.block == block)
            && self.fits(&self.reducing, block, self.layout.largest_block())
    }

    /// Begins to add to `own`, this rank's partition of a block, the sum of all ranks' `flat`.
    ///
    /// # Errors
    /// The exchanging thread is gone.
    pub fn reduce(&mut self, block: usize, flat: B, mut own: B) -> Result<()> {
        let (place, parts) = self.place("reduce-scatter", block);
        let buffers = Arc::clone(&self.buffers);
        let pending = self.communicator.submit(move |collective| {
            buffers.give(collective.reduce_scatter(&place, &parts, flat, &mut own)?);
            Ok(own)
        })?;
        self.reducing.push_back(Exchange { block, pending });
        Ok(())
    }

    /// The block whose sum was begun first, and its partition; waits for it. None, if none is under way.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn take_reduced(&mut self) -> Result<Option<(usize, B)>> {
        let Some(Exchange { block, pending }) = self.reducing.pop_front() else { return Ok(None) };
        Ok(Some((block, self.communicator.wait(pending)?)))
    }

    /// Whether a block's new values can begin to be gathered before another's are there.
    pub fn has_room_to_gather(&self, block: usize) -> bool {
        self.fits(&self.gathering, block, 2 * self.layout.largest_block())
    }

    /// Begins to put together a block's values of what every rank owns of them.
    ///
    /// # Errors
    /// The exchanging thread is gone.
    pub fn gather(&mut self, block: usize, own: B) -> Result<()> {
        let (place, parts) = self.place("all-gather", block);
        let (buffers, len) = (Arc::clone(&self.buffers), self.layout.blocks[block].padded_len);
        let pending = self.communicator.submit(move |collective| {
            let mut full = buffers.take(len);
            collective.all_gather(&place, &parts, own, &mut full)?;
            Ok(full)
        })?;
        self.gathering.push_back(Exchange { block, pending });
        Ok(())
    }

    /// The block whose values began to be gathered first.
    pub fn first_gathering(&self) -> Option<usize> {
        self.gathering.front().map(|exchange| exchange.block)
    }

    /// That block and its values; waits for them. None, if none are under way.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn take_gathered(&mut self) -> Result<Option<(usize, B)>> {
        let Some(Exchange { block, pending }) = self.gathering.pop_front() else { return Ok(None) };
        Ok(Some((block, self.communicator.wait(pending)?)))
    }

    fn fits(&self, under_way: &VecDeque<Exchange<B>>, block: usize, room: usize) -> bool {
        let len = |block: usize| self.layout.blocks[block].padded_len;
        under_way.is_empty() || under_way.iter().map(|other| len(other.block)).sum::<usize>() + len(block) <= room
    }

    fn place(&self, operation: &'static str, block: usize) -> (Place, Vec<usize>) {
        let block = &self.layout.blocks[block];
        (Place { operation, block: block.name.clone() }, block.parts())
    }
}
