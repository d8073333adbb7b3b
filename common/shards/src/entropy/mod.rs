//! zstd frames of residuals: Huffman coding without a search for repetitions; any zstd reads them.
//!
//! Residuals of a photo have no repetitions worth finding, and most are near zero. A coder of its own, made for that, takes a
//! quarter of the time of zstd's and writes smaller frames: one block and one code a plane, made from a sample of its residuals,
//! eight symbols at a time. The decoder is zstd's.
//!
//! # Source
//! RFC 8878: frames (3.1.1), literals (3.1.1.3.1), Huffman codes (4.2).

mod code;
mod description;
mod stream;

use code::Code;
use std::cell::RefCell;
use stream::Coder;
use zstd::zstd_safe::DCtx;

const MAGIC: u32 = 0xFD2F_B528;
/// One segment, four bytes of content size, no checksum.
const FRAME_DESCRIPTOR: u8 = 2 << 6 | 1 << 5;
/// zstd's limit, bytes.
const MAX_BLOCK: usize = 128 << 10;
/// Shorter blocks are stored as they are: a code's description alone would be as long.
const MIN_CODED: usize = 256;
/// Bytes that a block's code is made from, about; in stretches, spread over the block.
const SAMPLED: usize = 8192;
const STRETCH: usize = 256;

/// Forms of a block.
#[derive(Clone, Copy)]
enum Block {
    Raw = 0,
    Repeated = 1,
    Compressed = 2,
}

thread_local! {
    static CODED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static DECOMPRESSOR: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// Appends a frame of `bytes`, which are alike within each `part` bytes.
pub fn compress(bytes: &[u8], part: usize, frames: &mut Vec<u8>) {
    frames.extend_from_slice(&MAGIC.to_le_bytes());
    frames.push(FRAME_DESCRIPTOR);
    frames.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    let parts = bytes.chunks(part.max(1));
    let mut blocks = parts.flat_map(|part| part.chunks(part.len().div_ceil(part.len().div_ceil(MAX_BLOCK)))).peekable();
    if blocks.peek().is_none() {
        block_header(Block::Raw, 0, true, frames);
    }
    while let Some(block) = blocks.next() {
        let last = blocks.peek().is_none();
        CODED.with_borrow_mut(|coded| compress_block(block, last, coded, frames));
    }
}

/// Fills `bytes` from one or more frames. `None` if they are damaged or hold another number of bytes.
pub fn decompress(frames: &[u8], bytes: &mut [u8]) -> Option<()> {
    let written = DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.decompress(bytes, frames)).ok()?;
    (written == bytes.len()).then_some(())
}

/// `coded` is scratch.
fn compress_block(block: &[u8], last: bool, coded: &mut Vec<u8>, frames: &mut Vec<u8>) {
    if block[1..] == block[..block.len() - 1] {
        block_header(Block::Repeated, block.len(), last, frames);
        frames.push(block[0]);
        return;
    }
    if block.len() >= MIN_CODED {
        coded.resize(stream::bound(block.len()), 0);
        let written = compress_literals(block, coded);
        if written < block.len() {
            block_header(Block::Compressed, written, last, frames);
            frames.extend_from_slice(&coded[..written]);
            return;
        }
    }
    block_header(Block::Raw, block.len(), last, frames);
    frames.extend_from_slice(block);
}

fn block_header(form: Block, size: usize, last: bool, frames: &mut Vec<u8>) {
    let header = u32::from(last) | (form as u32) << 1 | (size as u32) << 3;
    frames.extend_from_slice(&header.to_le_bytes()[..3]);
}

/// A block of literals without sequences; its length.
fn compress_literals(block: &[u8], coded: &mut [u8]) -> usize {
    const HEADER: usize = 5;
    const JUMPS: usize = 6;
    let code = Code::new(&sampled_counts(block), reach(block));
    let description = description::of(&code);
    let streams = HEADER + description.len() + JUMPS;
    coded[HEADER..][..description.len()].copy_from_slice(&description);
    let coder = Coder::new(&code);
    let mut end = streams;
    for (index, symbols) in block.chunks(block.len().div_ceil(4)).enumerate() {
        let bytes = coder.encode(symbols, &mut coded[end..]);
        end += bytes;
        if index < 3 {
            coded[streams - JUMPS + 2 * index..][..2].copy_from_slice(&(bytes as u16).to_le_bytes());
        }
    }
    // Compressed with a code of its own, four streams, sizes of 18 bits.
    let header = 2 | 3 << 2 | (block.len() as u64) << 4 | ((end - HEADER) as u64) << 22;
    coded[..HEADER].copy_from_slice(&header.to_le_bytes()[..HEADER]);
    coded[end] = 0; // sequences
    end + 1
}

/// How often each byte occurs in a sample.
fn sampled_counts(block: &[u8]) -> [u32; 256] {
    // Four tables: equal neighbours would wait for each other.
    let mut counts = [[0u32; 256]; 4];
    for stretch in block.chunks(STRETCH).step_by((block.len() / SAMPLED).max(1)) {
        let (fours, rest) = stretch.as_chunks::<4>();
        for four in fours {
            for (counts, &byte) in counts.iter_mut().zip(four) {
                counts[usize::from(byte)] += 1;
            }
        }
        rest.iter().for_each(|&byte| counts[0][usize::from(byte)] += 1);
    }
    std::array::from_fn(|byte| counts.iter().map(|counts| counts[byte]).sum())
}

/// The largest distance from zero, `−1 − r` for negative residuals.
fn reach(block: &[u8]) -> u8 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { reach_avx2(block) };
    }
    reach_of(block)
}

/// [`reach_of`], compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn reach_avx2(block: &[u8]) -> u8 {
    reach_of(block)
}

#[inline(always)]
fn reach_of(block: &[u8]) -> u8 {
    block.iter().fold(0, |reach, &byte| reach.max(byte ^ (byte.cast_signed() >> 7).cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngCore, SeedableRng, rngs::StdRng};

    fn random(len: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        bytes
    }

    /// Residuals whose magnitude has about `bits` bits, now and then more.
    fn residuals(len: usize, bits: u32, seed: u64) -> Vec<u8> {
        let shift = |byte: u8, rare: u8| byte.cast_signed() >> if rare == 0 { 0 } else { 8 - bits };
        random(2 * len, seed).chunks_exact(2).map(|pair| shift(pair[0], pair[1]).cast_unsigned()).collect()
    }

    #[test]
    fn every_kind_of_block_comes_back() {
        let mut cases = vec![("empty", vec![]), ("constant", vec![255; 200_000]), ("one", vec![7])];
        cases.extend((1..8).map(|bits| ("residuals", residuals(112_896, bits, bits.into()))));
        cases
            .extend([255, 256, 257, 300, 1023, 131_072, 131_073, 400_000].map(|len| ("lengths", residuals(len, 3, 9))));
        cases.push(("noise", random(100_000, 3)));
        cases.push(("what the sample does not show", [vec![0; 99_999], vec![128]].concat()));
        cases.push(("the sample is all there is", [vec![0; 99_999], vec![1]].concat()));
        for (what, bytes) in cases {
            for part in [bytes.len().div_ceil(3).max(1), 70_001, usize::MAX] {
                let mut frames = vec![1, 2];
                compress(&bytes, part, &mut frames);
                let mut found = vec![0; bytes.len()];
                assert_eq!(decompress(&frames[2..], &mut found), Some(()), "{what}, {} bytes", bytes.len());
                assert_eq!(found, bytes, "{what}, {} bytes", bytes.len());
                assert!(frames.len() < bytes.len() + 60, "{what}: {} bytes from {}", frames.len(), bytes.len());
            }
        }
    }

    #[test]
    fn frames_hold_their_bytes_one_after_another_and_damage_is_noticed() {
        let first: Vec<u8> = (0..100_000u32).map(|i| (i * i % 7) as u8).collect();
        let second = vec![9u8; 1000];
        let mut frames = Vec::new();
        compress(&first, 33_334, &mut frames);
        compress(&second, 1000, &mut frames);
        assert!(frames.len() < 50_000, "Huffman codes of 7 values: {} bytes", frames.len());
        let mut found = vec![0; first.len() + second.len()];
        decompress(&frames, &mut found).expect("decompressed");
        assert_eq!(found, [first, second].concat());
        assert!(decompress(&frames, &mut vec![0; 101_001]).is_none(), "too few");
        assert!(decompress(&frames, &mut vec![0; 100_999]).is_none(), "too many");
        assert!(decompress(&frames[1..], &mut found).is_none(), "damaged");
    }
}
