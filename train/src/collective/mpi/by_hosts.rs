//! Exchanges in two rounds, within hosts and between them, see [`Hosts`].
//!
//! A rank sends as many bytes as it does directly, but for each slice only (hosts − 1) times to another host, where it would be
//! N − (ranks of its host) times, and in (ranks of its host − 1) + (hosts − 1) messages instead of N − 1. MPI's own collectives
//! would spare as much; they sum in an order that they choose, and do not say which rank is missing.

use super::super::hosts::Hosts;
use super::super::roll_call::RollCall;
use super::super::{Place, Result, add_in_order, sum_in_order};
use super::MpiRank;
use super::roll_call::MpiRollCall;
use std::sync::Arc;
use std::time::Instant;

/// A rank's part in exchanges by hosts.
pub(super) struct ByHosts {
    roles: Arc<Roles>,
    /// A rank may wait for one that itself waits for another: that one is to be named.
    roll_call: MpiRollCall,
    /// Exchanges so far, both of their rounds being one.
    exchanges: u64,
}

/// With whom a rank exchanges what.
struct Roles {
    /// Ranks of this rank's host, itself among them, each with its delegators.
    here: Vec<(usize, Vec<usize>)>,
    /// This rank's delegators, itself among them.
    delegators: Vec<usize>,
    /// This rank's delegate on each host: on its own, itself.
    delegates: Vec<usize>,
}

impl ByHosts {
    pub(super) fn new(hosts: &Hosts, rank: usize, roll_call: MpiRollCall) -> Self {
        let here = hosts.ranks_of(hosts.host_of(rank)).iter().map(|&rank| (rank, hosts.delegators(rank))).collect();
        let delegates = (0..hosts.count()).map(|host| hosts.delegate(host, rank)).collect();
        let roles = Arc::new(Roles { here, delegators: hosts.delegators(rank), delegates });
        Self { roles, roll_call, exchanges: 0 }
    }

    /// See [`RollCall::begins`].
    pub(super) fn begins(&mut self, place: &Place) {
        self.roll_call.begins(place);
    }

    /// See [`RollCall::waits`].
    pub(super) fn waits(&mut self, place: &Place, since: Instant) -> Result<()> {
        self.roll_call.waits(place, self.exchanges, since)
    }

    /// Ranks that were not seen to wait in this exchange.
    pub(super) fn absent(&mut self) -> Vec<usize> {
        self.roll_call.absent(self.exchanges)
    }

    fn next_exchange(&mut self) -> Arc<Roles> {
        self.exchanges += 1;
        Arc::clone(&self.roles)
    }
}

impl MpiRank {
    /// Adds to `own` the sum of all ranks' slices of `bucket`: first each host's, then theirs.
    pub(super) fn reduce_scatter_by_hosts(&mut self, place: &Place, bucket: &[f32], own: &mut [f32]) {
        let Some(roles) = self.by_hosts.as_mut().map(ByHosts::next_exchange) else { return };
        let Roles { here, delegators, delegates } = &*roles;
        let (rank, part) = (self.rank, own.len());
        let slice = |of_rank: usize| &bucket[of_rank * part..][..part];
        let others = || here.iter().filter(|(peer, _)| *peer != rank);

        let message = delegators.len() * part;
        let (to_here, of_here, of_hosts) =
            (bucket.len() - message, (here.len() - 1) * message, (delegates.len() - 1) * part);
        let mut scratch = self.take_scratch(to_here + of_here + message + of_hosts);
        let (mut packed, rest) = scratch.split_at_mut(to_here);
        let (of_here, rest) = rest.split_at_mut(of_here);
        let (sums, rest) = rest.split_at_mut(message);
        let of_hosts = &mut rest[..of_hosts];

        let mut outgoing = Vec::new();
        for (peer, slices) in others() {
            let (message, after) = packed.split_at_mut(slices.len() * part);
            packed = after;
            let parts = message.chunks_exact_mut(part).zip(slices);
            parts.for_each(|(to, &of_rank)| to.copy_from_slice(slice(of_rank)));
            outgoing.push((*peer, &*message));
        }
        let incoming = others().map(|(peer, _)| *peer).zip(of_here.chunks_exact_mut(message)).collect();
        self.exchange(place, outgoing, incoming);
        for (index, (sum, &of_rank)) in sums.chunks_exact_mut(part).zip(delegators).enumerate() {
            let mut messages = of_here.chunks_exact(message).map(|message| &message[index * part..][..part]);
            let of_peer = |peer: usize| if peer == rank { Some(slice(of_rank)) } else { messages.next() };
            sum_in_order(sum, here.iter().map(|(peer, _)| *peer).filter_map(of_peer));
        }

        let sums = || delegators.iter().copied().zip(sums.chunks_exact(part));
        let peers = delegates.iter().copied().filter(|&delegate| delegate != rank);
        self.exchange(place, sums().collect(), peers.zip(of_hosts.chunks_exact_mut(part)).collect());
        let mut of_hosts = of_hosts.chunks_exact(part);
        let mut of_host = |delegate: usize| match delegate == rank {
            true => sums().find(|(of_rank, _)| *of_rank == rank).map(|(_, sum)| sum),
            false => of_hosts.next(),
        };
        let sources: Vec<&[f32]> = delegates.iter().filter_map(|&delegate| of_host(delegate)).collect();
        add_in_order(own, &sources);
        self.scratch = scratch;
    }

    /// Puts together `bucket` of what every rank owns: from delegators, then within the host.
    pub(super) fn all_gather_by_hosts(&mut self, place: &Place, own: &[f32], bucket: &mut [f32]) {
        let Some(roles) = self.by_hosts.as_mut().map(ByHosts::next_exchange) else { return };
        let Roles { here, delegators, delegates } = &*roles;
        let (rank, part) = (self.rank, own.len());
        bucket[rank * part..][..part].copy_from_slice(own);

        let outgoing = delegates.iter().map(|&delegate| (delegate, own)).collect();
        let parts = bucket.chunks_exact_mut(part).enumerate();
        let incoming = parts.filter(|(of_rank, _)| delegators.binary_search(of_rank).is_ok()).collect();
        self.exchange(place, outgoing, incoming);

        let len = delegators.len() * part;
        let mut scratch = self.take_scratch(bucket.len());
        let (message, rest) = scratch.split_at_mut(len);
        let parts = message.chunks_exact_mut(part).zip(delegators);
        parts.for_each(|(to, &of_rank)| to.copy_from_slice(&bucket[of_rank * part..][..part]));
        let outgoing = here.iter().map(|(peer, _)| (*peer, &*message)).collect();
        let mut rest = &mut rest[..bucket.len() - len];
        let mut incoming = Vec::new();
        for (peer, slices) in here.iter().filter(|(peer, _)| *peer != rank) {
            let (message, after) = std::mem::take(&mut rest).split_at_mut(slices.len() * part);
            rest = after;
            incoming.push((*peer, message));
        }
        self.exchange(place, outgoing, incoming);
        let slices = here.iter().filter(|(peer, _)| *peer != rank).flat_map(|(_, slices)| slices);
        for (from, &of_rank) in scratch[len..].chunks_exact(part).zip(slices) {
            bucket[of_rank * part..][..part].copy_from_slice(from);
        }
        self.scratch = scratch;
    }
}
