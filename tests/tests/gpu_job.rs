//! What `tests/gpu/job.py` makes is a model and a dataset that the programs take, and the stand-ins of a driver and a compiler
//! count what a caller asks for.

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use tests::training::{metrics, succeed};
use tests::{program, project_file, python};

fn script(name: &str) -> Option<Command> {
    let mut command = python()?;
    command.arg("-B").arg(project_file("gpu").join(name));
    Some(command)
}

#[test]
fn the_job_trains() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let Some(mut job) = script("job.py") else { return };
    succeed(job.arg(folder.path()).args(["--tiny", "--text-layers", "2", "--vision-layers", "3", "--rows", "16"]));
    let mut shards = Command::new(program("preprocess"));
    shards
        .arg("shards")
        .arg("--model")
        .arg(at("model"))
        .arg("--data")
        .arg(at("data"))
        .arg("--output")
        .arg(at("shards"));
    let said = succeed(&mut shards);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    println!("{said}");
    let mut train = Command::new(program("train"));
    train
        .arg("--model_name_or_path")
        .arg(at("model"))
        .arg("--data_path")
        .arg(at("shards"))
        .arg("--output_dir")
        .arg(at("run"));
    let options =
        ["--train_type", "use_lora", "--per_device_train_batch_size", "8", "--max_steps", "2", "--logging_steps", "1"];
    succeed(train.args(options).args(["--save_strategy", "no"]));
    let lines = metrics(&at("run"));
    let losses: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert_eq!(losses.len(), 2, "{lines:?}");
    assert!(losses.iter().all(|loss| loss.is_finite() && *loss > 0.0), "{losses:?}");
}

/// A row has 620 tokens beside CLIP-L/336's features, which are 576.
#[test]
fn rows_have_the_length_of_the_real_jobs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(mut job) = script("job.py") else { return };
    succeed(job.arg(folder.path()).args(["--tiny", "--text-layers", "1", "--vision-layers", "1", "--rows", "3"]));
    let rows: Value = base::json::read(&folder.path().join("data/chat.json")).expect("chat.json");
    for row in rows.as_array().expect("a list") {
        let text = |turn: usize| {
            row["conversations"][turn]["value"].as_str().expect("a text").len() - if turn == 0 { 7 } else { 0 }
        };
        // A byte is a token; the system prompt and each turn end with a special one.
        let tokens = "You are a helpful assistant.".len() + 1 + text(0) + 1 + text(1) + 1;
        assert_eq!(tokens, 620 - 576, "{row}");
    }
}

/// Through Python's ctypes, as cudarc calls it.
const CALLS: &str = r#"
import ctypes, os, sys
driver, nvrtc = ctypes.CDLL(sys.argv[1] + "/libcuda.so.1"), ctypes.CDLL(sys.argv[1] + "/libnvrtc.so.13")
piece, function, program = ctypes.c_uint64(), ctypes.c_void_p(), ctypes.c_void_p()
assert driver.cuMemAlloc_v2(ctypes.byref(piece), ctypes.c_size_t(1 << 36)) == 0
assert driver.cuMemcpyHtoD_v2(piece, b"abcd", ctypes.c_size_t(4)) == 0
read = ctypes.create_string_buffer(4)
assert driver.cuMemcpyDtoH_v2(read, piece, ctypes.c_size_t(4)) == 0 and read.raw == b"abcd"
assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), b"source", b"k", 0, None, None) == 0
options = (ctypes.c_char_p * 2)(b"--gpu-architecture=sm_90a", b"--include-path=/somewhere")
assert nvrtc.nvrtcCompileProgram(program, 2, options) == 0
assert driver.cuModuleGetFunction(ctypes.byref(function), None, b"a_kernel") == 0
for _ in range(3):
    assert driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None) == 0
assert driver.cuStreamSynchronize(None) == 0
assert driver.cuMemFree_v2(piece) == 0
assert driver.cuMemFree_v2(piece) != 0
"#;

fn library(folder: &Path, source: &str, name: &str) {
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", &format!("-Wl,-soname,{name}"), "-o"]).arg(folder.join(name));
    succeed(compiler.arg(project_file("gpu").join(source)).args(["-ldl", "-lm"]));
}

#[test]
fn the_driver_counts_and_the_compiler_records() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(mut calls) = python() else { return };
    library(folder.path(), "counting_driver.c", "libcuda.so.1");
    library(folder.path(), "recording_nvrtc.c", "libnvrtc.so.13");
    let log = folder.path().join("counts.jsonl");
    calls.arg("-c").arg(CALLS).arg(folder.path());
    succeed(calls.env("COUNTING_DRIVER_LOG", &log).env("RECORDING_NVRTC_SOURCES", folder.path()));
    let counts: Value = base::json::read(&log).expect("a line of JSON");
    for (key, expected) in [
        ("launches", 3),
        ("to_device_bytes", 4),
        ("to_host_bytes", 4),
        ("synchronisations", 1),
        ("allocations", 1),
        ("peak_bytes", 1u64 << 36),
    ] {
        assert_eq!(counts[key].as_u64(), Some(expected), "{key}: {counts}");
    }
    assert_eq!(counts["kernels"]["a_kernel"], 3);
    let files = folder.path().read_dir().expect("readable").flatten().map(|entry| entry.path());
    let sources: Vec<_> = files.filter(|path| path.extension().is_some_and(|extension| extension == "cu")).collect();
    assert_eq!(sources.len(), 1);
    let source = std::fs::read_to_string(&sources[0]).expect("readable");
    assert_eq!(source, "// --gpu-architecture=sm_90a\nsource");
}

/// A product of 2 × 3 and 3 × 2 values in memory of the driver, and one outside of it. cuBLASLt's A is the right factor.
const PRODUCT: &str = r#"
import ctypes, sys
from ctypes import byref, c_float, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
driver, library = ctypes.CDLL(sys.argv[1] + "/libcuda.so.1"), ctypes.CDLL(sys.argv[1] + "/libcublasLt.so.13")
handle, operation, a, b, c, preference = (c_void_p() for _ in range(6))
assert library.cublasLtCreate(byref(handle)) == 0
assert library.cublasLtMatmulDescCreate(byref(operation), 68, 0) == 0
for made, rows, columns in ((a, 2, 3), (b, 3, 2), (c, 2, 2)):
    assert library.cublasLtMatrixLayoutCreate(byref(made), 0, c_uint64(rows), c_uint64(columns), c_int64(rows)) == 0
assert library.cublasLtMatmulPreferenceCreate(byref(preference)) == 0
result, count, one, zero = (c_uint64 * 12)(), c_int32(), c_float(1), c_float(0)
choose = lambda: library.cublasLtMatmulAlgoGetHeuristic(handle, operation, a, b, c, c, preference, 1, result, byref(count))
assert choose() == 7, "all reduction schemes are allowed"
assert library.cublasLtMatmulPreferenceSetAttribute(preference, 3, byref(c_uint32(2)), c_size_t(4)) == 0
assert library.cublasLtMatmulPreferenceSetAttribute(preference, 3, byref(c_uint64(2)), c_size_t(8)) == 7
assert choose() == 0 and count.value == 1
at = [c_uint64() for _ in range(3)]
for piece, values in zip(at, ([1, 2, 3, 4, 5, 6], [1, 0, 2, 0, 1, 1], [])):
    assert driver.cuMemAlloc_v2(byref(piece), c_size_t(1024)) == 0
    assert driver.cuMemcpyHtoD_v2(piece, (c_float * 6)(*values), c_size_t(24)) == 0
def product(right, left, output):
    return library.cublasLtMatmul(handle, operation, byref(one), right, a, left, b, byref(zero), output, c, output, c, result, None,
                                  c_size_t(0), c_void_p(1))
assert product(*at) == 0
read = (c_float * 4)()
assert driver.cuMemcpyDtoH_v2(read, at[2], c_size_t(16)) == 0
assert list(read) == [11, 14, 8, 10], list(read)
assert product(c_uint64(at[0].value + 4), at[1], at[2]) == 7, "not aligned"
assert product(at[0], at[1], at[0]) == 7, "the output is a factor"
assert driver.cuMemFree_v2(at[0]) == 0
assert product(*at) == 7, "memory that was freed"
"#;

#[test]
fn the_library_in_cublas_lts_place_checks_and_is_counted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(mut calls) = python() else { return };
    library(folder.path(), "counting_driver.c", "libcuda.so.1");
    library(folder.path(), "stand_in_cublas_lt.c", "libcublasLt.so.13");
    let log = folder.path().join("counts.jsonl");
    succeed(calls.arg("-c").arg(PRODUCT).arg(folder.path()).env("COUNTING_DRIVER_LOG", &log));
    let counts: Value = base::json::read(&log).expect("a line of JSON");
    assert_eq!((&counts["launches"], &counts["kernels"]["cublas_lt_matmul"]), (&1.into(), &1.into()), "{counts}");
}
