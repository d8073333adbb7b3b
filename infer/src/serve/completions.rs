//! `/v1/chat/completions`: from the body to the answer, whole or as server-sent events.

use super::App;
use super::body;
use super::chat_request::{ChatMessage, ChatRequest, ImagePart};
use super::chat_response::{ResponseHead, usage};
use super::error::ApiError;
use super::images::{self, ImageFile};
use super::mailbox::{Outcome, mailbox};
use super::memory::Reservation;
use super::metrics::Counted;
use super::queue::Refused;
use super::scheduler::Job;
use super::stream::{self, Answer, EventState};
use crate::engine::{Part, Request};
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use chat::Message;
use model::batch::PackedBatch;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// Longest time that a request waits for memory before it is received.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest text for a token of the context, bytes: longer ones are refused before they are tokenized.
const BYTES_PER_TOKEN: usize = 128;
/// What the tokenizer takes for a byte of text: positions in the original and the normalised text, pieces, ids.
const TOKENIZER_BYTES_PER_BYTE: usize = 64;

/// The handler.
pub async fn handle(
    State(app): State<Arc<App>>,
    Extension(counted): Extension<Counted>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut broken_off = app.broken_off.subscribe();
    let answered = tokio::select! {
        biased;
        answered = answer(&app, counted, &headers, body) => answered,
        _ = broken_off.wait_for(|&now| now) => Err(ApiError::broken_off()),
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(app: &Arc<App>, counted: Counted, headers: &HeaderMap, body: Body) -> Result<Response, ApiError> {
    let received = Instant::now();
    let deadline = received + Duration::from_secs(app.limits.request_timeout_seconds);
    // Bodies and pictures take memory before a request has its place in the queue.
    let preparing = app.preparing.try_acquire().map_err(|_| ApiError::busy())?;
    let (request, memory) = receive(app, headers, body, deadline).await?;
    let ChatRequest { messages, images, sampling, max_tokens, stop, stream, include_usage } = request;
    let prepared = timeout_at(deadline.into(), prepare(app, messages, images, memory)).await;
    let (prompt, memory) = prepared.map_err(|_| ApiError::timed_out())??;
    drop(preparing);
    let prompt_tokens = prompt.input_ids.len();
    let (sender, receiver) = mailbox();
    let request = Request { prompt, sampling, max_new_tokens: max_tokens, stop, ignore_eos: false };
    enqueue(app, Job { request, sender, deadline, received, memory })?;

    let head = ResponseHead::new(&app.model_name);
    let answer = Answer { receiver, deadline, broken_off: app.broken_off.subscribe() };
    if stream {
        let counted = counted.stream();
        return Ok(stream::respond(EventState { head, answer, prompt_tokens, include_usage, counted }));
    }
    let (text, outcome) = answer.whole().await;
    match outcome {
        Outcome::Finished { reason, completion_tokens } => {
            Ok(axum::Json(head.completion(&text, reason, usage(prompt_tokens, completion_tokens))).into_response())
        }
        Outcome::Failed(error) => Err(error),
    }
}

/// Receives and checks the body, after its memory has been reserved: itself, as JSON values and as picture files.
async fn receive(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    deadline: Instant,
) -> Result<(ChatRequest, Reservation), ApiError> {
    let limits = &app.limits;
    let declared = body::declared_length(headers, limits.max_body_bytes)?;
    let most = app.request_bytes(3 * declared.unwrap_or(limits.max_body_bytes), limits.max_images);
    let until = deadline.min(Instant::now() + MEMORY_TIMEOUT);
    let reserved = timeout_at(until.into(), app.memory.for_request(most)).await;
    let mut memory = reserved.map_err(|_| ApiError::memory_full())?;
    let body = body::receive(body, declared, limits.max_body_bytes, deadline).await?;
    let request = ChatRequest::parse(&body, &app.model_name, limits, rand::random())?;
    memory.shrink_to(app.request_bytes(2 * body.len(), request.images.len()));
    Ok((request, memory))
}

/// Pictures and text become the model's input, on threads that may block. Only decoding takes a core: a remote server
/// that is slow to send a picture holds nobody else.
async fn prepare(
    app: &Arc<App>,
    messages: Vec<ChatMessage>,
    images: Vec<ImagePart>,
    memory: Reservation,
) -> Result<(PackedBatch, Reservation), ApiError> {
    let limits = app.limits.clone();
    // The reservation goes where the bytes are: a thread may outlive its request's time.
    let fetched = tokio::task::spawn_blocking(move || Ok((images::read_all(images, &limits)?, memory))).await;
    let (files, mut memory) = fetched.map_err(|_| unprocessed())??;
    let context = app.processors.config.text.max_position_embeddings;
    let text = text_bytes(&messages);
    if text / BYTES_PER_TOKEN >= context {
        let message =
            format!("the conversation has {text} bytes of text, the model takes {context} tokens with the answer");
        return Err(too_long(message));
    }
    let decoding = app.decoding.clone().acquire_owned().await;
    let scratch = images::scratch_bytes(&files, app.limits.max_pixels).max(text * TOKENIZER_BYTES_PER_BYTE);
    let scratch = app.memory.for_scratch(scratch).await;
    let for_thread = app.clone();
    on_a_thread(move || {
        let _held = (decoding, scratch);
        let prompt = prompt_of(&for_thread, &messages, &files)?;
        memory.shrink_to(size_of_val(&*prompt.pixel_values) + size_of_val(&*prompt.input_ids));
        Ok((prompt, memory))
    })
    .await
}

fn prompt_of(app: &App, messages: &[ChatMessage], files: &[ImageFile]) -> Result<PackedBatch, ApiError> {
    let processors = &app.processors;
    let process = |file: &ImageFile| {
        let image = images::process(&file.bytes, &processors.images, app.limits.max_pixels);
        image.map_err(|error| error.about(&file.place))
    };
    let images = files.iter().map(process).collect::<Result<Vec<_>, _>>()?;
    let messages: Vec<Message> =
        messages.iter().map(|message| processors.message(message.role, &message.parts)).collect();
    let prompt = processors.prompt(&messages, &images);
    let prompt = prompt.map_err(|error| ApiError::invalid("messages", format!("{error:#}")))?;
    let (tokens, context) = (prompt.input_ids.len(), processors.config.text.max_position_embeddings);
    if tokens >= context {
        return Err(too_long(format!(
            "the conversation has {tokens} tokens, the model takes {context} with the answer"
        )));
    }
    Ok(prompt)
}

fn text_bytes(messages: &[ChatMessage]) -> usize {
    let parts = messages.iter().flat_map(|message| &message.parts);
    parts.map(|part| if let Part::Text(text) = part { text.len() } else { 0 }).sum()
}

fn too_long(message: String) -> ApiError {
    ApiError { code: "context_length_exceeded", ..ApiError::invalid("messages", message) }
}

/// Works on a thread of its own: decoding keeps buffers for the thread's next picture, and a pool's many threads would each
/// keep some.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let spawned = std::thread::Builder::new().name("prepare".into()).spawn(move || sender.send(work()).is_ok());
    spawned.map_err(|error| ApiError::unavailable(format!("starting a thread: {error}")))?;
    // A panic drops the sender.
    receiver.await.map_err(|_| unprocessed())?
}

fn unprocessed() -> ApiError {
    ApiError::invalid("messages", "the pictures or the text could not be processed")
}

fn enqueue(app: &App, job: Job) -> Result<(), ApiError> {
    app.jobs.push(job).map_err(|refused| match refused {
        Refused::Full => ApiError::busy(),
        Refused::Closed => ApiError::unavailable("the model has stopped; restart the server"),
    })
}
