//! Ranks as processes under MPI. The library is loaded at run time: building needs none, and any cluster's own MPI is used.

mod library;
mod roll_call;

use super::guard::Note;
use super::roll_call::RollCall;
use super::{Collective, CollectiveError, Place, Result, add_in_rank_order, owned_slices};
use library::{Handle, MPI, Mpi};
use roll_call::MpiRollCall;
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tags of exchanges: every MPI has 0 to 32,767, and the last one is that of roll calls.
const TAGS: u64 = (1 << 15) - 1;

/// This process as a rank.
pub struct MpiRank {
    mpi: &'static Mpi,
    rank: usize,
    world_size: usize,
    timeout: Duration,
    /// Exchanges so far: every rank counts the same, so it serves as tag.
    sequence: u64,
    bytes_sent: u64,
    /// What other ranks sent for a sum, kept from one exchange to the next.
    scratch: Vec<f32>,
    /// Where the rank is, should it be killed.
    note: Arc<Note>,
}

/// One message that is under way.
struct Message {
    request: Handle,
    /// The other rank.
    peer: usize,
    arrives: bool,
}

impl MpiRank {
    /// Loads and initialises MPI; from here on a panic anywhere in the process ends all ranks.
    ///
    /// # Errors
    /// No library can be loaded or initialised, or it does not allow calls from a thread other than the first.
    pub fn start(timeout: Duration, note: Note) -> Result<Self> {
        let mpi = match MPI.get() {
            Some(mpi) => mpi,
            None => {
                let loaded = Mpi::load()?;
                MPI.get_or_init(|| loaded)
            }
        };
        let (mut provided, mut rank, mut size) = (0, 0, 0);
        // SAFETY: MPI_Init_thread takes null for argc and argv; every pointer is to a local that outlives its call.
        unsafe {
            mpi.check(
                (mpi.init_thread)(null_mut(), null_mut(), mpi.thread_multiple, &mut provided),
                "MPI_Init_thread",
            )?;
            mpi.check((mpi.comm_rank)(mpi.world, &mut rank), "MPI_Comm_rank")?;
            mpi.check((mpi.comm_size)(mpi.world, &mut size), "MPI_Comm_size")?;
            mpi.check((mpi.set_errhandler)(mpi.world, mpi.errors_return), "MPI_Comm_set_errhandler")?;
        }
        if provided < mpi.thread_multiple {
            let (file, expected) = (mpi.file.clone(), mpi.thread_multiple);
            return Err(CollectiveError::NoMpiThreads { file, provided, expected });
        }
        abort_on_panic(rank);
        if rank == 0 {
            tracing::info!("MPI: {} ({}), {size} ranks", mpi.version(), mpi.file);
        }
        let (rank, world_size) = (rank as usize, size as usize);
        note.write(format_args!("rank {rank} of {world_size}, before its first exchange"));
        let note = Arc::new(note);
        Ok(Self { mpi, rank, world_size, timeout, sequence: 0, bytes_sent: 0, scratch: Vec::new(), note })
    }

    /// Sends `outgoing[r]` to every other rank r and receives `incoming[r]` from it. Non-blocking messages are polled: the
    /// thread sleeps between polls instead of burning a core that computes, and a peer that is gone is noticed at the
    /// deadline. Whatever goes wrong ends the job here: MPI may still use the buffers.
    fn exchange(&mut self, place: &Place, outgoing: &[&[f32]], incoming: &mut [&mut [f32]]) {
        let (rank, world_size) = (self.rank, self.world_size);
        self.note.write(format_args!("rank {rank} of {world_size}, whose last exchange was {place}"));
        let tag = (self.sequence % TAGS) as c_int;
        self.sequence += 1;
        let mut messages = Vec::with_capacity(2 * self.world_size);
        for (peer, buffer) in incoming.iter_mut().enumerate().filter(|(peer, _)| *peer != self.rank) {
            let to = buffer.as_mut_ptr();
            messages.push(self.transfer(place, to, buffer.len(), peer, tag, true));
        }
        // Each rank begins with the next one, so that not all send to the same.
        for peer in (1..self.world_size).map(|step| (self.rank + step) % self.world_size) {
            let buffer = outgoing[peer];
            self.bytes_sent += size_of_val(buffer) as u64;
            messages.push(self.transfer(place, buffer.as_ptr().cast_mut(), buffer.len(), peer, tag, false));
        }
        self.complete(place, messages);
    }

    fn transfer(&self, place: &Place, buffer: *mut f32, len: usize, peer: usize, tag: c_int, arrives: bool) -> Message {
        let mpi = self.mpi;
        let start = if arrives { mpi.irecv } else { mpi.isend };
        let mut request: Handle = 0;
        let Ok(count) = c_int::try_from(len) else { self.end(place, &format!("{len} values in one message")) };
        // SAFETY: the buffer holds `count` values and stays borrowed by `exchange` until the request is complete; on any
        // failure the process ends, so that MPI never writes to freed memory.
        let code = unsafe { start(buffer.cast(), count, mpi.float, peer as c_int, tag, mpi.world, &mut request) };
        if let Err(error) = mpi.check(code, "message") {
            self.end(place, &format!("{error}, with rank {peer}"));
        }
        Message { request, peer, arrives }
    }

    fn complete(&self, place: &Place, mut messages: Vec<Message>) {
        let started = Instant::now();
        let mut pause = Duration::from_micros(20);
        loop {
            messages.retain_mut(|message| {
                let mut done: c_int = 0;
                // SAFETY: the request was started by `transfer` and is not complete.
                let code = unsafe { (self.mpi.test)(&mut message.request, &mut done, self.mpi.status_ignore) };
                if let Err(error) = self.mpi.check(code, "message") {
                    self.end(place, &format!("{error}, with rank {}", message.peer));
                }
                done == 0
            });
            if messages.is_empty() {
                return;
            }
            if started.elapsed() > self.timeout {
                let silent = |arrives: bool| {
                    let peers = messages.iter().filter(|message| message.arrives == arrives);
                    peers.map(|message| message.peer).collect::<Vec<_>>()
                };
                let cause = format!(
                    "did not complete within {} s: nothing came from ranks {:?}, nothing was taken by ranks {:?}: such a rank \
                     was killed, hangs or is disconnected (--collective_timeout_seconds sets the limit)",
                    self.timeout.as_secs(),
                    silent(true),
                    silent(false)
                );
                self.end(place, &cause);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_micros(200));
        }
    }

    fn end(&self, place: &Place, cause: &str) -> ! {
        tracing::error!("rank {} of {}: {place}: {cause}; the run is ended", self.rank, self.world_size);
        abort_all()
    }
}

impl Collective for MpiRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn reduce_scatter(
        &mut self,
        place: &Place,
        parts: &[usize],
        flat: Vec<f32>,
        own: &mut Vec<f32>,
    ) -> Result<Vec<f32>> {
        let (rank, world_size) = (self.rank, self.world_size);
        let mut start = 0;
        for (&part, (of_flat, of_own)) in parts.iter().zip(owned_slices(parts, world_size, rank)) {
            let outgoing: Vec<&[f32]> = flat[start..start + part * world_size].chunks_exact(part).collect();
            start += part * world_size;
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.resize(scratch.len().max(part * world_size), 0.0);
            let mut incoming: Vec<&mut [f32]> = scratch.chunks_exact_mut(part).take(world_size).collect();
            self.exchange(place, &outgoing, &mut incoming);
            let mut sources: Vec<&[f32]> = incoming.into_iter().map(|part| &*part).collect();
            sources[rank] = &flat[of_flat];
            add_in_rank_order(&mut own[of_own], &sources);
            self.scratch = scratch;
        }
        Ok(flat)
    }

    fn all_gather(&mut self, place: &Place, parts: &[usize], own: Vec<f32>, full: &mut Vec<f32>) -> Result<Vec<f32>> {
        let (rank, world_size) = (self.rank, self.world_size);
        let mut rest = full.as_mut_slice();
        for (&part, (_, of_own)) in parts.iter().zip(owned_slices(parts, world_size, rank)) {
            let (bucket, after) = std::mem::take(&mut rest).split_at_mut(part * world_size);
            rest = after;
            let mut incoming: Vec<&mut [f32]> = bucket.chunks_exact_mut(part).collect();
            incoming[rank].copy_from_slice(&own[of_own.clone()]);
            let outgoing = vec![&own[of_own]; world_size];
            self.exchange(place, &outgoing, &mut incoming);
        }
        Ok(own)
    }

    fn host(&mut self) -> &mut dyn Collective {
        self
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn roll_call(&self) -> Box<dyn RollCall> {
        Box::new(MpiRollCall::new(self.mpi, (self.rank, self.world_size), self.timeout, Arc::clone(&self.note)))
    }
}

/// Version and file of the MPI library that ranks would use. Starts no MPI.
///
/// # Errors
/// No library can be loaded.
pub fn describe() -> Result<String> {
    let mpi = Mpi::load()?;
    Ok(format!("{} ({})", mpi.version(), mpi.file))
}

/// Ends MPI after the last exchange; nothing, if it was never started.
///
/// # Errors
/// What MPI says.
pub fn finalize() -> Result<()> {
    let Some(mpi) = MPI.get() else { return Ok(()) };
    // SAFETY: no request is pending: every exchange runs to completion, and the exchanging thread has ended.
    mpi.check(unsafe { (mpi.finalize)() }, "MPI_Finalize")
}

/// Without this a rank that panics leaves the others waiting until their deadline.
fn abort_on_panic(rank: c_int) {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tracing::error!("rank {rank} panicked; all ranks are ended");
        default_hook(info);
        abort_all();
    }));
}

/// Ends every process of the job, if MPI is running; else this one.
pub fn abort_all() -> ! {
    const FAILED: c_int = 1;
    // MPI_Abort itself may hang on a dead link.
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_secs(5));
        std::process::abort();
    });
    // A launcher that is told to abort drops what its processes have just written.
    std::thread::sleep(Duration::from_millis(200));
    if let Some(mpi) = MPI.get() {
        // SAFETY: MPI_Abort may be called from any thread at any time after initialisation.
        unsafe { (mpi.abort)(mpi.world, FAILED) };
    }
    std::process::abort()
}
