//! The bits of a stream: codes from the last symbol to the first, least significant bits first, closed by a one.
//!
//! With AVX2, 32 symbols at once: codes and lengths are looked up by shuffles, neighbours are joined to pairs, fours and eights
//! by shifts that differ by lane, and eights (rarely longer than 56 bits) are appended as one number. The bytes are the same.

use super::code::{Code, MAX_BITS};

/// Largest number of bits appended at once: with the seven that may be waiting they fit into a word.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
const MAX_PUSH: u32 = 56;

/// Bytes that the streams of a block, its code and its headers need at most.
pub(super) fn bound(symbols: usize) -> usize {
    symbols * MAX_BITS / 8 + 512
}

/// What encodes the streams of a block.
pub(super) struct Coder<'a> {
    code: &'a Code,
    #[cfg(target_arch = "x86_64")]
    wide: Option<wide::Tables>,
}

impl<'a> Coder<'a> {
    pub(super) fn new(code: &'a Code) -> Self {
        Self {
            code,
            #[cfg(target_arch = "x86_64")]
            wide: std::arch::is_x86_feature_detected!("avx2").then(|| wide::Tables::new(code)),
        }
    }

    /// Writes the stream of `symbols` to the beginning of `out`; its length, bytes.
    pub(super) fn encode(&self, symbols: &[u8], out: &mut [u8]) -> usize {
        let mut bits = Bits { out, at: 0, waiting: 0, used: 0 };
        let rest = self.encode_wide(symbols, &mut bits);
        for &symbol in rest.iter().rev() {
            let symbol = usize::from(symbol);
            bits.push(u64::from(self.code.codes[symbol]), u32::from(self.code.lengths[symbol]));
        }
        bits.push(1, 1);
        bits.at + usize::from(bits.used > 0)
    }

    /// The symbols before the encoded ones.
    #[cfg(target_arch = "x86_64")]
    fn encode_wide<'s>(&self, symbols: &'s [u8], bits: &mut Bits) -> &'s [u8] {
        match &self.wide {
            // SAFETY: the tables were made because the processor has AVX2.
            Some(tables) if self.code.has_tail => unsafe { wide::encode::<true>(tables, symbols, bits) },
            // SAFETY: as above.
            Some(tables) => unsafe { wide::encode::<false>(tables, symbols, bits) },
            None => symbols,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn encode_wide<'s>(&self, symbols: &'s [u8], _: &mut Bits) -> &'s [u8] {
        symbols
    }
}

struct Bits<'a> {
    out: &'a mut [u8],
    /// Whole bytes written.
    at: usize,
    /// Fewer than eight bits, and how many.
    waiting: u64,
    used: u32,
}

impl Bits<'_> {
    /// Appends at most [`MAX_PUSH`] bits.
    #[inline(always)]
    fn push(&mut self, bits: u64, len: u32) {
        self.waiting |= bits << self.used;
        self.used += len;
        if let Some(word) = self.out[self.at..].first_chunk_mut() {
            *word = self.waiting.to_le_bytes();
        }
        self.at += (self.used / 8) as usize;
        self.waiting >>= self.used & !7;
        self.used &= 7;
    }
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{Bits, Code, MAX_PUSH};
    use std::arch::x86_64::*;

    /// Symbols encoded together.
    const WIDTH: usize = 32;

    /// A property of all codes, a byte each: by residual from 0 to 15 and from −16 to −1, and by the high half of the others.
    struct Table {
        above: [u8; 16],
        below: [u8; 16],
        tail: [u8; 16],
    }

    /// Lengths, and both halves of what to add to a residual to get its code: the same for all that share their high half.
    pub(super) struct Tables {
        lengths: Table,
        low: Table,
        high: Table,
    }

    impl Tables {
        pub(super) fn new(code: &Code) -> Self {
            let table = |property: &dyn Fn(usize) -> u8| Table {
                above: std::array::from_fn(property),
                below: std::array::from_fn(|index| property(240 + index)),
                tail: std::array::from_fn(|half| property(16 * half)),
            };
            let offset = |residual: usize| code.codes[residual].wrapping_sub(residual as u16).to_le_bytes();
            Self {
                lengths: table(&|residual| code.lengths[residual]),
                low: table(&|residual| offset(residual)[0]),
                high: table(&|residual| offset(residual)[1]),
            }
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn load<const BYTES: usize>(bytes: &[u8; BYTES]) -> __m256i {
        const { assert!(BYTES == 16 || BYTES == 32) };
        let bytes = bytes.as_ptr();
        // SAFETY: reads as many bytes as there are; sixteen are put into both halves.
        unsafe {
            if BYTES == 32 {
                _mm256_loadu_si256(bytes.cast())
            } else {
                _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.cast()))
            }
        }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn store(values: __m256i) -> [u64; 4] {
        let mut stored = [0; 4];
        // SAFETY: writes 32 bytes, which it has.
        unsafe { _mm256_storeu_si256(stored.as_mut_ptr().cast(), values) };
        stored
    }

    /// A table in registers.
    #[derive(Clone, Copy)]
    struct Lookup {
        above: __m256i,
        below: __m256i,
        tail: __m256i,
    }

    impl Lookup {
        #[target_feature(enable = "avx2")]
        #[inline]
        fn new(table: &Table) -> Self {
            Self { above: load(&table.above), below: load(&table.below), tail: load(&table.tail) }
        }

        #[target_feature(enable = "avx2")]
        #[inline]
        fn of<const TAIL: bool>(self, symbols: &Symbols) -> __m256i {
            let above = _mm256_shuffle_epi8(self.above, symbols.low);
            let below = _mm256_shuffle_epi8(self.below, symbols.low);
            let near = _mm256_blendv_epi8(above, below, symbols.bytes);
            if TAIL {
                _mm256_blendv_epi8(_mm256_shuffle_epi8(self.tail, symbols.high), near, symbols.is_near)
            } else {
                near
            }
        }
    }

    struct Symbols {
        bytes: __m256i,
        low: __m256i,
        high: __m256i,
        is_near: __m256i,
    }

    impl Symbols {
        #[target_feature(enable = "avx2")]
        #[inline]
        fn new(bytes: __m256i) -> Self {
            let half = _mm256_set1_epi8(15);
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), half);
            let is_near =
                _mm256_or_si256(_mm256_cmpeq_epi8(high, _mm256_setzero_si256()), _mm256_cmpeq_epi8(high, half));
            Self { bytes, low: _mm256_and_si256(bytes, half), high, is_near }
        }
    }

    /// Codes and their lengths, in lanes of some width.
    #[derive(Clone, Copy)]
    struct Codes {
        bits: __m256i,
        lengths: __m256i,
    }

    impl Codes {
        /// Neighbouring 16-bit lanes: the later symbol's code is the lower one.
        #[target_feature(enable = "avx2")]
        #[inline]
        fn pairs(self) -> Self {
            let first = _mm256_and_si256(self.bits, _mm256_set1_epi32(0xffff));
            let second = _mm256_srli_epi32::<16>(self.bits);
            let shifted = _mm256_sllv_epi32(first, _mm256_srli_epi32::<16>(self.lengths));
            let lengths = _mm256_madd_epi16(self.lengths, _mm256_set1_epi16(1));
            Self { bits: _mm256_or_si256(shifted, second), lengths }
        }

        /// Neighbouring 32-bit lanes.
        #[target_feature(enable = "avx2")]
        #[inline]
        fn fours(self) -> Self {
            let low = _mm256_set1_epi64x(0xffff_ffff);
            let second_lengths = _mm256_srli_epi64::<32>(self.lengths);
            let shifted = _mm256_sllv_epi64(_mm256_and_si256(self.bits, low), second_lengths);
            let lengths = _mm256_add_epi64(_mm256_and_si256(self.lengths, low), second_lengths);
            Self { bits: _mm256_or_si256(shifted, _mm256_srli_epi64::<32>(self.bits)), lengths }
        }

        /// 64-bit lanes of two vectors.
        #[target_feature(enable = "avx2")]
        #[inline]
        fn eights(first: Self, second: Self) -> Self {
            let shifted = _mm256_sllv_epi64(first.bits, second.lengths);
            let lengths = _mm256_add_epi64(first.lengths, second.lengths);
            Self { bits: _mm256_or_si256(shifted, second.bits), lengths }
        }
    }

    /// Encodes from the end as many symbols as fill vectors; those before them are left.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn encode<'s, const TAIL: bool>(tables: &Tables, symbols: &'s [u8], bits: &mut Bits) -> &'s [u8] {
        let (lengths, low, high) = (Lookup::new(&tables.lengths), Lookup::new(&tables.low), Lookup::new(&tables.high));
        let zero = _mm256_setzero_si256();
        let too_long = _mm256_set1_epi64x(i64::from(MAX_PUSH));
        let (rest, vectors) = symbols.as_rchunks::<WIDTH>();
        for bytes in vectors.iter().rev() {
            let symbols = Symbols::new(load(bytes));
            let lengths = lengths.of::<TAIL>(&symbols);
            let (low, high) = (low.of::<TAIL>(&symbols), high.of::<TAIL>(&symbols));
            // Symbols 0 to 7 and 16 to 23, and the others, in 16-bit lanes.
            let a = Codes {
                bits: _mm256_add_epi16(_mm256_unpacklo_epi8(low, high), _mm256_unpacklo_epi8(symbols.bytes, zero)),
                lengths: _mm256_unpacklo_epi8(lengths, zero),
            };
            let b = Codes {
                bits: _mm256_add_epi16(_mm256_unpackhi_epi8(low, high), _mm256_unpackhi_epi8(symbols.bytes, zero)),
                lengths: _mm256_unpackhi_epi8(lengths, zero),
            };
            let (a, b) = (a.pairs().fours(), b.pairs().fours());
            // Their lanes interleaved are in order: of each eight symbols the first four, and the second four.
            let first = Codes {
                bits: _mm256_unpacklo_epi64(a.bits, b.bits),
                lengths: _mm256_unpacklo_epi64(a.lengths, b.lengths),
            };
            let second = Codes {
                bits: _mm256_unpackhi_epi64(a.bits, b.bits),
                lengths: _mm256_unpackhi_epi64(a.lengths, b.lengths),
            };
            let eights = Codes::eights(first, second);
            if _mm256_movemask_epi8(_mm256_cmpgt_epi64(eights.lengths, too_long)) == 0 {
                push(&[eights], bits);
            } else {
                push(&[first, second], bits);
            }
        }
        rest
    }

    /// From the last lane to the first, and in each from the last vector to the first.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn push<const N: usize>(codes: &[Codes; N], bits: &mut Bits) {
        let mut stored = [([0; 4], [0; 4]); N];
        for (stored, codes) in stored.iter_mut().zip(codes) {
            *stored = (store(codes.bits), store(codes.lengths));
        }
        for lane in (0..4).rev() {
            for (codes, lengths) in stored.iter().rev() {
                bits.push(codes[lane], lengths[lane] as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    #[test]
    fn vectors_write_what_single_symbols_would() {
        let mut random = StdRng::seed_from_u64(4);
        for reach in [0, 15, 16, 31, 40, 79, 80, 127] {
            for len in [0, 1, 31, 32, 33, 1000] {
                let symbols: Vec<u8> =
                    (0..len).map(|_| random.random_range(-1 - i16::from(reach)..=i16::from(reach)) as u8).collect();
                let counts = std::array::from_fn(|residual| 3000 >> (residual.min(256 - residual) / 3));
                let code = Code::new(&counts, reach);
                let [mut found, mut expected] = [(); 2].map(|()| vec![0; bound(len)]);
                let mut coder = Coder::new(&code);
                let written = coder.encode(&symbols, &mut found);
                #[cfg(target_arch = "x86_64")]
                {
                    coder.wide = None;
                }
                assert_eq!(coder.encode(&symbols, &mut expected), written);
                assert_eq!(found[..written], expected[..written], "reach {reach}, {len} symbols");
            }
        }
    }
}
