//! Products of few rows in every format of weights, against the definition and the CPU's kernels, and row by row.

use super::{gated_linear, linear, linear_onto, lora_linear};
use crate::cpu::tests::{assert_near, values};
use crate::cube::tests::compare::{gpu, read};
use crate::{LinearWeight, Quantization, QuantizedWeight, reference};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

/// Sums of up to some thousand values in another order.
const SUMS: f32 = 1e-5;

fn matrix(seed: u64, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values(seed, shape[0] * shape[1]), shape), (device, DType::F32))
}

fn vector(seed: u64, len: usize, device: &Device) -> Tensor<1> {
    matrix(seed, [1, len], device).reshape([len])
}

fn float_dtypes(device: &Device) -> Vec<DType> {
    let dtypes = [(DType::F32, FloatDType::F32), (DType::F16, FloatDType::F16), (DType::BF16, FloatDType::BF16)];
    dtypes.into_iter().filter(|(_, dtype)| device.supports_dtype(*dtype)).map(|(dtype, _)| dtype).collect()
}

/// A weight in some format on a device.
type Weight<'a> = &'a dyn Fn(u64, &Device) -> LinearWeight;

/// All products with a weight `[out, inputs]`, in the kernel and by the definition.
fn check(name: &str, [rows, inputs, out]: [usize; 3], device: &Device, weight: Weight, gates: bool) {
    let cpu = Device::flex();
    let x = |device: &Device| matrix(1, [rows, inputs], device);
    let bias = |device: &Device| Some(vector(2, out, device));
    let residual = |device: &Device| matrix(3, [rows, out], device);
    let name = format!("{name} [{rows}, {inputs}] · [{out}, {inputs}]ᵀ");
    let near = |what: &str, found: Option<Tensor<2>>, expected: &[Tensor<2>]| {
        let found = read(found.unwrap_or_else(|| panic!("{name}, {what}: the kernel does not apply")));
        for (expected, with) in expected.iter().zip(["the definition", "the CPU's kernel"]) {
            assert_near(&format!("{name}, {what} against {with}"), &found, &read(expected.clone()), SUMS);
        }
        found
    };
    let on_gpu = weight(4, device);
    let found = near(
        "bias",
        linear(&x(device).into(), &on_gpu, bias(device).as_ref()),
        &[reference::linear(x(&cpu), weight(4, &cpu), bias(&cpu)), crate::linear(x(&cpu), weight(4, &cpu), bias(&cpu))],
    );
    near("no bias", linear(&x(device).into(), &on_gpu, None), &[reference::linear(x(&cpu), weight(4, &cpu), None)]);
    near(
        "residual",
        linear_onto(&residual(device), &x(device).into(), &on_gpu, None),
        &[
            residual(&cpu) + reference::linear(x(&cpu), weight(4, &cpu), None),
            crate::linear_onto(residual(&cpu), x(&cpu), weight(4, &cpu), None),
        ],
    );
    let [a, b] = [[3, inputs], [out, 3]];
    near(
        "LoRA",
        lora_linear(
            &x(device).into(),
            &on_gpu,
            bias(device).as_ref(),
            &matrix(5, a, device),
            &matrix(6, b, device),
            0.5,
            None,
        ),
        &[reference::lora_linear(
            x(&cpu),
            weight(4, &cpu),
            bias(&cpu),
            matrix(5, a, &cpu),
            matrix(6, b, &cpu),
            0.5,
            None,
        )],
    );
    if gates {
        let weights = |device: &Device| [weight(4, device), weight(7, device)];
        let [gate, up] = weights(device);
        let biases = |device: &Device| [None, bias(device)];
        let [none, of_up] = biases(device);
        let definition = reference::swiglu(
            reference::linear(x(&cpu), weight(4, &cpu), None),
            reference::linear(x(&cpu), weight(7, &cpu), bias(&cpu)),
        );
        near(
            "gated",
            gated_linear(&x(device).into(), [&gate, &up], [none.as_ref(), of_up.as_ref()]).map(Tensor::from),
            &[definition, crate::gated_linear(x(&cpu), weights(&cpu), biases(&cpu)).into()],
        );
    }
    // Each row by itself: the same bits.
    for row in 0..rows {
        let alone = linear(&x(device).narrow(0, row, 1).into(), &on_gpu, bias(device).as_ref());
        let alone = read(alone.expect("the kernel applies"));
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert!(bits(&alone) == bits(&found[row * out..][..out]), "{name}: row {row} alone has other bits");
    }
}

#[test]
fn with_float_weights() {
    let Some(device) = gpu() else { return };
    for dtype in float_dtypes(&device) {
        // A pipeline for each number of rows and each way of reading them.
        let all = [[1, 1, 1], [2, 33, 7], [3, 100, 70], [1, 2560, 40], [8, 2560, 33]];
        for sizes in if dtype == DType::F32 { &all[..] } else { &all[2..] } {
            let sizes = *sizes;
            let [_, inputs, out] = sizes;
            // The same values everywhere: rounded on the CPU, which has all dtypes.
            let weight = |seed, device: &Device| {
                let rounded = matrix(seed, [out, inputs], &Device::flex()).cast(dtype).cast(DType::F32).into_data();
                LinearWeight::from(Tensor::<2>::from_data(rounded, (device, DType::F32)).cast(dtype))
            };
            check(&format!("{dtype:?}"), sizes, &device, &weight, true);
        }
    }
}

#[test]
fn with_weights_in_few_bits() {
    let Some(device) = gpu() else { return };
    for format in
        [Quantization::Int8, Quantization::Nf4 { double_quant: false }, Quantization::Nf4 { double_quant: true }]
    {
        // Rows of whole blocks, and rows that begin within a block.
        for sizes in [[1, 64, 3], [3, 200, 70], [8, 2560, 33]] {
            let [_, inputs, out] = sizes;
            let weight =
                |seed, device: &Device| QuantizedWeight::quantize(matrix(seed, [out, inputs], device), format).into();
            check(&format.to_string(), sizes, &device, &weight, false);
        }
        let odd = QuantizedWeight::quantize(matrix(1, [5, 12], &device), format).into();
        assert!(linear(&matrix(2, [1, 12], &device).into(), &odd, None).is_none(), "{format}: rows of 12");
        let found = read(crate::linear(matrix(2, [1, 12], &device), odd, None));
        let on_cpu = QuantizedWeight::quantize(matrix(1, [5, 12], &Device::flex()), format);
        let expected = read(crate::linear(matrix(2, [1, 12], &Device::flex()), on_cpu, None));
        assert_near(&format!("{format}: rows of 12"), &found, &expected, SUMS);
    }
}

#[test]
fn three_joined() {
    let Some(device) = gpu() else { return };
    let outs = [512, 256, 256];
    for (dtype, inputs) in float_dtypes(&device).into_iter().flat_map(|dtype| [(dtype, 40), (dtype, 33)]) {
        let weights = outs.map(|out| matrix(out as u64, [out, inputs], &device).cast(dtype).into());
        let all_biases = outs.map(|out| vector(7, out, &device));
        for rows in [1, 3, 8] {
            let x = matrix(9, [rows, inputs], &device).into();
            for biases in [[None; 3], all_biases.each_ref().map(Some)] {
                let found = super::joined_linears(&x, weights.each_ref(), biases).expect("the kernel applies");
                for (of, found) in found.into_iter().enumerate() {
                    let alone = linear(&x, &weights[of], biases[of]).expect("the kernel applies");
                    assert_eq!(read(found), read(alone), "{dtype:?}, {rows} rows of {inputs}, output {of}");
                }
            }
        }
    }
    let narrow = [4, 4, 8].map(|out| matrix(1, [out, 40], &device).into());
    assert!(super::joined_linears(&matrix(2, [1, 40], &device).into(), narrow.each_ref(), [None; 3]).is_none());
}

#[test]
fn activations_in_half_precision() {
    let Some(device) = gpu() else { return };
    for dtype in float_dtypes(&device) {
        let [x, weight, residual] =
            [(1, [3, 64]), (2, [20, 64]), (3, [3, 20])].map(|(seed, shape)| matrix(seed, shape, &device).cast(dtype));
        let weights = [weight.clone().into(), weight.clone().into()];
        let gated = gated_linear(&x.clone().into(), [&weights[0], &weights[1]], [None, None]).map(Tensor::from);
        let expected = reference::swiglu(
            reference::linear(x.clone(), weight.clone(), None),
            reference::linear(x.clone(), weight.clone(), None),
        );
        // 8 bits in bf16, of products of rounded factors.
        let tolerance = if dtype == DType::BF16 { 2e-2 } else { 4e-3 };
        let gated: Tensor<2> = gated.expect("the kernel applies");
        assert_eq!(gated.dtype(), dtype);
        assert_near(&format!("gated in {dtype:?}"), &read(gated), &read(expected), tolerance);
        let sum = linear_onto(&residual, &x.clone().into(), &weights[0], None).expect("the kernel applies");
        let expected = residual + reference::linear(x, weight, None);
        assert_near(&format!("residual in {dtype:?}"), &read(sum), &read(expected), tolerance);
    }
}

#[test]
fn nan_stays_in_its_row() {
    let Some(device) = gpu() else { return };
    let mut x = values(1, 3 * 40);
    x[50] = f32::NAN;
    let x = Tensor::<2>::from_data(TensorData::new(x, [3, 40]), &device);
    let found = read(linear(&x.into(), &matrix(2, [5, 40], &device).into(), None).expect("the kernel applies"));
    let nan: Vec<bool> = found.iter().map(|value| value.is_nan()).collect();
    assert_eq!(nan, [[false; 5], [true; 5], [false; 5]].concat());
}

#[test]
fn others_are_for_the_definition() {
    let Some(device) = gpu() else { return };
    let weight: LinearWeight = matrix(1, [5, 8], &device).into();
    let applies = |x: Tensor<2>, weight: &LinearWeight| linear(&x.into(), weight, None).is_some();
    assert!(applies(matrix(2, [8, 8], &device), &weight));
    assert!(!applies(matrix(2, [9, 8], &device), &weight), "too many rows");
    assert!(!applies(matrix(2, [1, 8], &device.clone().autodiff()), &weight), "a graph");
    let by_columns = matrix(1, [8, 5], &device).transpose().into();
    assert!(!applies(matrix(2, [1, 8], &device), &by_columns), "values of a row apart");
}
