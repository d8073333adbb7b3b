//! Counters of the server in Prometheus' text format.

use super::App;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Counted for a client that left before its answer was whole, as in nginx's log.
const CLIENT_LEFT: u16 = 499;

/// Counters since the start.
#[derive(Default)]
pub struct Metrics {
    /// Requests by outcome.
    by_status: Mutex<BTreeMap<u16, u64>>,
    active: AtomicUsize,
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    decode_steps: AtomicU64,
    decode_micros: AtomicU64,
    first_tokens: AtomicU64,
    first_token_micros: AtomicU64,
}

/// A request that is counted once, when its outcome is known; at the latest when nobody holds it any more.
#[derive(Clone)]
pub struct Counted(Arc<Counting>);

struct Counting {
    metrics: Arc<Metrics>,
    streams: AtomicBool,
    ended: AtomicBool,
}

impl Counted {
    fn new(metrics: &Arc<Metrics>) -> Self {
        let (streams, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(Counting { metrics: metrics.clone(), streams, ended }))
    }

    /// The answer is a stream, whose end and not whose beginning counts.
    pub fn stream(self) -> Self {
        self.0.streams.store(true, Relaxed);
        self
    }

    /// The outcome: the status that a whole answer has or would have had.
    pub fn end(&self, status: StatusCode) {
        self.0.end(status.as_u16());
    }
}

impl Counting {
    fn end(&self, status: u16) {
        if !self.ended.swap(true, Relaxed) {
            *self.metrics.by_status.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1;
        }
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.end(CLIENT_LEFT);
    }
}

/// Counts requests to one address by their outcome; its handler finds a [`Counted`] among the request's extensions.
pub async fn count(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    if request.uri().path() != super::CHAT {
        return next.run(request).await;
    }
    let counted = Counted::new(&app.metrics);
    request.extensions_mut().insert(counted.clone());
    let response = next.run(request).await;
    if !counted.0.streams.load(Relaxed) {
        counted.end(response.status());
    }
    response
}

impl Metrics {
    /// Sequences being decoded.
    pub fn set_active(&self, active: usize) {
        self.active.store(active, Relaxed);
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

    /// The page that Prometheus reads; `now` are gauges that are measured when they are asked for: name, help, value.
    pub fn render(&self, now: &[(&str, &str, usize)]) -> String {
        let mut page = String::from(
            "# HELP infer_requests_total Requests to /v1/chat/completions by outcome; for a stream the status that a whole answer \
             would have had; 499: the client left first.\n# TYPE infer_requests_total counter\n",
        );
        for (status, count) in self.by_status.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(page, "infer_requests_total{{status=\"{status}\"}} {count}");
        }
        let seconds = |micros: &AtomicU64| micros.load(Relaxed) as f64 / 1e6;
        let values = [
            ("active_sequences", "gauge", "Answers being decoded.", self.active.load(Relaxed) as f64),
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
        let now = now.iter().map(|&(name, help, value)| (name, "gauge", help, value as f64));
        for (name, kind, help, value) in values.into_iter().chain(now) {
            let _ = writeln!(page, "# HELP infer_{name} {help}\n# TYPE infer_{name} {kind}\ninfer_{name} {value}");
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_counts_once_with_its_outcome() {
        let metrics = Arc::new(Metrics::default());
        let counted = Counted::new(&metrics);
        counted.end(StatusCode::OK);
        counted.end(StatusCode::GATEWAY_TIMEOUT);
        drop(counted);
        let stream = Counted::new(&metrics).stream();
        let held = stream.clone();
        drop(stream);
        held.end(StatusCode::GATEWAY_TIMEOUT);
        drop(held);
        drop(Counted::new(&metrics).stream());
        let page = metrics.render(&[("queued_requests", "Requests waiting for a place.", 3)]);
        let lines: Vec<&str> = page.lines().filter(|line| line.starts_with("infer_requests_total")).collect();
        let expected = [r#"{status="200"} 1"#, r#"{status="499"} 1"#, r#"{status="504"} 1"#];
        assert_eq!(lines, expected.map(|line| format!("infer_requests_total{line}")));
        assert!(page.contains("# TYPE infer_queued_requests gauge\ninfer_queued_requests 3\n"), "{page}");
    }
}
