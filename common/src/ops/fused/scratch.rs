//! Memory that a thread keeps for its next use: fresh memory would cost a page fault every 4 KB.

use std::cell::Cell;
use std::thread::LocalKey;

/// A thread's scratch memory for one purpose.
pub type Scratch = LocalKey<Cell<Vec<f32>>>;

/// At least `len` values, which are whatever was there. Who asks on the same thread before it is given back gets memory of its own.
pub fn take(scratch: &'static Scratch, len: usize) -> Vec<f32> {
    let mut memory = scratch.take();
    if memory.len() < len {
        memory.resize(len, 0.0);
    }
    memory
}

/// Keeps the larger of this memory and what is kept already.
pub fn give(scratch: &'static Scratch, memory: Vec<f32>) {
    let kept = scratch.take();
    scratch.set(if kept.capacity() > memory.capacity() { kept } else { memory });
}
