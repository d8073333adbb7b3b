//! Blocks of 256 values whose parts have scales that are stored in few bits themselves.
//!
//! # Source
//! ggml `ggml-quants.c`: `quantize_row_q4_K_ref`, `quantize_row_q6_K_ref` (without an importance matrix) and their
//! inverses.

use super::{SUPER_BLOCK, get_f16, of_largest_magnitude, put_f16};

/// Values with a scale and a minimum of their own in q4_K.
const PART: usize = 32;
/// Values with a scale of their own in q6_K.
const SIXTEEN: usize = 16;
/// Largest code of q4_K, and of its scales and minima.
const MAX_Q4: i32 = 15;
const MAX_SCALE: i32 = 63;
/// Codes of q6_K are −32..=31.
const HALF_Q6: i32 = 32;
/// Magnitudes below it count as zero.
const TINY: f32 = 1e-15;

/// The nearest integer, halfway the even one.
fn nearest(value: f32) -> i32 {
    value.round_ties_even() as i32
}

/// f16 scale of the scales, f16 scale of the minima, 12 bytes of 6-bit scales and minima, 4 bits a value.
pub fn encode_q4(values: &[f32], block: &mut [u8]) {
    let mut codes = [0u8; SUPER_BLOCK];
    let (mut scales, mut minima) = ([0f32; 8], [0f32; 8]);
    for (part, (values, codes)) in values.chunks(PART).zip(codes.chunks_mut(PART)).enumerate() {
        (scales[part], minima[part]) = fit_line(values, codes);
    }
    let [largest_scale, largest_minimum] = [&scales, &minima].map(|all| all.iter().fold(0f32, |a, &b| a.max(b)));
    put_f16(block, largest_scale / MAX_SCALE as f32);
    put_f16(&mut block[2..], largest_minimum / MAX_SCALE as f32);
    let in_six_bits = |value: f32, largest: f32| {
        let inverse = if largest > 0.0 { MAX_SCALE as f32 / largest } else { 0.0 };
        nearest(inverse * value).min(MAX_SCALE) as u8
    };
    for part in 0..8 {
        let (scale, minimum) = (in_six_bits(scales[part], largest_scale), in_six_bits(minima[part], largest_minimum));
        put_scale(&mut block[4..16], part, scale, minimum);
    }
    for (part, (values, codes)) in values.chunks(PART).zip(codes.chunks_mut(PART)).enumerate() {
        let (scale, minimum) = part_of_q4(block, part);
        // Where the scale is rounded to 0, the codes do not matter.
        if scale != 0.0 {
            let code = |value: f32| nearest((value + minimum) / scale).clamp(0, MAX_Q4) as u8;
            values.iter().zip(codes).for_each(|(&value, to)| *to = code(value));
        }
    }
    for (index, byte) in block[16..].iter_mut().enumerate() {
        let low = index / PART * 2 * PART + index % PART;
        *byte = codes[low] | codes[low + PART] << 4;
    }
}

pub fn decode_q4(block: &[u8], values: &mut [f32]) {
    for (part, values) in values.chunks_mut(PART).enumerate() {
        let (scale, minimum) = part_of_q4(block, part);
        let bytes = &block[16 + part / 2 * PART..][..PART];
        for (value, byte) in values.iter_mut().zip(bytes) {
            *value = scale * f32::from(byte >> (part % 2 * 4) & 15) - minimum;
        }
    }
}

/// Scale and minimum of a part.
fn part_of_q4(block: &[u8], part: usize) -> (f32, f32) {
    let (scale, minimum) = get_scale(&block[4..16], part);
    (get_f16(block) * f32::from(scale), get_f16(&block[2..]) * f32::from(minimum))
}

/// Scales and minima of the first four parts are the lower six bits of bytes 0–3 and 4–7; of the others, the lower four bits are
/// in bytes 8–11 and the upper two above the six.
fn put_scale(bytes: &mut [u8], part: usize, scale: u8, minimum: u8) {
    if part < 4 {
        (bytes[part], bytes[part + 4]) = (scale, minimum);
    } else {
        bytes[part + 4] = scale & 15 | (minimum & 15) << 4;
        bytes[part - 4] |= scale >> 4 << 6;
        bytes[part] |= minimum >> 4 << 6;
    }
}

fn get_scale(bytes: &[u8], part: usize) -> (u8, u8) {
    match part {
        0..4 => (bytes[part] & 63, bytes[part + 4] & 63),
        _ => (bytes[part + 4] & 15 | bytes[part - 4] >> 6 << 4, bytes[part + 4] >> 4 | bytes[part] >> 6 << 4),
    }
}

/// Codes 0..=15 with `scale · code − minimum ≈ value`, and that scale and minimum: of several scales around the obvious one, the
/// best by the squared error, in which large values count more.
fn fit_line(values: &[f32], codes: &mut [u8]) -> (f32, f32) {
    const STEPS: usize = 20;
    let mean_square = values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32;
    let spread = mean_square.sqrt();
    let weighted = || values.iter().map(|&value| (spread + value.abs(), value));
    let (lowest, highest) = values.iter().fold((values[0], values[0]), |(a, b), &value| (a.min(value), b.max(value)));
    let lowest = lowest.min(0.0);
    if highest == lowest {
        codes.fill(0);
        return (0.0, -lowest);
    }
    let [sum_w, sum_x] = weighted().fold([0.0; 2], |[w_sum, x_sum], (w, x)| [w_sum + w, x_sum + w * x]);
    let code = |inverse: f32, value: f32, minimum: f32| nearest(inverse * (value - minimum)).clamp(0, MAX_Q4);
    let error_of = |codes: &dyn Fn(usize) -> f32, scale: f32, minimum: f32| -> f32 {
        let error = |(index, (w, x)): (usize, (f32, f32))| {
            let difference = scale * codes(index) + minimum - x;
            w * (difference * difference)
        };
        weighted().enumerate().map(error).sum()
    };
    let inverse = MAX_Q4 as f32 / (highest - lowest);
    let (mut scale, mut minimum) = (1.0 / inverse, lowest);
    values.iter().zip(&mut *codes).for_each(|(&value, to)| *to = code(inverse, value, lowest) as u8);
    let mut least = error_of(&|index| f32::from(codes[index]), scale, minimum);
    for step in 0..=STEPS {
        // From the best minimum so far on.
        let inverse = (-1.0 + 0.1 * step as f32 + MAX_Q4 as f32) / (highest - minimum);
        let mut tried = [0f32; PART];
        values.iter().zip(&mut tried).for_each(|(&value, to)| *to = code(inverse, value, minimum) as f32);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0, 0.0, 0.0);
        for ((w, x), code) in weighted().zip(tried) {
            sum_l += w * code;
            sum_l2 += w * code * code;
            sum_xl += w * code * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut line =
                ((sum_w * sum_xl - sum_x * sum_l) / determinant, (sum_l2 * sum_x - sum_l * sum_xl) / determinant);
            if line.1 > 0.0 {
                line = (sum_xl / sum_l2, 0.0);
            }
            let error = error_of(&|index| tried[index], line.0, line.1);
            if error < least {
                (least, (scale, minimum)) = (error, line);
                codes.iter_mut().zip(tried).for_each(|(to, code)| *to = code as u8);
            }
        }
    }
    (scale, -minimum)
}

/// Lower four bits, upper two bits, sixteen signed scales, the f16 scale of the scales.
pub fn encode_q6(values: &[f32], block: &mut [u8]) {
    const SCALES: usize = SUPER_BLOCK * 6 / 8;
    let mut codes = [0u8; SUPER_BLOCK];
    let mut scales = [0f32; SUPER_BLOCK / SIXTEEN];
    for ((values, codes), scale) in values.chunks(SIXTEEN).zip(codes.chunks_mut(SIXTEEN)).zip(&mut scales) {
        *scale = fit_scale(values, codes);
    }
    let largest = of_largest_magnitude(&scales);
    block.fill(0);
    if largest.abs() < TINY {
        return;
    }
    let inverse = -128.0 / largest;
    let (bits, rest) = block.split_at_mut(SCALES);
    put_f16(&mut rest[scales.len()..], 1.0 / inverse);
    let scale_of_scales = get_f16(&rest[scales.len()..]);
    for (part, scale) in scales.iter().enumerate() {
        let stored = nearest(inverse * scale).min(127) as i8;
        rest[part] = stored as u8;
        let scale = scale_of_scales * f32::from(stored);
        if scale != 0.0 {
            let part = part * SIXTEEN..(part + 1) * SIXTEEN;
            for (&value, to) in values[part.clone()].iter().zip(&mut codes[part]) {
                *to = (nearest(value / scale).clamp(-HALF_Q6, HALF_Q6 - 1) + HALF_Q6) as u8;
            }
        }
    }
    for (index, &code) in codes.iter().enumerate() {
        let (low, high) = places_of_q6(index);
        bits[low.0] |= (code & 15) << low.1;
        bits[high.0] |= code >> 4 << high.1;
    }
}

pub fn decode_q6(block: &[u8], values: &mut [f32]) {
    const SCALES: usize = SUPER_BLOCK * 6 / 8;
    let scale = get_f16(&block[SCALES + SUPER_BLOCK / SIXTEEN..]);
    for (index, value) in values.iter_mut().enumerate() {
        let (low, high) = places_of_q6(index);
        let code = block[low.0] >> low.1 & 15 | (block[high.0] >> high.1 & 3) << 4;
        let part = f32::from(block[SCALES + index / SIXTEEN] as i8);
        *value = scale * part * (i32::from(code) - HALF_Q6) as f32;
    }
}

/// Byte and shift of a code's lower four bits, and of its upper two. Each half of 128 values has 64 bytes of lower bits, in which
/// values 64 apart share a byte, and 32 bytes of upper bits, in which four values 32 apart share one.
fn places_of_q6(index: usize) -> ((usize, usize), (usize, usize)) {
    let (half, within) = (index / 128, index % 128);
    ((half * 64 + within % 64, within / 64 * 4), (SUPER_BLOCK / 2 + half * 32 + within % 32, within / 32 * 2))
}

/// Codes 0..=63 with `scale · (code − 32) ≈ value`, and that scale: of several around the obvious one, the best by the squared
/// error, in which a value counts by its square.
fn fit_scale(values: &[f32], codes: &mut [u8]) -> f32 {
    const STEPS: i32 = 9;
    let largest = of_largest_magnitude(values);
    if largest.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let code = |inverse: f32, value: f32| nearest(inverse * value).clamp(-HALF_Q6, HALF_Q6 - 1);
    let sums = |inverse: f32| {
        values.iter().fold((0f32, 0f32), |(sum_xl, sum_l2), &x| {
            let (w, l) = (x * x, code(inverse, x) as f32);
            (sum_xl + w * x * l, sum_l2 + w * l * l)
        })
    };
    let mut best_inverse = -(HALF_Q6 as f32) / largest;
    let (sum_xl, sum_l2) = sums(best_inverse);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_xl / sum_l2 };
    let mut best = scale * sum_xl;
    for step in (-STEPS..=STEPS).filter(|&step| step != 0) {
        let inverse = -(HALF_Q6 as f32 + 0.1 * step as f32) / largest;
        let (sum_xl, sum_l2) = sums(inverse);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            (scale, best_inverse) = (sum_xl / sum_l2, inverse);
            best = scale * sum_xl;
        }
    }
    values.iter().zip(codes).for_each(|(&value, to)| *to = (code(best_inverse, value) + HALF_Q6) as u8);
    scale
}
