//! Every kernel at the real job's shapes on a device: largest error of values and gradients against the CPU in f32, and times. A
//! line of JSON for each kernel and dtype; `tests/gpu/run` makes a table of them.
//!
//!     cargo run --release -p kernels --features cuda --example gpu_kernels [-- --device cuda] [--small] [--only NAME] [--products]
//!
//! With `--products`: matrix products by cuBLASLt and by burn's kernels instead.

mod decode_kernels;
mod products;

use base::mix;
use burn::tensor::{DType, Device, Tensor, TensorData};
use kernels::device::{self, DeviceKind};
use kernels::{Dropout, Mask, Rope};
use std::time::Instant;

/// Rows, tokens of a row, widths and heads of language model and tower, rows of the vocabulary.
#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    tokens: usize,
    width: usize,
    inner: usize,
    heads: usize,
    vocabulary: usize,
    patches: usize,
    vision_width: usize,
    vision_heads: usize,
}

const REAL: Sizes = Sizes {
    rows: 8,
    tokens: 620,
    width: 2560,
    inner: 6912,
    heads: 20,
    vocabulary: 151_936,
    patches: 577,
    vision_width: 1024,
    vision_heads: 16,
};

const SMALL: Sizes = Sizes {
    rows: 2,
    tokens: 65,
    width: 256,
    inner: 384,
    heads: 2,
    vocabulary: 1000,
    patches: 37,
    vision_width: 128,
    vision_heads: 2,
};

/// An operation with its inputs: each a shape and a factor of its values, which are uniform in ±1.
struct Case {
    name: &'static str,
    inputs: Vec<([usize; 2], f32)>,
    run: Box<dyn Fn(Vec<Tensor<2>>) -> Tensor<2>>,
}

fn cases(sizes: Sizes) -> Vec<Case> {
    let Sizes { rows, tokens, width, inner, heads, vocabulary, patches, vision_width, .. } = sizes;
    let (all, of_tower) = (rows * tokens, rows * patches);
    let case = |name, inputs: &[([usize; 2], f32)], run: fn(Vec<Tensor<2>>, Sizes) -> Tensor<2>| Case {
        name,
        inputs: inputs.to_vec(),
        run: Box::new(move |inputs| run(inputs, sizes)),
    };
    let (x, small) = (([all, width], 1.0), 0.03);
    let qkv = [x, x, x];
    let of_vision = ([of_tower, vision_width], 1.0);
    let mut cases = vec![
        case("linear 2560 → 2560", &[x, ([width, width], small), ([1, width], 1.0)], |inputs, _| {
            let [x, weight, bias] = three(inputs);
            kernels::linear(x, weight, Some(row(bias)))
        }),
        case("linear 2560 → 6912", &[x, ([inner, width], small)], |inputs, _| {
            let [x, weight] = two(inputs);
            kernels::linear(x, weight, None)
        }),
        case(
            "lora_linear",
            &[x, ([width, width], small), ([32, width], small), ([width, 32], small)],
            |inputs, sizes| {
                let [x, weight, a, b] = <[Tensor<2>; 4]>::try_from(inputs).expect("four inputs");
                let dropout = Dropout::new((0..(sizes.rows * sizes.tokens) as u64).map(mix).collect(), 0.05);
                kernels::lora_linear(x, weight, None, a, b, 0.25, Some(&dropout))
            },
        ),
        case("rms_norm", &[x, ([1, width], 1.0)], |inputs, _| {
            let [x, weight] = two(inputs);
            kernels::rms_norm(x, row(weight), 1e-6).into()
        }),
        case("layer_norm", &[of_vision, ([1, vision_width], 1.0), ([1, vision_width], 1.0)], |inputs, _| {
            let [x, weight, bias] = three(inputs);
            kernels::layer_norm(x, row(weight), row(bias), 1e-5).into()
        }),
        case("swiglu", &[([all, inner], 2.0), ([all, inner], 1.0)], |inputs, _| {
            let [gate, up] = two(inputs);
            kernels::swiglu(gate, up).into()
        }),
        case("quick_gelu", &[([of_tower, 4 * vision_width], 3.0)], |inputs, _| kernels::quick_gelu(one(inputs)).into()),
        case("gelu", &[([of_tower, width], 3.0)], |inputs, _| kernels::gelu(one(inputs)).into()),
        case("add", &[x, x], |inputs, _| {
            let [x, y] = two(inputs);
            kernels::add(x, y)
        }),
        case("rope", &[x], |inputs, Sizes { rows, tokens, width, heads, .. }| {
            let x = one(inputs);
            let rope = Rope::packed(&vec![tokens; rows], &Rope::frequencies(width / heads, 5e6), &x.device());
            kernels::rope(x, &rope, heads)
        }),
        case("attention, causal", &qkv, |inputs, Sizes { rows, tokens, heads, .. }| {
            let [q, k, v] = three(inputs);
            kernels::attention(q, k, v, heads, heads, &vec![tokens; rows], Mask::Causal)
        }),
        case(
            "attention, vision",
            &[of_vision, of_vision, of_vision],
            |inputs, Sizes { rows, patches, vision_heads, .. }| {
                let [q, k, v] = three(inputs);
                kernels::attention(q, k, v, vision_heads, vision_heads, &vec![patches; rows], Mask::Full)
            },
        ),
        case("replace_rows", &[x, ([all / 2, width], 1.0)], |inputs, _| {
            let [x, rows] = two(inputs);
            let [count, _] = rows.dims();
            kernels::replace_rows(x, &(1..count + 1).collect::<Vec<_>>(), rows)
        }),
        case("cross_entropy", &[([rows * 16, width], 1.0), ([vocabulary, width], small)], |inputs, sizes| {
            let [hidden, weight] = two(inputs);
            let [count, _] = hidden.dims();
            let targets: Vec<u32> = (0..count as u64).map(|i| (mix(i) % sizes.vocabulary as u64) as u32).collect();
            kernels::cross_entropy_sum(hidden, weight, &targets).sum.unsqueeze()
        }),
    ];
    let small = tokens == SMALL.tokens;
    cases.extend(HEAD_DIMS.iter().filter(|(head_dim, _)| small || *head_dim == 64).map(|&(head_dim, name)| Case {
        name,
        inputs: vec![([all, heads * head_dim], 1.0); 3],
        run: Box::new(move |inputs| {
            let [q, k, v] = three(inputs);
            kernels::attention(q, k, v, heads, heads, &vec![tokens; rows], Mask::Causal)
        }),
    }));
    cases
}

/// Head dimensions of kernels that models have beside the real job's.
const HEAD_DIMS: [(usize, &str); 6] = [
    (32, "attention, heads of 32"),
    (40, "attention, heads of 40"),
    (64, "attention, heads of 64"),
    (72, "attention, heads of 72"),
    (80, "attention, heads of 80"),
    (96, "attention, heads of 96"),
];

fn one(inputs: Vec<Tensor<2>>) -> Tensor<2> {
    let [x] = <[Tensor<2>; 1]>::try_from(inputs).expect("one input");
    x
}

fn two(inputs: Vec<Tensor<2>>) -> [Tensor<2>; 2] {
    <[Tensor<2>; 2]>::try_from(inputs).expect("two inputs")
}

fn three(inputs: Vec<Tensor<2>>) -> [Tensor<2>; 3] {
    <[Tensor<2>; 3]>::try_from(inputs).expect("three inputs")
}

fn row(x: Tensor<2>) -> Tensor<1> {
    x.flatten(0, 1)
}

/// Values that bf16 has exactly, so that all dtypes and devices start from the same ones.
fn values([rows, width]: [usize; 2], factor: f32, of: u64) -> TensorData {
    let value = |i: u64| ((mix(of << 40 ^ i) >> 56) as f32 / 128.0 - 1.0) * factor;
    let rounded = |value: f32| f32::from_bits(value.to_bits() & 0xffff_0000);
    TensorData::new((0..(rows * width) as u64).map(|i| rounded(value(i))).collect::<Vec<f32>>(), [rows, width])
}

fn tensor(data: TensorData, device: &Device, dtype: DType) -> Tensor<2> {
    Tensor::<2>::from_data(data, (device, DType::F32)).cast(dtype)
}

/// The case's inputs as leaves of a graph.
fn leaves(case: &Case, device: &Device, dtype: DType) -> Vec<Tensor<2>> {
    let inputs = case.inputs.iter().zip(0..);
    inputs.map(|(&(shape, factor), of)| tensor(values(shape, factor, of), device, dtype).require_grad()).collect()
}

/// The output's gradient.
fn outer(shape: [usize; 2], device: &Device, dtype: DType) -> Tensor<2> {
    let inner = device.clone().without_autodiff();
    // A loss has a gradient of its own.
    let factor = if shape == [1, 1] { 0.0 } else { 1.0 };
    let gradient = tensor(values(shape, factor, 99), &inner, dtype);
    if shape == [1, 1] { gradient.add_scalar(1.0) } else { gradient }
}

/// Output and gradients of all inputs, in f32.
fn results(case: &Case, device: &Device, dtype: DType) -> Vec<Vec<f32>> {
    let inputs = leaves(case, device, dtype);
    let output = (case.run)(inputs.clone());
    let gradient = outer(output.dims(), device, output.dtype());
    let mut gradients = kernels::with_gradient(output.clone(), gradient).backward();
    let of_inputs = inputs.iter().map(|input| input.grad_remove(&mut gradients).expect("a gradient of every input"));
    let all = std::iter::once(output.inner()).chain(of_inputs);
    all.map(|tensor| tensor.cast(DType::F32).into_data().try_to_vec::<f32>().expect("f32")).collect()
}

/// Largest difference, as a share of the largest expected value.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    let most = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    let differences = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
    // A NaN is an error, which `max` would pass over.
    differences.fold(0f32, |most, value| if value.is_nan() { f32::INFINITY } else { most.max(value) }) / most
}

fn milliseconds(device: &Device, repeats: usize, mut work: impl FnMut()) -> f64 {
    work();
    device.sync().expect("the device works");
    let start = Instant::now();
    (0..repeats).for_each(|_| work());
    device.sync().expect("the device works");
    start.elapsed().as_secs_f64() * 1e3 / repeats as f64
}

fn main() {
    // SAFETY: no other thread runs yet.
    unsafe { kernels::cuda::prepare() };
    let args: Vec<String> = std::env::args().collect();
    let option = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1));
    let is_small = args.iter().any(|arg| arg == "--small");
    let (sizes, repeats) = if is_small { (SMALL, 2) } else { (REAL, 10) };
    let kind: DeviceKind = option("--device").map_or("cuda", String::as_str).parse().expect("a device");
    let device = kind.open().unwrap_or_else(|error| panic!("{error}")).autodiff();
    if args.iter().any(|arg| arg == "--products") {
        return products::run(sizes, &device, repeats);
    }
    let is_wanted = |name: &str| option("--only").is_none_or(|only| name.contains(only.as_str()));
    for case in cases(sizes).into_iter().filter(|case| is_wanted(case.name)) {
        let expected = results(&case, &device::cpu_autodiff(), DType::F32);
        for (dtype, name) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
            let found = results(&case, &device, dtype);
            let errors: Vec<f32> =
                found.iter().zip(&expected).map(|(found, expected)| error(found, expected)).collect();
            let of_gradients = errors[1..].iter().fold(0f32, |most, &error| most.max(error));
            let inputs = leaves(&case, &device, dtype);
            let forward = milliseconds(&device, repeats, || drop((case.run)(inputs.clone())));
            let gradient = outer((case.run)(inputs.clone()).dims(), &device, dtype);
            let both = milliseconds(&device, repeats, || {
                drop(kernels::with_gradient((case.run)(inputs.clone()), gradient.clone()).backward());
            });
            print_line(case.name, name, [errors[0], of_gradients], [forward, both]);
        }
    }
    let (device, cpu) = (device.without_autodiff(), device::cpu_autodiff().without_autodiff());
    for case in decode_kernels::cases(sizes, is_small).into_iter().filter(|case| is_wanted(&case.name)) {
        let read = |mut run: decode_kernels::Run| run().into_data().try_to_vec::<f32>().expect("f32");
        let error = error(&read((case.on)(&device)), &read((case.on)(&cpu)));
        let mut run = (case.on)(&device);
        let forward = milliseconds(&device, repeats, || drop(run()));
        print_line(&case.name, "f32", [error, 0.0], [forward, 0.0]);
    }
}

/// Errors of values and gradients; milliseconds forward, and forward and backward. Zeros where there is no backward step.
fn print_line(name: &str, dtype: &str, errors: [f32; 2], [forward, both]: [f64; 2]) {
    // JSON has no infinity.
    let [error, of_gradients] = errors.map(|error| if error.is_finite() { error } else { f32::MAX });
    println!(
        r#"{{"name": "{name}", "dtype": "{dtype}", "error": {error}, "gradient_error": {of_gradients}, "forward_ms": {forward}, "both_ms": {both}}}"#
    );
}
