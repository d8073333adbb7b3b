//! The only code that talks to other ranks: threads of this process, or MPI.

mod attend;
pub mod background;
pub mod guard;
pub mod launch;
pub mod mpi;
pub mod threads;

use anyhow::Result;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// What is being exchanged, for messages.
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

/// Exchanges between all ranks. Every rank calls the same operations in the same order, each from one thread.
///
/// A flat buffer is cut into consecutive buckets: bucket b has `world_size` parts of `parts[b]` values, part r belongs to
/// rank r. What a rank owns are its parts of all buckets, one after another. Buffers are given and handed back, so that
/// threads can read each other's without copying.
///
/// # Errors
/// A rank that failed, or that did not come within the deadline: the message names the rank and the place.
pub trait Collective: Send {
    /// This rank.
    fn rank(&self) -> usize;

    /// Ranks.
    fn world_size(&self) -> usize;

    /// Adds to `own` the sum over the ranks of what this rank owns of their `flat`. The sum is in rank order, so that it
    /// does not depend on how the ranks are connected.
    fn reduce_scatter(&mut self, place: &Place, parts: &[usize], flat: Vec<f32>, own: &mut [f32]) -> Result<Vec<f32>>;

    /// Puts together in `full` what every rank owns.
    fn all_gather(&mut self, place: &Place, parts: &[usize], own: Vec<f32>, full: &mut [f32]) -> Result<Vec<f32>>;

    /// Bytes that this rank has given to other ranks so far.
    fn bytes_sent(&self) -> u64;

    /// Longest time that a rank waits for another one.
    fn timeout(&self) -> Duration;
}

/// The stretches of a flat buffer of `parts` that `rank` owns: (range in the flat buffer, range in what it owns).
fn owned_stretches(
    parts: &[usize],
    world_size: usize,
    rank: usize,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
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
fn add_in_rank_order(own: &mut [f32], sources: &[&[f32]]) {
    const CHUNK: usize = 2048;
    let Some((first, others)) = sources.split_first() else { return };
    let mut buffer = [0f32; CHUNK];
    for (index, own) in own.chunks_mut(CHUNK).enumerate() {
        let at = index * CHUNK..index * CHUNK + own.len();
        let sum = &mut buffer[..own.len()];
        sum.copy_from_slice(&first[at.clone()]);
        for other in others {
            sum.iter_mut().zip(&other[at.clone()]).for_each(|(sum, value)| *sum += value);
        }
        own.iter_mut().zip(&*sum).for_each(|(own, sum)| *own += sum);
    }
}

/// Sums `values` over ranks, in rank order, so that every rank has the same bits.
pub fn all_reduce(collective: &mut dyn Collective, what: &str, values: &mut [f64]) -> Result<()> {
    let place = Place { operation: "all-reduce", block: what.to_string() };
    // An f64 travels as two f32 bit patterns; nothing computes with them.
    let own: Vec<f32> = values.iter().flat_map(|value| halves(value.to_bits())).collect();
    let mut full = vec![0f32; own.len() * collective.world_size()];
    collective.all_gather(&place, &[own.len()], own, &mut full)?;
    values.fill(0.0);
    for rank_values in full.chunks_exact(values.len() * 2) {
        for (value, pair) in values.iter_mut().zip(rank_values.chunks_exact(2)) {
            *value += f64::from_bits(joined(pair[0], pair[1]));
        }
    }
    Ok(())
}

/// Every rank's 32 bytes (a hash), in rank order.
pub fn all_gather_hash(collective: &mut dyn Collective, what: &str, own: [u8; 32]) -> Result<Vec<[u8; 32]>> {
    let place = Place { operation: "all-gather", block: what.to_string() };
    let send: Vec<f32> = bytemuck::pod_collect_to_vec(&own);
    let mut full = vec![0f32; send.len() * collective.world_size()];
    collective.all_gather(&place, &[send.len()], send, &mut full)?;
    Ok(full
        .chunks_exact(8)
        .map(|chunk| bytemuck::pod_collect_to_vec::<f32, u8>(chunk).try_into().unwrap_or(own))
        .collect())
}

fn halves(bits: u64) -> [f32; 2] {
    [f32::from_bits(bits as u32), f32::from_bits((bits >> 32) as u32)]
}

fn joined(low: f32, high: f32) -> u64 {
    u64::from(low.to_bits()) | (u64::from(high.to_bits()) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_in_rank_order_and_exact() {
        let found = threads::run(3, Duration::from_secs(5), |mut collective| {
            let mut values = [1e300 * [1.0, -1.0, 0.0][collective.rank()], f64::from(collective.rank() as u32) + 0.1];
            all_reduce(&mut collective, "test", &mut values)?;
            Ok(values)
        });
        for values in found {
            assert_eq!(values.expect("no rank fails"), [0.0, 0.1 + 1.1 + 2.1]);
        }
    }

    #[test]
    fn hashes_come_in_rank_order() {
        let found = threads::run(2, Duration::from_secs(5), |mut collective| {
            let rank = collective.rank() as u8;
            all_gather_hash(&mut collective, "test", [0xF0 + rank; 32])
        });
        for hashes in found {
            assert_eq!(hashes.expect("no rank fails"), vec![[0xF0; 32], [0xF1; 32]]);
        }
    }
}
