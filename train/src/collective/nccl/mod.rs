//! Exchanges between GPUs by NCCL. Its library is loaded at run time; the id by which ranks find each other travels through the host's
//! collective. **Never run on a GPU**: the tests run it on a library that stands in for NCCL (`tests/gpu/stand_in_nccl.c`).
//!
//! Communicators are non-blocking: every call returns, and what comes of it is asked for again and again, together with whether
//! another rank has failed and whether the deadline has passed. NCCL does not say which rank is missing: [`RollCall`] does.

mod choice;
mod library;

pub use choice::{Chosen, choose};
pub use library::VARIABLE;

use super::background::Communicator;
use super::roll_call::RollCall;
use super::{Collective, CollectiveError, Place, Result, require_lens};
use crate::device_buffer::{DeviceBuffer, DeviceMemory};
use burn::tensor::DType;
use library::{BFLOAT16, CommConfig, FLOAT32, Handle, IN_PROGRESS, Nccl, SUCCESS, SUM, UniqueId, version};
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a communicator may take to end after the last exchange.
const FAREWELL: Duration = Duration::from_secs(5);

/// A rank's connection to the others' GPUs.
pub struct NcclRank {
    nccl: &'static Nccl,
    communicator: Handle,
    memory: Arc<DeviceMemory>,
    roll_call: Box<dyn RollCall>,
    rank: usize,
    world_size: usize,
    timeout: Duration,
    /// Exchanges so far, connecting included.
    exchanges: u64,
    bytes_sent: u64,
    failed: bool,
}

// SAFETY: NCCL allows calls for a communicator from any thread, one at a time; the methods take `&mut self`.
unsafe impl Send for NcclRank {}

impl NcclRank {
    /// Connects the ranks, which all call this: the id travels through `communicator`.
    ///
    /// # Errors
    /// NCCL's, and a rank that failed or did not come.
    pub fn connect(
        communicator: &mut Communicator,
        roll_call: Box<dyn RollCall>,
        memory: Arc<DeviceMemory>,
    ) -> Result<Self> {
        let nccl = Nccl::get()?;
        let (rank, world_size, timeout) = (communicator.rank(), communicator.world_size(), communicator.timeout);
        let mut this = Self {
            nccl,
            communicator: null_mut(),
            memory,
            roll_call,
            rank,
            world_size,
            timeout,
            exchanges: 0,
            bytes_sent: 0,
            failed: false,
        };
        let place = Place { operation: "connection", block: "GPUs".into() };
        this.memory.enter().map_err(|cause| CollectiveError::Gpu { place: place.clone(), cause })?;
        let mut id = UniqueId([0; 128]);
        if rank == 0 {
            // SAFETY: writes one id.
            let code = unsafe { (nccl.get_unique_id)(&mut id) };
            this.check(code, &place, "ncclGetUniqueId")?;
        }
        let ids = communicator.all_gather_bytes("NCCL's id", id.0)?;
        let mut config = CommConfig::non_blocking();
        this.roll_call.begins(&place);
        // SAFETY: writes one handle; the configuration is one of NCCL 2.14, which later versions take; id and numbers are the
        // same on all ranks.
        let code = unsafe {
            let (ranks, rank) = (world_size as c_int, rank as c_int);
            (nccl.init_rank)(&mut this.communicator, ranks, UniqueId(ids[0]), rank, &mut config)
        };
        this.check(code, &place, "ncclCommInitRankConfig")?;
        if let Err(error) = this.complete(&place, 0, |_| Ok(true)) {
            this.abort();
            return Err(error);
        }
        if rank == 0 {
            tracing::info!("NCCL: {} ({}), {world_size} ranks", version(nccl.version), nccl.file);
        }
        Ok(this)
    }

    fn check(&self, code: c_int, place: &Place, function: &'static str) -> Result<()> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        let text = self.nccl.text(code, self.communicator);
        Err(CollectiveError::Nccl { place: place.clone(), function, code, text })
    }

    /// Waits until NCCL has done what it was told, and `is_done` says that the GPU has, too.
    fn complete(&mut self, place: &Place, bytes: usize, is_done: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let exchange = self.exchanges;
        self.exchanges += 1;
        let since = Instant::now();
        let mut pause = Duration::from_micros(10);
        loop {
            if self.state(place)? && is_done(self)? {
                return Ok(());
            }
            self.roll_call.waits(place, exchange, since)?;
            if since.elapsed() > self.timeout {
                let (place, timeout, ranks) = (place.clone(), self.timeout, self.roll_call.absent(exchange));
                return Err(match ranks.is_empty() {
                    true => CollectiveError::Stuck { place, timeout, bytes },
                    false => CollectiveError::Missing { place, ranks, timeout, bytes },
                });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_micros(200));
        }
    }

    /// Whether NCCL has no call to carry out.
    fn state(&self, place: &Place) -> Result<bool> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive; writes one int.
        let code = unsafe { (self.nccl.async_error)(self.communicator, &mut state) };
        self.check(code, place, "ncclCommGetAsyncError")?;
        self.check(state, place, "ncclCommGetAsyncError")?;
        Ok(state == SUCCESS)
    }

    /// Runs an exchange: `launch` gives NCCL all of its parts. A failure ends the communicator.
    fn exchange(
        &mut self,
        place: &Place,
        bytes: usize,
        buffers: [&DeviceBuffer; 2],
        launch: impl Fn(&Self, *mut c_void) -> Result<()>,
    ) -> Result<()> {
        self.roll_call.begins(place);
        let result = self.try_exchange(place, bytes, buffers, launch);
        if result.is_err() {
            self.abort();
        }
        result
    }

    fn try_exchange(
        &mut self,
        place: &Place,
        bytes: usize,
        buffers: [&DeviceBuffer; 2],
        launch: impl Fn(&Self, *mut c_void) -> Result<()>,
    ) -> Result<()> {
        if self.failed {
            return Err(CollectiveError::ThreadGone);
        }
        let gpu = |cause| CollectiveError::Gpu { place: place.clone(), cause };
        self.memory.enter().map_err(gpu)?;
        let stream = self.memory.stream_after(buffers).map_err(gpu)?;
        // SAFETY: begins and ends a group of calls of this thread.
        self.check(unsafe { (self.nccl.group_start)() }, place, "ncclGroupStart")?;
        let launched = launch(self, stream);
        // SAFETY: as above; a group that was begun has to be ended.
        let ended = self.check(unsafe { (self.nccl.group_end)() }, place, "ncclGroupEnd");
        launched.and(ended)?;
        // An event means nothing before NCCL has put its kernels on the stream.
        let after = std::cell::OnceCell::new();
        self.complete(place, bytes, |this| {
            if after.get().is_none() {
                let _ = after.set(this.memory.after_stream().map_err(gpu)?);
            }
            let done = after.get().and_then(Option::as_ref).map_or(Ok(true), |event| event.is_done());
            done.map_err(gpu)
        })
    }

    fn abort(&mut self) {
        self.failed = true;
        let communicator = std::mem::replace(&mut self.communicator, null_mut());
        if !communicator.is_null() {
            // SAFETY: the communicator is alive, and nobody uses it afterwards.
            unsafe { (self.nccl.abort)(communicator) };
        }
    }
}

impl Collective<DeviceBuffer> for NcclRank {
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
        flat: DeviceBuffer,
        own: &mut DeviceBuffer,
    ) -> Result<DeviceBuffer> {
        let (values, bytes) =
            (require_lens(place, parts, self.world_size, [flat.len(), own.len()])?, flat.value_bytes());
        let (nccl, world_size) = (self.nccl, self.world_size);
        let [from, to] = [flat.address(place)?, own.address_for_sum(place)?];
        self.exchange(place, flat.len() * bytes, [&flat, &*own], |this, stream| {
            let mut start = 0;
            for &part in parts {
                let (send, receive) = (at(from, start * world_size, bytes), at(to, start, bytes));
                start += part;
                // SAFETY: both parts lie within their buffers, see `require_lens`; both are kept until the exchange is
                // complete, or NCCL has been told to abort it.
                let code =
                    unsafe { (nccl.reduce_scatter)(send, receive, part, FLOAT32, SUM, this.communicator, stream) };
                this.check(code, place, "ncclReduceScatter")?;
            }
            Ok(())
        })?;
        self.bytes_sent += ((world_size - 1) * values * bytes) as u64;
        Ok(flat)
    }

    fn all_gather(
        &mut self,
        place: &Place,
        parts: &[usize],
        own: DeviceBuffer,
        full: &mut DeviceBuffer,
    ) -> Result<DeviceBuffer> {
        let (values, bytes) =
            (require_lens(place, parts, self.world_size, [full.len(), own.len()])?, own.value_bytes());
        let dtype = if own.dtype() == DType::BF16 { BFLOAT16 } else { FLOAT32 };
        let (nccl, world_size) = (self.nccl, self.world_size);
        let [from, to] = [own.address(place)?, full.address(place)?];
        self.exchange(place, own.len() * bytes, [&own, &*full], |this, stream| {
            let mut start = 0;
            for &part in parts {
                let (send, receive) = (at(from, start, bytes), at(to, start * world_size, bytes));
                start += part;
                // SAFETY: as in `reduce_scatter`.
                let code = unsafe { (nccl.all_gather)(send, receive, part, dtype, this.communicator, stream) };
                this.check(code, place, "ncclAllGather")?;
            }
            Ok(())
        })?;
        self.bytes_sent += ((world_size - 1) * values * bytes) as u64;
        Ok(own)
    }

    /// What ranks agree on goes through another collective, on another thread.
    fn host(&mut self) -> &mut dyn Collective {
        unreachable!("the host's collective has a communicator of its own")
    }

    fn bytes_sent(&self) -> u64 {
        self.bytes_sent
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// Address of the value `index` of a buffer.
fn at(address: usize, index: usize, value_bytes: usize) -> *mut c_void {
    (address + index * value_bytes) as *mut c_void
}

impl Drop for NcclRank {
    fn drop(&mut self) {
        if self.failed || self.communicator.is_null() {
            return;
        }
        let since = Instant::now();
        // SAFETY: the communicator is alive, and no exchange is under way.
        let mut code = unsafe { (self.nccl.finalize)(self.communicator) };
        let mut state = IN_PROGRESS;
        while code == IN_PROGRESS || code == SUCCESS && state == IN_PROGRESS {
            // SAFETY: as above; writes one int.
            code = unsafe { (self.nccl.async_error)(self.communicator, &mut state) };
            if since.elapsed() > FAREWELL {
                return self.abort();
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        if code != SUCCESS || state != SUCCESS {
            return self.abort();
        }
        // SAFETY: the communicator was finalized, and nobody uses it afterwards.
        unsafe { (self.nccl.destroy)(self.communicator) };
    }
}

/// Version and file of NCCL's library.
///
/// # Errors
/// [`CollectiveError::NoNccl`].
pub fn describe() -> Result<String> {
    let nccl = Nccl::get()?;
    Ok(format!("{} ({})", version(nccl.version), nccl.file))
}
