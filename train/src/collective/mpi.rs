//! Ranks as processes under MPI. The library is loaded at run time: building needs none, and any cluster's own MPI is used.

use super::guard::Note;
use super::{Collective, CollectiveError, Place, Result, add_in_rank_order, owned_slices};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A handle is as wide as a pointer in Open MPI and the MPI-5 ABI; MPICH's ABI reads the low 32 bits.
type Handle = usize;

/// File names by which an MPI library is looked for, and the ABI that each has.
const LIBRARIES: [&str; 4] = ["libmpi_abi.so.1", "libmpi.so.40", "libmpi.so.12", "libmpich.so.12"];

/// The three families of binary interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Abi {
    OpenMpi,
    Mpich,
    Mpi5,
}

/// `MPI_Isend` (which only reads the buffer) and `MPI_Irecv`: buffer, count, datatype, rank, tag, communicator, request.
type Transfer = unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, c_int, Handle, *mut Handle) -> c_int;

/// Tags that every MPI has: 0 to 32,767.
const TAGS: u64 = 1 << 15;

/// The functions and constants that we use.
struct Mpi {
    world: Handle,
    float: Handle,
    errors_return: Handle,
    status_ignore: *mut c_void,
    init_thread: unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
    comm_rank: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    comm_size: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    set_errhandler: unsafe extern "C" fn(Handle, Handle) -> c_int,
    abort: unsafe extern "C" fn(Handle, c_int) -> c_int,
    isend: Transfer,
    irecv: Transfer,
    test: unsafe extern "C" fn(*mut Handle, *mut c_int, *mut c_void) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
    library_version: unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int,
    /// Highest thread support, as this ABI numbers it.
    thread_multiple: c_int,
    file: String,
    /// Keeps the code mapped.
    _library: Library,
}

// SAFETY: the table is constant after loading; the functions themselves are called as MPI_THREAD_MULTIPLE allows.
unsafe impl Send for Mpi {}
// SAFETY: as above.
unsafe impl Sync for Mpi {}

/// One MPI per process, reachable from the panic hook.
static MPI: OnceLock<Mpi> = OnceLock::new();

impl Mpi {
    fn load() -> Result<Self> {
        let mut tried = Vec::new();
        let candidates = match std::env::var("LLAVA_MPI_LIBRARY") {
            Ok(chosen) => vec![chosen],
            Err(_) => candidates(|name| std::env::var_os(name).is_some()),
        };
        for name in candidates {
            // SAFETY: loading an MPI library runs its initializers, which is what MPI programs do at start.
            match unsafe { Library::open(Some(&name), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => return Self::from_library(library, &name),
                Err(error) => tried.push((name, format!("{:#}", anyhow::Error::from(error)))),
            }
        }
        Err(CollectiveError::NoMpi { tried })
    }

    fn from_library(library: Library, file: &str) -> Result<Self> {
        let missing = |symbol| CollectiveError::NoMpiSymbol { file: file.to_string(), symbol };
        let address = |symbol| address(&library, symbol).ok_or_else(|| missing(symbol));
        let abi = if address("ompi_mpi_comm_world").is_ok() {
            Abi::OpenMpi
        } else if file.contains("libmpi_abi") {
            Abi::Mpi5
        } else {
            Abi::Mpich
        };
        // Values from each ABI's mpi.h; Open MPI's predefined handles are addresses of its objects.
        let (world, float, errors_return, status_ignore, thread_multiple) = match abi {
            Abi::OpenMpi => (
                address("ompi_mpi_comm_world")?,
                address("ompi_mpi_float")?,
                address("ompi_mpi_errors_return")?,
                null_mut(),
                3,
            ),
            Abi::Mpich => (0x4400_0000, 0x4c00_040a, 0x5400_0001, std::ptr::dangling_mut::<c_void>(), 3),
            Abi::Mpi5 => (0x101, 0x210, 0x143, null_mut(), 4096),
        };
        // SAFETY: each symbol is a function of the MPI standard with the signature of the field it goes to.
        unsafe {
            Ok(Self {
                world,
                float,
                errors_return,
                status_ignore,
                init_thread: function(&library, "MPI_Init_thread").map_err(missing)?,
                finalize: function(&library, "MPI_Finalize").map_err(missing)?,
                comm_rank: function(&library, "MPI_Comm_rank").map_err(missing)?,
                comm_size: function(&library, "MPI_Comm_size").map_err(missing)?,
                set_errhandler: function(&library, "MPI_Comm_set_errhandler").map_err(missing)?,
                abort: function(&library, "MPI_Abort").map_err(missing)?,
                isend: function(&library, "MPI_Isend").map_err(missing)?,
                irecv: function(&library, "MPI_Irecv").map_err(missing)?,
                test: function(&library, "MPI_Test").map_err(missing)?,
                error_string: function(&library, "MPI_Error_string").map_err(missing)?,
                library_version: function(&library, "MPI_Get_library_version").map_err(missing)?,
                thread_multiple,
                file: file.to_string(),
                _library: library,
            })
        }
    }

    fn check(&self, code: c_int, function: &'static str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let text = self.text(1024, |buffer, len| {
            // SAFETY: MPI writes at most MPI_MAX_ERROR_STRING (≤ 1024) bytes and their number.
            unsafe { (self.error_string)(code, buffer, len) }
        });
        Err(CollectiveError::Mpi { function, code, text })
    }

    /// Text that MPI writes into a buffer.
    fn text(&self, capacity: usize, write: impl FnOnce(*mut c_char, *mut c_int) -> c_int) -> String {
        let mut buffer = vec![0 as c_char; capacity];
        let mut len = 0;
        write(buffer.as_mut_ptr(), &mut len);
        // SAFETY: the buffer was zeroed and is longer than what MPI writes, so it ends with a zero.
        unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().trim().to_string()
    }

    /// The library's own words about its version, first line.
    fn version(&self) -> String {
        // SAFETY: MPI_MAX_LIBRARY_VERSION_STRING is at most 8192 in every library.
        let text = self.text(1 << 16, |buffer, len| unsafe { (self.library_version)(buffer, len) });
        text.lines().next().unwrap_or_default().trim().to_string()
    }
}

/// Where an MPI is looked for, in order; `set` tells whether an environment variable is set. Under a launcher that speaks
/// MPICH's protocol alone, Open MPI's library would see a single process, so it comes last.
fn candidates(set: impl Fn(&str) -> bool) -> Vec<String> {
    let mut files: Vec<String> = LIBRARIES.map(String::from).into_iter().chain(beside_launchers()).collect();
    if set("PMI_RANK") && !set("PMIX_RANK") {
        files.sort_by_key(|file| file.ends_with("libmpi.so.40"));
    }
    files
}

/// Libraries in the `lib` beside the `bin` of a launcher on the path: an MPI outside the system's folders.
fn beside_launchers() -> Vec<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let bins = std::env::split_paths(&path).filter(|bin| bin.join("mpiexec").exists());
    let files = bins.flat_map(|bin| LIBRARIES.map(|name| bin.join("../lib").join(name)));
    files.filter(|file| file.exists()).map(|file| file.display().to_string()).collect()
}

/// Address of a symbol, if the library has it.
fn address(library: &Library, name: &str) -> Option<Handle> {
    // SAFETY: only the address is taken.
    let symbol: Symbol<*mut c_void> = unsafe { library.get(name.as_bytes()) }.ok()?;
    Some(symbol.into_raw() as Handle)
}

/// A function of the library, or the name of what it has not.
///
/// # Safety
/// `F` must be the function's type.
unsafe fn function<F: Copy>(library: &Library, name: &'static str) -> Result<F, &'static str> {
    // SAFETY: promised by the caller.
    let symbol: Result<Symbol<F>, _> = unsafe { library.get(name.as_bytes()) };
    symbol.map(|symbol| *symbol).map_err(|_| name)
}

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
    note: Note,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launchers_family_of_libraries_is_tried_first() {
        let position = |files: &[String], name: &str| files.iter().position(|file| file == name).expect("a candidate");
        let mpich = candidates(|name| name == "PMI_RANK");
        assert!(position(&mpich, "libmpi.so.12") < position(&mpich, "libmpi.so.40"), "{mpich:?}");
        for launcher in [&["PMIX_RANK", "PMI_RANK"][..], &["PMIX_RANK"], &[]] {
            let files = candidates(|name| launcher.contains(&name));
            assert!(position(&files, "libmpi.so.40") < position(&files, "libmpi.so.12"), "{launcher:?}: {files:?}");
        }
    }
}
