//! Open connections: how many there may be, the phase of each, and when one is closed.
//!
//! A connection without a request in progress holds a descriptor and nothing else. It is closed when its request's headers
//! or its next request take too long, and earlier when a new connection needs the place.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Longest time that a client may leave an answer untaken.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections beyond the limit that are still accepted, so that /health answers on a full server and others get 503.
pub const SPARE: usize = 16;

/// How long a connection may stay in a phase.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From a request's first byte to the end of its headers.
    pub header: Duration,
    /// Between requests, and before the first.
    pub idle: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// No byte of the next request has arrived.
    Idle,
    /// Some bytes of its headers have.
    Headers,
    /// A request is received, computed or answered.
    Busy,
}

struct State {
    phase: Phase,
    since: Instant,
    /// Since when the client's side takes no more bytes.
    write_blocked: Option<Instant>,
    /// Whether there has been a request.
    used: bool,
}

/// One connection.
pub struct Connection {
    state: Mutex<State>,
    /// Notified when the connection has to be closed.
    pub close: Notify,
}

impl Connection {
    fn new() -> Self {
        let state = State { phase: Phase::Idle, since: Instant::now(), write_blocked: None, used: false };
        Self { state: Mutex::new(state), close: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        (state.phase, state.since) = (phase, Instant::now());
        state.used = true;
    }

    /// Whether the connection can be closed: no request is complete and no answer is being sent.
    pub fn is_unused(&self) -> bool {
        let state = self.lock();
        state.phase == Phase::Headers || !state.used
    }

    fn received(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Idle {
            (state.phase, state.since) = (Phase::Headers, Instant::now());
        }
    }

    fn wrote(&self, blocked: bool) {
        let mut state = self.lock();
        state.write_blocked = blocked.then(|| state.write_blocked.unwrap_or_else(Instant::now));
    }

    fn overdue(&self, timeouts: Timeouts) -> bool {
        let state = self.lock();
        let limit = match state.phase {
            Phase::Idle => timeouts.idle,
            Phase::Headers => timeouts.header,
            Phase::Busy => Duration::MAX,
        };
        state.since.elapsed() >= limit || state.write_blocked.is_some_and(|since| since.elapsed() >= WRITE_TIMEOUT)
    }
}

/// A request in progress; dropped when its answer has been handed over.
pub struct Busy(Arc<Connection>);

impl Busy {
    /// The connection's request begins.
    pub fn new(connection: &Arc<Connection>) -> Self {
        connection.enter(Phase::Busy);
        Self(connection.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.enter(Phase::Idle);
    }
}

/// All open connections.
pub struct Connections {
    open: Mutex<Open>,
    limit: usize,
    timeouts: Timeouts,
}

#[derive(Default)]
struct Open {
    by_number: BTreeMap<u64, Arc<Connection>>,
    accepted: u64,
    /// Sockets, those included that are about to be closed.
    sockets: usize,
}

/// The place of an open connection; dropped with it.
pub struct Place {
    /// The connection.
    pub connection: Arc<Connection>,
    /// True for one of the [`SPARE`] ones.
    pub beyond_limit: bool,
    number: u64,
    all: Arc<Connections>,
}

impl Connections {
    /// None open, at most `limit` (and [`SPARE`] more).
    pub fn new(limit: usize, timeouts: Timeouts) -> Self {
        Self { open: Mutex::default(), limit, timeouts }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection. When all are taken, the connection that has been without a request for longest is
    /// closed for it; `None` when each of them, the spare ones included, has a request in progress.
    pub fn admit(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.lock();
        if open.by_number.len() >= self.limit {
            open.close_oldest();
        }
        if open.by_number.len() >= self.limit + SPARE {
            return None;
        }
        let beyond_limit = open.by_number.len() >= self.limit;
        let number = open.accepted;
        open.accepted += 1;
        open.sockets += 1;
        let connection = Arc::new(Connection::new());
        open.by_number.insert(number, connection.clone());
        Some(Place { connection, beyond_limit, number, all: self.clone() })
    }

    /// Whether connections come faster than those are closed that make place for them.
    pub fn crowded(&self) -> bool {
        self.lock().sockets >= self.limit + 2 * SPARE
    }

    /// Closes the connection that has been without a request for longest.
    pub fn close_oldest(&self) {
        self.lock().close_oldest();
    }

    /// Closes connections whose phase has taken too long.
    pub fn close_overdue(&self) {
        self.lock().by_number.retain(|_, connection| {
            let overdue = connection.overdue(self.timeouts);
            if overdue {
                connection.close.notify_one();
            }
            !overdue
        });
    }

    /// Open connections.
    pub fn count(&self) -> usize {
        self.lock().by_number.len()
    }

    /// Requests in progress.
    pub fn busy(&self) -> usize {
        self.lock().by_number.values().filter(|connection| connection.lock().phase == Phase::Busy).count()
    }
}

impl Open {
    fn close_oldest(&mut self) {
        let waiting = self.by_number.iter().filter_map(|(&number, connection)| {
            let state = connection.lock();
            (state.phase != Phase::Busy).then_some((state.since, number))
        });
        if let Some((_, number)) = waiting.min()
            && let Some(connection) = self.by_number.remove(&number)
        {
            connection.close.notify_one();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.all.lock();
        open.by_number.remove(&self.number);
        open.sockets -= 1;
    }
}

/// A socket that tells its connection of bytes read and of writes that block.
pub struct Watched {
    /// The socket.
    pub stream: TcpStream,
    /// Its connection.
    pub connection: Arc<Connection>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.connection.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.connection.wrote(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.connection.wrote(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(limit: usize, idle: Duration) -> Arc<Connections> {
        Arc::new(Connections::new(limit, Timeouts { header: Duration::from_millis(5), idle }))
    }

    #[test]
    fn a_full_server_closes_the_one_that_has_waited_longest() {
        let all = connections(3, Duration::from_secs(60));
        let places: Vec<Place> = (0..3).map(|_| all.admit().expect("a place")).collect();
        // The first one has a request, so that the second has waited longest.
        let busy = Busy::new(&places[0].connection);
        let fourth = all.admit().expect("a place");
        assert!(!fourth.beyond_limit);
        assert!(all.lock().by_number.keys().eq([0, 2, 3].iter()));
        // After its answer the first one has waited for the shortest time.
        drop(busy);
        let _fifth = all.admit().expect("a place");
        assert!(all.lock().by_number.keys().eq([0, 3, 4].iter()));
    }

    #[test]
    fn requests_in_progress_are_never_closed_for_others() {
        let all = connections(2, Duration::from_secs(60));
        let places: Vec<Place> = (0..2 + SPARE).map(|_| all.admit().expect("a place")).collect();
        assert_eq!(all.count(), 2, "idle ones make place");
        assert!(!all.crowded(), "{SPARE} more sockets are to be closed");
        drop(places);
        let mut places = Vec::new();
        let mut busy = Vec::new();
        for number in 0..2 + SPARE {
            let place = all.admit().expect("a place");
            assert_eq!(place.beyond_limit, number >= 2);
            busy.push(Busy::new(&place.connection));
            places.push(place);
        }
        assert!(all.admit().is_none());
        assert_eq!(all.busy(), 2 + SPARE);
        busy.pop();
        assert!(all.admit().is_some());
    }

    #[test]
    fn each_phase_has_its_own_time() {
        let all = connections(9, Duration::from_secs(60));
        let [idle, headers, busy] = std::array::from_fn(|_| all.admit().expect("a place"));
        headers.connection.received();
        let _busy = Busy::new(&busy.connection);
        std::thread::sleep(Duration::from_millis(10));
        // Further bytes of the same headers do not give more time.
        headers.connection.received();
        all.close_overdue();
        let open = all.lock();
        assert!(open.by_number.contains_key(&idle.number) && open.by_number.contains_key(&busy.number));
        assert!(!open.by_number.contains_key(&headers.number));
    }
}
