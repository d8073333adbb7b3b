//! The model thread: continuous batching. Requests join between two decode steps and leave when they are done.

use super::error::ApiError;
use super::mailbox::{Outcome, Sender};
use super::memory::Reservation;
use super::metrics::Metrics;
use super::queue::{Next, Queue};
use crate::engine::{Engine, Request, Sequence};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// A request waiting for the model.
pub struct Job {
    /// What to answer.
    pub request: Request,
    /// Where the answer goes.
    pub sender: Sender,
    /// When it has to be done.
    pub deadline: Instant,
    /// When it came.
    pub received: Instant,
    /// What its pixel values take; given back when the model has read them.
    pub memory: Reservation,
}

struct Active {
    sequence: Sequence,
    sender: Sender,
    deadline: Instant,
}

/// Serves jobs until the queue closes. Runs on a thread of its own, which alone touches the model.
pub fn run(engine: &Engine, jobs: &Queue, max_batch: usize, metrics: &Arc<Metrics>) {
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
fn admit(engine: &Engine, jobs: &Queue, active: &mut Vec<Active>, max_batch: usize, metrics: &Metrics) -> bool {
    if active.len() >= max_batch {
        return true;
    }
    match jobs.next(active.len()) {
        Next::Start(job) => {
            metrics.set_active(active.len() + 1);
            start(engine, *job, active, metrics);
            true
        }
        Next::Nothing => true,
        Next::End => false,
    }
}

fn start(engine: &Engine, job: Job, active: &mut Vec<Active>, metrics: &Metrics) {
    let Job { request, sender, deadline, received, memory: _memory } = job;
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
        None => sender.finish(Outcome::Failed(ApiError::broken())),
    }
}

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
    let error = match stepped {
        Some(Ok(texts)) => {
            metrics.step(texts.len(), begin.elapsed());
            return active.iter().zip(texts).for_each(|(one, text)| one.sender.write(&text));
        }
        Some(Err(error)) => ApiError::unavailable(format!("{error:#}")),
        None if active.len() == 1 => ApiError::broken(),
        None => ApiError::unavailable("the model failed on one of several requests; the server's log says where"),
    };
    for one in active.drain(..) {
        one.sender.finish(Outcome::Failed(error.clone()));
    }
}

fn finish(done: Active) {
    if let Some(reason) = done.sequence.finish() {
        let completion_tokens = done.sequence.new_ids().len();
        done.sender.finish(Outcome::Finished { reason, completion_tokens });
    }
}

#[cfg(test)]
impl Job {
    /// A job without a prompt.
    pub fn for_tests(sender: Sender, memory: Reservation) -> Self {
        let prompt = model::batch::PackedBatch::default();
        let (sampling, stop) = (model::sampling::SamplingConfig::default(), Vec::new());
        let request = Request { prompt, sampling, max_new_tokens: 1, stop, ignore_eos: false };
        Self { request, sender, deadline: Instant::now(), received: Instant::now(), memory }
    }
}
