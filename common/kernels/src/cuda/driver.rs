use libloading::{Library, Symbol};
use std::ffi::{CStr, c_char, c_int};

/// NVIDIA's driver and its GPUs.
#[derive(Clone, Debug)]
pub struct Driver {
    /// The newest CUDA version that it runs: 13000 is 13.0.
    pub version: i32,
    /// Its GPUs by index.
    pub gpus: Vec<Gpu>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// As the driver calls it.
    pub name: String,
    /// Compute capability: (9, 0) is a Hopper.
    pub capability: (i32, i32),
    /// Bytes of its memory.
    pub memory: u64,
    /// Where it is on its machine: the address on the PCI bus, which another process sees too, whatever index the GPU has there.
    pub bus: String,
}

impl Gpu {
    /// Whether its tensor cores multiply bf16: since Ampere.
    pub fn has_bf16(&self) -> bool {
        self.capability >= (8, 0)
    }
}

pub(super) const NAME: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];

/// Asks the driver, without making a context on any GPU.
///
/// # Errors
/// What there is in its place.
pub fn driver() -> Result<Driver, String> {
    // SAFETY: the driver's library runs no code of its own when loaded.
    let library = unsafe { Library::new(NAME) }.map_err(|error| format!("no {NAME} ({error})"))?;
    let calls = Calls(&library);
    calls.call::<unsafe extern "C" fn(u32) -> c_int>("cuInit", |init| {
        // SAFETY: cuda.h has this signature in every version.
        unsafe { init(0) }
    })?;
    let version = calls.int("cuDriverGetVersion")?;
    let count = calls.int("cuDeviceGetCount")?;
    let gpus = (0..count).map(|index| calls.gpu(index)).collect::<Result<_, _>>()?;
    Ok(Driver { version, gpus })
}

/// Calls into the driver. All signatures are cuda.h's, the same in every version.
struct Calls<'a>(&'a Library);

type IntOut = unsafe extern "C" fn(*mut c_int) -> c_int;
type DeviceGet = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
type TotalMemory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;

impl Calls<'_> {
    fn call<F>(&self, name: &str, with: impl FnOnce(Symbol<F>) -> c_int) -> Result<(), String> {
        // SAFETY: F is the function's type, see above.
        let function = unsafe { self.0.get::<F>(name.as_bytes()) }.map_err(|error| error.to_string())?;
        match with(function) {
            0 => Ok(()),
            status => Err(format!("error {status} of {name}")),
        }
    }

    fn int(&self, name: &str) -> Result<i32, String> {
        let mut value = 0;
        // SAFETY: writes one int.
        self.call::<IntOut>(name, |get| unsafe { get(&mut value) })?;
        Ok(value)
    }

    fn gpu(&self, index: i32) -> Result<Gpu, String> {
        let (mut device, mut memory, mut name) = (0, 0, [0 as c_char; 256]);
        // SAFETY: each writes what it is given room for.
        self.call::<DeviceGet>("cuDeviceGet", |get| unsafe { get(&mut device, index) })?;
        // SAFETY: as above; the length leaves room for the final zero.
        self.call::<Name>("cuDeviceGetName", |get| unsafe { get(name.as_mut_ptr(), 255, device) })?;
        // SAFETY: as above.
        self.call::<TotalMemory>("cuDeviceTotalMem_v2", |get| unsafe { get(&mut memory, device) })?;
        let mut capability = CAPABILITY;
        for value in &mut capability {
            let attribute = *value;
            // SAFETY: as above.
            self.call::<Attribute>("cuDeviceGetAttribute", |get| unsafe { get(value, attribute, device) })?;
        }
        // SAFETY: the driver ends the name with a zero, and the buffer's last byte is one.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let mut bus = [0 as c_char; 64];
        // SAFETY: as for the name.
        let found = self.call::<Name>("cuDeviceGetPCIBusId", |get| unsafe { get(bus.as_mut_ptr(), 63, device) });
        let bus = match found {
            // SAFETY: as for the name.
            Ok(()) => unsafe { CStr::from_ptr(bus.as_ptr()) }.to_string_lossy().into_owned(),
            Err(_) => format!("GPU {index}"),
        };
        Ok(Gpu { name, capability: (capability[0], capability[1]), memory: memory as u64, bus })
    }
}
