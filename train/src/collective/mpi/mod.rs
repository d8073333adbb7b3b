//! Ranks as processes under MPI. The library is loaded at run time: building needs none, and any cluster's own MPI is used.

mod by_hosts;
mod library;
mod roll_call;

use super::guard::{self, Note};
use super::hosts::Hosts;
use super::roll_call::RollCall;
use super::{Collective, CollectiveError, Place, Result, add_in_order, all_gather_texts, owned_slices, require_lens};
use by_hosts::ByHosts;
use library::{Handle, MPI, Mpi};
use roll_call::MpiRollCall;
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tags of exchanges: every MPI has 0 to 32,767, of which the last two are those of roll calls.
const TAGS: u64 = (1 << 15) - 2;
/// Tag of roll calls of exchanges through another library.
const OTHERS_ROLL_CALLS: c_int = TAGS as c_int;
/// Tag of roll calls of exchanges between hosts.
const OWN_ROLL_CALLS: c_int = TAGS as c_int + 1;

/// This process as a rank.
pub struct MpiRank {
    mpi: &'static Mpi,
    rank: usize,
    world_size: usize,
    timeout: Duration,
    /// Rounds of messages so far: every rank counts the same, so it serves as tag.
    sequence: u64,
    /// See [`by_hosts`]; none, where every rank exchanges with every other one.
    by_hosts: Option<ByHosts>,
    bytes_sent: u64,
    /// What other ranks sent, and what is sent in another order than it lies, kept from one exchange to the next.
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
        let (sequence, by_hosts, bytes_sent, scratch) = (0, None, 0, Vec::new());
        Ok(Self { mpi, rank, world_size, timeout, sequence, by_hosts, bytes_sent, scratch, note })
    }

    /// From here on ranks exchange within their hosts first, where that spares messages between hosts. Every rank calls this.
    /// Finds out which ranks share a host. With `ranks_per_host`, each so many consecutive ranks count as one.
    ///
    /// # Errors
    /// Ranks were given different numbers.
    pub fn find_hosts(&mut self, ranks_per_host: Option<usize>) -> Result<()> {
        // Fewer are on one host, or one of them is alone on each: nothing to spare.
        if self.world_size < 3 {
            return Ok(());
        }
        let given = ranks_per_host.map(|number| number.to_string()).unwrap_or_default();
        let all = all_gather_texts(self, "hosts", &[guard::machine(), given])?;
        let ranks: Vec<usize> = (0..all.len()).filter(|&rank| all[rank].get(1) != all[0].get(1)).collect();
        if !ranks.is_empty() {
            return Err(CollectiveError::OtherHosts { ranks });
        }
        let hosts = match ranks_per_host {
            Some(number) => Hosts::of_size(self.world_size, number),
            None => Hosts::named(&all),
        };
        if !hosts.are_direct() {
            if self.rank == 0 {
                tracing::info!("exchanges: within each host first, then between {hosts}");
            }
            let ranks = (self.rank, self.world_size);
            let roll_call = MpiRollCall::new(self.mpi, OWN_ROLL_CALLS, ranks, self.timeout, Arc::clone(&self.note));
            self.by_hosts = Some(ByHosts::new(&hosts, self.rank, roll_call));
        }
        Ok(())
    }

    /// A round of messages: sends to and receives from other ranks what is not empty. Non-blocking messages are polled: the
    /// thread sleeps between polls instead of burning a core that computes, and a peer that is gone is noticed at the
    /// deadline. Whatever goes wrong ends the job here: MPI may still use the buffers.
    fn exchange(&mut self, place: &Place, mut outgoing: Vec<(usize, &[f32])>, incoming: Vec<(usize, &mut [f32])>) {
        let (rank, world_size) = (self.rank, self.world_size);
        let tag = (self.sequence % TAGS) as c_int;
        self.sequence += 1;
        let mut messages = Vec::with_capacity(outgoing.len() + incoming.len());
        for (peer, buffer) in incoming.into_iter().filter(|(peer, buffer)| *peer != rank && !buffer.is_empty()) {
            let to = buffer.as_mut_ptr();
            messages.push(self.transfer(place, to, buffer.len(), peer, tag, true));
        }
        // Each rank begins with the next one, so that not all send to the same.
        outgoing.sort_by_key(|(peer, _)| (peer + world_size - rank) % world_size);
        for (peer, buffer) in outgoing.into_iter().filter(|(peer, buffer)| *peer != rank && !buffer.is_empty()) {
            self.bytes_sent += size_of_val(buffer) as u64;
            messages.push(self.transfer(place, buffer.as_ptr().cast_mut(), buffer.len(), peer, tag, false));
        }
        self.complete(place, messages);
    }

    /// Adds to `own` the sum of what every rank sends of `bucket`, directly.
    fn reduce_scatter_bucket(&mut self, place: &Place, bucket: &[f32], own: &mut [f32]) {
        let (rank, part) = (self.rank, own.len());
        let mut scratch = self.take_scratch(bucket.len());
        let mut incoming: Vec<&mut [f32]> = scratch.chunks_exact_mut(part).take(self.world_size).collect();
        let outgoing = bucket.chunks_exact(part).enumerate().collect();
        self.exchange(place, outgoing, incoming.iter_mut().map(|part| &mut **part).enumerate().collect());
        let mut sources: Vec<&[f32]> = incoming.into_iter().map(|part| &*part).collect();
        sources[rank] = &bucket[rank * part..][..part];
        add_in_order(own, &sources);
        self.scratch = scratch;
    }

    /// Puts together `bucket` of what every rank sends, directly.
    fn all_gather_bucket(&mut self, place: &Place, own: &[f32], bucket: &mut [f32]) {
        let mut incoming: Vec<&mut [f32]> = bucket.chunks_exact_mut(own.len()).collect();
        incoming[self.rank].copy_from_slice(own);
        let outgoing = (0..self.world_size).map(|peer| (peer, own)).collect();
        self.exchange(place, outgoing, incoming.into_iter().enumerate().collect());
    }

    /// Room for `len` values at least; to be put back.
    fn take_scratch(&mut self, len: usize) -> Vec<f32> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(scratch.len().max(len), 0.0);
        scratch
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

    fn complete(&mut self, place: &Place, mut messages: Vec<Message>) {
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
            if let Some(Err(error)) = self.by_hosts.as_mut().map(|by_hosts| by_hosts.waits(place, started)) {
                self.end(place, &error.to_string());
            }
            if started.elapsed() > self.timeout {
                let silent = |arrives: bool| {
                    let peers = messages.iter().filter(|message| message.arrives == arrives);
                    peers.map(|message| message.peer).collect::<Vec<_>>()
                };
                // Between hosts a rank may wait for one that itself waits for another.
                let absent = self.by_hosts.as_mut().map(ByHosts::absent).unwrap_or_default();
                let who = match absent.is_empty() {
                    true => format!(
                        "nothing came from ranks {:?}, nothing was taken by ranks {:?}",
                        silent(true),
                        silent(false)
                    ),
                    false => format!("ranks {absent:?} did not come"),
                };
                let limit = self.timeout.as_secs();
                let cause = format!(
                    "did not complete within {limit} s: {who}: such a rank was killed, hangs or is disconnected \
                     (--collective_timeout_seconds sets the limit)"
                );
                self.end(place, &cause);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_micros(200));
        }
    }

    fn begin(&mut self, place: &Place) {
        let (rank, world_size) = (self.rank, self.world_size);
        match &mut self.by_hosts {
            Some(by_hosts) => by_hosts.begins(place),
            None => self.note.write(format_args!("rank {rank} of {world_size}, whose last exchange was {place}")),
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
        require_lens(place, parts, self.world_size, [flat.len(), own.len()])?;
        self.begin(place);
        let mut start = 0;
        for (&part, (_, of_own)) in parts.iter().zip(owned_slices(parts, self.world_size, self.rank)) {
            let bucket = &flat[start..start + part * self.world_size];
            start += bucket.len();
            match self.by_hosts {
                Some(_) => self.reduce_scatter_by_hosts(place, bucket, &mut own[of_own]),
                None => self.reduce_scatter_bucket(place, bucket, &mut own[of_own]),
            }
        }
        Ok(flat)
    }

    fn all_gather(&mut self, place: &Place, parts: &[usize], own: Vec<f32>, full: &mut Vec<f32>) -> Result<Vec<f32>> {
        require_lens(place, parts, self.world_size, [full.len(), own.len()])?;
        self.begin(place);
        let mut rest = full.as_mut_slice();
        for (&part, (_, of_own)) in parts.iter().zip(owned_slices(parts, self.world_size, self.rank)) {
            let (bucket, after) = std::mem::take(&mut rest).split_at_mut(part * self.world_size);
            rest = after;
            match self.by_hosts {
                Some(_) => self.all_gather_by_hosts(place, &own[of_own], bucket),
                None => self.all_gather_bucket(place, &own[of_own], bucket),
            }
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
        let ranks = (self.rank, self.world_size);
        Box::new(MpiRollCall::new(self.mpi, OTHERS_ROLL_CALLS, ranks, self.timeout, Arc::clone(&self.note)))
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
