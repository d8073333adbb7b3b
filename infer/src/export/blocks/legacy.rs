//! Blocks of 32 values with one scale.
//!
//! # Source
//! ggml `ggml-quants.c`: `quantize_row_q8_0_ref`, `quantize_row_q5_0_ref` and their inverses.

use super::{BLOCK, get_f16, of_largest_magnitude, put_f16};

const HALF: usize = BLOCK / 2;

/// An f16 scale, then a signed byte a value.
pub fn encode_q8_0(values: &[f32], block: &mut [u8]) {
    let scale = of_largest_magnitude(values).abs() / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    put_f16(block, scale);
    for (code, value) in block[2..].iter_mut().zip(values) {
        *code = (value * inverse).round() as i8 as u8;
    }
}

pub fn decode_q8_0(block: &[u8], values: &mut [f32]) {
    let scale = get_f16(block);
    for (value, &code) in values.iter_mut().zip(&block[2..]) {
        *value = f32::from(code as i8) * scale;
    }
}

/// An f16 scale, 32 fifth bits, then the four lower bits: value i beside value i + 16. Codes are 16 too large.
pub fn encode_q5_0(values: &[f32], block: &mut [u8]) {
    let scale = of_largest_magnitude(values) / -16.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    put_f16(block, scale);
    let code = |value: f32| ((value * inverse + 16.5) as i8).min(31) as u32;
    let mut fifth_bits = 0u32;
    for index in 0..HALF {
        let (low, high) = (code(values[index]), code(values[index + HALF]));
        block[6 + index] = (low & 15 | (high & 15) << 4) as u8;
        fifth_bits |= low >> 4 << index | high >> 4 << (index + HALF);
    }
    block[2..6].copy_from_slice(&fifth_bits.to_le_bytes());
}

pub fn decode_q5_0(block: &[u8], values: &mut [f32]) {
    let scale = get_f16(block);
    let fifth_bits = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for (index, value) in values.iter_mut().enumerate() {
        let four = block[6 + index % HALF] >> (index / HALF * 4) & 15;
        let code = i32::from(four) | ((fifth_bits >> index & 1) << 4) as i32;
        *value = (code - 16) as f32 * scale;
    }
}
