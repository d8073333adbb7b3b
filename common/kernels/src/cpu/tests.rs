//! Every kernel against its definition: values and gradients, odd shapes, NaN and infinity, any number of threads.

use super::gemm::{Packed, Start, gemm};
use super::matrix::{Matrix, MatrixMut};
use crate::kv_cache::KvCache;
use crate::{CrossEntropies, Dropout, LinearInput, LinearWeight, Mask, Quantization, QuantizedWeight, Rope, reference};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Values in (−1, 1).
pub(crate) fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..len).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// The output of `f`, then the gradients of Σ output ∘ (fixed random weights) for every input.
fn run(inputs: &[(Vec<f32>, [usize; 2])], f: &dyn Fn(&[Tensor<2>]) -> Tensor<2>) -> Vec<Vec<f32>> {
    let device = Device::flex().autodiff();
    let leaf = |(values, shape): &(Vec<f32>, [usize; 2])| {
        Tensor::<2>::from_data(TensorData::new(values.clone(), *shape), &device).require_grad()
    };
    let inputs: Vec<Tensor<2>> = inputs.iter().map(leaf).collect();
    let output = f(&inputs);
    let [rows, columns] = output.dims();
    let weights = Tensor::from_data(TensorData::new(values(99, rows * columns), [rows, columns]), &device);
    let gradients = (output.clone() * weights).sum().backward();
    let vec = |data: TensorData| data.try_into_vec::<f32>().expect("f32");
    let of_inputs = inputs.iter().map(|input| vec(input.grad(&gradients).expect("a gradient").into_data()));
    std::iter::once(vec(output.into_data())).chain(of_inputs).collect()
}

/// Compares kernel and definition for random inputs of the shapes; and the kernel with itself on 1, 2 and 4 threads.
fn check(
    name: &str,
    shapes: &[[usize; 2]],
    tolerance: f32,
    fused: &(dyn Fn(&[Tensor<2>]) -> Option<Tensor<2>> + Sync),
    plain: &dyn Fn(&[Tensor<2>]) -> Tensor<2>,
) {
    let inputs: Vec<_> = (0..).zip(shapes).map(|(seed, &shape)| (values(seed, shape[0] * shape[1]), shape)).collect();
    let fused = |inputs: &[Tensor<2>]| fused(inputs).expect("the kernel applies");
    let found = run(&inputs, &fused);
    for (part, (found, expected)) in found.iter().zip(run(&inputs, plain)).enumerate() {
        let what = if part == 0 { "values".into() } else { format!("gradient {part}") };
        assert_near(&format!("{name} {shapes:?} {what}"), found, &expected, tolerance);
    }
    for threads in [1, 2, 4] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let again = pool.install(|| run(&inputs, &fused));
        let same = again.iter().flatten().map(|x| x.to_bits()).eq(found.iter().flatten().map(|x| x.to_bits()));
        assert!(same, "{name} {shapes:?}: {threads} threads give other bits");
    }
}

/// |a − b| ≤ tolerance · largest |b|; NaN equals NaN, infinities equal themselves.
pub(crate) fn assert_near(name: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{name}: number of values");
    let scale = expected.iter().filter(|x| x.is_finite()).fold(1e-6f32, |scale, x| scale.max(x.abs()));
    let mut largest = 0f32;
    for (index, (&a, &b)) in found.iter().zip(expected).enumerate() {
        if a == b || (a.is_nan() && b.is_nan()) {
            continue;
        }
        let difference = (a - b).abs() / scale;
        assert!(difference <= tolerance, "{name}: first bad index {index}: {a} where {b} is expected");
        largest = largest.max(difference);
    }
    println!("{name}: largest difference {largest:e} of the largest value (tolerance {tolerance:e})");
}

pub(crate) fn row(x: &Tensor<2>) -> Tensor<1> {
    let [_, columns] = x.dims();
    x.clone().reshape([columns])
}

#[test]
fn linear() {
    for (tokens, inputs, out) in
        [(1, 1, 1), (3, 5, 7), (8, 50, 70), (9, 48, 96), (37, 130, 65), (130, 400, 50), (300, 129, 700)]
    {
        let shapes = [[tokens, inputs], [out, inputs], [1, out]];
        let plain = |x: &[Tensor<2>]| reference::linear(x[0].clone(), x[1].clone(), Some(row(&x[2])));
        check("linear", &shapes, 2e-6, &|x| super::linear::linear(&x[0], &x[1], Some(&row(&x[2]))), &plain);
        let plain = |x: &[Tensor<2>]| reference::linear(x[0].clone(), x[1].clone(), None);
        check("linear without bias", &shapes[..2], 2e-6, &|x| super::linear::linear(&x[0], &x[1], None), &plain);
    }
}

#[test]
fn wide_linear_is_packed_in_parts() {
    let plain = |x: &[Tensor<2>]| reference::linear(x[0].clone(), x[1].clone(), None);
    let shapes = [[70, 33], [2 * 2304 + 5, 33]];
    check("linear", &shapes, 2e-6, &|x| super::linear::linear(&x[0], &x[1], None), &plain);
}

#[test]
fn add() {
    for (tokens, width) in [(0, 3), (1, 1), (3, 5), (130, 400)] {
        let shapes = [[tokens, width], [tokens, width]];
        let fused = |x: &[Tensor<2>]| super::add::add(&x[0], &mut x[1].clone());
        check("add", &shapes, 0.0, &fused, &|x| reference::add(x[0].clone(), x[1].clone()));
    }
    let ones = |shape: [usize; 2]| Tensor::<2>::ones(shape, &Device::flex());
    let (x, mut y) = (ones([1, 2]), ones([1, 1]));
    assert!(super::add::add(&x, &mut y).is_none(), "another shape is not for this kernel");
}

#[test]
fn lora_linear() {
    for (tokens, inputs, out, rank) in [(1, 3, 2, 1), (7, 20, 33, 4), (130, 96, 80, 32)] {
        let shapes = [[tokens, inputs], [out, inputs], [1, out], [rank, inputs], [out, rank]];
        let dropout = Dropout::new((0..tokens as u64).collect(), 0.25);
        for dropout in [None, Some(&dropout)] {
            let plain = |x: &[Tensor<2>]| {
                let (a, b) = (x[3].clone(), x[4].clone());
                reference::lora_linear(x[0].clone(), x[1].clone(), Some(row(&x[2])), a, b, 0.25, dropout)
            };
            let fused = |x: &[Tensor<2>]| {
                super::linear::lora_linear(&x[0], &x[1], Some(&row(&x[2])), &x[3], &x[4], 0.25, dropout)
            };
            check("lora_linear", &shapes, 2e-6, &fused, &plain);
        }
    }
}

#[test]
fn dora_linear() {
    for (tokens, inputs, out, rank) in [(1, 3, 2, 1), (7, 20, 33, 4), (130, 96, 80, 32)] {
        let shapes = [[tokens, inputs], [out, inputs], [1, out], [rank, inputs], [out, rank], [1, out]];
        let dropout = Dropout::new((0..tokens as u64).collect(), 0.25);
        for dropout in [None, Some(&dropout)] {
            let plain = |x: &[Tensor<2>]| {
                let (a, b, gain) = (x[3].clone(), x[4].clone(), row(&x[5]));
                reference::dora_linear(x[0].clone(), x[1].clone(), Some(row(&x[2])), a, b, 0.25, gain, dropout)
            };
            let fused = |x: &[Tensor<2>]| {
                let (bias, gain) = (row(&x[2]), row(&x[5]));
                super::dora::dora_linear(&x[0], &x[1], Some(&bias), &x[3], &x[4], 0.25, &gain, dropout)
            };
            check("dora_linear", &shapes, 4e-6, &fused, &plain);
        }
    }
}

#[test]
fn row_norms() {
    for (out, inputs, rank) in [(1, 3, 1), (33, 20, 4), (130, 96, 32)] {
        let tensor = |seed: u64, rows: usize, columns: usize| {
            let values = TensorData::new(values(seed, rows * columns), [rows, columns]);
            Tensor::<2>::from_data(values, &Device::flex())
        };
        let (weight, a, b) = (tensor(1, out, inputs), tensor(2, rank, inputs), tensor(3, out, rank));
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let weight = weight.clone().cast(dtype);
            let vec = |norms: Tensor<1>| norms.into_data().try_into_vec::<f32>().expect("f32");
            let found = vec(super::dora::row_norms(&weight, &a, &b, 0.5).expect("the kernel applies"));
            let expected = vec(reference::row_norms(weight, a.clone(), b.clone(), 0.5));
            assert_near(&format!("row_norms {dtype:?} [{out}, {inputs}]"), &found, &expected, 1e-6);
        }
    }
}

#[test]
fn norms() {
    // Rows as short as a head's, too: Qwen3 normalises each.
    for (tokens, width) in [(1, 3), (3, 17), (70, 64), (5, 333), (900, 24), (300, 128)] {
        let shapes = [[tokens, width], [1, width], [1, width]];
        let plain_rms = |x: &[Tensor<2>]| reference::rms_norm(x[0].clone(), row(&x[1]), 1e-6);
        check(
            "rms_norm",
            &shapes[..2],
            4e-6,
            &|x| values_of(super::norm::rms_norm(&x[0], &row(&x[1]), 1e-6)),
            &plain_rms,
        );
        let plain_layer = |x: &[Tensor<2>]| reference::layer_norm(x[0].clone(), row(&x[1]), row(&x[2]), 1e-5);
        let fused = |x: &[Tensor<2>]| values_of(super::norm::layer_norm(&x[0], &row(&x[1]), &row(&x[2]), 1e-5));
        check("layer_norm", &shapes, 4e-6, &fused, &plain_layer);
    }
}

#[test]
fn activations() {
    let shapes = [[37, 501], [37, 501]];
    let spread = |x: &Tensor<2>| x.clone() * 12.0;
    check("swiglu", &shapes, 2e-6, &|x| values_of(super::activation::swiglu(&spread(&x[0]), &x[1])), &|x| {
        reference::swiglu(spread(&x[0]), x[1].clone())
    });
    check("gelu", &shapes[..1], 2e-6, &|x| values_of(super::activation::gelu(&spread(&x[0]))), &|x| {
        reference::gelu(spread(&x[0]))
    });
    let plain_tanh = |x: &[Tensor<2>]| reference::gelu_tanh(spread(&x[0]));
    let fused_tanh = |x: &[Tensor<2>]| values_of(super::activation::gelu_tanh(&spread(&x[0])));
    check("gelu_tanh", &shapes[..1], 2e-6, &fused_tanh, &plain_tanh);
    let plain_quick = |x: &[Tensor<2>]| reference::quick_gelu(spread(&x[0]));
    check(
        "quick_gelu",
        &shapes[..1],
        2e-6,
        &|x| values_of(super::activation::quick_gelu(&spread(&x[0]))),
        &plain_quick,
    );
}

/// Weights of layers behind a norm or an activation get the same bits whether the input was kept or is computed again, by one
/// layer or by several.
#[test]
fn inputs_that_are_computed_again() {
    let shapes = [[37, 48], [1, 48], [1, 48], [37, 48], [20, 48], [48, 48], [4, 48], [48, 4]];
    let inputs: Vec<_> = (0..).zip(shapes).map(|(seed, shape)| (values(seed, shape[0] * shape[1]), shape)).collect();
    type Made = fn(&[Tensor<2>]) -> Option<LinearInput>;
    let makers: [(&str, Made); 6] = [
        ("rms_norm", |x| super::norm::rms_norm(&x[0], &row(&x[1]), 1e-6)),
        ("layer_norm", |x| super::norm::layer_norm(&x[0], &row(&x[1]), &row(&x[2]), 1e-5)),
        ("swiglu", |x| super::activation::swiglu(&x[0], &x[3])),
        ("gelu", |x| super::activation::gelu(&x[0])),
        ("gelu_tanh", |x| super::activation::gelu_tanh(&x[0])),
        ("quick_gelu", |x| super::activation::quick_gelu(&x[0])),
    ];
    let dropout = Dropout::new((0..37).collect(), 0.25);
    for (name, make) in makers {
        let [kept, again] = [false, true].map(|computed_again| {
            run(&inputs, &|x| {
                let input = make(x).expect("the kernel applies");
                let input = if computed_again { input } else { input.values.into() };
                let first = super::linear::linear(input.clone(), &x[4], None).expect("the kernel applies");
                let second = super::linear::lora_linear(input, &x[5], None, &x[6], &x[7], 0.5, Some(&dropout));
                let second = second.expect("the kernel applies");
                // Every input has a gradient, whatever is made of it.
                let all = x.iter().map(|x| x.clone().sum()).reduce(|a, b| a + b).expect("there are inputs");
                Tensor::cat(vec![first, second], 1) + all.unsqueeze()
            })
        });
        let bits = |values: &[Vec<f32>]| values.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&kept), bits(&again), "{name}");
    }
}

fn values_of(input: Option<LinearInput>) -> Option<Tensor<2>> {
    input.map(Tensor::from)
}

#[test]
fn rope() {
    for (lens, heads, head_dim) in [
        (vec![1], 1, 2),
        (vec![5, 30], 3, 16),
        (vec![40], 2, 64),
        (vec![9], 2, 6),
        (vec![20, 3], 3, 80),
        (vec![33], 2, 128),
    ] {
        let tokens = lens.iter().sum();
        let table = |x: &Tensor<2>| Rope::packed(&lens, &Rope::frequencies(head_dim, 1e4), &x.device());
        let fused = |x: &[Tensor<2>]| super::rope::rope(&x[0], &table(&x[0]), heads);
        let plain = |x: &[Tensor<2>]| reference::rope(x[0].clone(), &table(&x[0]), heads);
        check("rope", &[[tokens, heads * head_dim]], 1e-6, &fused, &plain);
    }
}

#[test]
fn attention() {
    let cases: [(&[usize], usize, usize, usize); 13] = [
        (&[1], 1, 1, 4),
        (&[3, 2], 2, 1, 6),
        (&[70, 5, 130], 4, 2, 16),
        (&[64, 0, 65], 3, 3, 64),
        (&[300], 6, 2, 64),
        (&[4, 17], 2, 2, 33),
        // Head dimensions of published models (SigLIP-so400m has 72), and ones that fill no vector.
        (&[90, 3], 3, 3, 72),
        (&[65, 70], 4, 1, 80),
        (&[33], 2, 1, 96),
        (&[70, 1, 64], 4, 2, 128),
        (&[9, 66], 2, 1, 1),
        (&[40], 3, 1, 7),
        (&[129], 2, 2, 73),
    ];
    for (lens, heads, kv_heads, head_dim) in cases {
        for mask in [Mask::Causal, Mask::Full] {
            let tokens = lens.iter().sum();
            let shapes = [heads, kv_heads, kv_heads].map(|heads| [tokens, heads * head_dim]);
            let fused = |x: &[Tensor<2>]| super::attention::attention(&x[0], &x[1], &x[2], heads, kv_heads, lens, mask);
            let plain = |x: &[Tensor<2>]| {
                reference::attention(x[0].clone(), x[1].clone(), x[2].clone(), heads, kv_heads, lens, mask)
            };
            check(&format!("attention {mask:?} {lens:?}"), &shapes, 4e-6, &fused, &plain);
        }
    }
}

#[test]
fn attention_of_last() {
    // Last tokens, tokens; query heads, key/value heads, their width.
    let cases: [([&[usize]; 2], [usize; 3]); 10] = [
        ([&[1], &[1]], [1, 1, 4]),
        ([&[2, 3], &[7, 3]], [2, 1, 6]),
        ([&[1, 20, 0], &[300, 130, 5]], [4, 2, 16]),
        ([&[70, 6], &[90, 600]], [6, 2, 64]),
        ([&[5], &[90]], [3, 3, 72]),
        ([&[3, 66], &[30, 70]], [4, 1, 80]),
        ([&[9], &[33]], [2, 1, 96]),
        ([&[1, 64], &[100, 65]], [4, 2, 128]),
        ([&[2, 4], &[4, 66]], [2, 1, 7]),
        ([&[40], &[41]], [2, 2, 33]),
    ];
    for ([last, lens], [heads, kv_heads, head_dim]) in cases {
        let (queries, tokens) = (last.iter().sum(), lens.iter().sum());
        let shapes = [[queries, heads * head_dim], [tokens, kv_heads * head_dim], [tokens, kv_heads * head_dim]];
        let fused =
            |x: &[Tensor<2>]| super::attention::attention_of_last(&x[0], &x[1], &x[2], heads, kv_heads, last, lens);
        let plain = |x: &[Tensor<2>]| {
            reference::attention_of_last(x[0].clone(), x[1].clone(), x[2].clone(), heads, kv_heads, last, lens)
        };
        check(&format!("attention of the last {last:?} of {lens:?}"), &shapes, 4e-6, &fused, &plain);
    }
}

#[test]
fn with_gradient() {
    let outer = Tensor::<2>::from_data(TensorData::new(values(5, 35), [5, 7]), &Device::flex());
    let device = Device::flex().autodiff();
    let input = Tensor::<2>::from_data(TensorData::new(values(6, 35), [5, 7]), &device).require_grad();
    let of_input = |seed: &dyn Fn(Tensor<2>) -> Tensor<1>| {
        let gradients = seed(input.clone() * input.clone()).backward();
        input.grad(&gradients).expect("a gradient").into_data().try_into_vec::<f32>().expect("f32")
    };
    let fused =
        |output| super::seed::with_gradient(&output, &Tensor::from_inner(outer.clone())).expect("the kernel applies");
    let plain = |output| reference::with_gradient(output, outer.clone());
    assert_near("with_gradient", &of_input(&fused), &of_input(&plain), 1e-6);
}

#[test]
fn products_with_a_transposed_left_side() {
    // More rows than a task, more columns than two panels, more steps than a slice; then fewer of each.
    for (m, k, n) in [(211, 801, 97), (96, 385, 33), (7, 5, 3), (100, 9, 20)] {
        let (a, b) = (values(1, k * m), values(2, k * n));
        let mut c = values(3, m * n);
        let expected: Vec<f32> = (0..m * n)
            .map(|i| {
                let products = (0..k).map(|step| f64::from(a[step * m + i / n]) * f64::from(b[step * n + i % n]));
                (f64::from(c[i]) + products.sum::<f64>()) as f32
            })
            .collect();
        let (left, right) = (Matrix::new(&a, k, m).transposed(), Matrix::new(&b, k, n));
        let mut alone = vec![f32::NAN; m * n];
        Packed::new(right).multiply(left, MatrixMut::new(&mut alone, m, n));
        let whole: Vec<f32> = alone.iter().zip(&c).map(|(product, start)| product + start).collect();
        gemm(left, right, MatrixMut::new(&mut c, m, n), Start::Keep);
        assert_near(&format!("Aᵀ B, {m} × {k} × {n}"), &c, &expected, 2e-6);
        assert_near(&format!("Aᵀ B, {m} × {k} × {n}, packed before"), &whole, &expected, 2e-6);
    }
}

#[test]
fn a_packed_right_side_serves_for_its_first_rows_and_columns() {
    let (a, b) = (values(1, 10 * 500), values(2, 500 * 40));
    let packed = Packed::new(Matrix::new(&b, 500, 40));
    for (depth, columns) in [(500, 40), (390, 40), (20, 16), (1, 1)] {
        let left = Matrix::new(&a, 10, 500).block(0..10, 0..depth);
        let right = Matrix::new(&b, 500, 40).block(0..depth, 0..columns);
        let [mut found, mut expected] = [(); 2].map(|()| vec![f32::NAN; 10 * columns]);
        packed.multiply(left, MatrixMut::new(&mut found, 10, columns));
        gemm(left, right, MatrixMut::new(&mut expected, 10, columns), Start::Zero);
        assert_near(&format!("the first {depth} rows, {columns} columns"), &found, &expected, 2e-6);
    }
}

#[test]
fn rows() {
    let shapes = [[6, 5]];
    let ids = [3, 0, 3, 5];
    check("embedding", &shapes, 1e-6, &|x| super::rows::embedding(&x[0], &ids), &|x| {
        reference::embedding(x[0].clone(), &ids)
    });
    let positions = [1, 4];
    let plain_select = |x: &[Tensor<2>]| reference::select_rows(x[0].clone(), &positions);
    check("select_rows", &shapes, 1e-6, &|x| super::rows::select_rows(&x[0], &positions), &plain_select);
    let plain_replace = |x: &[Tensor<2>]| reference::replace_rows(x[0].clone(), &positions, x[1].clone());
    let fused = |x: &[Tensor<2>]| super::rows::replace_rows(&x[0], &positions, &x[1]);
    check("replace_rows", &[[6, 5], [2, 5]], 1e-6, &fused, &plain_replace);
}

#[test]
fn cross_entropy() {
    for (rows, width, vocabulary) in [(1, 3, 2), (5, 16, 1000), (17, 48, 3001), (1100, 8, 2000)] {
        let targets: Vec<u32> = (0..rows as u32).map(|row| row * 7919 % vocabulary as u32).collect();
        let shapes = [[rows, width], [vocabulary, width]];
        let matrix = |loss: CrossEntropies| loss.sum.reshape([1, 1]);
        let spread = |x: &Tensor<2>| x.clone() * 3.0;
        let fused =
            |x: &[Tensor<2>]| super::cross_entropy::cross_entropy_sum(&spread(&x[0]), &x[1], &targets).map(matrix);
        let plain = |x: &[Tensor<2>]| matrix(reference::cross_entropy_sum(spread(&x[0]), x[1].clone(), &targets));
        check("cross_entropy_sum", &shapes, 5e-6, &fused, &plain);
        let of_rows = |x: CrossEntropies| x.rows.reshape([1, rows]);
        let x: Vec<Tensor<2>> = (1..)
            .zip(shapes)
            .map(|(seed, shape)| {
                Tensor::from_data(TensorData::new(values(seed, shape[0] * shape[1]), shape), &Device::flex())
            })
            .collect();
        let fused = super::cross_entropy::cross_entropy_sum(&x[0], &x[1], &targets).map(of_rows);
        let plain = of_rows(reference::cross_entropy_sum(x[0].clone(), x[1].clone(), &targets));
        let largest = (fused.expect("the kernel applies") - plain).abs().max().into_scalar::<f32>();
        println!("rows of cross_entropy_sum: largest difference {largest:e}");
        assert!(largest <= 5e-6, "{rows} rows: {largest:e}");
    }
}

#[test]
fn many_logits_are_computed_again() {
    let (rows, vocabulary) = (800, 16000);
    let targets: Vec<u32> = (0..rows as u32).collect();
    let fused = |x: &[Tensor<2>]| {
        super::cross_entropy::cross_entropy_sum(&x[0], &x[1], &targets).map(|loss| loss.sum.reshape([1, 1]))
    };
    let plain =
        |x: &[Tensor<2>]| reference::cross_entropy_sum(x[0].clone(), x[1].clone(), &targets).sum.reshape([1, 1]);
    check("cross_entropy_sum", &[[rows, 4], [vocabulary, 4]], 5e-6, &fused, &plain);
}

#[test]
fn a_frozen_weight_gets_no_gradient() {
    let device = Device::flex().autodiff();
    let x = Tensor::<2>::from_data(TensorData::new(values(1, 12), [3, 4]), &device).require_grad();
    let weight = Tensor::<2>::from_data(TensorData::new(values(2, 8), [2, 4]), &device);
    let gradients = super::linear::linear(&x, &weight, None).expect("the kernel applies").sum().backward();
    assert!(x.grad(&gradients).is_some());
    assert!(weight.grad(&gradients).is_none());
}

#[test]
fn frozen_half_precision_weights() {
    for (tokens, inputs, out) in [(1, 37, 50), (6, 64, 5), (40, 2100, 1000)] {
        for dtype in [DType::BF16, DType::F16] {
            let device = Device::flex().autodiff();
            let weight = Tensor::<2>::from_data(TensorData::new(values(3, out * inputs), [out, inputs]), &device);
            let (half, rounded) = (weight.clone().cast(dtype), weight.cast(dtype).cast(DType::F32));
            let plain = |x: &[Tensor<2>]| reference::linear(x[0].clone(), rounded.clone(), None);
            let name = format!("linear with {dtype:?} weight");
            check(&name, &[[tokens, inputs]], 2e-6, &|x| super::linear::linear(&x[0], &half, None), &plain);
        }
    }
}

/// Products with rounded weights and their gradients are those of the f32 weight that the codes stand for.
#[test]
fn frozen_weights_in_few_bits() {
    let formats =
        [Quantization::Int8, Quantization::Nf4 { double_quant: false }, Quantization::Nf4 { double_quant: true }];
    for (tokens, inputs, out) in [(1, 37, 50), (6, 64, 5), (12, 128, 33), (40, 2112, 1000), (9, 33, 70)] {
        for format in formats {
            // The tiles of AMX round NF4's values and those of x to 2^-18.
            let tolerance = if format == Quantization::Int8 { 4e-6 } else { 2e-5 };
            let weight =
                Tensor::<2>::from_data(TensorData::new(values(3, out * inputs), [out, inputs]), &Device::flex());
            let quantized = QuantizedWeight::quantize(weight, format);
            let rounded = Tensor::from_inner(quantized.dequantized(0..out));
            let weight = || LinearWeight::from(quantized.clone());
            let (row_of, name) = (row, format!("linear of {format}"));
            let plain = |x: &[Tensor<2>]| reference::linear(x[0].clone(), rounded.clone(), Some(row_of(&x[1])));
            let shapes = [[tokens, inputs], [1, out]];
            let kernel = |x: &[Tensor<2>]| super::linear::linear(&x[0], weight(), Some(&row_of(&x[1])));
            check(&name, &shapes, tolerance, &kernel, &plain);
            let generic = |x: &[Tensor<2>]| Some(reference::linear(x[0].clone(), weight(), Some(row_of(&x[1]))));
            check(&format!("{name} by operations"), &shapes, 4e-6, &generic, &plain);
            let lora = |x: &[Tensor<2>], weight: LinearWeight| {
                reference::lora_linear(x[0].clone(), weight, None, x[1].clone(), x[2].clone(), 0.25, None)
            };
            let shapes = [[tokens, inputs], [4, inputs], [out, 4]];
            let kernel = |x: &[Tensor<2>]| super::linear::lora_linear(&x[0], weight(), None, &x[1], &x[2], 0.25, None);
            check(&format!("lora_{name}"), &shapes, tolerance, &kernel, &|x| lora(x, rounded.clone().into()));
            check(&format!("lora_{name} by operations"), &shapes, 4e-6, &|x| Some(lora(x, weight())), &|x| {
                lora(x, rounded.clone().into())
            });
        }
    }
}

#[test]
fn frozen_half_precision_vectors() {
    let (tokens, width, out) = (5, 48, 32);
    for dtype in [DType::BF16, DType::F16] {
        let device = Device::flex().autodiff();
        let tensor = |seed, len: usize| Tensor::<1>::from_data(TensorData::new(values(seed, len), [len]), &device);
        let halves = |seed, len| {
            let half = tensor(seed, len).cast(dtype);
            (half.clone(), half.cast(DType::F32))
        };
        let (weight, (bias, wide_bias)) = (tensor(3, out * width).reshape([out, width]), halves(4, out));
        let ((scale, wide_scale), (shift, wide_shift)) = (halves(5, width), halves(6, width));
        let shape = &[[tokens, width]];
        check(
            &format!("linear with {dtype:?} bias"),
            shape,
            2e-6,
            &|x| super::linear::linear(&x[0], &weight, Some(&bias)),
            &|x| reference::linear(x[0].clone(), weight.clone(), Some(wide_bias.clone())),
        );
        check(
            &format!("rms_norm with {dtype:?} weight"),
            shape,
            4e-6,
            &|x| values_of(super::norm::rms_norm(&x[0], &scale, 1e-6)),
            &|x| reference::rms_norm(x[0].clone(), wide_scale.clone(), 1e-6),
        );
        check(
            &format!("layer_norm with {dtype:?} weight"),
            shape,
            4e-6,
            &|x| values_of(super::norm::layer_norm(&x[0], &scale, &shift, 1e-5)),
            &|x| reference::layer_norm(x[0].clone(), wide_scale.clone(), wide_shift.clone(), 1e-5),
        );
    }
}

#[test]
fn without_autodiff() {
    let device = Device::flex();
    let x = Tensor::<2>::from_data(TensorData::new(values(1, 12), [3, 4]), &device);
    let found = super::linear::linear(&x, &x, None).expect("the kernel applies");
    let expected = reference::linear(x.clone(), x, None);
    let vec = |x: Tensor<2>| x.into_data().try_into_vec::<f32>().expect("f32");
    assert_near("linear without autodiff", &vec(found), &vec(expected), 1e-6);
}

#[test]
fn nan_and_infinity_come_through() {
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let device = Device::flex();
        let mut data = values(1, 20 * 16);
        data[37] = special;
        let x = Tensor::<2>::from_data(TensorData::new(data, [20, 16]), &device);
        let y = Tensor::<2>::from_data(TensorData::new(values(2, 20 * 16), [20, 16]), &device);
        let weight = row(&y.clone().narrow(0, 0, 1));
        let lens = [12, 8];
        let pairs: Vec<(&str, Option<Tensor<2>>, Tensor<2>)> = vec![
            ("linear", super::linear::linear(&x, &y, None), reference::linear(x.clone(), y.clone(), None)),
            (
                "rms_norm",
                values_of(super::norm::rms_norm(&x, &weight, 1e-6)),
                reference::rms_norm(x.clone(), weight.clone(), 1e-6),
            ),
            ("swiglu", values_of(super::activation::swiglu(&x, &y)), reference::swiglu(x.clone(), y.clone())),
            ("gelu", values_of(super::activation::gelu(&x)), reference::gelu(x.clone())),
            ("gelu_tanh", values_of(super::activation::gelu_tanh(&x)), reference::gelu_tanh(x.clone())),
            ("quick_gelu", values_of(super::activation::quick_gelu(&x)), reference::quick_gelu(x.clone())),
            (
                "attention",
                super::attention::attention(&x, &y, &y, 2, 2, &lens, Mask::Causal),
                reference::attention(x.clone(), y.clone(), y.clone(), 2, 2, &lens, Mask::Causal),
            ),
        ];
        for (name, found, expected) in pairs {
            let vec = |x: Tensor<2>| x.into_data().try_into_vec::<f32>().expect("f32");
            let (found, expected) = (vec(found.expect("the kernel applies")), vec(expected));
            let differ = found.iter().zip(&expected).position(|(a, b)| a.is_finite() != b.is_finite());
            assert_eq!(differ, None, "{name} with {special}: finite in one and not in the other");
        }
        let loss = |x: CrossEntropies| x.sum.into_scalar::<f32>();
        let targets: Vec<u32> = (0..20).map(|row| row % 20).collect();
        let found = loss(super::cross_entropy::cross_entropy_sum(&x, &y, &targets).expect("the kernel applies"));
        assert!(!found.is_finite(), "cross_entropy_sum with {special}: {found}");
    }
}

#[test]
fn attention_over_caches() {
    for (heads, kv_heads, head_dim) in
        [(4, 2, 16), (3, 1, 64), (2, 2, 72), (4, 1, 80), (2, 1, 96), (4, 2, 128), (2, 2, 2), (3, 3, 33)]
    {
        attention_over_caches_of(heads, kv_heads, head_dim);
    }
}

fn attention_over_caches_of(heads: usize, kv_heads: usize, head_dim: usize) {
    let device = Device::flex();
    let random = |seed, rows, heads: usize| {
        let shape = [rows, heads * head_dim];
        Tensor::<2>::from_data(TensorData::new(values(seed, rows * heads * head_dim), shape), &device)
    };
    // Sequences in all states: first tokens, one more token, a few more.
    let (past, new) = ([0, 100, 37, 5], [70, 1, 3, 9]);
    let caches: Vec<KvCache> = (past.iter().zip(&new))
        .map(|(past, new)| {
            let mut cache = KvCache::new(1, kv_heads, head_dim, past + new + 3, &device);
            cache.layer_mut(0).append(random(1, past + new, kv_heads), random(2, past + new, kv_heads));
            cache
        })
        .collect();
    let layers: Vec<_> = caches.iter().map(|cache| cache.layer(0)).collect();
    let q = random(3, new.iter().sum(), heads);
    let found = super::attention::attention_cached(&q, &layers, &new, heads, kv_heads).expect("the kernel applies");
    let expected = reference::attention_cached(q, &layers, &new, heads, kv_heads);
    let vec = |x: Tensor<2>| x.into_data().try_into_vec::<f32>().expect("f32");
    assert_near(&format!("attention_cached, head_dim {head_dim}"), &vec(found), &vec(expected), 4e-6);
}
