//! Heartbeats: long work counts its progress, so that a waiting thread can tell it from work that hangs.
//!
//! Reading, hashing and writing mark the pulse of the thread that they run on, if it has one; work that is divided over other
//! threads takes the pulse along.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static CURRENT: RefCell<Option<Pulse>> = const { RefCell::new(None) };
}

/// A count of marks. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// The pulse of this thread; one that nobody looks at, if it has none.
    pub fn of_this_thread() -> Self {
        CURRENT.with_borrow(Clone::clone).unwrap_or_default()
    }

    /// Counts progress.
    pub fn mark(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Marks so far.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Does work on this thread, whose marks are this pulse's until it ends.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Gives the thread back the pulse that it had, also when the work panics.
        struct Before(Option<Pulse>);
        impl Drop for Before {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _before = Before(CURRENT.replace(Some(self.clone())));
        work()
    }
}

/// Counts progress of this thread's work.
pub fn mark() {
    CURRENT.with_borrow(|pulse| {
        if let Some(pulse) = pulse {
            pulse.mark();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_go_to_the_pulse_of_the_work_that_is_done() {
        let (outer, inner) = (Pulse::default(), Pulse::default());
        mark();
        outer.during(|| {
            mark();
            inner.during(mark);
            let pulse = Pulse::of_this_thread();
            std::thread::scope(|scope| scope.spawn(move || pulse.during(mark)).join()).expect("no panic");
        });
        mark();
        assert_eq!((outer.count(), inner.count()), (2, 1));
    }
}
