//! The communication thread: exchanges run while the rank computes.

use super::threads::panic_message;
use super::{Collective, CollectiveError, Result, all_gather_bytes, all_gather_texts, all_reduce};
use crate::buffers::{Buffer, HostBuffer};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Job<B> = Box<dyn FnOnce(&mut dyn Collective<B>) + Send>;

/// What exchanging has cost since it was last asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes of gradients and parameters that this rank gave to others.
    pub bytes_sent: u64,
    /// Time during which an exchange was under way.
    pub busy: Duration,
    /// Time that the rank waited for an exchange: the part of `busy` that computing did not hide.
    pub waited: Duration,
}

impl Traffic {
    /// That of two connections.
    pub fn plus(self, other: Self) -> Self {
        let Self { bytes_sent, busy, waited } = other;
        Self { bytes_sent: self.bytes_sent + bytes_sent, busy: self.busy + busy, waited: self.waited + waited }
    }
}

/// The result of an exchange that is under way.
pub struct Pending<T>(Receiver<Result<T>>);

/// A rank's connection to the others. Exchanges are carried out one after another in the order in which they are submitted;
/// a rank by itself carries them out at once.
pub struct Communicator<B: Buffer = HostBuffer> {
    rank: usize,
    world_size: usize,
    worker: Worker<B>,
    traffic: Arc<Mutex<Traffic>>,
    waited: Duration,
    /// See [`Collective::timeout`].
    pub(super) timeout: Duration,
}

enum Worker<B> {
    Inline(Box<dyn Collective<B>>),
    Thread(Sender<Job<B>>, JoinHandle<()>),
}

impl<B: Buffer> Communicator<B> {
    /// Starts the thread, unless there is nobody to talk to.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(mut collective: Box<dyn Collective<B>>) -> Result<Self> {
        let (rank, world_size, timeout) = (collective.rank(), collective.world_size(), collective.timeout());
        let worker = if world_size == 1 {
            Worker::Inline(collective)
        } else {
            let (jobs, queue) = unbounded::<Job<B>>();
            let thread = std::thread::Builder::new().name(format!("rank {rank} exchanging"));
            let thread = thread.spawn(move || queue.iter().for_each(|job| job(&mut *collective)));
            Worker::Thread(jobs, thread.map_err(|error| CollectiveError::no_thread("exchanging", &error))?)
        };
        Ok(Self { rank, world_size, worker, traffic: Arc::default(), waited: Duration::ZERO, timeout })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Queues an exchange of gradients or parameters.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn submit<T: Send + 'static>(
        &mut self,
        exchange: impl FnOnce(&mut dyn Collective<B>) -> Result<T> + Send + 'static,
    ) -> Result<Pending<T>> {
        self.queue(true, exchange)
    }

    fn queue<T: Send + 'static>(
        &mut self,
        counts_bytes: bool,
        exchange: impl FnOnce(&mut dyn Collective<B>) -> Result<T> + Send + 'static,
    ) -> Result<Pending<T>> {
        let (sender, receiver) = bounded(1);
        let traffic = Arc::clone(&self.traffic);
        let job = move |collective: &mut dyn Collective<B>| {
            let (started, sent) = (Instant::now(), collective.bytes_sent());
            let result = catch_unwind(AssertUnwindSafe(|| exchange(collective))).unwrap_or_else(|panic| {
                Err(CollectiveError::ExchangePanicked { message: panic_message(&*panic).to_string() })
            });
            let mut traffic = traffic.lock().unwrap_or_else(PoisonError::into_inner);
            traffic.busy += started.elapsed();
            traffic.bytes_sent += if counts_bytes { collective.bytes_sent() - sent } else { 0 };
            drop(traffic);
            // Nobody waits any more when the rank has failed elsewhere.
            let _ = sender.send(result);
        };
        match &mut self.worker {
            Worker::Inline(collective) => job(&mut **collective),
            Worker::Thread(jobs, _) => jobs.send(Box::new(job)).map_err(|_| CollectiveError::ThreadGone)?,
        }
        Ok(Pending(receiver))
    }

    /// The result of an exchange, waited for if it is still under way.
    ///
    /// # Errors
    /// A rank that failed or did not come.
    pub fn wait<T>(&mut self, pending: Pending<T>) -> Result<T> {
        let started = Instant::now();
        let result = pending.0.recv().map_err(|_| CollectiveError::ThreadGone);
        self.waited += started.elapsed();
        result?
    }

    /// Sums over the ranks, see [`all_reduce`].
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn all_reduce<const N: usize>(&mut self, what: &'static str, values: [f64; N]) -> Result<[f64; N]> {
        if self.world_size == 1 {
            return Ok(values);
        }
        let pending = self.queue(false, move |collective| all_reduce(collective.host(), what, values))?;
        self.wait(pending)
    }

    /// Every rank's few bytes, in rank order.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn all_gather_bytes<const N: usize>(&mut self, what: &'static str, own: [u8; N]) -> Result<Vec<[u8; N]>> {
        if self.world_size == 1 {
            return Ok(vec![own]);
        }
        let pending = self.queue(false, move |collective| all_gather_bytes(collective.host(), what, own))?;
        self.wait(pending)
    }

    /// Every rank's texts, in rank order.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn all_gather_texts(&mut self, what: &'static str, own: Vec<String>) -> Result<Vec<Vec<String>>> {
        if self.world_size == 1 {
            return Ok(vec![own]);
        }
        let pending = self.queue(false, move |collective| all_gather_texts(collective.host(), what, &own))?;
        self.wait(pending)
    }

    /// What exchanging has cost since the last call.
    pub fn take_traffic(&mut self) -> Traffic {
        let taken = std::mem::take(&mut *self.traffic.lock().unwrap_or_else(PoisonError::into_inner));
        Traffic { waited: std::mem::take(&mut self.waited), ..taken }
    }

    /// Forgets what exchanging has cost since it was `before`.
    pub(super) fn restore_traffic(&mut self, before: Traffic) {
        self.waited = before.waited;
        *self.traffic.lock().unwrap_or_else(PoisonError::into_inner) = before;
    }

    /// What exchanging has cost since it was last taken.
    pub(super) fn traffic(&self) -> Traffic {
        Traffic { waited: self.waited, ..*self.traffic.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Carries out what is queued and ends the thread. (Dropping does not wait: a rank that has failed must not wait for
    /// the others.)
    ///
    /// # Errors
    /// An exchange has panicked.
    pub fn finish(self) -> Result<()> {
        if let Worker::Thread(jobs, thread) = self.worker {
            drop(jobs);
            thread.join().map_err(|_| CollectiveError::ThreadGone)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Place;
    use super::super::threads::run;
    use super::*;

    #[test]
    fn exchanges_go_on_while_the_rank_computes() {
        let results = run(2, Duration::from_secs(5), |rank| {
            let mut communicator = Communicator::start(Box::new(rank))?;
            let pending = communicator.submit(|collective| {
                std::thread::sleep(Duration::from_millis(60));
                let place = Place { operation: "all-gather", block: "test".to_string() };
                let mut full = vec![0.0; 2];
                collective.all_gather(&place, &[1], vec![collective.rank() as f32], &mut full)?;
                Ok(full)
            })?;
            std::thread::sleep(Duration::from_millis(120));
            let full = communicator.wait(pending)?;
            let traffic = communicator.take_traffic();
            communicator.finish()?;
            Ok((full, traffic))
        });
        for result in results {
            let (full, traffic) = result.expect("no rank fails");
            assert_eq!((full, traffic.bytes_sent), (vec![0.0, 1.0], 4));
            assert!(traffic.busy >= Duration::from_millis(60) && traffic.waited < traffic.busy / 2, "{traffic:?}");
        }
    }

    #[test]
    fn a_rank_that_panics_ends_those_that_wait_for_it() {
        let results = run(2, Duration::from_secs(30), |rank| {
            let mut communicator = Communicator::start(Box::new(rank))?;
            communicator.all_reduce("test", [1.0])?;
            assert!(communicator.rank() == 0, "on purpose");
            Ok(communicator.all_reduce("test", [1.0])?)
        });
        let errors: Vec<_> = results.into_iter().map(|result| result.expect_err("both ranks end")).collect();
        let place = Place { operation: "all-reduce", block: "test".to_string() };
        let cause = "rank 1 panicked: on purpose".to_string();
        assert_eq!(errors[0].downcast_ref(), Some(&CollectiveError::RankFailed { place, rank: 1, cause }));
        assert_eq!(errors[1].to_string(), "rank 1 panicked: on purpose");
    }
}
