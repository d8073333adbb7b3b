//! Ranks as threads of one process: buffers are read where they are.

use super::hosts::Hosts;
use super::roll_call::RollCall;
use super::{Collective, CollectiveError, Place, Result, owned_slices, require_lens};
use anyhow::anyhow;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One exchange at a time: all post, all read, all leave.
struct Exchange {
    posted: Vec<Option<Arc<Vec<f32>>>>,
    places: Vec<Option<Place>>,
    left: usize,
    generation: u64,
    failure: Option<Failure>,
    /// All ranks have ended.
    over: bool,
}

/// What ends all ranks.
#[derive(Clone)]
enum Failure {
    /// A rank has failed by itself.
    Rank { rank: usize, cause: String },
    /// An exchange that cannot be completed.
    Exchange(CollectiveError),
}

impl Failure {
    /// For a rank that waits at `place`.
    fn at(self, place: &Place) -> CollectiveError {
        match self {
            Self::Rank { rank, cause } => CollectiveError::RankFailed { place: place.clone(), rank, cause },
            Self::Exchange(error) => error,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rank { rank, cause } => write!(f, "rank {rank} failed: {cause}"),
            Self::Exchange(error) => error.fmt(f),
        }
    }
}

/// What the ranks share.
struct Group {
    exchange: Mutex<Exchange>,
    changed: Condvar,
    timeout: Duration,
    /// As if the ranks were on several hosts: sums have the bits of theirs.
    hosts: Hosts,
    /// Of each rank, the exchanges through another library in which it has waited so far.
    waited: Vec<AtomicU64>,
}

impl Group {
    fn new(world_size: usize, hosts: Hosts, timeout: Duration) -> Arc<Self> {
        let exchange = Exchange {
            posted: vec![None; world_size],
            places: vec![None; world_size],
            left: 0,
            generation: 0,
            failure: None,
            over: false,
        };
        let waited = (0..world_size).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { exchange: Mutex::new(exchange), changed: Condvar::new(), timeout, hosts, waited })
    }

    /// A rank that panicked while it held the lock has left consistent state behind: fields are set one at a time.
    fn lock(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, rank: usize, cause: String) {
        self.lock().failure.get_or_insert(Failure::Rank { rank, cause });
        self.changed.notify_all();
    }

    /// Waits until `ready`; a failure of any rank or the deadline ends the wait.
    fn wait<'a>(
        &'a self,
        mut exchange: MutexGuard<'a, Exchange>,
        place: &Place,
        bytes: usize,
        ready: impl Fn(&Exchange) -> bool,
    ) -> Result<MutexGuard<'a, Exchange>> {
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(failure) = &exchange.failure {
                return Err(failure.clone().at(place));
            }
            if ready(&exchange) {
                return Ok(exchange);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let ranks = (0..exchange.posted.len()).filter(|&r| exchange.posted[r].is_none()).collect();
                let (place, timeout) = (place.clone(), self.timeout);
                let error = CollectiveError::Missing { place, ranks, timeout, bytes };
                exchange.failure = Some(Failure::Exchange(error.clone()));
                self.changed.notify_all();
                return Err(error);
            }
            exchange = self.changed.wait_timeout(exchange, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A rank's end of a [`run`].
pub struct ThreadRank {
    group: Arc<Group>,
    rank: usize,
    world_size: usize,
    bytes_sent: u64,
}

impl ThreadRank {
    /// The only rank of a run by itself.
    pub fn alone() -> Self {
        Self { group: Group::new(1, Hosts::one(1), Duration::from_secs(3600)), rank: 0, world_size: 1, bytes_sent: 0 }
    }

    fn exchange(&self, place: &Place, send: Vec<f32>, read: impl FnOnce(&[Arc<Vec<f32>>])) -> Result<Vec<f32>> {
        let bytes = send.len() * size_of::<f32>();
        let own = Arc::new(send);
        let mut exchange = self.group.lock();
        let generation = exchange.generation;
        exchange.posted[self.rank] = Some(Arc::clone(&own));
        exchange.places[self.rank] = Some(place.clone());
        self.group.changed.notify_all();
        let exchange = self.group.wait(exchange, place, bytes, |e| e.posted.iter().all(Option::is_some))?;
        let places = exchange.places.iter().flatten().enumerate();
        if let Some((rank, other)) = places.into_iter().find(|(_, other)| *other != place) {
            return Err(CollectiveError::OutOfStep { place: place.clone(), rank, other: other.clone() });
        }
        let all: Vec<_> = exchange.posted.iter().flatten().cloned().collect();
        drop(exchange);
        read(&all);
        drop(all);
        let mut exchange = self.group.lock();
        exchange.left += 1;
        if exchange.left == self.world_size {
            exchange.left = 0;
            exchange.generation += 1;
            exchange.posted.fill(None);
            exchange.places.fill(None);
            self.group.changed.notify_all();
        } else {
            exchange = self.group.wait(exchange, place, bytes, |e| e.generation != generation)?;
        }
        drop(exchange);
        // Everybody has left, so nobody else holds the buffer.
        Ok(Arc::try_unwrap(own).unwrap_or_default())
    }
}

impl Collective for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn reduce_scatter(
        &mut self,
        place: &Place,
        parts: &[usize],
        flat: Vec<f32>,
        own: &mut Vec<f32>,
    ) -> Result<Vec<f32>> {
        let (rank, world_size) = (self.rank, self.world_size);
        let values = require_lens(place, parts, world_size, [flat.len(), own.len()])?;
        self.bytes_sent += ((world_size - 1) * values * size_of::<f32>()) as u64;
        let hosts = &self.group.hosts;
        self.exchange(place, flat, |all| {
            for (of_flat, of_own) in owned_slices(parts, world_size, rank) {
                let sources: Vec<&[f32]> = all.iter().map(|flat| &flat[of_flat.clone()]).collect();
                hosts.add(&mut own[of_own], &sources);
            }
        })
    }

    fn all_gather(&mut self, place: &Place, parts: &[usize], own: Vec<f32>, full: &mut Vec<f32>) -> Result<Vec<f32>> {
        let world_size = self.world_size;
        let values = require_lens(place, parts, world_size, [full.len(), own.len()])?;
        self.bytes_sent += ((world_size - 1) * values * size_of::<f32>()) as u64;
        self.exchange(place, own, |all| {
            for (rank, own) in all.iter().enumerate() {
                for (of_flat, of_own) in owned_slices(parts, world_size, rank) {
                    full[of_flat].copy_from_slice(&own[of_own]);
                }
            }
        })
    }

    fn host(&mut self) -> &mut dyn Collective {
        self
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn timeout(&self) -> Duration {
        self.group.timeout
    }

    fn roll_call(&self) -> Box<dyn RollCall> {
        Box::new(ThreadRollCall { group: Arc::clone(&self.group), rank: self.rank })
    }
}

/// Ranks see each other's counts.
struct ThreadRollCall {
    group: Arc<Group>,
    rank: usize,
}

impl RollCall for ThreadRollCall {
    fn begins(&mut self, _: &Place) {}

    fn waits(&mut self, place: &Place, exchange: u64, _: Instant) -> Result<()> {
        self.group.waited[self.rank].store(exchange + 1, Ordering::Relaxed);
        match &self.group.lock().failure {
            Some(failure) => Err(failure.clone().at(place)),
            None => Ok(()),
        }
    }

    fn absent(&mut self, exchange: u64) -> Vec<usize> {
        let waited = self.group.waited.iter().map(|waited| waited.load(Ordering::Relaxed)).enumerate();
        waited.filter(|(rank, waited)| *rank != self.rank && *waited <= exchange).map(|(rank, _)| rank).collect()
    }
}

/// After a rank has failed, how long the others may take to notice before the process is ended over their heads: a rank
/// that hangs never would.
const GRACE: Duration = Duration::from_secs(5);

/// Ends the process when a rank has failed and another does not come to its end.
struct Watchdog {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Watchdog {
    fn start(group: &Arc<Group>) -> Arc<Self> {
        let watchdog = Arc::new(Self { ended: Mutex::new(false), changed: Condvar::new() });
        let (watching, group) = (Arc::clone(&watchdog), Arc::clone(group));
        std::thread::spawn(move || watching.watch(&group));
        watchdog
    }

    fn watch(&self, group: &Group) {
        let mut exchange = group.lock();
        while exchange.failure.is_none() && !exchange.over {
            exchange = group.changed.wait(exchange).unwrap_or_else(PoisonError::into_inner);
        }
        let Some(failure) = exchange.failure.clone() else { return };
        drop(exchange);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(ended, GRACE, |ended| !*ended);
        if !*waited.unwrap_or_else(PoisonError::into_inner).0 {
            tracing::error!("{failure}; a rank does not come to its end, so the process is ended");
            std::process::abort();
        }
    }

    fn end(&self, group: &Group) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
        group.lock().over = true;
        group.changed.notify_all();
    }
}

/// Runs `rank_main` on `world_size` threads and returns every rank's result. A rank that fails or panics ends all.
pub fn run<T: Send>(
    world_size: usize,
    timeout: Duration,
    rank_main: impl Fn(ThreadRank) -> anyhow::Result<T> + Sync,
) -> Vec<anyhow::Result<T>> {
    run_as_on(Hosts::one(world_size), timeout, rank_main)
}

/// As [`run`], with the sums of ranks on several hosts.
pub fn run_as_on<T: Send>(
    hosts: Hosts,
    timeout: Duration,
    rank_main: impl Fn(ThreadRank) -> anyhow::Result<T> + Sync,
) -> Vec<anyhow::Result<T>> {
    let world_size = hosts.ranks();
    let group = Group::new(world_size, hosts, timeout);
    let watchdog = Watchdog::start(&group);
    let results = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..world_size)
            .map(|rank| {
                let (group, rank_main) = (Arc::clone(&group), &rank_main);
                // Named, so that the message of a panic says which rank it was.
                let thread = std::thread::Builder::new().name(format!("rank {rank}"));
                thread.spawn_scoped(scope, move || {
                    let collective = ThreadRank { group: Arc::clone(&group), rank, world_size, bytes_sent: 0 };
                    let result = catch_unwind(AssertUnwindSafe(|| rank_main(collective)))
                        .unwrap_or_else(|panic| Err(anyhow!("rank {rank} panicked: {}", panic_message(&*panic))));
                    if let Err(error) = &result {
                        group.fail(rank, format!("{error:#}"));
                    }
                    result
                })
            })
            .collect();
        handles
            .into_iter()
            .enumerate()
            .map(|(rank, handle)| match handle {
                Ok(handle) => handle.join().unwrap_or_else(|_| Err(anyhow!("rank {rank} panicked"))),
                Err(error) => {
                    let error = CollectiveError::no_thread("a rank", &error);
                    group.fail(rank, error.to_string());
                    Err(error.into())
                }
            })
            .collect()
    });
    watchdog.end(&group);
    results
}

/// The text of a panic.
pub fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(block: &str) -> Place {
        Place { operation: "all-gather", block: block.to_string() }
    }

    #[test]
    fn parts_go_where_they_belong() {
        let results = run(3, Duration::from_secs(5), |mut rank| {
            let me = rank.rank() as f32;
            let mut received = vec![0.0; 2];
            for round in 0..50 {
                let send = (0..6).map(|i| me * 100.0 + i as f32 + round as f32).collect();
                received.fill(0.0);
                rank.reduce_scatter(&place("x"), &[1, 1], send, &mut received)?;
            }
            let mut full = vec![0.0; 3];
            let own = rank.all_gather(&place("y"), &[1], vec![me], &mut full)?;
            Ok((received, full, own, rank.bytes_sent()))
        });
        for (rank, result) in results.into_iter().enumerate() {
            let (result, first) = (result.expect("no rank fails"), rank as f32);
            // Two buckets of three parts of one value, summed over the ranks.
            let expected = [first, first + 3.0].map(|value| 3.0 * (value + 49.0) + 300.0).to_vec();
            // 50 exchanges of two values and one of one, to two other ranks, 4 bytes each.
            assert_eq!(result, (expected, vec![0.0, 1.0, 2.0], vec![first], (50 * 2 + 1) * 2 * 4));
        }
    }

    #[test]
    fn a_panic_ends_all_ranks_and_names_the_rank() {
        let results = run(3, Duration::from_secs(30), |mut rank| {
            assert!(rank.rank() != 1, "on purpose");
            Ok(rank.all_gather(&place("x"), &[1], vec![0.0], &mut vec![0.0; 3])?)
        });
        for (rank, result) in results.into_iter().enumerate() {
            let error = result.expect_err("all ranks end");
            let cause = "rank 1 panicked: on purpose".to_string();
            let expected = CollectiveError::RankFailed { place: place("x"), rank: 1, cause };
            match error.downcast_ref::<CollectiveError>() {
                Some(found) => assert_eq!(found, &expected),
                None => assert_eq!((rank, error.to_string()), (1, "rank 1 panicked: on purpose".to_string())),
            }
        }
    }

    #[test]
    fn a_rank_that_does_not_come_ends_all_at_the_deadline() {
        let results = run(2, Duration::from_millis(50), |mut rank| {
            if rank.rank() == 1 {
                std::thread::sleep(Duration::from_millis(300));
            }
            Ok(rank.all_gather(&place("layers.3"), &[1], vec![0.0], &mut vec![0.0; 2])?)
        });
        let timeout = Duration::from_millis(50);
        let expected = CollectiveError::Missing { place: place("layers.3"), ranks: vec![1], timeout, bytes: 4 };
        for result in results {
            assert_eq!(result.expect_err("the deadline passes").downcast_ref(), Some(&expected));
        }
    }
}
