//! Work that other ranks wait for: it sends heartbeats, so that the timeout counts time without progress.

use super::background::Communicator;
use super::mpi::abort_all;
use super::threads::panic_message;
use super::{CollectiveError, Result};
use crate::buffers::Buffer;
use base::pulse::Pulse;
use burn::tensor::StreamId;
use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use std::time::{Duration, Instant};

/// How often a rank that works tells the others, at the least.
const TICK: Duration = Duration::from_secs(1);

/// How long a rank whose work hangs may take to come to its end before its process is ended over its head.
const GRACE: Duration = Duration::from_secs(5);

/// What a rank says of its work.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum State {
    Done,
    Working,
    Hangs,
}

impl<B: Buffer> Communicator<B> {
    /// Does this rank's part of what every rank does here, or waits for here: hashing, loading, saving, evaluating. It may take
    /// any time on any rank, as long as it marks its pulse: while one rank works, all exchange a few bytes each second, and work
    /// without a mark for as long as the deadline ends the run, as does a rank that does not come.
    ///
    /// # Errors
    /// A rank that failed or did not come, or whose work hangs; work that panicked.
    pub fn attend<T: Send>(&mut self, what: &'static str, pulse: &Pulse, work: impl FnOnce() -> T + Send) -> Result<T> {
        if self.world_size() == 1 {
            return Ok(work());
        }
        let before = self.traffic();
        // On a GPU, each stream has its own memory.
        let stream = StreamId::current();
        let done = std::thread::scope(|scope| {
            let (working, ended) = bounded::<()>(0);
            let thread = std::thread::Builder::new().name(format!("rank {} working", self.rank()));
            let worker = thread
                .spawn_scoped(scope, || {
                    // Dropped at the end, also by a panic.
                    let _working = working;
                    stream.executes(|| pulse.during(work))
                })
                .map_err(|error| CollectiveError::no_thread(what, &error))?;
            let mut progress = Progress { marks: pulse.count(), since: Instant::now() };
            let tick = TICK.min(self.timeout / 4);
            loop {
                let is_working = ended.recv_timeout(tick) == Err(RecvTimeoutError::Timeout);
                let state = match is_working {
                    false => State::Done,
                    true if progress.time_without(pulse) > self.timeout => State::Hangs,
                    true => State::Working,
                };
                if state == State::Hangs {
                    end_after_grace(self.hangs(what, vec![self.rank()]), ended.clone());
                }
                let states = self.all_gather_bytes(what, [state as u8])?;
                let ranks_that = |state: State| -> Vec<usize> {
                    (0..states.len()).filter(|&rank| states[rank] == [state as u8]).collect()
                };
                let hanging = ranks_that(State::Hangs);
                if !hanging.is_empty() {
                    return Err(self.hangs(what, hanging));
                }
                if ranks_that(State::Done).len() == states.len() {
                    break;
                }
            }
            let message = |panic: Box<dyn std::any::Any + Send>| panic_message(&*panic).to_string();
            worker.join().map_err(|panic| CollectiveError::WorkPanicked { what, message: message(panic) })
        });
        // Nobody was kept from computing.
        self.restore_traffic(before);
        done
    }

    fn hangs(&self, what: &'static str, ranks: Vec<usize>) -> CollectiveError {
        CollectiveError::NoProgress { what, ranks, timeout: self.timeout }
    }
}

/// When work was last seen to go on.
struct Progress {
    marks: u64,
    since: Instant,
}

impl Progress {
    fn time_without(&mut self, pulse: &Pulse) -> Duration {
        let marks = pulse.count();
        if marks != self.marks {
            *self = Self { marks, since: Instant::now() };
        }
        self.since.elapsed()
    }
}

/// A rank whose work hangs cannot come to its end by itself.
fn end_after_grace(cause: CollectiveError, ended: Receiver<()>) {
    std::thread::spawn(move || {
        if ended.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("{cause}; the work does not come to its end, so the process is ended");
            abort_all()
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::threads::run;
    use super::*;
    use anyhow::bail;

    const DEADLINE: Duration = Duration::from_millis(500);

    /// Rank 1 works for five deadlines; the others' waiting is not counted as that of an exchange.
    #[test]
    fn work_that_goes_on_may_take_longer_than_the_deadline() {
        let results = run(3, DEADLINE, |rank| {
            let mut communicator = Communicator::start(Box::new(rank))?;
            let rank = communicator.rank();
            let work = || {
                for _ in 0..if rank == 1 { 20 } else { 0 } {
                    std::thread::sleep(DEADLINE / 4);
                    base::pulse::mark();
                }
                rank
            };
            let done = communicator.attend("test", &Pulse::default(), work)?;
            let waited = communicator.take_traffic().waited;
            Ok((done, waited, communicator.all_reduce("after it", [1.0])?))
        });
        for (rank, result) in results.into_iter().enumerate() {
            assert_eq!(result.expect("no rank fails"), (rank, Duration::ZERO, [3.0]));
        }
    }

    /// Each way in which a rank may not come to its end, and what all ranks say of it.
    #[test]
    fn work_that_hangs_fails_or_panics_ends_all_ranks() {
        type Work = fn() -> anyhow::Result<()>;
        let cases: [(&str, Work, &str); 3] = [
            (
                "hangs",
                || {
                    std::thread::sleep(5 * DEADLINE);
                    Ok(())
                },
                "test: no progress of ranks [1] within",
            ),
            ("fails", || bail!("disk on fire"), "disk on fire"),
            ("panics", || panic!("on purpose"), "on purpose"),
        ];
        for (name, work, expected) in cases {
            let results = run(3, DEADLINE, |rank| {
                let mut communicator = Communicator::start(Box::new(rank))?;
                let rank = communicator.rank();
                communicator.attend("test", &Pulse::default(), || if rank == 1 { work() } else { Ok(()) })??;
                Ok(communicator.all_reduce("after it", [1.0])?)
            });
            for result in results {
                let error = format!("{:#}", result.expect_err(name));
                assert!(error.contains(expected), "{name}: {error}");
            }
        }
    }

    #[test]
    fn a_rank_that_does_not_come_is_still_missed() {
        let results = run(2, DEADLINE, |rank| {
            let mut communicator = Communicator::start(Box::new(rank))?;
            if communicator.rank() == 1 {
                std::thread::sleep(3 * DEADLINE);
            }
            Ok(communicator.attend("test", &Pulse::default(), || ())?)
        });
        let error = results[0].as_ref().expect_err("the deadline passes").downcast_ref();
        assert!(matches!(error, Some(CollectiveError::Missing { ranks, .. }) if ranks == &[1]), "{error:?}");
    }

    #[test]
    fn a_rank_alone_just_works() {
        let mut communicator =
            Communicator::start(Box::new(super::super::threads::ThreadRank::alone())).expect("starts");
        assert_eq!(communicator.attend("test", &Pulse::default(), || 7).expect("no error"), 7);
    }
}
