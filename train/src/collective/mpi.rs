//! Ranks as processes under MPI, which is found at run time: nothing is needed to build, any cluster's own MPI serves.

use super::{Collective, Place};
use anyhow::{Context, Result, bail};
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

type Exchange =
    unsafe extern "C" fn(*const c_void, c_int, Handle, *mut c_void, c_int, Handle, Handle, *mut Handle) -> c_int;

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
    ialltoall: Exchange,
    iallgather: Exchange,
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
        let chosen = std::env::var("LLAVA_MPI_LIBRARY").ok();
        let names: Vec<&str> = chosen.as_deref().map_or_else(|| LIBRARIES.to_vec(), |name| vec![name]);
        for name in names {
            // SAFETY: loading an MPI library runs its initializers, which is what MPI programs do at start.
            match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => return Self::from_library(library, name),
                Err(error) => tried.push(format!("  {name}: {error}")),
            }
        }
        bail!(
            "the launcher started several processes, but no MPI library could be loaded:\n{}\nset LD_LIBRARY_PATH to the \
             folder of the launcher's MPI, or LLAVA_MPI_LIBRARY to its file",
            tried.join("\n")
        )
    }

    fn from_library(library: Library, file: &str) -> Result<Self> {
        let abi = if address(&library, "ompi_mpi_comm_world").is_ok() {
            Abi::OpenMpi
        } else if file.contains("mpi_abi") {
            Abi::Mpi5
        } else {
            Abi::Mpich
        };
        // Values from each ABI's mpi.h; Open MPI's predefined handles are addresses of its objects.
        let (world, float, errors_return, status_ignore, thread_multiple) = match abi {
            Abi::OpenMpi => (
                address(&library, "ompi_mpi_comm_world")?,
                address(&library, "ompi_mpi_float")?,
                address(&library, "ompi_mpi_errors_return")?,
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
                init_thread: function(&library, "MPI_Init_thread")?,
                finalize: function(&library, "MPI_Finalize")?,
                comm_rank: function(&library, "MPI_Comm_rank")?,
                comm_size: function(&library, "MPI_Comm_size")?,
                set_errhandler: function(&library, "MPI_Comm_set_errhandler")?,
                abort: function(&library, "MPI_Abort")?,
                ialltoall: function(&library, "MPI_Ialltoall")?,
                iallgather: function(&library, "MPI_Iallgather")?,
                test: function(&library, "MPI_Test")?,
                error_string: function(&library, "MPI_Error_string")?,
                library_version: function(&library, "MPI_Get_library_version")?,
                thread_multiple,
                file: file.to_string(),
                _library: library,
            })
        }
    }

    fn check(&self, code: c_int, what: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let text = self.text(1024, |buffer, len| {
            // SAFETY: MPI writes at most MPI_MAX_ERROR_STRING (≤ 1024) bytes and their number.
            unsafe { (self.error_string)(code, buffer, len) }
        });
        bail!("{what}: MPI error {code}: {text}")
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

/// Address of a symbol.
fn address(library: &Library, name: &str) -> Result<Handle> {
    // SAFETY: only the address is taken.
    let symbol: Symbol<*mut c_void> =
        unsafe { library.get(name.as_bytes()) }.with_context(|| format!("MPI has no {name}"))?;
    Ok(symbol.into_raw() as Handle)
}

/// A function of the library.
///
/// # Safety
/// `F` must be the function's type.
unsafe fn function<F: Copy>(library: &Library, name: &str) -> Result<F> {
    // SAFETY: promised by the caller.
    let symbol: Symbol<F> = unsafe { library.get(name.as_bytes()) }.with_context(|| format!("MPI has no {name}"))?;
    Ok(*symbol)
}

/// This process as a rank.
pub struct MpiRank {
    mpi: &'static Mpi,
    rank: usize,
    world_size: usize,
    timeout: Duration,
}

impl MpiRank {
    /// Loads and initialises MPI; from here on a panic anywhere in the process ends all ranks.
    ///
    /// # Errors
    /// No library can be loaded or initialised, or it does not allow calls from a thread other than the first.
    pub fn start(timeout: Duration) -> Result<Self> {
        if MPI.get().is_none() {
            let _ = MPI.set(Mpi::load()?);
        }
        let mpi = MPI.get().context("MPI is loaded")?;
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
            bail!("{}: thread support {provided}, expected MPI_THREAD_MULTIPLE ({})", mpi.file, mpi.thread_multiple);
        }
        abort_on_panic(rank);
        if rank == 0 {
            eprintln!("MPI: {} ({}), {size} ranks", mpi.version(), mpi.file);
        }
        Ok(Self { mpi, rank: rank as usize, world_size: size as usize, timeout })
    }

    /// Starts a non-blocking exchange and polls it: the thread sleeps between polls instead of burning a core that
    /// computes, and a peer that is gone is noticed at the deadline.
    fn exchange(
        &self,
        place: &Place,
        exchange: Exchange,
        send: &[f32],
        part: usize,
        receive: &mut [f32],
    ) -> Result<()> {
        let part = c_int::try_from(part).with_context(|| format!("{place}: {part} values in one operation"))?;
        let mpi = self.mpi;
        let (mut request, mut done): (Handle, c_int) = (0, 0);
        let (from, to) = (send.as_ptr().cast(), receive.as_mut_ptr().cast());
        // SAFETY: both buffers hold `world_size` (or one) parts and stay borrowed until the request is complete; when the
        // deadline passes the process ends, so that MPI never writes to freed memory.
        let code = unsafe { exchange(from, part, mpi.float, to, part, mpi.float, mpi.world, &mut request) };
        mpi.check(code, &place.to_string())?;
        let started = Instant::now();
        let mut pause = Duration::from_micros(20);
        loop {
            // SAFETY: the request is the one just started.
            mpi.check(unsafe { (mpi.test)(&mut request, &mut done, mpi.status_ignore) }, &place.to_string())?;
            if done != 0 {
                return Ok(());
            }
            if started.elapsed() > self.timeout {
                self.end_at_deadline(place, size_of_val(receive));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_micros(500));
        }
    }

    fn end_at_deadline(&self, place: &Place, bytes: usize) -> ! {
        eprintln!(
            "error: rank {} of {}: {place} ({bytes} bytes) did not complete within {} s: another rank is lost or its link is \
             cut; the run is ended (--collective_timeout_seconds sets the limit)",
            self.rank,
            self.world_size,
            self.timeout.as_secs()
        );
        abort_all()
    }

    /// Ends MPI after the last operation.
    pub fn finish(self) -> Result<()> {
        // SAFETY: no request is pending: every exchange above runs to completion.
        self.mpi.check(unsafe { (self.mpi.finalize)() }, "MPI_Finalize")
    }
}

impl Collective for MpiRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_to_all(&mut self, place: &Place, send: Vec<f32>, receive: &mut [f32]) -> Result<Vec<f32>> {
        let part = send.len() / self.world_size;
        self.exchange(place, self.mpi.ialltoall, &send, part, receive)?;
        Ok(send)
    }

    fn all_gather(&mut self, place: &Place, own: Vec<f32>, full: &mut [f32]) -> Result<Vec<f32>> {
        self.exchange(place, self.mpi.iallgather, &own, own.len(), full)?;
        Ok(own)
    }
}

/// Without this a rank that panics leaves the others waiting until their deadline.
fn abort_on_panic(rank: c_int) {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        eprintln!("error: rank {rank} panicked; all ranks are ended");
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
    if let Some(mpi) = MPI.get() {
        // SAFETY: MPI_Abort may be called from any thread at any time after initialisation.
        unsafe { (mpi.abort)(mpi.world, FAILED) };
    }
    std::process::abort()
}
