//! Every kernel beside its definition, forward and backward: `cargo bench -p kernels --bench ops`.
//!
//! Sizes are those of two rows (577 image tokens and some text each) in a narrow model; the vocabulary is Qwen's.

use burn::tensor::{Device, Tensor, TensorData};
use divan::{Bencher, black_box};
use kernels::{Mask, Rope, cpu, reference};

const TOKENS: usize = 1232;
const SEQ_LENS: [usize; 2] = [616, 616];
const WIDTH: usize = 256;
const INTERMEDIATE: usize = 688;
const HEADS: usize = 4;
const RANK: usize = 32;
const SUPERVISED: usize = 30;
const VOCABULARY: usize = 151_936;

fn main() {
    divan::main();
}

/// Which of the two is measured.
#[derive(Clone, Copy, Debug)]
enum Side {
    Fused,
    Plain,
}

const SIDES: [Side; 2] = [Side::Fused, Side::Plain];

/// A leaf that wants a gradient, with values in (−1, 1).
fn leaf(rows: usize, columns: usize) -> Tensor<2> {
    constant(rows, columns).require_grad()
}

fn constant(rows: usize, columns: usize) -> Tensor<2> {
    let mut state = 0x9E37_79B9u32;
    let values: Vec<f32> = (0..rows * columns)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex().autodiff())
}

/// A leaf that wants a gradient.
fn vector(len: usize) -> Tensor<1> {
    constant(1, len).reshape([len]).detach().require_grad()
}

/// Times `f` and the backward pass through its output.
fn bench(bencher: Bencher, side: Side, fused: impl Fn() -> Option<Tensor<2>>, plain: impl Fn() -> Tensor<2>) {
    bencher.bench_local(|| {
        let output = match side {
            Side::Fused => fused().expect("the kernel applies to the CPU backend"),
            Side::Plain => plain(),
        };
        black_box(output.sum().backward())
    });
}

#[divan::bench(args = SIDES)]
fn linear(bencher: Bencher, side: Side) {
    let (x, w) = (leaf(TOKENS, WIDTH), leaf(INTERMEDIATE, WIDTH));
    bench(bencher, side, || cpu::linear::linear(&x, &w, None), || reference::linear(x.clone(), w.clone(), None));
}

#[divan::bench(args = SIDES)]
fn linear_frozen(bencher: Bencher, side: Side) {
    let (x, w) = (leaf(TOKENS, WIDTH), constant(INTERMEDIATE, WIDTH));
    bench(bencher, side, || cpu::linear::linear(&x, &w, None), || reference::linear(x.clone(), w.clone(), None));
}

#[divan::bench(args = SIDES)]
fn lora_linear(bencher: Bencher, side: Side) {
    let (x, w) = (leaf(TOKENS, WIDTH), constant(WIDTH, WIDTH));
    let (a, b) = (leaf(RANK, WIDTH), leaf(WIDTH, RANK));
    bench(
        bencher,
        side,
        || cpu::linear::lora_linear(&x, &w, None, &a, &b, 0.25, None),
        || reference::lora_linear(x.clone(), w.clone(), None, a.clone(), b.clone(), 0.25, None),
    );
}

#[divan::bench(args = SIDES)]
fn rms_norm(bencher: Bencher, side: Side) {
    let (x, w) = (leaf(TOKENS, WIDTH), vector(WIDTH));
    bench(
        bencher,
        side,
        || cpu::norm::rms_norm(&x, &w, 1e-6).map(Tensor::from),
        || reference::rms_norm(x.clone(), w.clone(), 1e-6),
    );
}

#[divan::bench(args = SIDES)]
fn layer_norm(bencher: Bencher, side: Side) {
    let (x, w, b) = (leaf(TOKENS, WIDTH), vector(WIDTH), vector(WIDTH));
    bench(
        bencher,
        side,
        || cpu::norm::layer_norm(&x, &w, &b, 1e-5).map(Tensor::from),
        || reference::layer_norm(x.clone(), w.clone(), b.clone(), 1e-5),
    );
}

#[divan::bench(args = SIDES)]
fn swiglu(bencher: Bencher, side: Side) {
    let (gate, up) = (leaf(TOKENS, INTERMEDIATE), leaf(TOKENS, INTERMEDIATE));
    bench(
        bencher,
        side,
        || cpu::activation::swiglu(&gate, &up).map(Tensor::from),
        || reference::swiglu(gate.clone(), up.clone()),
    );
}

#[divan::bench(args = SIDES)]
fn gelu(bencher: Bencher, side: Side) {
    let x = leaf(TOKENS, 4 * WIDTH);
    bench(bencher, side, || cpu::activation::gelu(&x).map(Tensor::from), || reference::gelu(x.clone()));
}

#[divan::bench(args = SIDES)]
fn quick_gelu(bencher: Bencher, side: Side) {
    let x = leaf(TOKENS, 4 * WIDTH);
    bench(bencher, side, || cpu::activation::quick_gelu(&x).map(Tensor::from), || reference::quick_gelu(x.clone()));
}

#[divan::bench(args = SIDES)]
fn rope(bencher: Bencher, side: Side) {
    let x = leaf(TOKENS, WIDTH);
    let table = Rope::packed(&SEQ_LENS, &Rope::frequencies(WIDTH / HEADS, 1e6), &x.device());
    bench(bencher, side, || cpu::rope::rope(&x, &table, HEADS), || reference::rope(x.clone(), &table, HEADS));
}

fn attention(bencher: Bencher, side: Side, mask: Mask) {
    let [q, k, v] = std::array::from_fn(|_| leaf(TOKENS, WIDTH));
    bench(
        bencher,
        side,
        || cpu::attention::attention(&q, &k, &v, HEADS, HEADS, &SEQ_LENS, mask),
        || reference::attention(q.clone(), k.clone(), v.clone(), HEADS, HEADS, &SEQ_LENS, mask),
    );
}

#[divan::bench(args = SIDES)]
fn attention_causal(bencher: Bencher, side: Side) {
    attention(bencher, side, Mask::Causal);
}

#[divan::bench(args = SIDES)]
fn attention_full(bencher: Bencher, side: Side) {
    attention(bencher, side, Mask::Full);
}

fn cross_entropy(bencher: Bencher, side: Side, weight: Tensor<2>) {
    let hidden = leaf(SUPERVISED, WIDTH);
    let targets: Vec<u32> = (0..SUPERVISED as u32).map(|row| row * 4999).collect();
    let matrix = |loss: kernels::CrossEntropies| loss.sum.reshape([1, 1]);
    bench(
        bencher,
        side,
        || cpu::cross_entropy::cross_entropy_sum(&hidden, &weight, &targets).map(matrix),
        || matrix(reference::cross_entropy_sum(hidden.clone(), weight.clone(), &targets)),
    );
}

#[divan::bench(args = SIDES, sample_count = 20)]
fn cross_entropy_sum(bencher: Bencher, side: Side) {
    cross_entropy(bencher, side, leaf(VOCABULARY, WIDTH));
}

#[divan::bench(args = SIDES, sample_count = 20)]
fn cross_entropy_sum_frozen(bencher: Bencher, side: Side) {
    cross_entropy(bencher, side, constant(VOCABULARY, WIDTH));
}

/// Rows, inner dimension and columns of the matrix products of the job, from a narrow model to Qwen1.5-4B.
const PRODUCTS: [[usize; 3]; 9] = [
    [1232, 256, 256],
    [1232, 256, 688],
    [1154, 256, 1024],
    [616, 1024, 4096],
    [616, 2560, 2560],
    [616, 2560, 6912],
    [32, 256, 151_936],
    [1, 2560, 6912],
    [8, 2560, 6912],
];

/// `x Wᵀ` without autodiff; divide by the products of the sizes, twice, for floating-point operations per second.
#[divan::bench(args = PRODUCTS, sample_count = 20)]
fn product_fused(bencher: Bencher, [tokens, inputs, out]: [usize; 3]) {
    let (x, w) = (constant(tokens, inputs).inner(), constant(out, inputs).inner());
    let bencher = bencher.counter(divan::counter::ItemsCount::new(2 * tokens * inputs * out));
    bencher.bench_local(|| black_box(cpu::linear::linear(&x, &w, None)));
}

/// The same by burn-flex, which calls the gemm crate.
#[divan::bench(args = PRODUCTS, sample_count = 20)]
fn product_burn(bencher: Bencher, [tokens, inputs, out]: [usize; 3]) {
    let (x, w) = (constant(tokens, inputs).inner(), constant(out, inputs).inner());
    let bencher = bencher.counter(divan::counter::ItemsCount::new(2 * tokens * inputs * out));
    bencher.bench_local(|| black_box(reference::linear(x.clone(), w.clone(), None)));
}
