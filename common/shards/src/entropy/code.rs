//! The Huffman code of a block: every residual from −16 to 15 has a length of its own, those farther away share one.
//!
//! Shared lengths make the code a matter of few bytes, so that vectors can look it up; photos lose 1.5 % by it.

/// Longest code, bits: the most that zstd allows literals.
pub(super) const MAX_BITS: usize = 11;
/// Residuals from −16 to 15, and all the others together.
const LEAVES: usize = 33;
const TAIL: usize = 32;

/// Lengths and codes by residual, modulo 256.
pub(super) struct Code {
    /// Bits; 0 for a residual that does not occur.
    pub(super) lengths: [u8; 256],
    /// The most significant bit is decoded first.
    pub(super) codes: [u16; 256],
    /// Residuals beyond −16 and 15 occur.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) has_tail: bool,
}

impl Code {
    /// A code that holds every residual from `−1 − reach` to `reach` (at most 127), short where `counts` are high.
    pub(super) fn new(counts: &[u32; 256], reach: u8) -> Self {
        // Sixteens of residuals on either side of zero; the last ones with as many as a power of two, or all.
        let (sixteens, tail_bits) = match reach / 16 {
            0 => (0, 0),
            1 => (1, 5),
            2 => (2, 6),
            3 | 4 => (4, 7),
            _ => (7, 8),
        };
        let mut leaves = [0; LEAVES];
        for (residual, &count) in counts.iter().enumerate() {
            leaves[leaf(residual)] += count;
        }
        // What the sample lacks may still occur.
        leaves.iter_mut().for_each(|count| *count = 2 * *count + 1);
        let mut limits = [MAX_BITS; LEAVES];
        limits[TAIL] = MAX_BITS - tail_bits;
        let has_tail = sixteens > 0;
        let used = if has_tail { LEAVES } else { TAIL };
        let of_leaf = limited_lengths(&leaves[..used], &limits);
        let lengths = std::array::from_fn(|residual| {
            let sixteen = (residual >> 4).min(15 - (residual >> 4));
            match sixteen {
                0 => of_leaf[leaf(residual)],
                // 224 residuals in a tree for 256: the nearest 32 take the room that is left.
                1 if sixteens == 7 => of_leaf[TAIL] + 7,
                _ if sixteen <= sixteens => of_leaf[TAIL] + tail_bits as u8,
                _ => 0,
            }
        });
        Self { codes: canonical(&lengths), lengths, has_tail }
    }

    /// Length of the longest code, bits.
    pub(super) fn max_bits(&self) -> u8 {
        self.lengths.iter().copied().max().unwrap_or(0)
    }
}

fn leaf(residual: usize) -> usize {
    match residual {
        0..16 => residual,
        240.. => residual - 240 + 16,
        _ => TAIL,
    }
}

/// zstd's order: from the longest codes to the shortest, and by value among codes of the same length.
fn canonical(lengths: &[u8; 256]) -> [u16; 256] {
    let mut how_many = [0u16; MAX_BITS + 2];
    lengths.iter().for_each(|&length| how_many[usize::from(length)] += 1);
    let mut next = [0u16; MAX_BITS + 2];
    for bits in (1..=MAX_BITS).rev() {
        next[bits] = (next[bits + 1] + if bits < MAX_BITS { how_many[bits + 1] } else { 0 }) >> 1;
    }
    lengths.map(|length| {
        let next = &mut next[usize::from(length)];
        *next += 1;
        if length == 0 { 0 } else { *next - 1 }
    })
}

/// The items of one denomination, by weight: coins, which are leaves, and packages, which are two items of the next smaller
/// denomination.
#[derive(Clone, Copy)]
struct Items {
    weights: [u32; 2 * LEAVES],
    len: usize,
    /// A bit an item.
    coins: u128,
}

impl Items {
    const NONE: Self = Self { weights: [0; 2 * LEAVES], len: 0, coins: 0 };

    fn push(&mut self, weight: u32, is_coin: bool) {
        self.weights[self.len] = weight;
        self.coins |= u128::from(is_coin) << self.len;
        self.len += 1;
    }

    fn coins_among(&self, first: usize) -> usize {
        (self.coins & ((1 << first) - 1)).count_ones() as usize
    }
}

/// The lengths of the best code in which no leaf exceeds its limit.
///
/// # Source
/// Larmore and Hirschberg 1990, package-merge; limits may differ because a leaf's coins of denominations below its limit
/// are simply not offered. The first items of a denomination are taken, so that their number is enough to name them.
fn limited_lengths(counts: &[u32], limits: &[usize; LEAVES]) -> [u8; LEAVES] {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|&leaf| counts[leaf]);
    let offered = |bits: usize| order.iter().copied().filter(move |&leaf| limits[leaf] >= bits);
    let mut items = [Items::NONE; MAX_BITS + 2];
    for bits in (1..=MAX_BITS).rev() {
        let smaller = &items[bits + 1];
        let pairs = smaller.weights[..smaller.len].as_chunks::<2>().0;
        let mut packages = pairs.iter().map(|[first, second]| first + second).peekable();
        let mut merged = Items::NONE;
        for leaf in offered(bits) {
            while let Some(package) = packages.next_if(|package| *package < counts[leaf]) {
                merged.push(package, false);
            }
            merged.push(counts[leaf], true);
        }
        packages.for_each(|package| merged.push(package, false));
        items[bits] = merged;
    }
    let mut lengths = [0; LEAVES];
    let mut wanted = 2 * counts.len() - 2;
    for (bits, items) in items.iter().enumerate().skip(1) {
        let taken = wanted.min(items.len);
        let coins = items.coins_among(taken);
        offered(bits).take(coins).for_each(|leaf| lengths[leaf] += 1);
        wanted = 2 * (taken - coins);
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Complete, and no longer than allowed.
    fn check(code: &Code, what: &str) {
        let used = || code.lengths.iter().filter(|&&length| length > 0);
        assert!(used().all(|&length| usize::from(length) <= MAX_BITS), "{what}");
        assert_eq!(used().map(|&length| 1 << (MAX_BITS - usize::from(length))).sum::<usize>(), 1 << MAX_BITS, "{what}");
    }

    #[test]
    fn codes_are_complete_and_within_the_limit() {
        let flat = [3; 256];
        let steep = std::array::from_fn(|residual| 1_000_000u32.checked_shr(residual as u32).unwrap_or(0));
        let far = std::array::from_fn(|residual| if residual == 128 { 5000 } else { 0 });
        for (what, counts) in [("flat", &flat), ("steep", &steep), ("far", &far), ("none", &[0; 256])] {
            for reach in 0..=127u8 {
                let code = Code::new(counts, reach);
                check(&code, &format!("{what}, reach {reach}"));
                let (reach, lengths) = (usize::from(reach), &code.lengths);
                assert!((0..=reach).all(|residual| lengths[residual] > 0 && lengths[255 - residual] > 0));
            }
        }
    }

    #[test]
    fn frequent_residuals_have_short_codes() {
        let counts = std::array::from_fn(|residual| [4000, 2000, 1000].get(residual).copied().unwrap_or(0));
        let code = Code::new(&counts, 2);
        assert_eq!(code.lengths[..3], [1, 2, 3]);
        assert!(code.lengths[3..16].iter().all(|&length| length > 6));
    }
}
