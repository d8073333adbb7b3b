//! Flat buffers that are used again: getting large ones from the system costs a page fault every 4 KB, each time.

use rayon::prelude::*;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A few spare buffers, shared by the threads of a rank.
#[derive(Clone)]
pub struct Buffers {
    spare: Arc<Mutex<Vec<Vec<f32>>>>,
    limit: usize,
}

impl Buffers {
    /// Keeps at most `limit` spare ones.
    pub fn new(limit: usize) -> Self {
        Self { spare: Arc::default(), limit }
    }

    /// A buffer of `len` values, whatever they are.
    pub fn take(&self, len: usize) -> Vec<f32> {
        let mut spare = self.lock();
        // Not much larger than needed, or a small block would keep a large one from its buffer.
        let fitting = (0..spare.len()).filter(|&index| (len..=len + len / 2).contains(&spare[index].capacity()));
        let best = fitting.min_by_key(|&index| spare[index].capacity());
        let found = best.map(|index| spare.swap_remove(index));
        drop(spare);
        match found {
            Some(mut buffer) => {
                buffer.resize(len, 0.0);
                buffer
            }
            None => vec![0.0; len],
        }
    }

    /// Gives a buffer back; the largest ones are kept.
    pub fn give(&self, buffer: Vec<f32>) {
        let mut spare = self.lock();
        spare.push(buffer);
        if spare.len() > self.limit
            && let Some(smallest) = (0..spare.len()).min_by_key(|&index| spare[index].capacity())
        {
            spare.swap_remove(smallest);
        }
    }

    /// Adds `more` to `sum`, where nothing counts as zeros.
    pub fn add(&self, sum: &mut Vec<f32>, more: Vec<f32>) {
        if sum.is_empty() {
            *sum = more;
        } else {
            sum.par_iter_mut().zip(&more).with_min_len(1 << 14).for_each(|(sum, value)| *sum += value);
            self.give(more);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_no_more_than_the_limit_is_kept() {
        let buffers = Buffers::new(2);
        for len in [10, 100, 120] {
            buffers.give(vec![1.0; len]);
        }
        let lens = |buffers: &Buffers| buffers.lock().iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(lens(&buffers).iter().sum::<usize>(), 220);
        assert_eq!((buffers.take(90).len(), buffers.take(110).capacity()), (90, 120));
        assert_eq!((buffers.take(8).len(), lens(&buffers).len()), (8, 0));
    }
}
