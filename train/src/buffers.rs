//! Flat buffers that ranks exchange, and a few spare ones: getting large ones from the system costs a page fault every 4 KB,
//! each time.

use rayon::prelude::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Consecutive f32 values in one memory: the host's ([`HostBuffer`]), or a device's.
pub trait Buffer: Send + Sized + 'static {
    /// Where such buffers are allocated: nothing to know on the host, the device and its stream elsewhere.
    type Memory: Send + Sync + 'static;

    /// Spare ones that are worth keeping.
    const SPARE: usize = 2;

    /// `len` zeros.
    fn zeros(memory: &Self::Memory, len: usize) -> Self;

    /// Values that fit without another allocation.
    fn room(&self) -> usize;

    /// The buffer resized to `len` values; added values are zero.
    fn with_len(self, len: usize) -> Self;

    /// Adds `other`, which is equally long, value by value.
    fn add(&mut self, other: &Self);

    /// A buffer of `len` values of the same dtype, whatever they are.
    fn alike(&self, buffers: &Buffers<Self>, len: usize) -> Self {
        buffers.take(len)
    }
}

/// Values in the host's memory.
pub type HostBuffer = Vec<f32>;

impl Buffer for HostBuffer {
    type Memory = ();

    fn zeros((): &(), len: usize) -> Self {
        // Memory that is never written takes none.
        vec![0.0; len]
    }

    fn room(&self) -> usize {
        self.capacity()
    }

    fn with_len(mut self, len: usize) -> Self {
        self.resize(len, 0.0);
        self
    }

    fn add(&mut self, other: &Self) {
        self.par_iter_mut().zip(other).with_min_len(1 << 14).for_each(|(sum, value)| *sum += value);
    }
}

/// A few spare buffers, shared by the threads of a rank.
pub struct Buffers<B: Buffer = HostBuffer> {
    memory: B::Memory,
    spare: Mutex<Vec<B>>,
    limit: usize,
}

impl<B: Buffer> Buffers<B> {
    /// Keeps at most `limit` spare ones.
    pub fn new(memory: B::Memory, limit: usize) -> Self {
        Self { memory, spare: Mutex::default(), limit }
    }

    /// A buffer of `len` values, whatever they are.
    pub fn take(&self, len: usize) -> B {
        let mut spare = self.lock();
        // Not much larger than needed, or a small block would keep a large one from its buffer.
        let fitting = (0..spare.len()).filter(|&index| (len..=len + len / 2).contains(&spare[index].room()));
        let best = fitting.min_by_key(|&index| spare[index].room());
        let found = best.map(|index| spare.swap_remove(index));
        drop(spare);
        found.map_or_else(|| B::zeros(&self.memory, len), |buffer| buffer.with_len(len))
    }

    /// Gives a buffer back; the largest ones are kept.
    pub fn give(&self, buffer: B) {
        let mut spare = self.lock();
        spare.push(buffer);
        if spare.len() > self.limit
            && let Some(smallest) = (0..spare.len()).min_by_key(|&index| spare[index].room())
        {
            spare.swap_remove(smallest);
        }
    }

    /// Adds `more` to `sum`, where nothing counts as zeros.
    pub fn add(&self, sum: &mut Option<B>, more: B) {
        match sum {
            None => *sum = Some(more),
            Some(sum) => {
                sum.add(&more);
                self.give(more);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<B>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_no_more_than_the_limit_is_kept() {
        let buffers = Buffers::<HostBuffer>::new((), 2);
        for len in [10, 100, 120] {
            buffers.give(vec![1.0; len]);
        }
        let lens = |buffers: &Buffers| buffers.lock().iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lens(&buffers).iter().sum::<usize>(), 220);
        assert_eq!((buffers.take(90).len(), buffers.take(110).capacity()), (90, 120));
        assert_eq!((buffers.take(8).len(), lens(&buffers).len()), (8, 0));
    }
}
