//! `/v1/chat/completions`: from the body to the answer, whole or as server-sent events.

use super::App;
use super::chat_request::{ChatRequest, ImagePart};
use super::chat_response::{ResponseHead, usage};
use super::error::ApiError;
use super::images;
use super::mailbox::{Delivery, Outcome, Receiver, mailbox};
use super::scheduler::Job;
use crate::engine::{Prompt, Request};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use common::chat::Message;
use crossbeam::channel::TrySendError;
use futures_core::Stream;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// Longest time that a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The handler.
pub async fn handle(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    let response = match answer(&app, &headers, body).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    };
    app.metrics.response(response.status().as_u16());
    response
}

async fn answer(app: &Arc<App>, headers: &HeaderMap, body: Body) -> Result<Response, ApiError> {
    let received = Instant::now();
    let deadline = received + Duration::from_secs(app.limits.request_timeout_seconds);
    // Bodies and pictures take memory before a request has its place in the queue.
    let preparing = app.preparing.try_acquire().map_err(|_| ApiError::busy())?;
    let body = read_body(headers, body, app.limits.max_body_bytes).await?;
    let request = ChatRequest::parse(&body, &app.model_name, &app.limits, rand::random())?;
    drop(body);
    let prepared = timeout_at(deadline.into(), prepare(app, &request)).await;
    let prompt = prepared.map_err(|_| ApiError::timed_out())??;
    drop(preparing);
    let prompt_tokens = prompt.input_ids.len();
    let (sender, receiver) = mailbox();
    let ChatRequest { sampling, max_tokens, stop, stream, include_usage, .. } = request;
    let request = Request { prompt, sampling, max_new_tokens: max_tokens, stop, ignore_eos: false };
    enqueue(app, Job { request, sender, deadline, received })?;

    let head = ResponseHead::new(&app.model_name);
    if stream {
        let events =
            Events { state: Some(EventState { head, receiver, prompt_tokens, include_usage }), ..Events::default() };
        return Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response());
    }
    // The model thread looks at deadlines of running and of started requests; this also covers the queue.
    let whole = timeout_at(deadline.into(), collect(receiver)).await.map_err(|_| ApiError::timed_out())?;
    let (text, outcome) = whole;
    match outcome {
        Outcome::Finished { reason, completion_tokens } => {
            Ok(axum::Json(head.completion(&text, reason, usage(prompt_tokens, completion_tokens))).into_response())
        }
        Outcome::Failed(error) => Err(error),
    }
}

/// Browsers let foreign pages post text without asking, but not JSON: so JSON is required.
async fn read_body(headers: &HeaderMap, body: Body, max_bytes: usize) -> Result<Bytes, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.trim_start().to_ascii_lowercase().starts_with("application/json") {
        let message = "expected Content-Type: application/json";
        return Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    }
    let too_large = || {
        let message = format!("the body has more than {max_bytes} bytes");
        ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if declared.is_some_and(|bytes| bytes > max_bytes) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, max_bytes)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => {
            Err(ApiError::refused(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body did not arrive in time"))
        }
    }
}

/// Pictures and text become the model's input, on threads that may block. Only decoding takes a core: a remote server
/// that is slow to send a picture holds nobody else.
async fn prepare(app: &Arc<App>, request: &ChatRequest) -> Result<Prompt, ApiError> {
    let (pictures, limits) = (request.images.clone(), app.limits.clone());
    let files = blocking(move || {
        let read = |image: ImagePart| match images::read(&image.source, &limits) {
            Ok(file) => Ok((file, image.place)),
            Err(error) => Err(error.about(&image.place)),
        };
        pictures.into_iter().map(read).collect::<Result<Vec<_>, _>>()
    })
    .await?;
    let decoding = app.decoding.clone().acquire_owned().await;
    let (app, messages) = (app.clone(), request.messages.clone());
    blocking(move || {
        let _decoding = decoding;
        let processors = &app.processors;
        let process = |(file, place): &(Vec<u8>, String)| {
            images::process(file, &processors.images, app.limits.max_pixels).map_err(|error| error.about(place))
        };
        let images = files.iter().map(process).collect::<Result<Vec<_>, _>>()?;
        let messages: Vec<Message> =
            messages.iter().map(|message| processors.message(message.role, &message.parts)).collect();
        let prompt = processors.prompt(&messages, &images);
        let prompt = prompt.map_err(|error| ApiError::invalid("messages", format!("{error:#}")))?;
        let (tokens, context) = (prompt.input_ids.len(), processors.config.text.max_position_embeddings);
        if tokens >= context {
            let message = format!("the conversation has {tokens} tokens, the model takes {context} with the answer");
            return Err(ApiError { code: "context_length_exceeded", ..ApiError::invalid("messages", message) });
        }
        Ok(prompt)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::invalid("messages", "the pictures or the text could not be processed"))?
}

fn enqueue(app: &App, job: Job) -> Result<(), ApiError> {
    app.jobs.try_send(job).map_err(|error| match error {
        TrySendError::Full(_) => ApiError::busy(),
        TrySendError::Disconnected(_) => ApiError::unavailable("the model has stopped; restart the server"),
    })
}

async fn collect(mut receiver: Receiver) -> (String, Outcome) {
    let mut whole = String::new();
    loop {
        let Delivery { text, outcome } = receiver.take().await;
        whole.push_str(&text);
        if let Some(outcome) = outcome {
            return (whole, outcome);
        }
    }
}

/// The answer as a stream of events; dropping it (the client is gone) ends the answer.
#[derive(Default)]
struct Events {
    /// `None` when the last event is in `ready`, or while `pending` has it.
    state: Option<EventState>,
    #[allow(clippy::type_complexity)]
    pending: Option<Pin<Box<dyn Future<Output = (EventState, Delivery)> + Send>>>,
    ready: VecDeque<Event>,
    begun: bool,
}

struct EventState {
    head: ResponseHead,
    receiver: Receiver,
    prompt_tokens: usize,
    include_usage: bool,
}

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            if let Some(mut state) = self.state.take() {
                self.pending = Some(Box::pin(async move {
                    let delivery = state.receiver.take().await;
                    (state, delivery)
                }));
            }
            let Some(pending) = &mut self.pending else { return Poll::Ready(None) };
            let Poll::Ready((state, delivery)) = pending.as_mut().poll(context) else { return Poll::Pending };
            self.pending = None;
            let ended = delivery.outcome.is_some();
            let events = events_of(&state, delivery, !self.begun);
            self.ready.extend(events);
            self.begun = true;
            self.state = (!ended).then_some(state);
        }
    }
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
        Some(Outcome::Failed(error)) => events.push(event(error.body())),
        Some(Outcome::Finished { reason, completion_tokens }) => {
            events.push(event(head.chunk(json!({}), Some(reason))));
            if state.include_usage {
                events.push(event(head.usage_chunk(usage(state.prompt_tokens, completion_tokens))));
            }
        }
    }
    events.push(Event::default().data("[DONE]"));
    events
}
