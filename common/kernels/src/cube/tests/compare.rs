//! For tests: a kernel on a Vulkan device beside its definition on burn-flex and the CPU's kernel, values and gradients.

use crate::cpu::tests::{assert_near, values};
use crate::device::DeviceKind;
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

/// The device without autodiff; a test without one says so.
pub(crate) fn gpu() -> Option<Device> {
    match DeviceKind::Vulkan(0).open() {
        Ok(device) => Some(device),
        Err(error) => {
            println!("not run: {error}");
            None
        }
    }
}

pub(crate) type Inputs = Vec<(Vec<f32>, [usize; 2])>;
pub(crate) type Operation<'a> = &'a dyn Fn(&[Tensor<2>]) -> Tensor<2>;

pub(crate) fn inputs_of(shapes: &[[usize; 2]]) -> Inputs {
    (0..).zip(shapes).map(|(seed, &shape)| (values(seed, shape[0] * shape[1]), shape)).collect()
}

pub(crate) fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(DType::F32).into_data().try_into_vec().expect("f32")
}

/// Which inputs have gradients, and how the values of inputs and of the incoming gradient lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    /// All, row after row.
    Plain,
    /// All, column after column.
    Columns,
    /// The input with this number only.
    Only(usize),
}

/// The output of `f`, then the gradients of Σ output ∘ (fixed random weights) for every input, computed in `dtype`.
pub(crate) fn run(inputs: &Inputs, device: &Device, dtype: DType, f: Operation) -> Vec<Vec<f32>> {
    run_as(Variant::Plain, inputs, device, dtype, f)
}

fn run_as(variant: Variant, inputs: &Inputs, device: &Device, dtype: DType, f: Operation) -> Vec<Vec<f32>> {
    let device = device.clone().autodiff();
    let by_columns = variant == Variant::Columns;
    // As it is stored: for values by columns, the transposed matrix.
    let stored = |values: &[f32], [rows, columns]: [usize; 2]| {
        let (values, shape) = match by_columns {
            true => ((0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect(), [columns, rows]),
            false => (values.to_vec(), [rows, columns]),
        };
        Tensor::<2>::from_data(TensorData::new(values, shape), (&device, DType::F32)).cast(dtype).detach()
    };
    let seen = |x: Tensor<2>| if by_columns { x.transpose() } else { x };
    let is_tracked = |input: usize| !matches!(variant, Variant::Only(only) if only != input);
    let leaves: Vec<Tensor<2>> = (inputs.iter().enumerate())
        .map(|(input, (values, shape))| {
            let leaf = stored(values, *shape);
            if is_tracked(input) { leaf.require_grad() } else { leaf }
        })
        .collect();
    let output = f(&leaves.iter().cloned().map(seen).collect::<Vec<_>>());
    let shape = output.dims();
    let weights = stored(&values(99, shape[0] * shape[1]), shape).cast(output.dtype());
    let gradients = (seen(output.clone()) * weights).sum().backward();
    let of_inputs = leaves
        .iter()
        .enumerate()
        .filter(|(input, _)| is_tracked(*input))
        .map(|(_, leaf)| read(seen(leaf.grad(&gradients).expect("a gradient"))));
    std::iter::once(read(output)).chain(of_inputs).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// The same bits again, for values that lie by columns, and for each gradient by itself.
pub(crate) fn check_bits(name: &str, inputs: &Inputs, device: &Device, kernel: Operation, found: &[Vec<f32>]) {
    let variants = [Variant::Plain, Variant::Columns].into_iter().chain((0..inputs.len()).map(Variant::Only));
    for variant in variants {
        let again = run_as(variant, inputs, device, DType::F32, kernel);
        let parts: Vec<usize> = match variant {
            Variant::Only(input) => vec![0, 1 + input],
            _ => (0..found.len()).collect(),
        };
        assert_eq!(again.len(), parts.len(), "{name}, {variant:?}: gradients");
        for (again, part) in again.iter().zip(parts) {
            assert!(bits(again) == bits(&found[part]), "{name}, part {part}: other bits, {variant:?}");
        }
    }
}

/// Compares a kernel on the GPU with the definition on burn-flex and with the CPU's kernel.
pub(crate) fn check(
    name: &str,
    shapes: &[[usize; 2]],
    tolerance: f32,
    kernel: &dyn Fn(&[Tensor<2>]) -> Option<Tensor<2>>,
    definition: Operation,
    operation: Operation,
) {
    let Some(device) = gpu() else { return };
    let inputs = inputs_of(shapes);
    let kernel = |x: &[Tensor<2>]| kernel(x).expect("the kernel applies");
    let found = run(&inputs, &device, DType::F32, &kernel);
    let compare = |with: &str, expected: Vec<Vec<f32>>, found: &[Vec<f32>], tolerance: f32| {
        for (part, (found, expected)) in found.iter().zip(expected).enumerate() {
            let what = if part == 0 { "values".into() } else { format!("gradient {part}") };
            assert_near(&format!("{name} {shapes:?} {what} against {with}"), found, &expected, tolerance);
        }
    };
    compare("the definition", run(&inputs, &Device::flex(), DType::F32, definition), &found, tolerance);
    compare("the CPU's kernel", run(&inputs, &Device::flex(), DType::F32, operation), &found, tolerance);
    check_bits(&format!("{name} {shapes:?}"), &inputs, &device, &kernel, &found);
    // Half precision: what is read and written has 11 bits.
    if device.supports_dtype(FloatDType::F16) {
        let rounded: Inputs = inputs.iter().map(|(values, shape)| (half(values), *shape)).collect();
        let found = run(&rounded, &device, DType::F16, &kernel);
        compare("the definition, in f16", run(&rounded, &Device::flex(), DType::F32, definition), &found, 4e-3);
    } else {
        println!("{name}: the device has no f16");
    }
}

pub(crate) fn half(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&value| half::f16::from_f32(value).to_f32()).collect()
}
