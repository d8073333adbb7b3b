//! The only code that talks to other ranks: threads of this process, or MPI.

pub mod launch;
pub mod mpi;
pub mod threads;

use anyhow::Result;
use std::fmt;

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
/// Buffers are given and handed back, so that threads can read each other's without copying.
///
/// # Errors
/// A rank that failed, or that did not come within the deadline: the message names the rank and the place.
pub trait Collective: Send {
    /// This rank.
    fn rank(&self) -> usize;

    /// Ranks.
    fn world_size(&self) -> usize;

    /// Part r of `send` goes to rank r; part r of `receive` comes from rank r. Both have `world_size` equal parts.
    fn all_to_all(&mut self, place: &Place, send: Vec<f32>, receive: &mut [f32]) -> Result<Vec<f32>>;

    /// Every rank's `own` one after another into `full`.
    fn all_gather(&mut self, place: &Place, own: Vec<f32>, full: &mut [f32]) -> Result<Vec<f32>>;
}

/// Sums `values` over ranks, in rank order, so that every rank has the same bits.
pub fn all_reduce(collective: &mut dyn Collective, what: &str, values: &mut [f64]) -> Result<()> {
    let place = Place { operation: "all-reduce", block: what.to_string() };
    // An f64 travels as two f32 bit patterns; nothing computes with them.
    let own = values.iter().flat_map(|value| halves(value.to_bits())).collect();
    let mut full = vec![0f32; values.len() * 2 * collective.world_size()];
    collective.all_gather(&place, own, &mut full)?;
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
    collective.all_gather(&place, send, &mut full)?;
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
    use std::time::Duration;

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
