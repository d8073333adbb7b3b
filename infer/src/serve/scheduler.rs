//! The model thread: continuous batching. Requests join between two decode steps and leave when they are done.

use super::error::ApiError;
use super::mailbox::{Outcome, Sender};
use super::metrics::Metrics;
use crate::engine::{Engine, Request, Sequence};
use crossbeam::channel::{Receiver, TryRecvError};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// A request on its way to the model.
pub struct Job {
    /// What to answer.
    pub request: Request,
    /// Where the answer goes.
    pub sender: Sender,
    /// When it has to be done.
    pub deadline: Instant,
    /// When it came.
    pub received: Instant,
}

struct Active {
    sequence: Sequence,
    sender: Sender,
    deadline: Instant,
}

/// Serves jobs until the channel closes. Runs on a thread of its own, which alone touches the model.
pub fn run(engine: &Engine, jobs: &Receiver<Job>, max_batch: usize, metrics: &Arc<Metrics>) {
    let mut active: Vec<Active> = Vec::new();
    while admit(engine, jobs, &mut active, max_batch, metrics) {
        active.retain(|one| !one.sender.abandoned());
        for late in active.extract_if(.., |one| Instant::now() >= one.deadline) {
            late.sender.finish(Outcome::Failed(ApiError::timed_out()));
        }
        step(engine, &mut active, metrics);
        for done in active.extract_if(.., |one| one.sequence.finish().is_some()) {
            finish(done);
        }
        metrics.set_active(active.len());
    }
}

/// Takes waiting jobs into free places; waits when there is nothing else to do. False when no more will come.
///
/// One job a step while others are decoding, so that a burst of long prompts does not stop the running answers.
fn admit(engine: &Engine, jobs: &Receiver<Job>, active: &mut Vec<Active>, max_batch: usize, metrics: &Metrics) -> bool {
    if active.len() >= max_batch {
        return true;
    }
    let job = if active.is_empty() {
        match jobs.recv() {
            Ok(job) => job,
            Err(_) => return false,
        }
    } else {
        match jobs.try_recv() {
            Ok(job) => job,
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
        }
    };
    metrics.set_queued(jobs.len());
    start(engine, job, active, metrics);
    true
}

fn start(engine: &Engine, job: Job, active: &mut Vec<Active>, metrics: &Metrics) {
    let Job { request, sender, deadline, received } = job;
    if sender.abandoned() {
        return;
    }
    if Instant::now() >= deadline {
        return sender.finish(Outcome::Failed(ApiError::timed_out()));
    }
    let prompt_tokens = request.prompt.input_ids.len();
    match guarded(|| engine.start(request)) {
        Some(Ok((sequence, text))) => {
            metrics.first_token(prompt_tokens, received.elapsed());
            sender.write(&text);
            let one = Active { sequence, sender, deadline };
            if one.sequence.finish().is_some() { finish(one) } else { active.push(one) }
        }
        Some(Err(error)) => sender.finish(Outcome::Failed(ApiError::invalid("messages", format!("{error:#}")))),
        None => sender.finish(Outcome::Failed(ApiError::unavailable(BROKEN))),
    }
}

/// What the client of a request hears that the model could not compute.
const BROKEN: &str = "the model failed on this request; the server's log says where";

/// A panic ends the requests that it struck, not the server; its message is on stderr. What the model itself consists of is
/// not changed by a request, so it stays whole.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

fn step(engine: &Engine, active: &mut Vec<Active>, metrics: &Metrics) {
    if active.is_empty() {
        return;
    }
    let begin = Instant::now();
    let mut sequences: Vec<&mut Sequence> = active.iter_mut().map(|one| &mut one.sequence).collect();
    let stepped = guarded(|| engine.step(&mut sequences));
    let message = match stepped {
        Some(Ok(texts)) => {
            metrics.step(texts.len(), begin.elapsed());
            return active.iter().zip(texts).for_each(|(one, text)| one.sender.write(&text));
        }
        Some(Err(error)) => format!("{error:#}"),
        None => BROKEN.to_string(),
    };
    for one in active.drain(..) {
        one.sender.finish(Outcome::Failed(ApiError::unavailable(&message)));
    }
}

fn finish(done: Active) {
    if let Some(reason) = done.sequence.finish() {
        let completion_tokens = done.sequence.new_ids().len();
        done.sender.finish(Outcome::Finished { reason, completion_tokens });
    }
}
