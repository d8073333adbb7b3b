//! Counters of the server in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What has happened since the start.
#[derive(Default)]
pub struct Metrics {
    /// Answered requests by status.
    by_status: Mutex<std::collections::BTreeMap<u16, u64>>,
    active: AtomicUsize,
    queued: AtomicUsize,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    decode_steps: AtomicU64,
    decode_micros: AtomicU64,
    first_tokens: AtomicU64,
    first_token_micros: AtomicU64,
}

impl Metrics {
    /// A response of the API was begun with this status.
    pub fn response(&self, status: u16) {
        *self.by_status.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
    }

    /// Sequences being decoded.
    pub fn set_active(&self, active: usize) {
        self.active.store(active, Relaxed);
    }

    /// Requests waiting.
    pub fn set_queued(&self, queued: usize) {
        self.queued.store(queued, Relaxed);
    }

    /// A prompt was run; `since_request` includes the queue.
    pub fn first_token(&self, prompt_tokens: usize, since_request: Duration) {
        self.prompt_tokens.fetch_add(prompt_tokens as u64, Relaxed);
        self.completion_tokens.fetch_add(1, Relaxed);
        self.first_tokens.fetch_add(1, Relaxed);
        self.first_token_micros.fetch_add(since_request.as_micros() as u64, Relaxed);
    }

    /// One decode step gave this many tokens.
    pub fn step(&self, tokens: usize, took: Duration) {
        self.completion_tokens.fetch_add(tokens as u64, Relaxed);
        self.decode_steps.fetch_add(1, Relaxed);
        self.decode_micros.fetch_add(took.as_micros() as u64, Relaxed);
    }

    /// The page that Prometheus reads.
    pub fn render(&self) -> String {
        let mut page = String::from(
            "# HELP infer_requests_total Responses of /v1/chat/completions by status.\n# TYPE infer_requests_total counter\n",
        );
        for (status, count) in self.by_status.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(page, "infer_requests_total{{status=\"{status}\"}} {count}");
        }
        let seconds = |micros: &AtomicU64| micros.load(Relaxed) as f64 / 1e6;
        let values = [
            ("active_sequences", "gauge", "Answers being decoded.", self.active.load(Relaxed) as f64),
            ("queued_requests", "gauge", "Requests waiting for a place.", self.queued.load(Relaxed) as f64),
            ("prompt_tokens_total", "counter", "Prompt tokens run.", self.prompt_tokens.load(Relaxed) as f64),
            ("completion_tokens_total", "counter", "Tokens generated.", self.completion_tokens.load(Relaxed) as f64),
            ("decode_steps_total", "counter", "Decode steps.", self.decode_steps.load(Relaxed) as f64),
            ("decode_seconds_total", "counter", "Time in decode steps.", seconds(&self.decode_micros)),
            ("first_tokens_total", "counter", "Answers begun.", self.first_tokens.load(Relaxed) as f64),
            (
                "first_token_seconds_total",
                "counter",
                "Time from request to first token.",
                seconds(&self.first_token_micros),
            ),
        ];
        for (name, kind, help, value) in values {
            let _ = writeln!(page, "# HELP infer_{name} {help}\n# TYPE infer_{name} {kind}\ninfer_{name} {value}");
        }
        page
    }
}
