//! Requests between the handlers and the model thread.

use super::scheduler::Job;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Why a request cannot wait here.
#[derive(Debug, PartialEq)]
pub enum Refused {
    /// All places and the queue are taken.
    Full,
    /// The model takes no more requests.
    Closed,
}

/// What the model thread does next.
pub enum Next {
    /// Start this one.
    Start(Box<Job>),
    /// Nothing waits.
    Nothing,
    /// Nothing waits and nothing will come.
    End,
}

struct State {
    waiting: VecDeque<Job>,
    /// Places that are taken.
    active: usize,
    open: bool,
}

/// First come, first served; holds as many as the model has free places and `max_waiting` more.
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    places: usize,
    max_waiting: usize,
}

impl Queue {
    /// An empty queue before a model with `places`.
    pub fn new(places: usize, max_waiting: usize) -> Self {
        let state = State { waiting: VecDeque::new(), active: 0, open: true };
        Self { state: Mutex::new(state), changed: Condvar::new(), places, max_waiting }
    }

    /// A panic elsewhere does not spoil the queue: its lock is taken as it is.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request. Those whose client has left make room for it.
    pub fn push(&self, job: Job) -> Result<(), Refused> {
        let mut state = self.lock();
        if !state.open {
            return Err(Refused::Closed);
        }
        let room = self.max_waiting + self.places.saturating_sub(state.active);
        if state.waiting.len() >= room {
            state.waiting.retain(|job| !job.sender.abandoned());
        }
        if state.waiting.len() >= room {
            return Err(Refused::Full);
        }
        state.waiting.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// The next request; `active` places are taken. Waits for one where none is.
    pub fn next(&self, active: usize) -> Next {
        let mut state = self.lock();
        loop {
            state.active = active;
            if let Some(job) = state.waiting.pop_front() {
                state.active += 1;
                return Next::Start(Box::new(job));
            }
            match (active, state.open) {
                (1.., _) => return Next::Nothing,
                (0, false) => return Next::End,
                (0, true) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Requests that wait for a place, without those whose client has left.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.iter().filter(|job| !job.sender.abandoned()).count()
    }

    /// Takes no more; what waits is dropped, which ends it with an error.
    pub fn close(&self) {
        let mut state = self.lock();
        state.open = false;
        let dropped = std::mem::take(&mut state.waiting);
        drop(state);
        drop(dropped);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::mailbox::{Receiver, mailbox};
    use crate::serve::memory::Memory;

    async fn job() -> (Job, Receiver) {
        let (sender, receiver) = mailbox();
        (Job::for_tests(sender, Memory::new(4096).for_request(1).await), receiver)
    }

    #[tokio::test]
    async fn free_places_and_the_queue_are_filled_and_then_no_more() {
        let queue = Queue::new(2, 3);
        let mut clients = Vec::new();
        for _ in 0..5 {
            let (job, client) = job().await;
            assert_eq!(queue.push(job), Ok(()));
            clients.push(client);
        }
        let (refused, _client) = job().await;
        assert_eq!(queue.push(refused), Err(Refused::Full));
        assert!(matches!(queue.next(0), Next::Start(_)) && matches!(queue.next(1), Next::Start(_)));
        assert_eq!(queue.waiting(), 3);
        let (refused, _client) = job().await;
        assert_eq!(queue.push(refused), Err(Refused::Full), "both places are taken, three wait");
        // A client that leaves makes room, and is not counted.
        clients.pop();
        assert_eq!(queue.waiting(), 2);
        let (taken, _client) = job().await;
        assert_eq!(queue.push(taken), Ok(()));
        assert_eq!(queue.waiting(), 3);
    }

    #[tokio::test]
    async fn a_queue_of_none_serves_free_places() {
        let queue = Queue::new(1, 0);
        let (first, _client) = job().await;
        assert_eq!(queue.push(first), Ok(()));
        let (second, _client) = job().await;
        assert_eq!(queue.push(second), Err(Refused::Full));
        assert!(matches!(queue.next(0), Next::Start(_)) && matches!(queue.next(1), Next::Nothing));
    }

    #[tokio::test]
    async fn closing_ends_what_waits_and_wakes_the_model() {
        let queue = std::sync::Arc::new(Queue::new(1, 1));
        let (waiting, mut client) = job().await;
        assert_eq!(queue.push(waiting), Ok(()));
        queue.close();
        assert!(client.take().await.outcome.is_some());
        let (late, _client) = job().await;
        assert_eq!(queue.push(late), Err(Refused::Closed));
        let model = std::thread::spawn(move || matches!(queue.next(0), Next::End));
        assert!(model.join().expect("no panic"));
    }
}
