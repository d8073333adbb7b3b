//! Products by the library that stands in for cuBLASLt, which computes in the host's memory; numbers and descriptors by NVIDIA's
//! header and library, where the tests' Python environment has them. No driver and no GPU.

use super::*;
use half::{bf16, f16};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{LazyLock, OnceLock};

fn compile(arguments: &[&str], from: &Path, to: &Path) {
    let mut compiler = Command::new("cc");
    compiler.args(["-Wall", "-Wextra", "-Werror"]).args(arguments).arg("-o").arg(to).arg(from).args(["-ldl", "-lm"]);
    let output = compiler.output().expect("a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn stand_in() -> &'static Arc<CublasLt> {
    static LIBRARY: LazyLock<Arc<CublasLt>> = LazyLock::new(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("libcublasLt.so.13");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gpu/stand_in_cublas_lt.c");
        compile(&["-O2", "-shared", "-fPIC"], &source, &file);
        Arc::new(CublasLt::open(&file).expect("the library"))
    });
    &LIBRARY
}

/// NVIDIA's folder in the tests' Python environment, if it is there.
fn nvidia() -> Option<PathBuf> {
    let python = PathBuf::from(std::env::var_os("LLAVA_PYTHON")?);
    let versions = python.parent()?.parent()?.join("lib").read_dir().ok()?;
    let mut folders = versions.flatten().map(|version| version.path().join("site-packages/nvidia/cu13"));
    let found = folders.find(|folder| folder.join("include/cublasLt.h").is_file());
    if found.is_none() {
        println!("no cublasLt.h beside {}", python.display());
    }
    found
}

/// Values of a dtype in memory that is aligned as a GPU's is, with a value before and behind that nothing may touch.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    dtype: Dtype,
}

const UNTOUCHED: u8 = 0xa5;

impl Buffer {
    /// `offset` bytes behind an address that is a multiple of [`ALIGNMENT`]. Everything is [`UNTOUCHED`], a small number in each dtype.
    fn new(len: usize, offset: usize, dtype: Dtype) -> Self {
        let bytes = vec![UNTOUCHED; len * dtype.bytes() + 3 * ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT) + ALIGNMENT + offset;
        Self { bytes, start, len, dtype }
    }

    fn address(&self) -> usize {
        self.bytes.as_ptr() as usize + self.start
    }

    fn at(&mut self, index: usize) -> &mut [u8] {
        assert!(index < self.len, "a value outside of the buffer");
        let size = self.dtype.bytes();
        &mut self.bytes[self.start + index * size..][..size]
    }

    fn put(&mut self, index: usize, value: f32) {
        let at = |buffer: &mut Self, bytes: &[u8]| buffer.at(index).copy_from_slice(bytes);
        match self.dtype {
            Dtype::F32 => at(self, &value.to_ne_bytes()),
            Dtype::Bf16 => at(self, &bf16::from_f32(value).to_ne_bytes()),
            Dtype::F16 => at(self, &f16::from_f32(value).to_ne_bytes()),
        }
    }

    fn get(&mut self, index: usize) -> f32 {
        let dtype = self.dtype;
        let bytes = self.at(index);
        match dtype {
            Dtype::F32 => f32::from_ne_bytes(bytes.try_into().expect("4 bytes")),
            Dtype::Bf16 => bf16::from_ne_bytes(bytes.try_into().expect("2 bytes")).to_f32(),
            Dtype::F16 => f16::from_ne_bytes(bytes.try_into().expect("2 bytes")).to_f32(),
        }
    }

    fn untouched_around(&self) -> bool {
        let (before, rest) = self.bytes.split_at(self.start);
        before.iter().chain(&rest[self.len * self.dtype.bytes()..]).all(|&byte| byte == UNTOUCHED)
    }
}

impl Dtype {
    fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    fn rounded(self, value: f64) -> f32 {
        // Sums of the stand-in are rounded to f32 first.
        match self {
            Self::F32 => value as f32,
            Self::Bf16 => bf16::from_f32(value as f32).to_f32(),
            Self::F16 => f16::from_f32(value as f32).to_f32(),
        }
    }
}

fn value(index: usize, of: usize) -> f32 {
    ((index * 37 + of * 11) % 61) as f32 / 16.0 - 1.75
}

/// A factor of `shape` in memory, as `transposed`, `gap` and `offset` say, and its layout.
fn factor(shape: [usize; 2], transposed: bool, gap: usize, offset: usize, dtype: Dtype, of: usize) -> (Buffer, Layout) {
    let [rows, columns] = shape;
    let strides = if transposed { [1, rows + gap] } else { [columns + gap, 1] };
    let last = (rows - 1) * strides[0] + (columns - 1) * strides[1];
    let mut buffer = Buffer::new(last + 1, offset, dtype);
    for at in 0..rows * columns {
        buffer.put(at / columns * strides[0] + at % columns * strides[1], value(at, of));
    }
    (buffer, Layout::of(shape, strides, offset as u64).expect("a layout"))
}

/// All transposes, with and without gaps and offsets, in every dtype; products that need a workspace among them.
#[test]
fn products_are_right_however_the_factors_lie() {
    let library = stand_in();
    let sizes = [[1, 1, 1], [1, 7, 3], [5, 1, 9], [3, 4, 1], [17, 33, 29], [2, 3, 70], [64, 32, 16]];
    let mut workspaces = 0;
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for ([rows, columns, inner], kind) in sizes.into_iter().flat_map(|sizes| (0..16).map(move |kind| (sizes, kind)))
        {
            let [of_a, of_b, gaps, offsets] = [1, 2, 4, 8].map(|bit| kind & bit != 0);
            let (gap, offset) = (if gaps { 3 } else { 0 }, if offsets { 6 * dtype.bytes() } else { 0 });
            let (mut left, a) = factor([rows, inner], of_a, gap, offset, dtype, 1);
            let (mut right, b) = factor([inner, columns], of_b, gap, offset, dtype, 2);
            let problem = Problem { rows, columns, inner, dtype, a, b };
            let plan = library.plan(problem).unwrap_or_else(|found| panic!("{problem:?}: {found}"));
            let mut output = Buffer::new(rows * columns, 0, dtype);
            let workspace = Buffer::new(plan.workspace().div_ceil(4), 0, Dtype::F32);
            workspaces += usize::from(plan.workspace() > 0);
            let (a, b) = (left.address(), right.address());
            let at = Addresses { a, b, output: output.address(), workspace: workspace.address() };
            // SAFETY: buffers of the sizes that the problem has; the stand-in has computed when it returns.
            unsafe { plan.run(at, 1 as Pointer) }.unwrap_or_else(|found| panic!("{problem:?}: {found}"));
            for at in 0..rows * columns {
                let (row, column) = (at / columns, at % columns);
                let term = |k: usize| {
                    let (a, b) = (value(row * inner + k, 1), value(k * columns + column, 2));
                    f64::from(dtype.rounded(f64::from(a))) * f64::from(dtype.rounded(f64::from(b)))
                };
                let expected = dtype.rounded((0..inner).map(term).sum());
                assert_eq!(output.get(at), expected, "{problem:?}: row {row}, column {column}");
            }
            for buffer in [&left, &right, &output, &workspace] {
                assert!(buffer.untouched_around(), "{problem:?}: values around a matrix were written");
            }
            // A product of the same plan again, of other values.
            left.put(0, 9.0);
            right.put(0, -2.0);
            // SAFETY: as above.
            unsafe { plan.run(at, 1 as Pointer) }.expect("the same again");
            let terms = (1..inner).map(|k| f64::from(value(k, 1)) * f64::from(value(k * columns, 2)));
            assert_eq!(output.get(0), dtype.rounded(-18.0 + terms.sum::<f64>()), "{problem:?}");
        }
    }
    assert!(workspaces > 20, "{workspaces} products with a workspace");
}

#[test]
fn layouts_are_read_from_strides() {
    let layout = |leading, transposed, alignment| Some(Layout { leading, transposed, alignment });
    for (shape, strides, offset, expected) in [
        ([3, 5], [5, 1], 0, layout(5, false, 256)),
        ([3, 5], [8, 1], 512, layout(8, false, 256)),
        ([5, 3], [1, 5], 16, layout(5, true, 16)),
        ([5, 3], [1, 8], 6, layout(8, true, 2)),
        // One row or one column: the other stride means nothing.
        ([1, 5], [7, 1], 0, layout(5, false, 256)),
        ([1, 5], [0, 1], 0, layout(5, false, 256)),
        ([1, 5], [1, 4], 0, layout(4, true, 256)),
        ([5, 1], [1, 7], 0, layout(1, false, 256)),
        ([5, 1], [4, 0], 0, layout(4, false, 256)),
        ([1, 1], [9, 9], 0, layout(1, false, 256)),
        // Values repeated, or apart from each other in both directions.
        ([3, 5], [0, 1], 0, None),
        ([3, 5], [1, 0], 0, None),
        ([3, 5], [10, 2], 0, None),
    ] {
        assert_eq!(Layout::of(shape, strides, offset), expected, "{shape:?}, strides {strides:?}, offset {offset}");
    }
}

#[test]
fn what_the_library_does_not_take_is_an_error() {
    let missing = CublasLt::open(Path::new("/nowhere/libcublasLt.so.13")).map(|_| ()).expect_err("no such file");
    assert!(missing.contains("/nowhere"), "{missing}");
    let library = stand_in();
    assert_eq!(library.version(), "13.0.0");
    let layout = Layout { leading: 4, transposed: false, alignment: 16 };
    let problem = Problem { rows: 4, columns: 4, inner: 4, dtype: Dtype::F32, a: layout, b: layout };
    let error = |problem| library.plan(problem).map(|_| ()).expect_err("refused");
    assert!(error(Problem { inner: 0, ..problem }).contains("from 1 to 2^31 - 1"));
    assert!(error(Problem { rows: 1 << 31, ..problem }).contains("2147483648"));
    let overlapping = error(Problem { a: Layout { leading: 3, ..layout }, ..problem });
    assert!(overlapping.contains("error 7 of cublasLtMatrixLayoutCreate (an unsupported value"), "{overlapping}");
    let plan = library.plan(problem).expect("a plan");
    let buffer = Buffer::new(64, 0, Dtype::F32);
    let (a, b, output) = (buffer.address(), buffer.address() + 64, buffer.address() + 128);
    for at in [
        Addresses { a: a + 8, b, output, workspace: 0 },
        Addresses { a, b: b + 4, output, workspace: 0 },
        Addresses { a, b, output, workspace: 0 },
        Addresses { a: 0, b, output: a, workspace: 0 },
    ] {
        // SAFETY: all refused, before the library is called.
        let error = unsafe { plan.run(at, 1 as Pointer) }.expect_err("refused");
        assert!(error.contains("addresses"), "{error}");
    }
}

/// By a C program that is compiled with NVIDIA's header.
#[test]
fn numbers_are_those_of_the_header() {
    let Some(nvidia) = nvidia() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let (source, program) = (folder.path().join("numbers.c"), folder.path().join("numbers"));
    let expected = [
        ("CUBLAS_COMPUTE_32F", i64::from(number::COMPUTE_32F)),
        ("CUDA_R_32F", i64::from(number::R_32F)),
        ("CUDA_R_16F", i64::from(number::R_16F)),
        ("CUDA_R_16BF", i64::from(number::R_16BF)),
        ("CUBLAS_OP_N", i64::from(number::OP_N)),
        ("CUBLAS_OP_T", i64::from(number::OP_T)),
        ("CUBLASLT_MATMUL_DESC_TRANSA", i64::from(number::DESC_TRANSA)),
        ("CUBLASLT_MATMUL_DESC_TRANSB", i64::from(number::DESC_TRANSB)),
        ("CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES", i64::from(number::PREF_MAX_WORKSPACE_BYTES)),
        ("CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK", i64::from(number::PREF_REDUCTION_SCHEME_MASK)),
        ("CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES", i64::from(number::PREF_MIN_ALIGNMENT_A_BYTES)),
        ("CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES", i64::from(number::PREF_MIN_ALIGNMENT_A_BYTES) + 1),
        ("CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES", i64::from(number::PREF_MIN_ALIGNMENT_A_BYTES) + 2),
        ("CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES", i64::from(number::PREF_MIN_ALIGNMENT_A_BYTES) + 3),
        ("CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE", i64::from(number::REDUCTION_SCHEME_COMPUTE_TYPE)),
        ("CUBLAS_STATUS_SUCCESS", 0),
        ("sizeof(cublasLtMatmulAlgo_t)", size_of::<[u64; 8]>() as i64),
        ("sizeof(cublasLtMatmulHeuristicResult_t)", size_of::<HeuristicResult>() as i64),
        (
            "offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize)",
            std::mem::offset_of!(HeuristicResult, workspace) as i64,
        ),
        ("offsetof(cublasLtMatmulHeuristicResult_t, state)", std::mem::offset_of!(HeuristicResult, state) as i64),
    ];
    let lines: String = expected.iter().map(|(name, _)| format!("    printf(\"%ld\\n\", (long)({name}));\n")).collect();
    let text =
        format!("#include <stddef.h>\n#include <stdio.h>\n#include <cublasLt.h>\nint main(void) {{\n{lines}}}\n");
    std::fs::write(&source, text).expect("a file");
    // A header of another wheel, of which these macros are needed.
    let macros = "CUDARTAPI CUDART_CB __cudart_builtin__ __host__ __device__ __device_builtin__ __align__(n) __builtin_align__(n)";
    let macros: String = macros.split(' ').map(|name| format!("#define {name}\n")).collect();
    let forceinline = "#define __forceinline__ inline\n";
    std::fs::create_dir(folder.path().join("crt")).expect("a folder");
    std::fs::write(folder.path().join("crt/host_defines.h"), macros + forceinline).expect("a file");
    compile(
        &["-isystem", &folder.path().display().to_string(), "-isystem", &nvidia.join("include").display().to_string()],
        &source,
        &program,
    );
    let output = Command::new(program).output().expect("the program runs");
    let found: Vec<i64> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(found.len(), expected.len());
    for ((name, expected), found) in expected.iter().zip(found) {
        assert_eq!(*expected, found, "{name}");
    }
}

/// Everything but the handle, which needs a GPU: NVIDIA's library refuses attributes of the wrong size.
#[test]
fn the_real_library_takes_the_descriptors() {
    let Some(nvidia) = nvidia() else { return };
    let file = nvidia.join("lib/libcublasLt.so.13");
    if !file.is_file() {
        println!("no {}", file.display());
        return;
    }
    // Stays open: what it keeps for itself would be a leak otherwise.
    static CALLS: OnceLock<Calls> = OnceLock::new();
    let calls = CALLS.get_or_init(|| Calls::load(&file).expect("all functions"));
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
        for (transposed, alignment) in [(false, 256), (true, 2), (true, 16)] {
            let layout = Layout { leading: 8192, transposed, alignment };
            let problem = Problem { rows: 4960, columns: 6912, inner: 2560, dtype, a: layout, b: layout };
            Descriptors::new(calls, &problem).expect("descriptors");
            preference(calls, &problem).expect("a preference");
        }
    }
    let unknown = Descriptors::new(
        calls,
        &Problem {
            rows: 4,
            columns: 4,
            inner: 4,
            dtype: Dtype::F32,
            a: Layout { leading: 4, transposed: false, alignment: 4 },
            b: Layout { leading: 4, transposed: false, alignment: 4 },
        },
    );
    let operation = unknown.expect("descriptors").operation;
    let wrong = set(calls, calls.operation_set, &operation, number::DESC_TRANSA, &1u64);
    assert!(wrong.expect_err("8 bytes").contains("error 7"), "a size of 8 in place of 4");
}
