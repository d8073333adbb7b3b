//! Every kernel for GPUs on a Vulkan device (Mesa's software device where there is no other) against its definition on burn-flex and
//! against the CPU's kernel: values and gradients, odd shapes, half precision, NaN and infinity; twice the same bits.

pub(crate) mod compare;

use crate::cpu::tests::{assert_near, row, values};
use crate::{
    CrossEntropies, Dropout, LinearInput, LinearWeight, Quantization, QuantizedWeight, Rope, SequenceStreams, reference,
};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use compare::{Inputs, Operation, check, gpu, half, inputs_of, read, run};

fn plain(input: Option<LinearInput>) -> Option<Tensor<2>> {
    input.map(Tensor::from)
}

/// Sums of up to some thousand values in another order, and roots and quotients of the device.
const SUMS: f32 = 1e-5;
/// Exponentials of the device, of values up to 12: an error of 2⁻²³ of the exponent's argument.
const EXPONENTIALS: f32 = 6e-6;

#[test]
fn norms() {
    for (tokens, width) in [(0, 8), (1, 3), (3, 17), (70, 64), (5, 333), (900, 24), (300, 128), (9, 2560), (66000, 2)] {
        let shapes = [[tokens, width], [1, width], [1, width]];
        check(
            "rms_norm",
            &shapes[..2],
            SUMS,
            &|x| plain(super::norm::rms_norm(&x[0], &row(&x[1]), 1e-6)),
            &|x| reference::rms_norm(x[0].clone(), row(&x[1]), 1e-6),
            &|x| crate::rms_norm(x[0].clone(), row(&x[1]), 1e-6).into(),
        );
        check(
            "layer_norm",
            &shapes,
            SUMS,
            &|x| plain(super::norm::layer_norm(&x[0], &row(&x[1]), &row(&x[2]), 1e-5)),
            &|x| reference::layer_norm(x[0].clone(), row(&x[1]), row(&x[2]), 1e-5),
            &|x| crate::layer_norm(x[0].clone(), row(&x[1]), row(&x[2]), 1e-5).into(),
        );
    }
}

#[test]
fn activations() {
    let spread = |x: &Tensor<2>| x.clone() * 12.0;
    for shape in [[0, 4], [1, 1], [37, 501], [16, 256]] {
        let shapes = [shape, shape];
        check(
            "swiglu",
            &shapes,
            EXPONENTIALS,
            &|x| plain(super::activation::swiglu(&spread(&x[0]), &x[1])),
            &|x| reference::swiglu(spread(&x[0]), x[1].clone()),
            &|x| crate::swiglu(spread(&x[0]), x[1].clone()).into(),
        );
        type Kernel = fn(&Tensor<2>) -> Option<LinearInput>;
        type Plain = fn(Tensor<2>) -> Tensor<2>;
        let silu: Kernel = |x| super::activation::silu(x).map(Into::into);
        let unary: [(&str, Kernel, Plain, Plain); 4] = [
            ("gelu", super::activation::gelu, reference::gelu, |x| crate::gelu(x).into()),
            ("gelu_tanh", super::activation::gelu_tanh, reference::gelu_tanh, |x| crate::gelu_tanh(x).into()),
            ("quick_gelu", super::activation::quick_gelu, reference::quick_gelu, |x| crate::quick_gelu(x).into()),
            ("silu", silu, reference::silu, crate::silu),
        ];
        for (name, kernel, definition, operation) in unary {
            check(
                name,
                &shapes[..1],
                EXPONENTIALS,
                &|x| plain(kernel(&spread(&x[0]))),
                &|x| definition(spread(&x[0])),
                &|x| operation(spread(&x[0])),
            );
        }
    }
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
        check(
            "rope",
            &[[tokens, heads * head_dim]],
            1e-6,
            &|x| super::rope::rope(&x[0], &table(&x[0]), heads),
            &|x| reference::rope(x[0].clone(), &table(&x[0]), heads),
            &|x| crate::rope(x[0].clone(), &table(&x[0]), heads),
        );
    }
}

#[test]
fn rows() {
    for (available, width, picked) in
        [(1, 1, vec![0, 0]), (7, 20, vec![6, 0, 3, 3, 0, 3]), (40, 37, vec![1]), (9, 64, vec![8])]
    {
        let ids: Vec<u32> = picked.iter().map(|&row| row as u32).collect();
        check(
            "select_rows",
            &[[available, width]],
            1e-6,
            &|x| super::rows::select_rows(&x[0], &picked),
            &|x| reference::select_rows(x[0].clone(), &picked),
            &|x| crate::embedding(x[0].clone(), &ids),
        );
        let mut positions = picked.clone();
        positions.sort_unstable();
        positions.dedup();
        check(
            "replace_rows",
            &[[available, width], [positions.len(), width]],
            0.0,
            &|x| super::rows::replace_rows(&x[0], &positions, &x[1]),
            &|x| reference::replace_rows(x[0].clone(), &positions, x[1].clone()),
            &|x| crate::replace_rows(x[0].clone(), &positions, x[1].clone()),
        );
    }
}

#[test]
fn no_rows() {
    let Some(device) = gpu() else { return };
    let inputs: Inputs = vec![(values(1, 35), [5, 7])];
    let none =
        run(&inputs, &device, DType::F32, &|x| super::rows::select_rows(&x[0], &[]).expect("the kernel applies"));
    assert_eq!(none, [vec![], vec![0f32; 35]], "no row selected");
    let inputs: Inputs = vec![(values(1, 35), [5, 7]), (vec![], [0, 7])];
    let replaced = run(&inputs, &device, DType::F32, &|x| {
        super::rows::replace_rows(&x[0], &[], &x[1]).expect("the kernel applies")
    });
    assert_eq!(replaced, [values(1, 35), values(99, 35), vec![]], "no row replaced");
}

/// Kernels count values in 32 bits.
#[test]
fn tensors_that_are_too_large_are_for_the_definition() {
    let Some(device) = gpu() else { return };
    let [rows, width] = [1 << 17, 1 << 15];
    let (number, few) = (Tensor::<2>::ones([1, 1], &device), Tensor::<2>::ones([1, width], &device));
    // Without memory of that size.
    let large = number.clone().expand([rows, width]);
    assert!(super::norm::rms_norm(&large, &row(&few), 1e-6).is_none());
    assert!(super::activation::silu(&large).is_none());
    assert!(super::rows::embedding(&few, &vec![0; rows]).is_none());
    let long = number.clone().reshape([1]).expand([rows * width]);
    assert!(super::sum_of_squares(&[&long]).is_none());
    let wide = number.clone().expand([width, 1]);
    let tall = number.clone().expand([rows, 1]);
    let applies = super::lora::lora_linear(&tall.into(), &wide.clone().into(), None, &number, &wide, 1.0, None);
    assert!(applies.is_none());
}

/// More cubes than fit into one dimension.
#[test]
fn many_values() {
    let Some(device) = gpu() else { return };
    let shape = [4100, 4097];
    let data = values(1, shape[0] * shape[1]);
    let x = Tensor::<2>::from_data(TensorData::new(data.clone(), shape), &device);
    let found = read(super::activation::silu(&x).expect("the kernel applies"));
    let expected: Vec<f32> = data.iter().map(|x| x / (1.0 + (-x).exp())).collect();
    assert_near("silu of many values", &found, &expected, 1e-6);
}

#[test]
fn a_backward_pass_starts_at_a_given_gradient() {
    let Some(device) = gpu() else { return };
    let tensor = |seed, device: &Device| Tensor::<2>::from_data(TensorData::new(values(seed, 35), [5, 7]), device);
    let x = tensor(1, &device.clone().autodiff()).require_grad();
    let seed = super::seed::with_gradient(&(x.clone() * 2.0), &tensor(2, &device)).expect("the kernel applies");
    let expected: Vec<f32> = values(2, 35).iter().map(|value| 2.0 * value).collect();
    assert_eq!(read(x.grad(&seed.backward()).expect("a gradient")), expected);
}

fn dropouts(tokens: usize) -> [Option<Dropout>; 3] {
    let streams = Dropout::new((0..tokens as u64).map(|token| token * 977).collect(), 0.25);
    let (short, empty) = (tokens / 3, tokens / 2);
    let ranges = [5..5 + short, 7..7, 2..2 + empty - short, 0..tokens - empty];
    let sequences = (1..).zip(ranges).map(|(hash, tokens)| SequenceStreams { hash: hash << 60 | hash, tokens });
    [None, Some(streams), Some(Dropout::of_sequences(sequences.collect(), 7, 0.1))]
}

#[test]
fn dropout_has_the_masks_of_the_cpu() {
    let Some(device) = gpu() else { return };
    for (tokens, width) in [(1, 1), (7, 20), (130, 96), (33, 37), (500, 6)] {
        for dropout in dropouts(tokens).into_iter().flatten() {
            for device in [device.clone(), device.clone().autodiff()] {
                let found = read(dropout.mask(width, &device));
                assert!(found == dropout.mask_values(width), "[{tokens}, {width}]: another mask");
            }
        }
    }
}

#[test]
fn linear() {
    for (tokens, inputs, out) in [(1, 3, 2), (7, 20, 33), (130, 96, 80)] {
        let shapes = [[tokens, inputs], [out, inputs], [1, out]];
        for with_bias in [false, true] {
            let bias = |x: &[Tensor<2>]| with_bias.then(|| row(&x[2]));
            check(
                "linear",
                &shapes[..2 + usize::from(with_bias)],
                SUMS,
                &|x| super::linear::linear(&x[0].clone().into(), &x[1].clone().into(), bias(x).as_ref()),
                &|x| reference::linear(x[0].clone(), x[1].clone(), bias(x)),
                &|x| crate::linear(x[0].clone(), x[1].clone(), bias(x)),
            );
        }
    }
}

#[test]
fn lora_linear() {
    for (tokens, inputs, out, rank) in [(1, 3, 2, 1), (7, 20, 33, 4), (130, 96, 80, 32)] {
        let shapes = [[tokens, inputs], [out, inputs], [1, out], [rank, inputs], [out, rank]];
        for dropout in dropouts(tokens) {
            let dropout = dropout.as_ref();
            check(
                "lora_linear",
                &shapes,
                SUMS,
                &|x| {
                    let (input, weight) = (x[0].clone().into(), x[1].clone().into());
                    super::lora::lora_linear(&input, &weight, Some(&row(&x[2])), &x[3], &x[4], 0.25, dropout)
                },
                &|x| {
                    let (a, b, bias) = (x[3].clone(), x[4].clone(), Some(row(&x[2])));
                    reference::lora_linear(x[0].clone(), x[1].clone(), bias, a, b, 0.25, dropout)
                },
                &|x| {
                    let (a, b, bias) = (x[3].clone(), x[4].clone(), Some(row(&x[2])));
                    crate::lora_linear(x[0].clone(), x[1].clone(), bias, a, b, 0.25, dropout)
                },
            );
        }
    }
}

/// Beside frozen weights in few bits.
#[test]
fn lora_linear_on_few_bits() {
    let Some(gpu) = gpu() else { return };
    let (tokens, inputs, out, rank) = (9, 128, 33, 4);
    for format in [Quantization::Int8, Quantization::Nf4 { double_quant: true }] {
        let weight_on = |device: &Device| {
            let weight = Tensor::<2>::from_data(TensorData::new(values(3, out * inputs), [out, inputs]), device);
            LinearWeight::from(QuantizedWeight::quantize(weight, format))
        };
        let [on_gpu, on_cpu] = [&gpu, &Device::flex()].map(weight_on);
        for dropout in dropouts(tokens) {
            let dropout = dropout.as_ref();
            check(
                &format!("lora_linear on {format}"),
                &[[tokens, inputs], [rank, inputs], [out, rank]],
                SUMS,
                &|x| super::lora::lora_linear(&x[0].clone().into(), &on_gpu, None, &x[1], &x[2], 0.25, dropout),
                &|x| {
                    let (a, b) = (x[1].clone(), x[2].clone());
                    reference::lora_linear(x[0].clone(), on_cpu.clone(), None, a, b, 0.25, dropout)
                },
                &|x| {
                    let (a, b) = (x[1].clone(), x[2].clone());
                    crate::lora_linear(x[0].clone(), on_cpu.clone(), None, a, b, 0.25, dropout)
                },
            );
        }
    }
}

#[test]
fn cross_entropy() {
    // Logits at once: all, two thirds of the rows, one row.
    for (rows, width, vocabulary) in [(1, 3, 2), (5, 16, 33), (37, 24, 1000), (9, 8, 5003)] {
        let targets: Vec<u32> = (0..rows as u32).map(|row| (row * 7919) % vocabulary as u32).collect();
        let as_matrix = |x: Tensor<1>| x.unsqueeze::<2>();
        for logits in [1 << 20, rows * vocabulary * 2 / 3, 1] {
            check(
                "cross_entropy_sum",
                &[[rows, width], [vocabulary, width]],
                SUMS,
                &|x| {
                    let found = super::cross_entropy::in_chunks(&(x[0].clone() * 4.0), &x[1], &targets, logits)?;
                    assert_near("its rows", &[read(found.rows).iter().sum()], &read(found.sum.clone()), 1e-5);
                    Some(as_matrix(found.sum))
                },
                &|x| as_matrix(reference::cross_entropy_sum(x[0].clone() * 4.0, x[1].clone(), &targets).sum),
                &|x| as_matrix(crate::cross_entropy_sum(x[0].clone() * 4.0, x[1].clone(), &targets).sum),
            );
        }
    }
}

#[test]
fn adamw_and_sums_of_squares() {
    let Some(device) = gpu() else { return };
    for len in [1, 97, 4096, 300_001] {
        let vector = |seed| values(seed, len);
        let tensor = |values: &[f32]| Tensor::<1>::from_data(TensorData::new(values.to_vec(), [values.len()]), &device);
        let c = crate::cpu::AdamWCoefficients {
            gradient_scale: 0.3,
            beta1: 0.9,
            one_minus_beta1: 0.1,
            beta2: 0.999,
            one_minus_beta2: 0.001,
            keep: 0.999,
            step_size: 0.01,
            root_scale: 1.5,
            epsilon: 1e-8,
        };
        let (mut weights, mut first, mut second) = (vector(1), vec![0.0; len], vec![0.0; len]);
        let moments = (tensor(&first), tensor(&second));
        let mut state =
            crate::AdamWUpdate { values: tensor(&weights), exp_avg: moments.0, exp_avg_sq: moments.1, rounded: None };
        for step in 1..=4 {
            let gradient = if step == 3 { vec![0.0; len] } else { vector(1 + step) };
            // Shared: not to be written to.
            let (before, held) = (read(state.values.clone()), (step == 2).then(|| state.clone()));
            let rounded = device.supports_dtype(FloatDType::F16).then_some(DType::F16);
            let Ok(update) = super::adamw::adamw(state, (step != 3).then(|| tensor(&gradient)), c, len, rounded) else {
                panic!("the kernel applies")
            };
            state = update;
            crate::cpu::adamw(&mut weights, &gradient, &mut first, &mut second, c);
            if let Some(held) = held {
                assert_eq!(read(held.values), before, "a shared tensor was written to");
            }
            if let Some(rounded) = state.rounded.take() {
                assert_eq!(read(rounded), half(&read(state.values.clone())), "rounded values");
            }
        }
        // Quotients and roots of the device.
        assert_near(&format!("adamw [{len}] values"), &read(state.values), &weights, 1e-6);
        assert_near(&format!("adamw [{len}] exp_avg"), &read(state.exp_avg), &first, 1e-6);
        assert_near(&format!("adamw [{len}] exp_avg_sq"), &read(state.exp_avg_sq), &second, 1e-6);
        let squares: f64 = vector(7).iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let sum_of_squares = |of: &[&Tensor<1>]| crate::sum_of_squares(of).expect("some values");
        let found = read(sum_of_squares(&[&tensor(&vector(7))]));
        assert_near(&format!("sum_of_squares [{len}]"), &found, &[squares as f32], 1e-5);
        let found = read(sum_of_squares(&[&tensor(&vector(7)), &tensor(&[3.0, 4.0]), &tensor(&vector(7))]));
        assert_near(&format!("sum_of_squares of several [{len}]"), &found, &[(2.0 * squares + 25.0) as f32], 1e-5);
        let not_finite = read(sum_of_squares(&[&tensor(&[1.0]), &tensor(&vec![f32::NAN; len])]));
        assert!(not_finite[0].is_nan());
    }
}

#[test]
fn gradients_accumulate_in_their_places() {
    let Some(device) = gpu() else { return };
    let (a, b) = (values(1, 6 * 64), values(2, 5 * 3));
    let by_columns: Vec<f32> = (0..15).map(|at| b[at % 5 * 3 + at / 5]).collect();
    let matrix = |values: &[f32], shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), (&device, DType::F32))
    };
    let part = |range: std::ops::Range<usize>, values: Option<Tensor<2>>| crate::GradientPart { range, values };
    let parts = |second: bool| {
        // Rows apart from each other, and a width that is no whole number of vectors.
        let rows_apart = matrix(&a, [6, 64]).narrow(1, 0, 32);
        // By columns, as a transposed product.
        let last = second.then(|| matrix(&by_columns, [3, 5]).transpose());
        vec![part(0..256, Some(rows_apart)), part(256..272, None), part(272..512, last)]
    };
    let mut expected = vec![0.0; 512];
    let rows = (0..6 * 32).map(|i| a[i / 32 * 64 + i % 32]);
    expected.iter_mut().zip(rows).for_each(|(sum, value)| *sum = value);
    let once = super::accumulate::accumulate(None, parts(false)).expect("the kernel applies");
    assert_eq!(read(once.clone()), expected);
    let held = once.clone();
    let twice = super::accumulate::accumulate(Some(once), parts(true)).expect("the kernel applies");
    assert_eq!(read(held), expected, "a shared sum was written to");
    expected.iter_mut().for_each(|value| *value *= 2.0);
    expected[272..].iter_mut().zip(&b).for_each(|(sum, value)| *sum = *value);
    assert_eq!(read(twice), expected);
    // More than a launch takes.
    let many = values(3, 19 * 256);
    let parts = (0..19).map(|at| part(at * 256..(at + 1) * 256, Some(matrix(&many[at * 256..][..256], [4, 64]))));
    let sum = super::accumulate::accumulate(None, parts.collect()).expect("the kernel applies");
    assert_eq!(read(sum), many);
}

/// Values are finite where the definition's are, and those are near it; the same of gradients when a value is NaN.
#[test]
fn nan_and_infinity_come_through() {
    let Some(device) = gpu() else { return };
    let (tokens, width) = (20, 16);
    let targets: Vec<u32> = (0..tokens as u32).collect();
    let dropout = Dropout::new((0..tokens as u64).collect(), 0.25);
    let losses = |losses: CrossEntropies| losses.sum.unsqueeze::<2>();
    type Kernel<'a> = &'a dyn Fn(&[Tensor<2>]) -> Option<Tensor<2>>;
    // x, another of its shape, and a row.
    let operations: [(&str, Kernel, Operation); 10] = [
        ("rms_norm", &|x| plain(super::norm::rms_norm(&x[0], &row(&x[2]), 1e-6)), &|x| {
            reference::rms_norm(x[0].clone(), row(&x[2]), 1e-6)
        }),
        ("layer_norm", &|x| plain(super::norm::layer_norm(&x[0], &row(&x[2]), &row(&x[2]), 1e-6)), &|x| {
            reference::layer_norm(x[0].clone(), row(&x[2]), row(&x[2]), 1e-6)
        }),
        ("swiglu", &|x| plain(super::activation::swiglu(&x[0], &x[1])), &|x| {
            reference::swiglu(x[0].clone(), x[1].clone())
        }),
        ("gelu", &|x| plain(super::activation::gelu(&x[0])), &|x| reference::gelu(x[0].clone())),
        ("gelu_tanh", &|x| plain(super::activation::gelu_tanh(&x[0])), &|x| reference::gelu_tanh(x[0].clone())),
        ("quick_gelu", &|x| plain(super::activation::quick_gelu(&x[0])), &|x| reference::quick_gelu(x[0].clone())),
        ("silu", &|x| super::activation::silu(&x[0]), &|x| reference::silu(x[0].clone())),
        ("linear", &|x| super::linear::linear(&x[0].clone().into(), &x[1].clone().into(), None), &|x| {
            reference::linear(x[0].clone(), x[1].clone(), None)
        }),
        (
            "lora_linear",
            &|x| {
                let (input, weight, b) = (x[0].clone().into(), x[1].clone().into(), x[1].clone().narrow(1, 0, 4));
                super::lora::lora_linear(&input, &weight, None, &x[1].clone().narrow(0, 0, 4), &b, 0.5, Some(&dropout))
            },
            &|x| {
                let (weight, a, b) = (x[1].clone(), x[1].clone().narrow(0, 0, 4), x[1].clone().narrow(1, 0, 4));
                reference::lora_linear(x[0].clone(), weight, None, a, b, 0.5, Some(&dropout))
            },
        ),
        ("cross_entropy_sum", &|x| super::cross_entropy::cross_entropy_sum(&x[0], &x[1], &targets).map(losses), &|x| {
            losses(reference::cross_entropy_sum(x[0].clone(), x[1].clone(), &targets))
        }),
    ];
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let shape = [tokens, width];
        let mut inputs = inputs_of(&[shape, shape, [1, width]]);
        inputs[0].0[37] = special;
        for (name, kernel, definition) in operations {
            let run = |f: Operation, device: &Device| {
                // An operation that does not take an input has a gradient for it, too: 0.
                let of_all =
                    |x: &[Tensor<2>]| f(x) + ((x[1].clone().sum() + x[2].clone().sum()) * 0.0).unsqueeze::<2>();
                run(&inputs, device, DType::F32, &of_all)
            };
            let kernel = |x: &[Tensor<2>]| kernel(x).expect("the kernel applies");
            let found = run(&kernel, &device);
            let expected = run(definition, &Device::flex());
            assert!(found[0].iter().any(|x| !x.is_finite()), "{name} with {special}: all is finite");
            let parts = if special.is_nan() { found.len() } else { 1 };
            for (part, (found, expected)) in found.iter().zip(&expected).take(parts).enumerate() {
                let name = format!("{name} with {special}, part {part}");
                let differ = found.iter().zip(expected).position(|(a, b)| a.is_finite() != b.is_finite());
                assert_eq!(differ, None, "{name}: finite in one and not in the other");
                let finite = |values: &[f32]| values.iter().copied().filter(|x| x.is_finite()).collect::<Vec<_>>();
                assert_near(&name, &finite(found), &finite(expected), SUMS);
            }
        }
    }
}
