//! Tables of rotary position embeddings.

use crate::device;
use burn::tensor::{Device, Tensor, TensorData};
use std::cell::RefCell;

/// Cosines and sines of RoPE for the packed positions, `[T, head_dim / 2]` each (plain tensors, no graph).
#[derive(Clone, Debug)]
pub struct Rope {
    /// `[T, head_dim / 2]`
    pub cos: Tensor<2>,
    /// `[T, head_dim / 2]`
    pub sin: Tensor<2>,
}

impl Rope {
    /// The table for tokens at `positions` of their sequences; `frequencies` `[head_dim / 2]` are angles from one token to the
    /// next, radians.
    ///
    /// # Source
    /// transformers `Qwen2RotaryEmbedding.forward`: angles in f32.
    pub fn new(positions: &[usize], frequencies: &[f32], device: &Device) -> Self {
        let table = |positions: &[usize], of: fn(f32) -> f32| {
            let values = positions.iter().flat_map(|&p| frequencies.iter().map(move |f| of(p as f32 * f)));
            let shape = [positions.len(), frequencies.len()];
            Tensor::from_data(TensorData::new(values.collect::<Vec<f32>>(), shape), device)
        };
        // Rows of a batch share positions: only the longest one's rotations are computed and copied to the device.
        let distinct: Vec<usize> = (0..positions.iter().max().map_or(0, |last| last + 1)).collect();
        if distinct.len() >= positions.len() {
            return Self { cos: table(positions, f32::cos), sin: table(positions, f32::sin) };
        }
        let rows: Vec<i64> = positions.iter().map(|&position| position as i64).collect();
        let rows = Tensor::from_data(TensorData::new(rows, [positions.len()]), device);
        let new = |positions: &[usize]| Self { cos: table(positions, f32::cos), sin: table(positions, f32::sin) };
        let Self { cos, sin } = match device.clone().inner() == device::cpu() {
            true => new(&distinct),
            false => kept(device, frequencies, distinct.len(), new),
        };
        Self { cos: cos.select(0, rows.clone()), sin: sin.select(0, rows) }
    }

    /// The table for packed sequences that each start at position 0.
    pub fn packed(seq_lens: &[usize], frequencies: &[f32], device: &Device) -> Self {
        let positions: Vec<usize> = seq_lens.iter().flat_map(|&len| 0..len).collect();
        Self::new(&positions, frequencies, device)
    }

    /// Unscaled angles from one token to the next, `[head_dim / 2]`, radians: theta^(−2i / head_dim), in f32.
    ///
    /// # Source
    /// transformers `Qwen2RotaryEmbedding.compute_default_rope_parameters`.
    pub fn frequencies(head_dim: usize, theta: f64) -> Vec<f32> {
        let frequency = |i: usize| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32);
        (0..head_dim / 2).map(frequency).collect()
    }
}

/// Positions of a table that stays on a device: a whole number of these.
const STEP: usize = 256;

/// Tables that stay on devices.
const TABLES: usize = 4;

thread_local! {
    static KEPT: RefCell<Vec<Kept>> = const { RefCell::new(Vec::new()) };
}

struct Kept {
    device: Device,
    frequencies: Vec<f32>,
    positions: usize,
    rope: Rope,
}

/// The table of at least the first `positions` on a device other than the CPU, from the batches before if it is there.
fn kept(device: &Device, frequencies: &[f32], positions: usize, new: impl FnOnce(&[usize]) -> Rope) -> Rope {
    KEPT.with_borrow_mut(|tables| {
        let is_it =
            |kept: &Kept| kept.device == *device && kept.frequencies == frequencies && kept.positions >= positions;
        let table = match tables.iter().position(is_it) {
            Some(index) => tables.remove(index),
            None => {
                tables.truncate(TABLES - 1);
                let positions = positions.next_multiple_of(STEP);
                let rope = new(&(0..positions).collect::<Vec<_>>());
                Kept { device: device.clone(), frequencies: frequencies.to_vec(), positions, rope }
            }
        };
        let rope = table.rope.clone();
        tables.insert(0, table);
        rope
    })
}
