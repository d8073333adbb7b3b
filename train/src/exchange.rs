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
        let buffers = Arc::new(Buffers::new(memory, B::SPARE));
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
        // Here and not where it is filled: a device orders what its threads do by when they ask for it.
        let mut full = own.alike(&self.buffers, self.layout.blocks[block].padded_len);
        let pending = self.communicator.submit(move |collective| {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::Collective;
    use crate::collective::threads::{ThreadRank, run};
    use crate::layout::tests::layout;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    /// Stands for memory of a device: only the collective below moves its values.
    struct OnDevice(Vec<f32>);

    /// Counts what it allocates.
    type Device = Arc<AtomicUsize>;

    impl Buffer for OnDevice {
        type Memory = Device;

        fn zeros(memory: &Device, len: usize) -> Self {
            memory.fetch_add(1, Ordering::Relaxed);
            Self(vec![0.0; len])
        }

        fn room(&self) -> usize {
            self.0.capacity()
        }

        fn with_len(self, len: usize) -> Self {
            Self(self.0.with_len(len))
        }

        fn add(&mut self, other: &Self) {
            self.0.add(&other.0);
        }
    }

    /// Exchanges a device's buffers; what ranks agree on goes through the host, as it will with NCCL.
    struct DeviceRank(ThreadRank);

    impl Collective<OnDevice> for DeviceRank {
        fn rank(&self) -> usize {
            self.0.rank()
        }

        fn world_size(&self) -> usize {
            self.0.world_size()
        }

        fn reduce_scatter(
            &mut self,
            place: &Place,
            parts: &[usize],
            flat: OnDevice,
            own: &mut OnDevice,
        ) -> Result<OnDevice> {
            self.0.reduce_scatter(place, parts, flat.0, &mut own.0).map(OnDevice)
        }

        fn all_gather(
            &mut self,
            place: &Place,
            parts: &[usize],
            own: OnDevice,
            full: &mut OnDevice,
        ) -> Result<OnDevice> {
            self.0.all_gather(place, parts, own.0, &mut full.0).map(OnDevice)
        }

        fn host(&mut self) -> &mut dyn Collective {
            &mut self.0
        }

        fn bytes_sent(&self) -> u64 {
            self.0.bytes_sent()
        }

        fn timeout(&self) -> Duration {
            self.0.timeout()
        }
    }

    #[test]
    fn buffers_of_a_device_are_exchanged_and_used_again() {
        const LENS: [usize; 6] = [12, 30, 31, 30, 29, 30];
        let results = run(3, Duration::from_secs(5), |rank| {
            let communicator = Communicator::<OnDevice>::start(Box::new(DeviceRank(rank)))?;
            let rank = communicator.rank();
            let (layout, device) = (Arc::new(layout(rank, 3, &LENS)), Device::default());
            let mut exchanges = Exchanges::new(communicator, Arc::clone(&layout), Arc::clone(&device));
            let mut owned: Vec<Option<OnDevice>> = LENS.iter().map(|_| None).collect();
            for block in (0..LENS.len()).rev() {
                while !exchanges.has_room_to_reduce(block) {
                    let (block, own) = exchanges.take_reduced()?.expect("one is under way");
                    owned[block] = Some(own);
                }
                let mut flat = exchanges.buffers.take(layout.blocks[block].padded_len);
                flat.0.fill((rank * 10 + block) as f32);
                exchanges.reduce(block, flat, OnDevice(vec![0.5; layout.blocks[block].partition_len()]))?;
            }
            while let Some((block, own)) = exchanges.take_reduced()? {
                owned[block] = Some(own);
            }
            let mut whole = Vec::new();
            let mut take = |exchanges: &mut Exchanges<OnDevice>| -> Result<bool> {
                let Some((block, values)) = exchanges.take_gathered()? else { return Ok(false) };
                whole.push((block, values.0.clone()));
                exchanges.buffers.give(values);
                Ok(true)
            };
            for (block, own) in owned.into_iter().enumerate() {
                while !exchanges.has_room_to_gather(block) {
                    take(&mut exchanges)?;
                }
                exchanges.gather(block, own.expect("reduced"))?;
            }
            while take(&mut exchanges)? {}
            let [ranks] = exchanges.communicator.all_reduce("ranks", [1.0])?;
            Ok((whole, ranks, device.load(Ordering::Relaxed)))
        });
        for result in results {
            let (whole, ranks, allocated) = result.expect("no rank fails");
            assert_eq!(ranks, 3.0);
            assert_eq!(whole.iter().map(|(block, _)| *block).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
            for (block, values) in whole {
                // (0 + 10 + 20) + 3 times the block's number, added to what was owned.
                assert_eq!(values, vec![0.5 + 30.0 + 3.0 * block as f32; LENS[block].next_multiple_of(3)]);
            }
            assert!(allocated <= 5, "{allocated} buffers for 12 exchanges");
        }
    }
}
