//! Types of GGUF tensors: how rows of values become blocks of bytes, and back.

mod k_quants;
mod legacy;

use half::f16;
use rayon::prelude::*;

/// Values in a block of the K-quants.
const SUPER_BLOCK: usize = 256;
/// Values in a block of the older types.
const BLOCK: usize = 32;

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TensorType {
    /// 4 bytes a value.
    F32,
    /// 2 bytes a value.
    F16,
    /// 32 values: an f16 scale and 5 bits a value.
    Q5_0,
    /// 32 values: an f16 scale and 8 bits a value.
    Q8_0,
    /// 256 values: f16 scales of eight 6-bit scales and minima, and 4 bits a value.
    Q4K,
    /// 256 values: an f16 scale of sixteen 8-bit scales, and 6 bits a value.
    Q6K,
}

impl TensorType {
    const ALL: [Self; 6] = [Self::F32, Self::F16, Self::Q5_0, Self::Q8_0, Self::Q4K, Self::Q6K];

    /// ggml's name and number, values in a block, bytes of a block.
    const fn row(self) -> (&'static str, u32, usize, usize) {
        match self {
            Self::F32 => ("f32", 0, 1, 4),
            Self::F16 => ("f16", 1, 1, 2),
            Self::Q5_0 => ("q5_0", 6, BLOCK, 2 + 4 + BLOCK / 2),
            Self::Q8_0 => ("q8_0", 8, BLOCK, 2 + BLOCK),
            Self::Q4K => ("q4_K", 12, SUPER_BLOCK, 2 + 2 + 12 + SUPER_BLOCK / 2),
            Self::Q6K => ("q6_K", 14, SUPER_BLOCK, SUPER_BLOCK * 6 / 8 + SUPER_BLOCK / 16 + 2),
        }
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// ggml's number.
    pub fn number(self) -> u32 {
        self.row().1
    }

    /// The type of ggml's number.
    pub fn of_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// Values that are stored together; a row has a multiple of them.
    pub fn block_values(self) -> usize {
        self.row().2
    }

    /// Bytes of so many values.
    pub fn bytes_of(self, values: usize) -> usize {
        values / self.block_values() * self.row().3
    }

    /// Stores values, whose number is a multiple of [`Self::block_values`].
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        let (_, _, count, bytes) = self.row();
        let mut output = vec![0; self.bytes_of(values.len())];
        let blocks = output.par_chunks_exact_mut(bytes).zip(values.par_chunks_exact(count)).with_min_len(64);
        blocks.for_each(|(block, values)| match self {
            Self::F32 => block.copy_from_slice(&values[0].to_le_bytes()),
            Self::F16 => put_f16(block, values[0]),
            Self::Q5_0 => legacy::encode_q5_0(values, block),
            Self::Q8_0 => legacy::encode_q8_0(values, block),
            Self::Q4K => k_quants::encode_q4(values, block),
            Self::Q6K => k_quants::encode_q6(values, block),
        });
        output
    }

    /// The values of stored blocks.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        let (_, _, count, size) = self.row();
        let mut values = vec![0.0; bytes.len() / size * count];
        let blocks = values.par_chunks_exact_mut(count).zip(bytes.par_chunks_exact(size)).with_min_len(64);
        blocks.for_each(|(values, block)| match self {
            Self::F32 => values[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Self::F16 => values[0] = get_f16(block),
            Self::Q5_0 => legacy::decode_q5_0(block, values),
            Self::Q8_0 => legacy::decode_q8_0(block, values),
            Self::Q4K => k_quants::decode_q4(block, values),
            Self::Q6K => k_quants::decode_q6(block, values),
        });
        values
    }
}

fn put_f16(to: &mut [u8], value: f32) {
    to[..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

fn get_f16(from: &[u8]) -> f32 {
    f16::from_le_bytes([from[0], from[1]]).to_f32()
}

/// The value of the largest magnitude, the first of several.
fn of_largest_magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0f32, |largest, &value| if value.abs() > largest.abs() { value } else { largest })
}

#[cfg(test)]
mod tests;
