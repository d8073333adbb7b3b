//! A budget in bytes for requests that are received, prepared or waiting.
//!
//! Two halves, so that nobody holds what another one waits for: a request's own bytes (body, picture files, pixel values) are
//! reserved before its body is read and can only shrink; scratch memory (decoding a picture, tokenizing a text) is taken last
//! and given back at once.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits are in KiB: a semaphore hands out at most `u32::MAX` at once.
const UNIT: usize = 1024;

/// The budget.
pub struct Memory {
    requests: Arc<Semaphore>,
    scratch: Arc<Semaphore>,
    half: u32,
}

/// Bytes that are accounted for; given back when dropped.
pub struct Reservation(OwnedSemaphorePermit);

impl Memory {
    /// A budget of this many bytes.
    pub fn new(bytes: usize) -> Self {
        let half = units(bytes / 2);
        let semaphore = || Arc::new(Semaphore::new(half as usize));
        Self { requests: semaphore(), scratch: semaphore(), half }
    }

    /// Waits for a request's bytes; a request larger than the half gets all of it.
    pub async fn for_request(&self, bytes: usize) -> Reservation {
        self.take(&self.requests, bytes).await
    }

    /// Waits for scratch memory; a request larger than the half gets all of it, and so runs alone.
    pub async fn for_scratch(&self, bytes: usize) -> Reservation {
        self.take(&self.scratch, bytes).await
    }

    async fn take(&self, of: &Arc<Semaphore>, bytes: usize) -> Reservation {
        let permits = units(bytes).min(self.half);
        loop {
            // The semaphores are never closed.
            if let Ok(permit) = of.clone().acquire_many_owned(permits).await {
                return Reservation(permit);
            }
        }
    }

    /// Bytes reserved by requests now.
    pub fn used(&self) -> usize {
        let free = self.requests.available_permits() + self.scratch.available_permits();
        (2 * self.half as usize).saturating_sub(free) * UNIT
    }
}

impl Reservation {
    /// Gives back all but this many bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        let excess = self.0.num_permits().saturating_sub(units(bytes) as usize);
        drop(self.0.split(excess));
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn bytes_are_waited_for_and_given_back() {
        let memory = Memory::new(2 << 20);
        let soon = Duration::from_millis(20);
        let mut first = memory.for_request(700 << 10).await;
        assert!(timeout(soon, memory.for_request(400 << 10)).await.is_err(), "1.1 of 1 MiB");
        assert_eq!(memory.used(), 700 << 10);
        first.shrink_to(600 << 10);
        let second = timeout(soon, memory.for_request(400 << 10)).await.expect("in time");
        first.shrink_to(900 << 10);
        assert_eq!(memory.used(), 1000 << 10, "a reservation never grows");
        // Scratch memory is another half; a request that is too large gets all of it.
        let scratch = timeout(soon, memory.for_scratch(1 << 40)).await.expect("in time");
        assert!(timeout(soon, memory.for_scratch(1)).await.is_err());
        drop((first, second, scratch));
        assert_eq!(memory.used(), 0);
    }
}
