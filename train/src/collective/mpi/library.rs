//! The MPI library: how it is found, and what is taken of it.

use super::super::{CollectiveError, Result};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::null_mut;
use std::sync::OnceLock;

/// A handle is as wide as a pointer in Open MPI and the MPI-5 ABI; MPICH's ABI reads the low 32 bits.
pub(super) type Handle = usize;

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

/// The functions and constants that we use.
pub(super) struct Mpi {
    pub(super) world: Handle,
    pub(super) float: Handle,
    pub(super) errors_return: Handle,
    pub(super) status_ignore: *mut c_void,
    pub(super) init_thread: unsafe extern "C" fn(*mut c_int, *mut *mut *mut c_char, c_int, *mut c_int) -> c_int,
    pub(super) finalize: unsafe extern "C" fn() -> c_int,
    pub(super) comm_rank: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    pub(super) comm_size: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    pub(super) set_errhandler: unsafe extern "C" fn(Handle, Handle) -> c_int,
    pub(super) abort: unsafe extern "C" fn(Handle, c_int) -> c_int,
    pub(super) isend: Transfer,
    pub(super) irecv: Transfer,
    pub(super) iprobe: unsafe extern "C" fn(c_int, c_int, Handle, *mut c_int, *mut c_void) -> c_int,
    pub(super) recv: unsafe extern "C" fn(*mut c_void, c_int, Handle, c_int, c_int, Handle, *mut c_void) -> c_int,
    pub(super) test: unsafe extern "C" fn(*mut Handle, *mut c_int, *mut c_void) -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut c_char, *mut c_int) -> c_int,
    library_version: unsafe extern "C" fn(*mut c_char, *mut c_int) -> c_int,
    /// Highest thread support, as this ABI numbers it.
    pub(super) thread_multiple: c_int,
    pub(super) file: String,
    /// Keeps the code mapped.
    _library: Library,
}

// SAFETY: the table is constant after loading; the functions themselves are called as MPI_THREAD_MULTIPLE allows.
unsafe impl Send for Mpi {}
// SAFETY: as above.
unsafe impl Sync for Mpi {}

/// One MPI per process, reachable from the panic hook.
pub(super) static MPI: OnceLock<Mpi> = OnceLock::new();

impl Mpi {
    pub(super) fn load() -> Result<Self> {
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
                iprobe: function(&library, "MPI_Iprobe").map_err(missing)?,
                recv: function(&library, "MPI_Recv").map_err(missing)?,
                test: function(&library, "MPI_Test").map_err(missing)?,
                error_string: function(&library, "MPI_Error_string").map_err(missing)?,
                library_version: function(&library, "MPI_Get_library_version").map_err(missing)?,
                thread_multiple,
                file: file.to_string(),
                _library: library,
            })
        }
    }

    pub(super) fn check(&self, code: c_int, function: &'static str) -> Result<()> {
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
    pub(super) fn version(&self) -> String {
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
