//! Which ranks share a host, and how slices pass between hosts: once a host instead of once a rank.
//!
//! On each host, every rank of the job has a delegate: for a sum it adds up its host's values of that rank's slices and sends the
//! result to that rank; of new values it receives that rank's slices and passes them on within its host.

use super::{add_in_order, sum_in_order};
use std::collections::BTreeMap;
use std::fmt;

/// The ranks of each host. Ranks that exchange directly are those of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    /// In the order of their first ranks; ranks ascend.
    hosts: Vec<Vec<usize>>,
    /// Of each rank, its host and its number there.
    places: Vec<(usize, usize)>,
}

impl Hosts {
    /// All ranks on one host.
    pub fn one(world_size: usize) -> Self {
        Self::of_size(world_size, world_size)
    }

    /// Consecutive ranks, `ranks_per_host` at a time; the last host may have fewer.
    pub fn of_size(world_size: usize, ranks_per_host: usize) -> Self {
        let numbers: Vec<usize> = (0..world_size).map(|rank| rank / ranks_per_host.max(1)).collect();
        Self::named(&numbers)
    }

    /// Of each rank, what its host is called.
    pub fn named<T: Ord>(names: &[T]) -> Self {
        let (mut numbers, mut hosts) = (BTreeMap::new(), Vec::<Vec<usize>>::new());
        let places = names.iter().enumerate().map(|(rank, name)| {
            let host = *numbers.entry(name).or_insert(hosts.len());
            if host == hosts.len() {
                hosts.push(Vec::new());
            }
            hosts[host].push(rank);
            (host, hosts[host].len() - 1)
        });
        let places = places.collect();
        Self { hosts, places }
    }

    /// Ranks of all hosts.
    pub fn ranks(&self) -> usize {
        self.places.len()
    }

    /// Hosts.
    pub fn count(&self) -> usize {
        self.hosts.len()
    }

    /// Whether nothing is gained by the hosts: there is one, or each has one rank.
    pub fn are_direct(&self) -> bool {
        self.hosts.len() < 2 || self.hosts.len() == self.places.len()
    }

    /// The number of a rank's host.
    pub fn host_of(&self, rank: usize) -> usize {
        self.places[rank].0
    }

    /// Ranks of a host.
    pub fn ranks_of(&self, host: usize) -> &[usize] {
        &self.hosts[host]
    }

    /// A rank's delegate on a host; on its own host it is itself.
    pub fn delegate(&self, host: usize, rank: usize) -> usize {
        let ranks = &self.hosts[host];
        ranks[self.places[rank].1 % ranks.len()]
    }

    /// Ranks whose delegate `rank` is on its host, itself among them; they ascend.
    pub fn delegators(&self, rank: usize) -> Vec<usize> {
        let host = self.host_of(rank);
        (0..self.places.len()).filter(|&other| self.delegate(host, other) == rank).collect()
    }

    /// `own += h₀ + h₁ + …`, where h is a host's sum of its ranks' values in the order of ranks.
    pub(super) fn add(&self, own: &mut [f32], of_rank: &[&[f32]]) {
        if self.are_direct() {
            return add_in_order(own, of_rank);
        }
        const CHUNK: usize = 2048;
        let mut sums = vec![[0f32; CHUNK]; self.hosts.len()];
        for (index, own) in own.chunks_mut(CHUNK).enumerate() {
            let at = index * CHUNK..index * CHUNK + own.len();
            for (sum, ranks) in sums.iter_mut().zip(&self.hosts) {
                sum_in_order(&mut sum[..own.len()], ranks.iter().map(|&rank| &of_rank[rank][at.clone()]));
            }
            let sums: Vec<&[f32]> = sums.iter().map(|sum| &sum[..own.len()]).collect();
            add_in_order(own, &sums);
        }
    }
}

impl fmt::Display for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes = || self.hosts.iter().map(Vec::len);
        let (least, most) = (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0));
        write!(f, "{} hosts of {most} ranks", self.hosts.len())?;
        if least < most { write!(f, " or fewer") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_grouped_by_the_names_of_their_hosts() {
        let hosts = Hosts::named(&["b", "a", "b", "a", "c"]);
        assert_eq!((hosts.count(), hosts.ranks_of(0), hosts.ranks_of(1)), (3, &[0, 2][..], &[1, 3][..]));
        assert_eq!((0..5).map(|rank| hosts.host_of(rank)).collect::<Vec<_>>(), [0, 1, 0, 1, 2]);
        assert_eq!(hosts.to_string(), "3 hosts of 2 ranks or fewer");
        assert_eq!(Hosts::of_size(4, 2), Hosts::named(&[0, 0, 1, 1]));
        assert_eq!(Hosts::of_size(4, 2).to_string(), "2 hosts of 2 ranks");
        for (ranks, per_host, direct) in [(1, 1, true), (4, 1, true), (4, 9, true), (4, 2, false), (4, 3, false)] {
            assert_eq!(Hosts::of_size(ranks, per_host).are_direct(), direct, "{ranks} ranks, {per_host} a host");
        }
    }

    /// On every host each rank has one delegate, and delegates share the work as evenly as hosts are equal.
    #[test]
    fn every_rank_has_a_delegate_on_every_host() {
        for (ranks, per_host) in [(8, 4), (8, 2), (8, 3), (5, 4), (6, 6), (3, 1)] {
            let hosts = Hosts::of_size(ranks, per_host);
            let delegators: Vec<Vec<usize>> = (0..ranks).map(|rank| hosts.delegators(rank)).collect();
            for host in 0..hosts.count() {
                let mut all: Vec<usize> =
                    hosts.ranks_of(host).iter().flat_map(|&rank| delegators[rank].clone()).collect();
                all.sort_unstable();
                assert_eq!(all, (0..ranks).collect::<Vec<_>>(), "{hosts}, host {host}");
            }
            for (rank, delegators) in delegators.iter().enumerate() {
                assert_eq!(hosts.delegate(hosts.host_of(rank), rank), rank, "{hosts}");
                if ranks % per_host == 0 {
                    assert_eq!(delegators.len(), hosts.count(), "{hosts}");
                }
            }
        }
    }

    #[test]
    fn sums_are_those_of_hosts_in_order() {
        let values = [1e8f32, 1.0, -1e8, 1.0];
        let sources: Vec<Vec<f32>> = values.iter().map(|&value| vec![value; 5000]).collect();
        let sources: Vec<&[f32]> = sources.iter().map(Vec::as_slice).collect();
        for (per_host, expected) in [(1, 1.0), (2, 0.0), (3, 1.0), (4, 1.0)] {
            let mut own = vec![0.5; 5000];
            Hosts::of_size(4, per_host).add(&mut own, &sources);
            assert!(own.iter().all(|&value| value == 0.5 + expected), "{per_host} ranks a host: {}", own[0]);
        }
    }
}
