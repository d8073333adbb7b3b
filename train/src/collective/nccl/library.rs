//! NCCL's library: loaded at run time, as MPI's.

use super::super::{CollectiveError, Result};
use kernels::cuda::Toolkit;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// Names another library than the one that is found.
pub const VARIABLE: &str = "LLAVA_NCCL_LIBRARY";
/// The oldest version whose calls return at once, which a deadline needs.
const LEAST: c_int = 21_400;
/// What helps where there is none.
const REMEDY: &str = "pip install nvidia-nccl-cu13 (in the active environment), or set LLAVA_NCCL_LIBRARY to its file";

/// `ncclResult_t`.
pub(super) const SUCCESS: c_int = 0;
pub(super) const IN_PROGRESS: c_int = 7;
/// `ncclFloat32`, `ncclBfloat16` and `ncclSum`.
pub(super) const FLOAT32: c_int = 7;
pub(super) const BFLOAT16: c_int = 9;
pub(super) const SUM: c_int = 0;

/// `ncclComm_t`.
pub(super) type Handle = *mut c_void;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub [u8; 128]);

/// The beginning of `ncclConfig_t`, all that there was of it in 2.14: NCCL takes as much as `size` says.
#[repr(C)]
pub(super) struct CommConfig {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

impl CommConfig {
    /// Calls return before they are carried out.
    pub fn non_blocking() -> Self {
        Self { size: size_of::<Self>(), magic: 0xcafe_beef, version: LEAST as c_uint, blocking: 0 }
    }
}

/// Buffer to send, buffer to receive, values, type, operation, communicator, stream.
type ReduceScatter =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
type AllGather = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> c_int;

/// The functions that are used, as nccl.h declares them since 2.14.
pub(super) struct Nccl {
    pub get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    pub init_rank: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int, *mut CommConfig) -> c_int,
    pub reduce_scatter: ReduceScatter,
    pub all_gather: AllGather,
    pub group_start: unsafe extern "C" fn() -> c_int,
    pub group_end: unsafe extern "C" fn() -> c_int,
    pub async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    pub finalize: unsafe extern "C" fn(Handle) -> c_int,
    pub destroy: unsafe extern "C" fn(Handle) -> c_int,
    pub abort: unsafe extern "C" fn(Handle) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Handle) -> *const c_char,
    /// The version as NCCL numbers it: 22304 is 2.23.4.
    pub version: c_int,
    /// Takes addresses of the host's memory: the stand-in of the tests.
    pub is_stand_in: bool,
    /// The file.
    pub file: String,
    /// Keeps the code mapped.
    _library: Library,
}

impl Nccl {
    /// The library, loaded once for the rest of the process.
    ///
    /// # Errors
    /// [`CollectiveError::NoNccl`]: none can be loaded, or it is too old.
    pub fn get() -> Result<&'static Self> {
        static NCCL: OnceLock<Result<Nccl>> = OnceLock::new();
        NCCL.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self> {
        let (file, looked) = match std::env::var(VARIABLE) {
            Ok(chosen) => (chosen, format!("{VARIABLE} alone")),
            Err(_) => {
                let toolkit = Toolkit::find();
                let looked = format!("{}, and where the system finds libraries", toolkit.looked());
                (toolkit.nccl().display().to_string(), looked)
            }
        };
        // SAFETY: NCCL's initializers do nothing that other code notices.
        let library = unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
            let error = anyhow::Error::from(error);
            CollectiveError::NoNccl {
                reason: format!("no NCCL: {file} could not be loaded ({error:#}); looked in {looked}; {REMEDY}"),
            }
        })?;
        Self::of(library, file)
    }

    fn of(library: Library, file: String) -> Result<Self> {
        let missing = |name: &str| CollectiveError::NoNccl {
            reason: format!("{file}: has no {name}, which NCCL {} has; {REMEDY}", version(LEAST)),
        };
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's in nccl.h.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| missing($name))?
            };
        }
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = function!("ncclGetVersion");
        let mut found = 0;
        // SAFETY: writes one int.
        let status = unsafe { get_version(&mut found) };
        if status != SUCCESS || found < LEAST {
            let reason = format!("{file}: NCCL {}, expected {} or later; {REMEDY}", version(found), version(LEAST));
            return Err(CollectiveError::NoNccl { reason });
        }
        // SAFETY: only whether there is such a symbol is asked.
        let is_stand_in = unsafe { library.get::<*const c_int>("llava_stand_in_nccl".as_bytes()) }.is_ok();
        Ok(Self {
            get_unique_id: function!("ncclGetUniqueId"),
            init_rank: function!("ncclCommInitRankConfig"),
            reduce_scatter: function!("ncclReduceScatter"),
            all_gather: function!("ncclAllGather"),
            group_start: function!("ncclGroupStart"),
            group_end: function!("ncclGroupEnd"),
            async_error: function!("ncclCommGetAsyncError"),
            finalize: function!("ncclCommFinalize"),
            destroy: function!("ncclCommDestroy"),
            abort: function!("ncclCommAbort"),
            error_string: function!("ncclGetErrorString"),
            last_error: function!("ncclGetLastError"),
            version: found,
            is_stand_in,
            file,
            _library: library,
        })
    }

    /// NCCL's text for a code, and for the last error of a communicator.
    pub fn text(&self, code: c_int, communicator: Handle) -> String {
        // SAFETY: both give texts that end with a zero and are not freed while they are read here.
        let texts = unsafe { [(self.error_string)(code), (self.last_error)(communicator)] };
        let texts = texts.into_iter().filter(|text| !text.is_null());
        // SAFETY: as above.
        let texts = texts.map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_string());
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
    }
}

/// A version as NCCL numbers it: 2804 is `2.8.4`, 22304 is `2.23.4`.
pub(super) fn version(code: c_int) -> String {
    let (major, rest) = if code < 10_000 { (code / 1000, code % 1000) } else { (code / 10_000, code % 10_000) };
    format!("{major}.{}.{}", rest / 100, rest % 100)
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_read_as_nccl_numbers_them() {
        for (code, text) in [(2804, "2.8.4"), (21_400, "2.14.0"), (22_304, "2.23.4"), (0, "0.0.0")] {
            assert_eq!(version(code), text);
        }
    }
}
