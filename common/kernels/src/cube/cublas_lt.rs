//! Products by cuBLASLt on the stream of cubecl's kernels.
//!
//! A device of cubecl has a thread that carries out what is asked of it, in order: it reserves memory, launches kernels, and runs
//! tasks of others, this module's among them. A task gets the stream that cubecl chose for the caller
//! (`MultiStream::resolve`, which also lets it wait for the streams that wrote the factors) and puts the product on it, as
//! `launch` does with kernels. So a product needs no event and no stream of its own, and it is ordered like any kernel:
//! - behind the kernels that write its factors, and before those that read its output;
//! - memory of a factor goes back to cubecl's pool when its last handle is gone, and a pool gives it out again at once, for work on
//!   the same stream, which runs behind the product. Until the product is on the stream, the task holds all buffers itself. Memory
//!   of another stream's pool is held by `ResolvedStreams` until an event behind the product, as for kernels;
//! - cubecl moves memory within its pools (`relocation`) on the same thread, so never between the look-up of the addresses and
//!   the call; what is on the stream by then, it waits for;
//! - the workspace is a buffer like any other, reserved for one product.
//!
//! The algorithm of a product is chosen when its sizes are first seen, by a task that the caller waits for: what cuBLASLt
//! refuses then is left to burn's kernels, with a warning, for the rest of the process. What it refuses later is an error of the
//! output's memory: whoever reads it, or what was computed from it, gets the error.
//!
//! **Never run**, on a GPU or beside the driver that counts: type-checked only. `tests/gpu/run --dry --parts products` runs it beside
//! a driver that keeps a device's memory on the host, with a library in cuBLASLt's place that computes there.

use super::{Backend, MOST_VALUES, empty, rows_and_width};
use crate::cuda::Toolkit;
use crate::cuda::cublas_lt::{Addresses, CublasLt, Dtype, Layout, Plan, Problem};
use burn::backend::{BackTrace, StreamId};
use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::__private::Runtime;
use cubecl::device::DeviceId;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{BufferBinding, ServerError};
use cubecl_server::stream::{ExecuteScope, FailureStore, WriteScoped};
use std::any::TypeId;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, Once, OnceLock, PoisonError};

/// cubecl's side of a GPU, which its thread owns.
type Server = <cubecl_cuda::CudaRuntime as Runtime>::Server;

/// `a b` by cuBLASLt: a `[rows, inner]`, b `[inner, columns]`. Factors may be views: transposed, or with gaps between rows; other views
/// are copied.
///
/// `None` on another device, in dtypes that differ or that the library does not take, without the library, with
/// `LLAVA_CUDA_CUBLASLT=0`, and for a product that it has no algorithm for.
pub(crate) fn product(a: &Tensor<2>, b: &Tensor<2>) -> Option<Tensor<2>> {
    if a.device().is_autodiff()
        || b.device().is_autodiff()
        || a.dtype() != b.dtype()
        || !crate::cuda::may_use_cublas_lt()
    {
        return None;
    }
    let dtype = match a.dtype() {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::Bf16,
        DType::F16 => Dtype::F16,
        _ => return None,
    };
    let (a, b) = (on_cuda(a)?, on_cuda(b)?);
    Toolkit::find().cublas_lt()?;
    let ([rows, inner], [_, columns]) = (rows_and_width(&a), rows_and_width(&b));
    if rows * columns > MOST_VALUES || rows * inner * columns == 0 {
        return None;
    }
    let ((a, of_a), (b, of_b)) = (with_layout(a)?, with_layout(b)?);
    let plan = plan(&a, Problem { rows, columns, inner, dtype, a: of_a, b: of_b })?;
    let output = empty(&a, [rows, columns], a.dtype);
    let workspace = (plan.workspace() > 0).then(|| a.client.empty(plan.workspace()).binding());
    let buffers = [&a, &b, &output].map(|tensor| tensor.handle.clone().binding());
    let stream = StreamId::current();
    device(&a).submit(move |server| enqueue(server, stream, buffers, workspace, &plan));
    Some(Tensor::from_primitive::<Backend>(output))
}

/// The tensor's values, if they are on a CUDA device.
fn on_cuda(tensor: &Tensor<2>) -> Option<CubeTensor> {
    let values = tensor.clone().try_into_primitive::<Backend>().ok()?;
    let is_plain = values.qparams.is_none() && !values.meta.is_tiled();
    (is_plain && values.client.service_id().service == TypeId::of::<Server>()).then_some(values)
}

/// The values with the layout in which the library reads them; copied, where there is none.
fn with_layout(values: CubeTensor) -> Option<(CubeTensor, Layout)> {
    let layout_of = |values: &CubeTensor| {
        let strides = values.meta.strides();
        Layout::of(rows_and_width(values), [strides[0], strides[1]], values.handle.offset_start.unwrap_or(0))
    };
    if let Some(layout) = layout_of(&values) {
        return Some((values, layout));
    }
    let values = into_contiguous(values);
    layout_of(&values).map(|layout| (values, layout))
}

fn device(of: &CubeTensor) -> DeviceHandle<Server> {
    DeviceHandle::new(of.client.service_id().device)
}

/// Algorithms that are kept: rows differ from step to step and from prompt to prompt. An algorithm that is asked for again is the same.
const MOST_PLANS: usize = 4096;

/// What was found for a GPU.
#[derive(Default)]
struct OnDevice {
    /// The library with its handle, or that there is none.
    library: OnceLock<Option<Arc<CublasLt>>>,
    /// Chosen algorithms; none where the library has none.
    plans: Mutex<HashMap<Problem, Option<Arc<Plan>>>>,
}

/// The algorithm for a product, chosen when it is first seen.
fn plan(like: &CubeTensor, problem: Problem) -> Option<Arc<Plan>> {
    static DEVICES: LazyLock<Mutex<HashMap<DeviceId, Arc<OnDevice>>>> = LazyLock::new(Mutex::default);
    let id = like.client.service_id().device;
    let of_device = Arc::clone(DEVICES.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default());
    if matches!(of_device.library.get(), Some(None)) {
        return None;
    }
    // The device's thread never takes this lock.
    let mut plans = of_device.plans.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = plans.get(&problem) {
        return known.clone();
    }
    // On the device's thread, whose context is the GPU's.
    let chosen = device(like).submit_blocking(|_| {
        let library = of_device.library.get_or_init(|| open(id)).clone()?;
        match library.plan(problem) {
            Ok(plan) => Some(Arc::new(plan)),
            Err(found) => {
                // Once: sizes change from step to step.
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    tracing::warn!(
                        "cuBLASLt has no product for {problem}: {found}; burn's kernels compute such products"
                    );
                });
                None
            }
        }
    });
    let chosen = chosen.unwrap_or_else(|error| {
        tracing::warn!("cuBLASLt: {error:?}; products are computed by burn's kernels");
        None
    });
    if plans.len() >= MOST_PLANS {
        plans.clear();
    }
    plans.insert(problem, chosen.clone());
    chosen
}

fn open(id: DeviceId) -> Option<Arc<CublasLt>> {
    let path = Toolkit::find().cublas_lt()?;
    match CublasLt::open(path) {
        Ok(library) => {
            let (version, index) = (library.version(), id.index_id);
            tracing::info!("cuda:{index}: matrix products by cuBLASLt {version} ({})", path.display());
            Some(Arc::new(library))
        }
        Err(found) => {
            tracing::warn!("{}: {found}; matrix products are computed by burn's kernels", path.display());
            None
        }
    }
}

/// On the device's thread. Its context is the GPU's: the thread has reserved the output's memory, which makes it so.
fn enqueue(
    server: &mut Server,
    stream: StreamId,
    buffers: [BufferBinding; 3],
    workspace: Option<BufferBinding>,
    plan: &Plan,
) {
    let mut written = server.write_set();
    written.push(buffers[2].clone());
    // The output carries the error of whatever fails in here, a panic too, until somebody writes it.
    ExecuteScope::over(server, stream, written).execute(|server| {
        let streams = server.write_streams();
        streams.ensure_written(buffers[..2].iter())?;
        let mut streams = streams.resolve(stream, buffers.iter().chain(&workspace))?;
        let on = streams.current().sys;
        let mut address = |of: &BufferBinding| {
            let pool = &mut streams.get(&of.stream).memory_management_gpu;
            pool.get_resource(of.memory.clone(), of.offset_start, of.offset_end).map(|found| found.ptr as usize)
        };
        let [a, b, output] = [address(&buffers[0])?, address(&buffers[1])?, address(&buffers[2])?];
        let workspace = workspace.as_ref().map_or(Ok(0), &mut address)?;
        // SAFETY: the addresses are those of the tensors that the plan was made for and of a buffer of its size; what else is
        // promised follows from the order on the stream, see the module's head.
        let result = unsafe { plan.run(Addresses { a, b, output, workspace }, on.cast()) };
        result.map_err(|reason| ServerError::Generic { reason, backtrace: BackTrace::capture() })
    });
}
