//! Dropout applied where the values are, without a mask in memory.

use super::simd::multiversion;
use crate::dropout::Dropout;
use base::splitmix;

/// Channels whose random numbers are made at once, four from each 64-bit number.
const TOGETHER: usize = 16;

/// Multiplies the values of whole tokens, the `first`-th of the batch and those behind it, by 0 or 1 / (1 − probability).
pub fn drop_values(dropout: &Dropout, first: usize, width: usize, values: &mut [f32]) {
    for (row, stream) in values.chunks_exact_mut(width.max(1)).zip(&dropout.streams[first..]) {
        drop_row(row, *stream, dropout.threshold, dropout.kept);
    }
}

multiversion! {
    fn drop_row(values: &mut [f32], stream: u64, threshold: u16, kept: f32) {
        let factor = |bits: u16| if bits >= threshold { kept } else { 0.0 };
        let words = |chunk: usize| -> [u16; TOGETHER] {
            let words: [u64; TOGETHER / 4] =
                std::array::from_fn(|i| splitmix(stream.wrapping_add((chunk * TOGETHER / 4 + i) as u64)).to_le());
            bytemuck::cast::<_, [u16; TOGETHER]>(words).map(u16::from_le)
        };
        let (whole, rest) = values.as_chunks_mut::<TOGETHER>();
        let chunks = whole.len();
        for (chunk, values) in whole.iter_mut().enumerate() {
            let bits = words(chunk);
            for (value, bits) in values.iter_mut().zip(bits) {
                *value *= factor(bits);
            }
        }
        for (value, bits) in rest.iter_mut().zip(words(chunks)) {
            *value *= factor(bits);
        }
    }
}
