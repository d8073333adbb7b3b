//! A Huffman code as zstd writes it down: weights of all residuals, themselves entropy-coded by an FSE.
//!
//! # Source
//! RFC 8878, 4.1 (FSE) and 4.2.1 (Huffman tree description); `fse_compress.c` for the encoder's tables.

use super::code::{Code, MAX_BITS};

/// Logarithm of the states of the weights' FSE: the most that zstd allows.
const STATE_BITS: u32 = 6;
const STATES: usize = 1 << STATE_BITS;
/// Weights: 0 for residuals without a code, else one more than the bits that a code is shorter than the longest.
const WEIGHTS: usize = MAX_BITS + 1;

/// The bytes before a block's streams. The last residual, −1, always has a code; its weight is implied.
pub(super) fn of(code: &Code) -> Vec<u8> {
    let longest = code.max_bits();
    let weights = code.lengths.map(|length| if length == 0 { 0 } else { longest + 1 - length });
    let weights = &weights[..255];
    let shares = shares(weights);
    let mut bits = Bits { bytes: vec![0], pending: 0, used: 0 };
    write_shares(&shares, &mut bits);
    bits.align();
    encode(weights, &shares, &mut bits);
    bits.bytes[0] = (bits.bytes.len() - 1) as u8;
    bits.bytes
}

/// How many of the states each weight gets: at least one if it occurs, all of them together.
fn shares(weights: &[u8]) -> [usize; WEIGHTS] {
    let mut counts = [0; WEIGHTS];
    weights.iter().for_each(|&weight| counts[usize::from(weight)] += 1);
    let share = |count: usize| if count == 0 { 0 } else { (count * STATES / weights.len()).max(1) };
    let mut shares = counts.map(share);
    let most = (0..WEIGHTS).max_by_key(|&weight| counts[weight]).unwrap_or(0);
    // Eleven rare weights cost at most eleven states more than they should; the most frequent has more than that.
    shares[most] = STATES - (shares.iter().sum::<usize>() - shares[most]);
    shares
}

/// RFC 8878, 4.1.1.
fn write_shares(shares: &[usize; WEIGHTS], bits: &mut Bits) {
    bits.push(STATE_BITS as usize - 5, 4);
    let mut remaining = STATES + 1;
    let mut weight = 0;
    while remaining > 1 {
        let width = usize::BITS - remaining.leading_zeros();
        let threshold = 1 << (width - 1);
        let short = 2 * threshold - 1 - remaining;
        let value = shares[weight] + 1;
        remaining -= shares[weight];
        match value {
            _ if value < short => bits.push(value, width - 1),
            _ if value < threshold => bits.push(value, width),
            _ => bits.push(value + short, width),
        }
        weight += 1;
        if value == 1 {
            let zeros = shares[weight..].iter().take_while(|&&share| share == 0).count();
            weight += zeros;
            (0..zeros / 3).for_each(|_| bits.push(3, 2));
            bits.push(zeros % 3, 2);
        }
    }
}

/// Two states take turns, from the last weight to the first; the decoder goes the other way.
fn encode(weights: &[u8], shares: &[usize; WEIGHTS], bits: &mut Bits) {
    let (next, first) = states(shares);
    let step = |state: usize, weight: u8, bits: &mut Bits| {
        let share = shares[usize::from(weight)];
        // Shifted so far that between `share` and twice as many remain.
        let shift = (state / share).ilog2();
        bits.push(state & ((1 << shift) - 1), shift);
        next[first[usize::from(weight)] + (state >> shift) - share]
    };
    let mut states: [Option<usize>; 2] = [None, None];
    for (index, &weight) in weights.iter().enumerate().rev() {
        let state = &mut states[index % 2];
        *state = Some(match *state {
            Some(state) => step(state, weight, bits),
            None => next[first[usize::from(weight)]],
        });
    }
    for state in states.into_iter().rev().flatten() {
        bits.push(state - STATES, STATE_BITS);
    }
    bits.push(1, 1);
    bits.align();
}

/// `next[first[weight] + i]`: the weight's `i`-th state, `STATES` added.
fn states(shares: &[usize; WEIGHTS]) -> ([usize; STATES], [usize; WEIGHTS]) {
    let mut weight_of = [0; STATES];
    let mut position = 0;
    for (weight, &share) in shares.iter().enumerate() {
        for _ in 0..share {
            weight_of[position] = weight;
            position = (position + STATES / 2 + STATES / 8 + 3) % STATES;
        }
    }
    let mut first = [0; WEIGHTS];
    for weight in 1..WEIGHTS {
        first[weight] = first[weight - 1] + shares[weight - 1];
    }
    let (mut next, mut end) = ([0; STATES], first);
    for (state, weight) in weight_of.into_iter().enumerate() {
        next[end[weight]] = STATES + state;
        end[weight] += 1;
    }
    (next, first)
}

/// Bits from the least significant up.
struct Bits {
    bytes: Vec<u8>,
    pending: u64,
    used: u32,
}

impl Bits {
    fn push(&mut self, value: usize, width: u32) {
        self.pending |= (value as u64) << self.used;
        self.used += width;
        while self.used >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.used -= 8;
        }
    }

    /// Fills the last byte with zeros.
    fn align(&mut self) {
        if self.used > 0 {
            self.push(0, 8 - self.used);
        }
    }
}
