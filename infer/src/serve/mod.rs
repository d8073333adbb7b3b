//! `infer serve`: a web page and OpenAI's API over one model.
//!
//! Requests are read and checked on tokio's threads; one thread runs the model (`scheduler`); its output waits in a
//! `mailbox` until the client takes it.

pub mod args;
mod body;
mod chat_request;
mod chat_response;
mod completions;
mod connections;
mod cors;
mod data_uri;
mod error;
mod guard;
mod images;
mod mailbox;
mod memory;
mod metrics;
mod page;
mod queue;
mod remote;
mod scheduler;
mod server;
mod stream;
mod unknown_path;

use crate::engine::{Engine, Processors};
use anyhow::{Context, Result, ensure};
use args::{Limits, ServeArgs};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base::Error;
use cli::inputs;
use connections::{Connections, Timeouts};
use cors::AllowedOrigins;
use error::ApiError;
use guard::AllowedHosts;
use memory::Memory;
use metrics::Metrics;
use queue::Queue;
use serde_json::json;
use server::StopSignals;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Where conversations are answered.
const CHAT: &str = "/v1/chat/completions";

/// What the handlers share.
struct App {
    processors: Arc<Processors>,
    jobs: Arc<Queue>,
    metrics: Arc<Metrics>,
    limits: Limits,
    model_name: String,
    api_key: Option<String>,
    allowed_hosts: AllowedHosts,
    allowed_origins: AllowedOrigins,
    connections: Arc<Connections>,
    /// Bytes of requests before the model has them.
    memory: Memory,
    /// Requests whose body is being received or whose pictures are being read.
    preparing: Semaphore,
    /// Requests whose pictures are being decoded, one a core.
    decoding: Arc<Semaphore>,
    /// False once the model thread has ended.
    model_runs: AtomicBool,
    /// True from the signal to stop on.
    stopping: AtomicBool,
    /// True when the answers in progress have to end.
    broken_off: watch::Sender<bool>,
    shutdown_timeout: Duration,
}

/// Loads the model, listens, and serves until SIGINT or SIGTERM; `listening` is told the address.
///
/// # Errors
/// An unusable model; an address that cannot be listened on; limits of zero, or that contradict each other.
pub fn run(args: &ServeArgs, listening: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let settings = Settings::from_args(args)?;
    let address = SocketAddr::new(args.host, args.port);
    // Before minutes of loading; the listener itself comes when there is something to answer with.
    std::net::TcpListener::bind(address).map_err(|error| not_listening(address, &error))?;
    let engine = Engine::from_args(&args.model)?;
    engine.tell_unused_settings();
    let app = Arc::new(settings.app(args, engine.processors.clone())?);
    let (jobs, metrics, max_batch) = (app.jobs.clone(), app.metrics.clone(), app.limits.max_batch);
    let for_thread = Arc::downgrade(&app);
    let model = std::thread::Builder::new().name("model".into()).spawn(move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scheduler::run(&engine, &jobs, max_batch, &metrics);
        }));
        jobs.close();
        if let Some(app) = for_thread.upgrade() {
            app.model_runs.store(false, Ordering::Relaxed);
        }
        ended.is_ok()
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(listen(&app, address, listening))?;
    app.jobs.close();
    // Connections that outlive the stop are closed, which ends their answers in the model thread.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ensure!(model.join().unwrap_or(false), "the model thread stopped unexpectedly; its message stands above");
    Ok(())
}

/// Options that are checked before the model is loaded.
struct Settings {
    api_key: Option<String>,
    allowed_hosts: AllowedHosts,
    allowed_origins: AllowedOrigins,
    connections: Connections,
}

impl Settings {
    fn from_args(args: &ServeArgs) -> Result<Self> {
        let (limits, connections) = (&args.limits, &args.connections);
        let timeouts = Timeouts {
            header: Duration::from_secs(connections.header_timeout_seconds),
            idle: Duration::from_secs(connections.idle_timeout_seconds),
        };
        let fetches = if limits.allow_remote_images { limits.max_batch + limits.max_queue } else { 0 };
        let api_key = api_key(args)?;
        let allowed_origins = AllowedOrigins::new(&args.browsers.allow_origin)?;
        if !args.host.is_loopback() && api_key.is_none() {
            tracing::warn!("{} can be reached from the network and no --api-key is set", args.host);
        }
        if allowed_origins.is_everyone() && api_key.is_none() {
            tracing::warn!(
                "every web page in a browser that reaches {} can use the model: no --api-key is set",
                args.host
            );
        }
        Ok(Self {
            allowed_hosts: AllowedHosts::new(args.host, api_key.is_some(), &args.browsers.allowed_host)?,
            api_key,
            allowed_origins,
            connections: Connections::new(server::connection_limit(connections.max_connections, fetches)?, timeouts),
        })
    }

    fn app(self, args: &ServeArgs, processors: Arc<Processors>) -> Result<App> {
        let limits = &args.limits;
        let app = App {
            jobs: Arc::new(Queue::new(limits.max_batch, limits.max_queue)),
            metrics: Arc::default(),
            limits: limits.clone(),
            model_name: model_name(args),
            api_key: self.api_key,
            allowed_hosts: self.allowed_hosts,
            allowed_origins: self.allowed_origins,
            connections: Arc::new(self.connections),
            memory: Memory::new(limits.max_request_memory),
            preparing: Semaphore::new(limits.max_batch + limits.max_queue),
            decoding: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
            model_runs: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            broken_off: watch::Sender::new(false),
            shutdown_timeout: Duration::from_secs(args.connections.shutdown_timeout),
            processors,
        };
        let largest = app.request_bytes(3 * limits.max_body_bytes, limits.max_images);
        if limits.max_request_memory / 2 < largest {
            let (bytes, images) = (limits.max_body_bytes, limits.max_images);
            let expected =
                format!("at least {} for a request of max-body-bytes {bytes} and max-images {images}", 2 * largest);
            let found = limits.max_request_memory;
            return Err(Error::usage("--max-request-memory", found, expected, "give more, or lower those").into());
        }
        Ok(app)
    }
}

impl App {
    /// What a request takes before the model has it: its texts and files, its remote pictures, and the pixel values of its
    /// pictures, twice while they are put together.
    fn request_bytes(&self, text_and_files: usize, images: usize) -> usize {
        let side = self.processors.images.crop_size;
        let remote = if self.limits.allow_remote_images && images > 0 { self.limits.max_body_bytes } else { 0 };
        let pixels = side.saturating_mul(side).saturating_mul(3 * size_of::<f32>());
        text_and_files.saturating_add(remote).saturating_add(images.saturating_mul(2).saturating_mul(pixels))
    }
}

fn api_key(args: &ServeArgs) -> Result<Option<String>> {
    let from_file = args.api_key_file.as_ref().map(|path| {
        let expected = "a file with the key in its first line, for --api-key-file";
        let text = std::fs::read_to_string(path).map_err(inputs::unread(path, expected))?;
        text.lines().next().map(|line| line.trim().to_string()).with_context(|| format!("{}: empty", path.display()))
    });
    let key = from_file.transpose()?.or_else(|| args.api_key.clone());
    if key.as_deref() == Some("") {
        return Err(Error::usage("--api-key", "an empty key", "a secret", "give one").into());
    }
    Ok(key)
}

fn model_name(args: &ServeArgs) -> String {
    let folder = std::path::absolute(&args.model.model).unwrap_or_else(|_| args.model.model.clone());
    let folder = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    args.served_model_name.clone().or(folder).unwrap_or_else(|| "llava".to_string())
}

fn not_listening(address: SocketAddr, error: &std::io::Error) -> Error {
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => {
            "give another --port (0 takes a free one and prints it), or end the program that has it (ss -ltnp)"
        }
        ErrorKind::PermissionDenied => "give a --port from 1024 on",
        ErrorKind::AddrNotAvailable => "give --host an address of this machine: 127.0.0.1, or 0.0.0.0 for all",
        _ => "give another --port or --host",
    };
    Error::invalid(format!("listening on {address}"), error, "a free port of this machine", remedy)
}

async fn listen(app: &Arc<App>, address: SocketAddr, listening: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|error| not_listening(address, &error))?;
    let signals = StopSignals::new()?;
    listening(listener.local_addr()?)?;
    server::serve(app, listener, router(app.clone()), signals).await;
    Ok(())
}

fn router(app: Arc<App>) -> Router {
    let keyed = Router::new()
        .route(CHAT, post(completions::handle))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/metrics", get(metrics_page))
        .route_layer(from_fn_with_state(app.clone(), guard::require_key));
    Router::new()
        .route("/", get(page::page))
        .route(guard::HEALTH, get(health))
        .merge(keyed)
        .fallback(unknown_path::not_found)
        .method_not_allowed_fallback(unknown_path::method_not_allowed)
        // From the innermost to the outermost.
        .layer(from_fn_with_state(app.clone(), guard::require_host))
        .layer(from_fn_with_state(app.clone(), guard::require_room))
        .layer(from_fn_with_state(app.clone(), metrics::count))
        .layer(from_fn(guard::answer_options))
        .layer(from_fn_with_state(app.clone(), cors::allow_origins))
        .with_state(app)
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if app.stopping.load(Ordering::SeqCst) {
        ApiError::stopping().into_response()
    } else if app.model_runs.load(Ordering::Relaxed) {
        axum::Json(json!({"status": "ok", "model": app.model_name})).into_response()
    } else {
        ApiError::unavailable("the model has stopped; restart the server").into_response()
    }
}

async fn models(State(app): State<Arc<App>>) -> Response {
    axum::Json(json!({"object": "list", "data": [model_object(&app)]})).into_response()
}

async fn model(State(app): State<Arc<App>>, axum::extract::Path(id): axum::extract::Path<String>) -> Response {
    if id == app.model_name {
        return axum::Json(model_object(&app)).into_response();
    }
    ApiError::refused(StatusCode::NOT_FOUND, "model_not_found", format!("the model {id:?} does not exist"))
        .into_response()
}

fn model_object(app: &App) -> serde_json::Value {
    json!({
        "id": app.model_name, "object": "model", "created": 0, "owned_by": "local",
        "max_model_len": app.processors.config.text.max_position_embeddings,
        "max_tokens": app.limits.max_tokens,
    })
}

async fn metrics_page(State(app): State<Arc<App>>) -> Response {
    let now = [
        ("queued_requests", "Requests waiting for a place.", app.jobs.waiting()),
        ("connections", "Open connections.", app.connections.count()),
        (
            "requests_in_progress",
            "Requests being received, computed or answered, without this one.",
            app.connections.busy().saturating_sub(1),
        ),
        ("request_memory_bytes", "Memory reserved by requests that the model has not read yet.", app.memory.used()),
    ];
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, app.metrics.render(&now)).into_response()
}
