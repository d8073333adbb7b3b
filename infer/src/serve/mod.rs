//! `infer serve`: a web page and OpenAI's API over one model.
//!
//! Requests are read and checked on tokio's threads; one thread runs the model (`scheduler`); what it writes waits in a
//! `mailbox` until the client takes it.

pub mod args;
mod chat_request;
mod chat_response;
mod completions;
mod data_uri;
mod error;
mod guard;
mod images;
mod mailbox;
mod metrics;
mod remote;
mod scheduler;
mod unknown_path;

use crate::engine::{Engine, Processors};
use anyhow::{Context, Result, ensure};
use args::{Limits, ServeArgs};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use crossbeam::channel::{Sender, bounded};
use error::ApiError;
use metrics::Metrics;
use scheduler::Job;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

/// What the handlers share.
struct App {
    processors: Arc<Processors>,
    jobs: Sender<Job>,
    metrics: Arc<Metrics>,
    limits: Limits,
    model_name: String,
    api_key: Option<String>,
    host: IpAddr,
    /// Requests whose body is being received or whose pictures are being read.
    preparing: Semaphore,
    /// Requests whose pictures are being decoded, one a core.
    decoding: Arc<Semaphore>,
    /// False once the model thread has ended.
    model_runs: AtomicBool,
}

/// Loads the model, listens, and serves until SIGINT or SIGTERM; `listening` is told the address.
///
/// # Errors
/// An unusable model; an address that cannot be listened on; limits of zero.
pub fn run(args: &ServeArgs, listening: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let limits = &args.limits;
    ensure!(limits.max_batch > 0 && limits.max_tokens > 0, "max-batch and max-tokens: expected at least 1");
    let api_key = api_key(args)?;
    if !args.host.is_loopback() && api_key.is_none() {
        eprintln!("warning: {} can be reached from the network and no --api-key is set", args.host);
    }
    let engine = Engine::from_args(&args.model)?;
    let (jobs, waiting) = bounded(limits.max_queue);
    let app = Arc::new(App {
        processors: engine.processors.clone(),
        jobs,
        metrics: Arc::default(),
        limits: limits.clone(),
        model_name: model_name(args),
        api_key,
        host: args.host,
        preparing: Semaphore::new(limits.max_batch + limits.max_queue),
        decoding: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
        model_runs: AtomicBool::new(true),
    });
    let (metrics, max_batch, for_thread) = (app.metrics.clone(), limits.max_batch, Arc::downgrade(&app));
    let model = std::thread::Builder::new().name("model".into()).spawn(move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scheduler::run(&engine, &waiting, max_batch, &metrics);
        }));
        if let Some(app) = for_thread.upgrade() {
            app.model_runs.store(false, Ordering::Relaxed);
        }
        ended.is_ok()
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(listen(app, SocketAddr::new(args.host, args.port), listening))?;
    // Connections that outlive the stop are cut; with them goes the last sender of jobs, and the model thread ends.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ensure!(model.join().unwrap_or(false), "the model thread stopped unexpectedly; its message stands above");
    Ok(())
}

fn api_key(args: &ServeArgs) -> Result<Option<String>> {
    let from_file = args.api_key_file.as_ref().map(|path| {
        let text = std::fs::read_to_string(path).map_err(common::Error::io(path))?;
        text.lines().next().map(|line| line.trim().to_string()).with_context(|| format!("{}: empty", path.display()))
    });
    let key = from_file.transpose()?.or_else(|| args.api_key.clone());
    ensure!(key.as_deref() != Some(""), "api-key: found an empty key, expected a secret");
    Ok(key)
}

fn model_name(args: &ServeArgs) -> String {
    let folder = std::path::absolute(&args.model.model).unwrap_or_else(|_| args.model.model.clone());
    let folder = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    args.served_model_name.clone().or(folder).unwrap_or_else(|| "llava".to_string())
}

async fn listen(app: Arc<App>, address: SocketAddr, listening: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    listening(listener.local_addr()?)?;
    let server = axum::serve(listener, router(app)).with_graceful_shutdown(stop_signal());
    // Answers in the making get a moment after the signal.
    tokio::select! {
        served = server => Ok(served?),
        () = async { stop_signal().await; tokio::time::sleep(std::time::Duration::from_secs(5)).await } => Ok(()),
    }
}

async fn stop_signal() {
    let interrupt = tokio::signal::ctrl_c();
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! { _ = interrupt => (), _ = terminate.recv() => () }
            return;
        }
    }
    let _ = interrupt.await;
}

fn router(app: Arc<App>) -> Router {
    let keyed = Router::new()
        .route("/v1/chat/completions", post(completions::handle))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/metrics", get(metrics_page))
        .route_layer(middleware::from_fn_with_state(app.clone(), guard::require_key));
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .merge(keyed)
        .fallback(unknown_path::not_found)
        .method_not_allowed_fallback(unknown_path::method_not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), guard::require_host))
        .with_state(app)
}

/// The page, which loads nothing from elsewhere.
const PAGE: &str = include_str!("page.html");

/// What the browser may do for the page: run its own script and style, known by their hashes, and ask this server. Text
/// that the model writes can neither run nor load anything, even if it came to stand in the page as mark-up.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |element: &str| {
        let (begin, end) = (format!("<{element}>"), format!("</{element}>"));
        let text = PAGE.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)).map_or("", |(text, _)| text);
        BASE64_STANDARD.encode(common::files::sha256(text.as_bytes()))
    };
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data: blob:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash("style"),
        hash("script")
    )
});

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if app.model_runs.load(Ordering::Relaxed) {
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
    let content_type = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (content_type, app.metrics.render()).into_response()
}
