//! The memory that kernels say they keep for their backward steps, against the memory that stays allocated between the two.

use burn::tensor::{Device, Tensor, TensorData};
use kernels::cpu::{activation, attention, cross_entropy, dora, linear, norm};
use kernels::{LinearInput, Mask};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are allocated now.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: memory comes from the system's allocator, with the caller's layouts; counting touches none of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::SeqCst);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TOKENS: usize = 600;
const WIDTH: usize = 256;
const F32: usize = size_of::<f32>();
/// Nodes of the graph.
const SLACK: usize = 16 << 10;

fn leaf(rows: usize, columns: usize) -> Tensor<2> {
    constant(rows, columns).require_grad()
}

fn constant(rows: usize, columns: usize) -> Tensor<2> {
    let values: Vec<f32> = (0..rows * columns).map(|index| (index % 97) as f32 / 97.0 - 0.5).collect();
    Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex().autodiff())
}

fn vector(values: usize) -> Tensor<1> {
    constant(1, values).reshape([values]).require_grad()
}

/// Bytes that an operation keeps until its backward step: what stays allocated when it is done and its inputs are let go of, beside
/// its output. `operation` makes its inputs; parameters, which stay anyway, are made before.
fn kept(operation: impl Fn() -> Tensor<2>) -> usize {
    let run = || {
        let before = ALLOCATED.load(Ordering::SeqCst);
        let output = operation();
        let after = ALLOCATED.load(Ordering::SeqCst);
        let [rows, columns] = output.dims();
        drop(output.sum().backward());
        after - before - rows * columns * F32
    };
    // The scratch memory of the first run stays.
    run();
    run()
}

#[test]
fn kernels_keep_what_they_say() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().expect("the first pool");
    let x = || leaf(TOKENS, WIDTH);
    let (weight, frozen, scale) = (leaf(300, WIDTH), constant(300, WIDTH), vector(WIDTH));
    let (a, b) = (leaf(16, WIDTH), leaf(300, 16));
    let sizes = [TOKENS, WIDTH];
    let normed = || kernels::rms_norm(x(), scale.clone(), 1e-6);
    let lora = |x: LinearInput| kernels::lora_linear(x, frozen.clone(), None, a.clone(), b.clone(), 0.5, None);
    let gain = vector(300);
    let dora =
        |x: LinearInput| kernels::dora_linear(x, frozen.clone(), None, a.clone(), b.clone(), 0.5, gain.clone(), None);
    let (heads, kv_heads, last) = (8, 2, [100, 50]);
    let kv = || leaf(TOKENS, WIDTH / 4);
    let head = |weight: &Tensor<2>, rows: usize| {
        let targets: Vec<u32> = (0..rows as u32).collect();
        kernels::cross_entropy_sum(leaf(rows, WIDTH), weight.clone(), &targets).sum.reshape([1, 1])
    };
    let (vocabulary, frozen_vocabulary) = (leaf(5000, WIDTH), constant(5000, WIDTH));
    let of_head = |rows, trained| {
        cross_entropy::cross_entropy_sum_kept(cross_entropy::Sizes { rows, width: WIDTH, vocabulary: 5000 }, trained)
    };
    let attended = |queries| attention::attention_kept(queries, TOKENS, heads, kv_heads, WIDTH / heads);

    let rms = norm::rms_norm_kept(sizes);
    for (name, found, said) in [
        ("rms_norm", kept(|| normed().into()), rms),
        (
            "layer_norm",
            kept(|| kernels::layer_norm(x(), scale.clone(), scale.clone(), 1e-5).into()),
            norm::layer_norm_kept(sizes),
        ),
        ("swiglu", kept(|| kernels::swiglu(x(), x()).into()), activation::swiglu_kept(sizes)),
        ("gelu", kept(|| kernels::gelu(x()).into()), activation::unary_kept(sizes)),
        ("quick_gelu", kept(|| kernels::quick_gelu(x()).into()), activation::unary_kept(sizes)),
        ("linear", kept(|| kernels::linear(x(), weight.clone(), None)), linear::linear_kept(sizes, true, false)),
        (
            "linear, frozen",
            kept(|| kernels::linear(x(), frozen.clone(), None)),
            linear::linear_kept(sizes, false, false),
        ),
        (
            "linear behind a norm",
            kept(|| kernels::linear(normed(), weight.clone(), None)),
            rms + linear::linear_kept(sizes, true, true),
        ),
        ("lora_linear", kept(|| lora(x().into())), linear::lora_linear_kept(sizes, 16, false)),
        ("lora_linear behind a norm", kept(|| lora(normed())), rms + linear::lora_linear_kept(sizes, 16, true)),
        ("dora_linear", kept(|| dora(x().into())), dora::dora_linear_kept(sizes, 16, 300, false)),
        ("dora_linear behind a norm", kept(|| dora(normed())), rms + dora::dora_linear_kept(sizes, 16, 300, true)),
        (
            "attention",
            kept(|| kernels::attention(x(), kv(), kv(), heads, kv_heads, &[400, 200], Mask::Causal)),
            attended(TOKENS),
        ),
        (
            "attention_of_last",
            kept(|| kernels::attention_of_last(leaf(150, WIDTH), kv(), kv(), heads, kv_heads, &last, &[400, 200])),
            attended(150),
        ),
        ("cross_entropy_sum", kept(|| head(&vocabulary, 70)), of_head(70, true)),
        ("cross_entropy_sum, frozen", kept(|| head(&frozen_vocabulary, 70)), of_head(70, false)),
        ("cross_entropy_sum, too many logits", kept(|| head(&vocabulary, 2600)), of_head(2600, true)),
    ] {
        println!("{name}: {found} bytes are kept, {said} are said");
        assert!(found.abs_diff(said) <= SLACK, "{name}: {found} bytes are kept, {said} are said");
    }
}
