//! Matrix products by NVIDIA's cuBLASLt, opened at run time: descriptors, the heuristic's algorithm, the call. Nothing here asks the
//! driver or cubecl for anything: memory is given by address, and so is the stream.
//!
//! Sums are in f32 in every dtype. A product repeats bit for bit on one GPU with one version of the library: of the algorithms that
//! split a sum, only those are allowed that keep the parts in f32 in a workspace and add them in a step of their own. f32 is
//! computed as `CUBLAS_COMPUTE_32F`, which is not TF32.
//!
//! **Never run on a GPU.** The tests run it on a library in its place (`tests/gpu/stand_in_cublas_lt.c`).

use libloading::Library;
use std::error::Error;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::path::Path;
use std::ptr::null_mut;
use std::sync::Arc;

type Pointer = *mut c_void;
type Destroy = unsafe extern "C" fn(Pointer) -> c_int;
type SetAttribute = unsafe extern "C" fn(Pointer, c_int, *const c_void, usize) -> c_int;

/// The most memory that an algorithm may ask for beside the matrices, bytes: NVIDIA's advice for Hopper.
pub const WORKSPACE: usize = 32 << 20;
/// The alignment from which on no algorithm asks for more, bytes; a workspace has it.
pub const ALIGNMENT: usize = 256;

/// Numbers of cublasLt.h, cublas_api.h and library_types.h, the same in CUDA 12 and 13.
mod number {
    use std::ffi::c_int;

    pub const COMPUTE_32F: c_int = 68;
    pub const R_32F: c_int = 0;
    pub const R_16F: c_int = 2;
    pub const R_16BF: c_int = 14;
    pub const OP_N: i32 = 0;
    pub const OP_T: i32 = 1;
    pub const DESC_TRANSA: c_int = 3;
    pub const DESC_TRANSB: c_int = 4;
    pub const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
    pub const PREF_REDUCTION_SCHEME_MASK: c_int = 3;
    /// Of A; those of B, C and D follow.
    pub const PREF_MIN_ALIGNMENT_A_BYTES: c_int = 5;
    pub const REDUCTION_SCHEME_COMPUTE_TYPE: u32 = 2;
}

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
struct HeuristicResult {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// The library's functions, as cublasLt.h declares them.
struct Calls {
    create: unsafe extern "C" fn(*mut Pointer) -> c_int,
    version: unsafe extern "C" fn() -> usize,
    status: unsafe extern "C" fn(c_int) -> *const c_char,
    operation_create: unsafe extern "C" fn(*mut Pointer, c_int, c_int) -> c_int,
    operation_set: SetAttribute,
    operation_destroy: Destroy,
    layout_create: unsafe extern "C" fn(*mut Pointer, c_int, u64, u64, i64) -> c_int,
    layout_destroy: Destroy,
    preference_create: unsafe extern "C" fn(*mut Pointer) -> c_int,
    preference_set: SetAttribute,
    preference_destroy: Destroy,
    #[allow(clippy::type_complexity)]
    heuristic: unsafe extern "C" fn(
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        c_int,
        *mut HeuristicResult,
        *mut c_int,
    ) -> c_int,
    #[allow(clippy::type_complexity)]
    matmul: unsafe extern "C" fn(
        Pointer,
        Pointer,
        *const c_void,
        *const c_void,
        Pointer,
        *const c_void,
        Pointer,
        *const c_void,
        *const c_void,
        Pointer,
        Pointer,
        Pointer,
        *const c_void,
        Pointer,
        usize,
        Pointer,
    ) -> c_int,
    /// Keeps the code mapped.
    _library: Library,
}

impl Calls {
    fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: cuBLASLt runs no code that depends on this program when it is loaded.
        let library = unsafe { Library::new(path) }
            // What the system says is the error's source.
            .map_err(|error| error.source().map_or_else(|| error.to_string(), ToString::to_string))?;
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is the function's in cublasLt.h.
                *unsafe { library.get($name.as_bytes()) }.map_err(|_| format!("{} has no {}", path.display(), $name))?
            };
        }
        Ok(Self {
            create: function!("cublasLtCreate"),
            version: function!("cublasLtGetVersion"),
            status: function!("cublasLtGetStatusString"),
            operation_create: function!("cublasLtMatmulDescCreate"),
            operation_set: function!("cublasLtMatmulDescSetAttribute"),
            operation_destroy: function!("cublasLtMatmulDescDestroy"),
            layout_create: function!("cublasLtMatrixLayoutCreate"),
            layout_destroy: function!("cublasLtMatrixLayoutDestroy"),
            preference_create: function!("cublasLtMatmulPreferenceCreate"),
            preference_set: function!("cublasLtMatmulPreferenceSetAttribute"),
            preference_destroy: function!("cublasLtMatmulPreferenceDestroy"),
            heuristic: function!("cublasLtMatmulAlgoGetHeuristic"),
            matmul: function!("cublasLtMatmul"),
            _library: library,
        })
    }

    fn check(&self, status: c_int, name: &str) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: gives a text of the library's own for every number.
        let text = unsafe { (self.status)(status) };
        // SAFETY: the text ends with a zero and is never freed.
        let text = if text.is_null() { "".into() } else { unsafe { CStr::from_ptr(text) }.to_string_lossy() };
        Err(format!("error {status} of {name} ({text})"))
    }
}

/// A dtype of matrices; a product's three have the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// The upper half of an f32.
    Bf16,
    /// IEEE's half precision.
    F16,
}

impl Dtype {
    fn number(self) -> c_int {
        match self {
            Self::F32 => number::R_32F,
            Self::Bf16 => number::R_16BF,
            Self::F16 => number::R_16F,
        }
    }
}

/// How a factor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Values from the start of a row to that of the next one; of a column, where it is `transposed`.
    pub leading: usize,
    /// Values of a column lie side by side, not those of a row.
    pub transposed: bool,
    /// What the address of the first value is a multiple of, bytes; at most [`ALIGNMENT`].
    pub alignment: usize,
}

impl Layout {
    /// That of a matrix of `shape` with these strides, both as rows and columns, whose first value is `offset` bytes behind an
    /// address that is a multiple of [`ALIGNMENT`]. `None` where neither values of a row nor of a column lie side by side.
    pub fn of(shape: [usize; 2], strides: [usize; 2], offset: u64) -> Option<Self> {
        let [rows, columns] = shape;
        // The stride of a dimension of 1 means nothing.
        let leading = |count: usize, stride: usize, across: usize| if count == 1 { across } else { stride };
        let side_by_side = |count: usize, stride: usize| count == 1 || stride == 1;
        let (by_rows, by_columns) = (leading(rows, strides[0], columns), leading(columns, strides[1], rows));
        let alignment = if offset == 0 { ALIGNMENT } else { ALIGNMENT.min(1 << offset.trailing_zeros().min(8)) };
        if side_by_side(columns, strides[1]) && by_rows >= columns {
            Some(Self { leading: by_rows, transposed: false, alignment })
        } else if side_by_side(rows, strides[0]) && by_columns >= rows {
            Some(Self { leading: by_columns, transposed: true, alignment })
        } else {
            None
        }
    }
}

/// `a b`: a `[rows, inner]`, b `[inner, columns]`; the output `[rows, columns]` lies row by row without gaps, at an address that is
/// a multiple of [`ALIGNMENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Of a and the output.
    pub rows: usize,
    /// Of b and the output.
    pub columns: usize,
    /// Columns of a, rows of b.
    pub inner: usize,
    /// Of all three.
    pub dtype: Dtype,
    /// How a lies.
    pub a: Layout,
    /// How b lies.
    pub b: Layout,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { rows, columns, inner, dtype, .. } = self;
        let lies = |factor: Layout| if factor.transposed { "columns" } else { "rows" };
        let (a, b) = (lies(self.a), lies(self.b));
        write!(f, "factors of {rows} × {inner}, stored by {a}, and {inner} × {columns}, by {b}, in {dtype:?}")
    }
}

/// A descriptor of the library.
struct Descriptor {
    at: Pointer,
    destroy: Destroy,
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by the library's create function beside `destroy`, and destroyed once.
        unsafe { (self.destroy)(self.at) };
    }
}

/// The descriptors of a product. cuBLASLt's matrices lie column by column, which makes of one that lies row by row its transpose: the
/// output's transpose is bᵀ aᵀ, so that b is the library's A, and a its B.
struct Descriptors {
    operation: Descriptor,
    a: Descriptor,
    b: Descriptor,
    output: Descriptor,
}

impl Descriptors {
    fn new(calls: &Calls, problem: &Problem) -> Result<Self, String> {
        let Problem { rows, columns, inner, dtype, a, b } = *problem;
        let mut at = null_mut();
        // SAFETY: writes one pointer.
        let status = unsafe { (calls.operation_create)(&mut at, number::COMPUTE_32F, number::R_32F) };
        calls.check(status, "cublasLtMatmulDescCreate")?;
        let operation = Descriptor { at, destroy: calls.operation_destroy };
        for (attribute, layout) in [(number::DESC_TRANSA, b), (number::DESC_TRANSB, a)] {
            let value = if layout.transposed { number::OP_T } else { number::OP_N };
            set(calls, calls.operation_set, &operation, attribute, &value)?;
        }
        let matrix = |rows: usize, columns: usize, leading: usize| {
            let mut at = null_mut();
            // Sizes are below 2³¹, see `CublasLt::plan`.
            let (rows, columns, leading) = (rows as u64, columns as u64, leading as i64);
            // SAFETY: writes one pointer.
            let status = unsafe { (calls.layout_create)(&mut at, dtype.number(), rows, columns, leading) };
            calls.check(status, "cublasLtMatrixLayoutCreate")?;
            Ok::<_, String>(Descriptor { at, destroy: calls.layout_destroy })
        };
        // As they lie: `rows` of the library's are the values side by side.
        let (a_sizes, b_sizes) = ([inner, rows], [columns, inner]);
        let as_it_lies = |[side_by_side, others]: [usize; 2], layout: Layout| {
            let (first, second) = if layout.transposed { (others, side_by_side) } else { (side_by_side, others) };
            matrix(first, second, layout.leading)
        };
        Ok(Self {
            operation,
            a: as_it_lies(a_sizes, a)?,
            b: as_it_lies(b_sizes, b)?,
            output: matrix(columns, rows, columns)?,
        })
    }
}

fn set<T>(calls: &Calls, call: SetAttribute, of: &Descriptor, attribute: c_int, value: &T) -> Result<(), String> {
    // SAFETY: the descriptor is alive, and the library reads as many bytes as the value has, or refuses their number.
    let status = unsafe { call(of.at, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) };
    calls.check(status, &format!("a cuBLASLt attribute, {attribute} of {} bytes,", size_of::<T>()))
}

/// The library with a handle for one GPU. Lives as long as the process: handles are not destroyed.
pub struct CublasLt {
    calls: Calls,
    handle: Pointer,
}

// SAFETY: NVIDIA documents the library as thread-safe, also with one handle, whose settings nobody changes here.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// Opens the library and makes a handle for the GPU whose context is the calling thread's.
    ///
    /// # Errors
    /// What is missing of the library, or why it makes no handle.
    pub fn open(path: &Path) -> Result<Self, String> {
        let calls = Calls::load(path)?;
        let mut handle = null_mut();
        // SAFETY: writes one pointer.
        calls.check(unsafe { (calls.create)(&mut handle) }, "cublasLtCreate")?;
        Ok(Self { calls, handle })
    }

    /// Its version: `13.4.1`.
    pub fn version(&self) -> String {
        // SAFETY: gives a number.
        let number = unsafe { (self.calls.version)() };
        format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
    }

    /// Asks for the fastest algorithm for a product, by the library's heuristic. On a thread whose context is the handle's.
    ///
    /// # Errors
    /// Sizes that the library does not take; none of its algorithms fits.
    pub fn plan(self: &Arc<Self>, problem: Problem) -> Result<Plan, String> {
        let Problem { rows, columns, inner, a, b, .. } = problem;
        let sizes = [rows, columns, inner, a.leading, b.leading];
        if sizes.iter().any(|&size| size == 0 || i32::try_from(size).is_err()) {
            return Err(format!("sizes {sizes:?}, of which each has to be from 1 to 2^31 - 1"));
        }
        let calls = &self.calls;
        let descriptors = Descriptors::new(calls, &problem)?;
        let preference = preference(calls, &problem)?;
        let mut found = HeuristicResult { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let mut count = 0;
        let Descriptors { operation, a, b, output } = &descriptors;
        // SAFETY: all descriptors are alive; the library writes at most the one result that there is room for, and its number.
        let status = unsafe {
            (calls.heuristic)(
                self.handle,
                operation.at,
                b.at,
                a.at,
                output.at,
                output.at,
                preference.at,
                1,
                &mut found,
                &mut count,
            )
        };
        calls.check(status, "cublasLtMatmulAlgoGetHeuristic")?;
        if count != 1 {
            return Err("cublasLtMatmulAlgoGetHeuristic found no algorithm".to_owned());
        }
        calls.check(found.state, "the algorithm that cublasLtMatmulAlgoGetHeuristic found")?;
        if found.workspace > WORKSPACE {
            return Err(format!(
                "an algorithm with a workspace of {} bytes, at most {WORKSPACE} allowed",
                found.workspace
            ));
        }
        let (algorithm, workspace) = (found.algorithm, found.workspace);
        Ok(Plan { library: Arc::clone(self), problem, descriptors, algorithm, workspace })
    }
}

fn preference(calls: &Calls, problem: &Problem) -> Result<Descriptor, String> {
    let mut at = null_mut();
    // SAFETY: writes one pointer.
    calls.check(unsafe { (calls.preference_create)(&mut at) }, "cublasLtMatmulPreferenceCreate")?;
    let preference = Descriptor { at, destroy: calls.preference_destroy };
    let call = calls.preference_set;
    set(calls, call, &preference, number::PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE as u64))?;
    // Algorithms that do not split sums are always allowed.
    let mask = number::REDUCTION_SCHEME_COMPUTE_TYPE;
    set(calls, call, &preference, number::PREF_REDUCTION_SCHEME_MASK, &mask)?;
    let alignments = [problem.b.alignment, problem.a.alignment, ALIGNMENT, ALIGNMENT];
    for (attribute, alignment) in (number::PREF_MIN_ALIGNMENT_A_BYTES..).zip(alignments) {
        set(calls, call, &preference, attribute, &(alignment as u32))?;
    }
    Ok(preference)
}

/// A product whose algorithm is chosen, to be run any number of times.
pub struct Plan {
    library: Arc<CublasLt>,
    problem: Problem,
    descriptors: Descriptors,
    algorithm: [u64; 8],
    workspace: usize,
}

// SAFETY: descriptors are memory that is written by the functions above and only read afterwards.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

/// Where the matrices of a product begin.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Of the left factor.
    pub a: usize,
    /// Of the right one.
    pub b: usize,
    /// Of the product.
    pub output: usize,
    /// Of [`Plan::workspace`] bytes; 0 where it needs none.
    pub workspace: usize,
}

impl Plan {
    /// Bytes that the algorithm needs beside the matrices; at most [`WORKSPACE`].
    pub fn workspace(&self) -> usize {
        self.workspace
    }

    /// Puts the product on a stream. On a thread whose context is the handle's.
    ///
    /// # Errors
    /// Addresses that are not aligned as the plan was made for; what the library says.
    ///
    /// # Safety
    /// The addresses are those of matrices and of a workspace as the plan describes them, in memory of the handle's GPU. From what is on
    /// the stream so far until the product is computed, nobody writes the factors, and nobody else touches output and workspace.
    pub unsafe fn run(&self, at: Addresses, stream: Pointer) -> Result<(), String> {
        let Problem { a, b, .. } = self.problem;
        let of_workspace = if self.workspace > 0 { ALIGNMENT } else { 1 };
        let expected = [a.alignment, b.alignment, ALIGNMENT, of_workspace];
        let found = [at.a, at.b, at.output, at.workspace];
        if found.iter().zip(expected).any(|(address, alignment)| address % alignment != 0) {
            return Err(format!("addresses {found:x?}, which have to be multiples of {expected:?}"));
        }
        if found[..3].contains(&0) || (self.workspace > 0 && at.workspace == 0) {
            return Err(format!("addresses {found:x?}, none of which may be 0"));
        }
        let CublasLt { calls, handle } = &*self.library;
        let Descriptors { operation, a, b, output } = &self.descriptors;
        let pointer = |address: usize| address as Pointer;
        let (one, zero) = (1.0f32, 0.0f32);
        let workspace = if self.workspace > 0 { pointer(at.workspace) } else { null_mut() };
        // SAFETY: the descriptors are alive and were made for one another; the caller promises the memory. With a factor of 0 the
        // output is not read.
        let status = unsafe {
            (calls.matmul)(
                *handle,
                operation.at,
                std::ptr::from_ref(&one).cast(),
                pointer(at.b),
                b.at,
                pointer(at.a),
                a.at,
                std::ptr::from_ref(&zero).cast(),
                pointer(at.output),
                output.at,
                pointer(at.output),
                output.at,
                self.algorithm.as_ptr().cast(),
                workspace,
                self.workspace,
                stream,
            )
        };
        calls.check(status, "cublasLtMatmul")
    }
}

#[cfg(test)]
mod tests;
