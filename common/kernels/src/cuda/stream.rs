//! A GPU stream for NCCL. Events of the whole context make its work wait for the kernels, on whichever stream of cubecl's they run.

use libloading::Library;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, OnceLock};

type Pointer = *mut c_void;

/// The driver's functions, as cuda.h declares them since CUDA 12.5.
struct Calls {
    device_get: unsafe extern "C" fn(*mut c_int, c_int) -> c_int,
    retain: unsafe extern "C" fn(*mut Pointer, c_int) -> c_int,
    set_current: unsafe extern "C" fn(Pointer) -> c_int,
    record_context: unsafe extern "C" fn(Pointer, Pointer) -> c_int,
    stream_create: unsafe extern "C" fn(*mut Pointer, c_uint) -> c_int,
    stream_wait: unsafe extern "C" fn(Pointer, Pointer, c_uint) -> c_int,
    event_create: unsafe extern "C" fn(*mut Pointer, c_uint) -> c_int,
    event_record: unsafe extern "C" fn(Pointer, Pointer) -> c_int,
    event_query: unsafe extern "C" fn(Pointer) -> c_int,
    event_destroy: unsafe extern "C" fn(Pointer) -> c_int,
    /// Keeps the code mapped.
    _library: Library,
}

/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: c_int = 600;
/// `CU_EVENT_DISABLE_TIMING`.
const NO_TIMING: c_uint = 2;
/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;

impl Calls {
    fn get() -> Result<&'static Self, String> {
        static CALLS: OnceLock<Result<Calls, String>> = OnceLock::new();
        CALLS.get_or_init(Self::load).as_ref().map_err(Clone::clone)
    }

    fn load() -> Result<Self, String> {
        // SAFETY: the driver's library runs no code of its own when loaded.
        let library = unsafe { Library::new(super::driver::NAME) }.map_err(|error| error.to_string())?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's in cuda.h.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| format!("the driver has no {}", $name))?
            };
        }
        Ok(Self {
            device_get: function!("cuDeviceGet"),
            retain: function!("cuDevicePrimaryCtxRetain"),
            set_current: function!("cuCtxSetCurrent"),
            record_context: function!("cuCtxRecordEvent"),
            stream_create: function!("cuStreamCreate"),
            stream_wait: function!("cuStreamWaitEvent"),
            event_create: function!("cuEventCreate"),
            event_record: function!("cuEventRecord"),
            event_query: function!("cuEventQuery"),
            event_destroy: function!("cuEventDestroy_v2"),
            _library: library,
        })
    }
}

fn check(status: c_int, name: &str) -> Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("error {status} of {name}")) }
}

/// A stream in the primary context of a GPU, which cubecl uses too. It lives as long as the process.
#[derive(Clone)]
pub struct Stream(Arc<Handles>);

struct Handles {
    calls: &'static Calls,
    context: Pointer,
    stream: Pointer,
}

// SAFETY: the driver's contexts, streams and events may be used from any thread that has made the context current.
unsafe impl Send for Handles {}
// SAFETY: as above.
unsafe impl Sync for Handles {}

impl Stream {
    /// A new one on GPU `index`.
    ///
    /// # Errors
    /// What the driver says; a driver without events of a context.
    pub fn new(index: usize) -> Result<Self, String> {
        let calls = Calls::get()?;
        let (mut device, mut context, mut stream) = (0, null_mut(), null_mut());
        let index = c_int::try_from(index).map_err(|error| error.to_string())?;
        // SAFETY: each call writes one value of the type that it is given a pointer to; the context was retained before it is
        // made current, and is never released.
        unsafe {
            check((calls.device_get)(&mut device, index), "cuDeviceGet")?;
            check((calls.retain)(&mut context, device), "cuDevicePrimaryCtxRetain")?;
            check((calls.set_current)(context), "cuCtxSetCurrent")?;
            check((calls.stream_create)(&mut stream, NON_BLOCKING), "cuStreamCreate")?;
        }
        Ok(Self(Arc::new(Handles { calls, context, stream })))
    }

    /// The stream, for a library.
    pub fn raw(&self) -> *mut c_void {
        self.0.stream
    }

    /// Makes the GPU that of the calling thread, as libraries expect it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn enter(&self) -> Result<(), String> {
        // SAFETY: the context is never released.
        check(unsafe { (self.0.calls.set_current)(self.0.context) }, "cuCtxSetCurrent")
    }

    /// An event after all that was launched on the GPU so far, by any thread.
    ///
    /// # Errors
    /// What the driver says.
    pub fn after_context(&self) -> Result<Event, String> {
        let event = self.event()?;
        // SAFETY: context and event are alive, and the event is the context's.
        check(unsafe { (self.0.calls.record_context)(self.0.context, event.event) }, "cuCtxRecordEvent")?;
        Ok(event)
    }

    /// An event after all that was launched on the stream so far.
    ///
    /// # Errors
    /// What the driver says.
    pub fn after_stream(&self) -> Result<Event, String> {
        let event = self.event()?;
        // SAFETY: stream and event are alive and of one context.
        check(unsafe { (self.0.calls.event_record)(event.event, self.0.stream) }, "cuEventRecord")?;
        Ok(event)
    }

    /// Lets what is launched on the stream from here on wait for an event.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait(&self, event: &Event) -> Result<(), String> {
        // SAFETY: stream and event are alive; the driver keeps what it needs of the event.
        check(unsafe { (self.0.calls.stream_wait)(self.0.stream, event.event, 0) }, "cuStreamWaitEvent")
    }

    fn event(&self) -> Result<Event, String> {
        self.enter()?;
        let mut event = null_mut();
        // SAFETY: writes one pointer.
        check(unsafe { (self.0.calls.event_create)(&mut event, NO_TIMING) }, "cuEventCreate")?;
        Ok(Event { of: Arc::clone(&self.0), event })
    }
}

/// A point in the work of a GPU.
pub struct Event {
    of: Arc<Handles>,
    event: Pointer,
}

// SAFETY: as [`Handles`].
unsafe impl Send for Event {}
// SAFETY: as above; an event is recorded once, before it is shared.
unsafe impl Sync for Event {}

impl Event {
    /// Whether the work before it is done.
    ///
    /// # Errors
    /// A fault of the GPU since it was last asked.
    pub fn is_done(&self) -> Result<bool, String> {
        // SAFETY: the event is alive.
        match unsafe { (self.of.calls.event_query)(self.event) } {
            NOT_READY => Ok(false),
            status => check(status, "cuEventQuery").map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has the event; the driver frees it when work that waits for it is done.
        unsafe { (self.of.calls.event_destroy)(self.event) };
    }
}
