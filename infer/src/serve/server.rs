//! Accepts connections, serves HTTP/1 on them, and stops.

use super::App;
use super::connections::{Busy, Place, SPARE, Watched};
use super::guard::BeyondLimit;
use anyhow::{Result, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{interval, sleep, timeout};

/// Descriptors for all but connections: the model's files, the runtime, a GPU's driver.
const OTHER_DESCRIPTORS: usize = 48;
/// Connections by default, where the descriptors suffice.
const DEFAULT_CONNECTIONS: usize = 1024;
/// Least connections with which a server is of use.
const LEAST_CONNECTIONS: usize = 16;
/// Most bytes of a request's headers, and of an answer that hyper holds for a slow client.
const BUFFER_BYTES: usize = 64 << 10;
/// How often overdue connections are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Time for the last bytes of answers after all have been computed or broken off.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Connections that the process's descriptors allow; `fetches` is the number of remote pictures fetched at once. Raises
/// the soft limit of descriptors as far as needed and possible.
///
/// # Errors
/// Too few descriptors for `wanted`, or for any use.
pub fn connection_limit(wanted: Option<usize>, fetches: usize) -> Result<usize> {
    let others = OTHER_DESCRIPTORS + fetches + 2 * SPARE;
    let descriptors = descriptors(wanted.unwrap_or(DEFAULT_CONNECTIONS).saturating_add(others));
    let most = descriptors.saturating_sub(others);
    let least = wanted.unwrap_or(LEAST_CONNECTIONS);
    ensure!(
        most >= least,
        "max-connections: {least} connections need {} descriptors, this process may open {descriptors}; raise the limit \
         (ulimit -n) or give fewer connections",
        least.saturating_add(others)
    );
    Ok(wanted.unwrap_or(most.min(DEFAULT_CONNECTIONS)))
}

/// Descriptors that the process may open, after asking for this many.
#[cfg(unix)]
fn descriptors(needed: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current else { return usize::MAX };
    let needed = (needed as u64).min(limit.maximum.unwrap_or(u64::MAX));
    let raised = needed > current && setrlimit(Resource::Nofile, Rlimit { current: Some(needed), ..limit }).is_ok();
    usize::try_from(if raised { needed } else { current }).unwrap_or(usize::MAX)
}

#[cfg(not(unix))]
fn descriptors(_needed: usize) -> usize {
    usize::MAX
}

/// Serves until a signal to stop, then until the requests in progress are answered or their time is over.
pub async fn serve(app: &Arc<App>, listener: TcpListener, router: Router, mut signals: StopSignals) {
    let (drain, draining) = watch::channel(false);
    let accepting = tokio::spawn(accept(app.clone(), listener, router, draining));
    let connections = app.connections.clone();
    let sweeping = tokio::spawn(async move {
        let mut ticks = interval(SWEEP);
        loop {
            ticks.tick().await;
            connections.close_overdue();
        }
    });
    signals.next().await;
    finish(app, &mut signals).await;
    accepting.abort();
    drain.send_replace(true);
    let closed = until(|| app.connections.count() == 0);
    let _ = timeout(FLUSH_TIMEOUT, closed).await;
    sweeping.abort();
}

/// Waits for the requests in progress; breaks them off after the shutdown's time or at a second signal.
async fn finish(app: &App, signals: &mut StopSignals) {
    app.stopping.store(true, Ordering::SeqCst);
    let (requests, seconds) = (app.connections.busy(), app.shutdown_timeout.as_secs());
    if requests > 0 {
        tracing::info!(
            "stopping: {requests} in progress, {seconds} s to finish; new requests get 503; a second signal ends them now"
        );
    }
    let cause = tokio::select! {
        () = until(|| app.connections.busy() == 0) => return tracing::info!("stopped: no request in progress"),
        () = sleep(app.shutdown_timeout) => format!("after {seconds} s (--shutdown-timeout)"),
        () = signals.next() => "by a second signal".to_string(),
    };
    tracing::info!("stopped: {} in progress, broken off {cause}", app.connections.busy());
    app.broken_off.send_replace(true);
    let _ = timeout(FLUSH_TIMEOUT, until(|| app.connections.busy() == 0)).await;
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        sleep(Duration::from_millis(20)).await;
    }
}

async fn accept(app: Arc<App>, listener: TcpListener, router: Router, draining: watch::Receiver<bool>) {
    loop {
        while app.connections.crowded() {
            sleep(Duration::from_millis(1)).await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                // Without a place the socket is closed at once: every connection has a request in progress.
                let Some(place) = app.connections.admit() else { continue };
                tokio::spawn(connection(app.clone(), stream, place, router.clone(), draining.clone()));
            }
            Err(error) if is_of_the_client(&error) => (),
            Err(error) => {
                tracing::warn!("accepting a connection: {error}");
                app.connections.close_oldest();
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Errors of the connection that was about to be accepted, as opposed to a lack of descriptors or memory.
fn is_of_the_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn connection(
    app: Arc<App>,
    stream: TcpStream,
    place: Place,
    router: Router,
    mut draining: watch::Receiver<bool>,
) {
    // Tokens are small packets that must not wait for each other.
    let _ = stream.set_nodelay(true);
    let watched = Watched { stream, connection: place.connection.clone() };
    let (inner, beyond_limit, connection) = (TowerToHyperService::new(router), place.beyond_limit, &place.connection);
    let service = service_fn(|mut request: Request<Incoming>| {
        let busy = Busy::new(connection);
        if beyond_limit {
            request.extensions_mut().insert(BeyondLimit);
        }
        let (answered, app) = (inner.call(request), app.clone());
        async move {
            let mut response: Response<Body> = answered.await?;
            if beyond_limit || app.stopping.load(Ordering::SeqCst) {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Answer { body, _busy: busy }))
        }
    });
    // Headers and idle connections have their time from `Connections`, which can also end them earlier.
    let mut http = hyper::server::conn::http1::Builder::new();
    http.max_buf_size(BUFFER_BYTES).max_header_size(BUFFER_BYTES).header_read_timeout(None);
    let mut serving = pin!(http.serve_connection(TokioIo::new(watched), service));
    loop {
        tokio::select! {
            // Errors are the client's: it disconnected, or did not send HTTP.
            _ = serving.as_mut() => return,
            () = place.connection.close.notified() => return,
            Ok(()) = draining.changed() => {
                if place.connection.is_unused() {
                    return;
                }
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// An answer's body, which keeps its connection busy until it has been handed over.
struct Answer {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// SIGINT and SIGTERM, caught from the moment it is made.
pub struct StopSignals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl StopSignals {
    /// Catches the signals.
    pub fn new() -> Result<Self> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
        }
        #[cfg(not(unix))]
        Ok(Self {})
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! { _ = self.interrupt.recv() => (), _ = self.terminate.recv() => () }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}
