//! The only code that communicates with other ranks: threads of this process, MPI, and NCCL for values on GPUs.

mod attend;
pub mod background;
mod error;
pub mod guard;
pub mod hosts;
pub mod launch;
pub mod mpi;
pub mod nccl;
pub mod roll_call;
pub mod threads;

pub use error::{CollectiveError, Result};

use crate::buffers::{Buffer, HostBuffer};
use roll_call::{RollCall, Silent};
use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// The data being exchanged, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `reduce-scatter`, `all-gather`, `all-reduce`, …
    pub operation: &'static str,
    /// The block, or what the values mean.
    pub block: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.operation, self.block)
    }
}

/// Exchanges of buffers between all ranks. Every rank calls the same operations in the same order, each from one thread.
///
/// A flat buffer is cut into consecutive buckets: bucket b has `world_size` parts of `parts[b]` values, part r belongs to
/// rank r. What a rank owns are its parts of all buckets, one after another. Buffers are given and handed back, so that
/// threads can read each other's without copying.
///
/// Ranks that hold their values on devices exchange other buffers than the host's; what they agree on still goes through
/// [`Collective::host`].
///
/// # Errors
/// A rank that failed, or that did not come within the deadline: which one, and the place.
pub trait Collective<B: Buffer = HostBuffer>: Send {
    /// This rank.
    fn rank(&self) -> usize;

    /// Ranks.
    fn world_size(&self) -> usize;

    /// Adds to `own` the sum over the ranks of what this rank owns of their `flat`. The sum is in rank order, that of several
    /// [`hosts`] the sum of theirs in order, so that it does not depend on how the ranks are connected.
    fn reduce_scatter(&mut self, place: &Place, parts: &[usize], flat: B, own: &mut B) -> Result<B>;

    /// Puts together in `full` what every rank owns.
    fn all_gather(&mut self, place: &Place, parts: &[usize], own: B, full: &mut B) -> Result<B>;

    /// The same ranks, for a few values in the host's memory.
    fn host(&mut self) -> &mut dyn Collective;

    /// Bytes that this rank has given to other ranks so far.
    fn bytes_sent(&self) -> u64;

    /// Longest time that a rank waits for another one.
    fn timeout(&self) -> Duration;

    /// For exchanges between the same ranks that go through another library, on another thread.
    fn roll_call(&self) -> Box<dyn RollCall> {
        Box::new(Silent)
    }
}

/// Values that a rank owns of `parts`; refuses buffers, [whole, owned], that do not fit them.
fn require_lens(place: &Place, parts: &[usize], world_size: usize, found: [usize; 2]) -> Result<usize> {
    let own: usize = parts.iter().sum();
    let expected = [own * world_size, own];
    if found != expected {
        let message = format!("{place}: buffers of {found:?} values, expected {expected:?}; report this");
        return Err(CollectiveError::ExchangePanicked { message });
    }
    Ok(own)
}

/// The slices of a flat buffer of `parts` that `rank` owns: (range in the flat buffer, range in what it owns).
fn owned_slices(parts: &[usize], world_size: usize, rank: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let starts = parts.iter().scan(0, |end, part| {
        *end += part;
        Some((*end - part, *part))
    });
    starts.map(move |(start, part)| {
        let first = start * world_size + rank * part;
        (first..first + part, start..start + part)
    })
}

/// `own += ((s₀ + s₁) + s₂) + …`, value by value.
fn add_in_order(own: &mut [f32], sources: &[&[f32]]) {
    const CHUNK: usize = 2048;
    let mut buffer = [0f32; CHUNK];
    for (index, own) in own.chunks_mut(CHUNK).enumerate() {
        let at = index * CHUNK..index * CHUNK + own.len();
        let sum = &mut buffer[..own.len()];
        sum_in_order(sum, sources.iter().map(|source| &source[at.clone()]));
        own.iter_mut().zip(&*sum).for_each(|(own, sum)| *own += sum);
    }
}

/// `sum = ((s₀ + s₁) + s₂) + …`, value by value.
fn sum_in_order<'a>(sum: &mut [f32], mut sources: impl Iterator<Item = &'a [f32]>) {
    let Some(first) = sources.next() else { return sum.fill(0.0) };
    sum.copy_from_slice(first);
    for other in sources {
        sum.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
    }
}

/// Sums `values` over ranks, in rank order, so that every rank has the same bits.
pub fn all_reduce<const N: usize>(collective: &mut dyn Collective, what: &str, values: [f64; N]) -> Result<[f64; N]> {
    let place = Place { operation: "all-reduce", block: what.to_string() };
    // An f64 travels as two f32 bit patterns; nothing computes with them.
    let all = gather_words(collective, &place, bytemuck::pod_collect_to_vec(&values))?;
    let mut sums = [0.0; N];
    for of_rank in all.chunks_exact(2 * N) {
        let values: Vec<f64> = bytemuck::pod_collect_to_vec(of_rank);
        sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    Ok(sums)
}

/// Every rank's few bytes, in rank order.
pub fn all_gather_bytes<const N: usize>(
    collective: &mut dyn Collective,
    what: &str,
    own: [u8; N],
) -> Result<Vec<[u8; N]>> {
    let place = Place { operation: "all-gather", block: what.to_string() };
    let mut padded = own.to_vec();
    padded.resize(N.next_multiple_of(size_of::<f32>()), 0);
    let all = gather_words(collective, &place, bytemuck::pod_collect_to_vec(&padded))?;
    let bytes: &[u8] = bytemuck::cast_slice(&all);
    Ok(bytes.chunks_exact(padded.len()).map(|of_rank| std::array::from_fn(|index| of_rank[index])).collect())
}

/// Every rank's texts, in rank order.
pub fn all_gather_texts(collective: &mut dyn Collective, what: &str, own: &[String]) -> Result<Vec<Vec<String>>> {
    let place = Place { operation: "all-gather", block: what.to_string() };
    // Lengths, then the texts; every rank's part is as long as the longest.
    let mut bytes: Vec<u8> = (own.len() as u64).to_le_bytes().to_vec();
    own.iter().for_each(|text| bytes.extend((text.len() as u64).to_le_bytes()));
    own.iter().for_each(|text| bytes.extend(text.as_bytes()));
    let lengths = all_gather_bytes(collective, what, (bytes.len() as u64).to_le_bytes())?;
    let longest = lengths.into_iter().map(u64::from_le_bytes).max().unwrap_or(0) as usize;
    bytes.resize(longest.next_multiple_of(size_of::<f32>()), 0);
    let all = gather_words(collective, &place, bytemuck::pod_collect_to_vec(&bytes))?;
    let all: &[u8] = bytemuck::cast_slice(&all);
    Ok(all.chunks_exact(bytes.len()).map(texts_of).collect())
}

/// Reads what [`all_gather_texts`] sends.
fn texts_of(bytes: &[u8]) -> Vec<String> {
    let (numbers, _) = bytes.as_chunks::<8>();
    let mut numbers = numbers.iter().map(|number| u64::from_le_bytes(*number) as usize);
    let count = numbers.next().unwrap_or(0);
    let mut start = 8 * (1 + count);
    let text = |len: usize| {
        let text = bytes.get(start..start + len).unwrap_or_default();
        start += len;
        String::from_utf8_lossy(text).into_owned()
    };
    numbers.take(count).map(text).collect()
}

fn gather_words(collective: &mut dyn Collective, place: &Place, own: Vec<f32>) -> Result<Vec<f32>> {
    let parts = [own.len()];
    let mut full = vec![0.0; own.len() * collective.world_size()];
    collective.all_gather(place, &parts, own, &mut full)?;
    Ok(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_in_rank_order_and_exact() {
        let found = threads::run(3, Duration::from_secs(5), |mut collective| {
            let values = [1e300 * [1.0, -1.0, 0.0][collective.rank()], f64::from(collective.rank() as u32) + 0.1];
            Ok(all_reduce(&mut collective, "test", values)?)
        });
        for values in found {
            assert_eq!(values.expect("no rank fails"), [0.0, 0.1 + 1.1 + 2.1]);
        }
    }

    #[test]
    fn texts_come_in_rank_order() {
        let texts = |rank: usize| -> Vec<String> { (0..rank).map(|number| "é".repeat(number * 3)).collect() };
        let found = threads::run(3, Duration::from_secs(5), |mut collective| {
            let own = texts(collective.rank());
            Ok(all_gather_texts(&mut collective, "test", &own)?)
        });
        for found in found {
            assert_eq!(found.expect("no rank fails"), [texts(0), texts(1), texts(2)]);
        }
    }

    #[test]
    fn bytes_come_in_rank_order() {
        let found = threads::run(2, Duration::from_secs(5), |mut collective| {
            let rank = collective.rank() as u8;
            let hashes = all_gather_bytes(&mut collective, "test", [0xF0 + rank; 33])?;
            Ok((hashes, all_gather_bytes(&mut collective, "test", [rank])?))
        });
        for found in found {
            assert_eq!(found.expect("no rank fails"), (vec![[0xF0; 33], [0xF1; 33]], vec![[0], [1]]));
        }
    }
}
