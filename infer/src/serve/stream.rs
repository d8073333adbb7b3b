//! An answer as server-sent events.

use super::chat_response::{ResponseHead, usage};
use super::error::ApiError;
use super::mailbox::{Delivery, Outcome, Receiver};
use super::metrics::Counted;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Instant;
use tokio::sync::watch;
use tokio::time::sleep_until;

/// nginx would collect events into blocks of some kilobytes; other proxies know the header, too.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The client's end of an answer, with what ends it before the model does.
pub struct Answer {
    /// From the model thread.
    pub receiver: Receiver,
    /// When the request's time is over.
    pub deadline: Instant,
    /// True when the server breaks off its answers.
    pub broken_off: watch::Receiver<bool>,
}

impl Answer {
    /// The next event: text, the end, or the error that ended the stream.
    pub async fn next(&mut self) -> Delivery {
        let failed = |error| Delivery { text: String::new(), outcome: Some(Outcome::Failed(error)) };
        tokio::select! {
            biased;
            delivery = self.receiver.take() => delivery,
            () = sleep_until(self.deadline.into()) => failed(ApiError::timed_out()),
            _ = self.broken_off.wait_for(|&now| now) => failed(ApiError::broken_off()),
        }
    }

    /// All text, and the end.
    pub async fn whole(mut self) -> (String, Outcome) {
        let mut whole = String::new();
        loop {
            let Delivery { text, outcome } = self.next().await;
            whole.push_str(&text);
            if let Some(outcome) = outcome {
                return (whole, outcome);
            }
        }
    }
}

/// What the events of an answer are made of.
pub struct EventState {
    /// The same in every event.
    pub head: ResponseHead,
    /// Where text comes from.
    pub answer: Answer,
    /// For the last event.
    pub prompt_tokens: usize,
    /// A last event with token counts.
    pub include_usage: bool,
    /// Told how the answer ended.
    pub counted: Counted,
}

/// The response; dropping it (the client is gone) ends the answer.
pub fn respond(state: EventState) -> Response {
    let deliveries = stream::unfold((Some(state), true), |(state, is_first)| async move {
        let mut state = state?;
        let delivery = state.answer.next().await;
        let is_last = delivery.outcome.is_some();
        let events = events_of(&state, delivery, is_first);
        Some((stream::iter(events.into_iter().map(Ok::<_, Infallible>)), ((!is_last).then_some(state), false)))
    });
    let mut response = Sse::new(deliveries.flatten()).keep_alive(KeepAlive::default()).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response.headers_mut().insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

fn events_of(state: &EventState, delivery: Delivery, first: bool) -> Vec<Event> {
    let event = |value: Value| Event::default().data(value.to_string());
    let head = &state.head;
    let mut events = Vec::new();
    if first {
        events.push(event(head.chunk(json!({"role": "assistant", "content": ""}), None)));
    }
    if !delivery.text.is_empty() {
        events.push(event(head.chunk(json!({"content": delivery.text}), None)));
    }
    match delivery.outcome {
        None => return events,
        Some(Outcome::Failed(error)) => {
            state.counted.end(error.status);
            events.push(event(error.body()));
        }
        Some(Outcome::Finished { reason, completion_tokens }) => {
            state.counted.end(axum::http::StatusCode::OK);
            events.push(event(head.chunk(json!({}), Some(reason))));
            if state.include_usage {
                events.push(event(head.usage_chunk(usage(state.prompt_tokens, completion_tokens))));
            }
        }
    }
    events.push(Event::default().data("[DONE]"));
    events
}
