//! Memory of kernels: aligned, and kept by a thread for its next use, since fresh memory would cost a page fault every 4 KB.

use super::simd::LINE;
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

/// Values that begin at a line of the cache. In memory that does not, as a `Vec`'s, every second vector of 32 bytes lies in two
/// lines and takes two accesses, which costs the matrix product a hundredth.
#[derive(Debug, Default)]
pub struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line(#[allow(dead_code)] [f32; LINE]);

impl Aligned {
    /// Zeros.
    pub fn zeros(len: usize) -> Self {
        Self { lines: vec![Line([0.0; LINE]); len.div_ceil(LINE)], len }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: a line is sixteen f32 values and no padding, and the lines have `len` values at least (`zeros`).
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; any f32 is a value of a line.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// A thread's scratch memory for one purpose.
pub type Scratch = LocalKey<Cell<Aligned>>;

/// Memory that has not been used yet.
pub const fn unused() -> Cell<Aligned> {
    Cell::new(Aligned { lines: Vec::new(), len: 0 })
}

/// At least `len` values, which are those of the last use, or zeros. Who asks on the same thread before it is given back gets memory of its own.
pub fn take(scratch: &'static Scratch, len: usize) -> Aligned {
    let memory = scratch.take();
    if memory.len < len { Aligned::zeros(len) } else { memory }
}

/// Keeps the larger of this buffer and the kept one.
pub fn give(scratch: &'static Scratch, memory: Aligned) {
    let kept = scratch.take();
    scratch.set(if kept.len > memory.len { kept } else { memory });
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static MEMORY: Cell<Aligned> = const { unused() };
    }

    #[test]
    fn memory_is_aligned_and_kept() {
        for len in [0, 1, 16, 1000] {
            let mut memory = take(&MEMORY, len);
            assert_eq!(memory.as_ptr().align_offset(64), 0);
            assert!(memory.len() >= len);
            memory.fill(1.0);
            give(&MEMORY, memory);
        }
        assert_eq!(take(&MEMORY, 5).len(), 1000, "the largest so far");
        give(&MEMORY, Aligned::zeros(7));
        let (first, second) = (take(&MEMORY, 3), take(&MEMORY, 3));
        assert_ne!(first.as_ptr(), second.as_ptr());
    }
}
