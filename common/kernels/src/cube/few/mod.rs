//! Products of few rows with a weight, as decode steps have them: one launch, which reads the weight once in its own dtype or in few
//! bits, and adds bias and residual connection. The CPU's are `cpu::few`.
//!
//! A plane computes some outputs for all rows of x. Each of its units sums over every `PLANE_DIM`-th group of values, in order, and
//! the plane adds the units' sums: a row of x gives the same bits whatever the other rows are.
//!
//! # Arithmetic
//! A row of x and a bf16 weight: 2 FLOP for each 2 bytes read, so memory bounds it: 8 GB of weights at 4.8 TB/s are 1.7 ms.
//! x is read again for every output, from the cache: for 5 to 8 rows a plane computes four outputs at once, so that x is a fifth
//! to a third of what comes from the cache. No GPU has run it: these are counts, not times.

mod kernels;
#[cfg(all(test, feature = "wgpu"))]
mod tests;

use super::{
    Backend, MOST_VALUES, cubes, element, empty, matrix, operand, rows_and_width, strided, tables, vector_size,
};
use crate::int8::Int8Weight;
use crate::nf4::{self, Absmax, Nf4Weight};
use crate::{Dropout, LinearInput, LinearWeight, MAX_INDEPENDENT_TOKENS, QuantizedWeight};
use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use kernels::{GROUPS, LANES, MOST_OUTPUTS, Shape, UNITS};

/// See [`crate::linear`].
pub fn linear(x: &LinearInput, weight: &LinearWeight, bias: Option<&Tensor<1>>) -> Option<Tensor<2>> {
    Product { bias, ..Product::new(weight) }.of(&x.values)
}

/// See [`crate::linear_onto`].
pub fn linear_onto(
    residual: &Tensor<2>,
    x: &LinearInput,
    weight: &LinearWeight,
    bias: Option<&Tensor<1>>,
) -> Option<Tensor<2>> {
    Product { bias, residual: Some(residual), ..Product::new(weight) }.of(&x.values)
}

/// See [`crate::gated_linear`].
pub fn gated_linear(
    x: &LinearInput,
    [gate, up]: [&LinearWeight; 2],
    [gate_bias, up_bias]: [Option<&Tensor<1>>; 2],
) -> Option<LinearInput> {
    Product { bias: gate_bias, up: Some((up, up_bias)), ..Product::new(gate) }.of(&x.values).map(Into::into)
}

/// See [`crate::joined_linears`]: float weights, whose outputs are whole numbers of groups and of the device's alignment.
pub(crate) fn joined_linears(
    x: &LinearInput,
    weights: [&LinearWeight; 3],
    biases: [Option<&Tensor<1>>; 3],
) -> Option<[Tensor<2>; 3]> {
    let [rows, width] = x.values.dims();
    let outputs = weights.map(|weight| weight.dims()[0]);
    let all: usize = outputs.iter().sum();
    let is_few = (1..=MAX_INDEPENDENT_TOKENS).contains(&rows) && !x.values.device().is_autodiff();
    let fits = is_few
        && width > 0
        && weights.iter().all(|weight| weight.dims()[1] == width)
        && outputs.iter().all(|&outputs| outputs > 0 && outputs.is_multiple_of(MOST_OUTPUTS))
        && all * width <= MOST_VALUES;
    if !fits {
        return None;
    }
    let x = matrix(&x.values)?.values;
    // A part of a tensor is a tensor where the device lets one begin.
    let alignment = x.client.properties().memory.alignment as usize;
    if outputs.iter().any(|outputs| !(outputs * x.dtype.size()).is_multiple_of(alignment)) {
        return None;
    }
    let float = |weight: &LinearWeight| match weight {
        LinearWeight::Float(weight) => rows_apart(weight),
        LinearWeight::Quantized(_) => None,
    };
    let [first, second, third] = weights;
    let weights = [float(first)?, float(second)?, float(third)?];
    let present: Vec<CubeTensor> =
        biases.iter().flatten().map(|bias| operand(*bias).map(|bias| bias.values)).collect::<Option<_>>()?;
    let has_biases = present.len() == biases.len();
    let stride = weights[0].meta.strides()[0];
    let are_alike = weights.iter().all(|of| of.dtype == weights[0].dtype && of.meta.strides()[0] == stride)
        && (has_biases || present.is_empty())
        && present
            .iter()
            .zip(outputs)
            .all(|(bias, outputs)| bias.dtype == present[0].dtype && bias.meta.num_elements() == outputs);
    if !are_alike {
        return None;
    }
    let bias = |of: usize| present.get(of).unwrap_or(&x).clone();
    let shape = Shape::new(rows, width, &[has_biases.then(|| bias(0)), None], false, false);
    let output = empty(&x, [rows, all], x.dtype);
    let launch = Launch { x: x.clone(), biases: [None, None], residual: None, output, scale: 1.0, outputs: all, shape };
    let size = weights.iter().map(|weight| launch.vectors(weight, stride)).min()?;
    let dtypes = [element(&x), element(&weights[0]), element(&bias(0))];
    let [first, second, third] = weights;
    kernels::few_rows_matmul_joined::launch(
        &x.client,
        launch.cubes(),
        CubeDim::new_1d(UNITS),
        launch.vectors(&x, width),
        size,
        x.clone().into_tensor_arg(),
        first.into_tensor_arg(),
        second.into_tensor_arg(),
        third.into_tensor_arg(),
        bias(0).into_tensor_arg(),
        bias(1).into_tensor_arg(),
        bias(2).into_tensor_arg(),
        launch.output.clone().into_tensor_arg(),
        launch.rows(),
        outputs[0] as u32,
        (outputs[0] + outputs[1]) as u32,
        all as u32,
        launch.groups(),
        (stride / size) as u32,
        shape,
        dtypes,
    );
    let all = Tensor::<2>::from_primitive::<Backend>(launch.output);
    let mut start = 0;
    Some(outputs.map(|outputs| {
        start += outputs;
        all.clone().narrow(1, start - outputs, outputs)
    }))
}

/// See [`crate::lora_linear`]: three launches.
#[allow(clippy::too_many_arguments)]
pub fn lora_linear(
    x: &LinearInput,
    weight: &LinearWeight,
    bias: Option<&Tensor<1>>,
    a: &Tensor<2>,
    b: &Tensor<2>,
    scale: f32,
    dropout: Option<&Dropout>,
) -> Option<Tensor<2>> {
    if dropout.is_some() {
        return None;
    }
    let low = Product::new(&a.into()).of(&x.values)?;
    let base = linear(x, weight, bias)?;
    Product { residual: Some(&base), scale, ..Product::new(&b.into()) }.of(&low)
}

/// `scale · x Wᵀ + bias + residual`, or `silu(x Wᵀ + bias) ∘ (x Uᵀ + its bias)`.
struct Product<'a> {
    weight: &'a LinearWeight,
    bias: Option<&'a Tensor<1>>,
    up: Option<(&'a LinearWeight, Option<&'a Tensor<1>>)>,
    residual: Option<&'a Tensor<2>>,
    scale: f32,
}

/// What the kernels of all formats are given.
struct Launch {
    x: CubeTensor,
    biases: [Option<CubeTensor>; 2],
    residual: Option<CubeTensor>,
    output: CubeTensor,
    scale: f32,
    outputs: usize,
    shape: Shape,
}

impl<'a> Product<'a> {
    fn new(weight: &'a LinearWeight) -> Self {
        Self { weight, bias: None, up: None, residual: None, scale: 1.0 }
    }

    /// `None` on another backend, with autodiff, for more than [`MAX_INDEPENDENT_TOKENS`] rows, and for weights in few bits whose
    /// rows are no whole number of groups.
    fn of(self, x: &Tensor<2>) -> Option<Tensor<2>> {
        let [rows, width] = x.dims();
        let [outputs, inputs] = self.weight.dims();
        let is_few = (1..=MAX_INDEPENDENT_TOKENS).contains(&rows) && !x.device().is_autodiff();
        if !is_few || inputs != width || width == 0 || outputs == 0 || outputs * width > MOST_VALUES {
            return None;
        }
        let x = matrix(x)?.values;
        let bias = |bias: Option<&Tensor<1>>| match bias {
            Some(bias) => operand(bias).map(|bias| Some(bias.values)),
            None => Some(None),
        };
        let biases = [bias(self.bias)?, bias(self.up.and_then(|(_, bias)| bias))?];
        let residual = match self.residual {
            Some(residual) => Some(matrix(residual)?.values),
            None => None,
        };
        let dtypes = biases.iter().flatten().map(|bias| bias.dtype);
        let is_alike = dtypes.clone().all(|dtype| dtypes.clone().next() == Some(dtype))
            && residual.as_ref().is_none_or(|residual| residual.dtype == x.dtype);
        let fits = biases.iter().flatten().all(|bias| bias.meta.num_elements() == outputs)
            && residual.as_ref().is_none_or(|residual| rows_and_width(residual) == [rows, outputs])
            && self.up.is_none_or(|(up, _)| up.dims() == [outputs, inputs]);
        if !is_alike || !fits {
            return None;
        }
        let shape = Shape::new(rows, width, &biases, residual.is_some(), self.up.is_some());
        let output = empty(&x, [rows, outputs], x.dtype);
        let launch = Launch { x, biases, residual, output, scale: self.scale, outputs, shape };
        match (self.weight, self.up) {
            (LinearWeight::Float(weight), None) => launch.floats(weight, weight)?,
            (LinearWeight::Float(gate), Some((LinearWeight::Float(up), _))) => launch.floats(gate, up)?,
            (LinearWeight::Quantized(QuantizedWeight::Int8(weight)), None) => launch.int8(weight)?,
            (LinearWeight::Quantized(QuantizedWeight::Nf4(weight)), None) => launch.nf4(weight)?,
            _ => return None,
        }
        Some(Tensor::from_primitive::<Backend>(launch.output))
    }
}

impl Launch {
    fn cubes(&self) -> CubeCount {
        cubes(&self.x, self.outputs.div_ceil(GROUPS as usize * self.shape.outputs))
    }

    /// Groups of values in a row.
    fn groups(&self) -> u32 {
        let [_, width] = rows_and_width(&self.x);
        (width / self.shape.lanes) as u32
    }

    /// Values of a row that a unit reads at once from a tensor whose rows are so far apart.
    fn vectors(&self, x: &CubeTensor, stride: usize) -> usize {
        let size = vector_size(self.shape.lanes, &[x]);
        if stride.is_multiple_of(size) { size } else { 1 }
    }

    fn rows(&self) -> u32 {
        let [rows, _] = rows_and_width(&self.x);
        rows as u32
    }

    /// The bias, or what stands in its place for a kernel that reads none.
    fn bias(&self, of: usize) -> &CubeTensor {
        self.biases[of].as_ref().unwrap_or(self.any_bias())
    }

    fn any_bias(&self) -> &CubeTensor {
        self.biases.iter().flatten().next().unwrap_or(&self.x)
    }

    fn residual(&self) -> &CubeTensor {
        self.residual.as_ref().unwrap_or(&self.x)
    }

    fn floats(&self, weight: &Tensor<2>, up: &Tensor<2>) -> Option<()> {
        let (weight, up) = (rows_apart(weight)?, rows_apart(up)?);
        let stride = weight.meta.strides()[0];
        if up.dtype != weight.dtype || up.meta.strides()[0] != stride {
            return None;
        }
        let [_, width] = rows_and_width(&self.x);
        let size = self.vectors(&weight, stride).min(self.vectors(&up, stride));
        let of_x = self.vectors(&self.x, width);
        kernels::few_rows_matmul::launch(
            &self.x.client,
            self.cubes(),
            CubeDim::new_1d(UNITS),
            of_x,
            size,
            self.x.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            up.into_tensor_arg(),
            self.bias(0).clone().into_tensor_arg(),
            self.bias(1).clone().into_tensor_arg(),
            self.residual().clone().into_tensor_arg(),
            self.output.clone().into_tensor_arg(),
            self.rows(),
            self.outputs as u32,
            self.groups(),
            (stride / size) as u32,
            self.scale,
            self.shape,
            [element(&self.x), element(&weight), element(self.any_bias())],
        );
        Some(())
    }

    fn int8(&self, weight: &Int8Weight) -> Option<()> {
        let codes = weight.codes.clone().try_into_primitive::<Backend>().ok()?;
        let scales = operand(&weight.scales)?.values;
        let strides = codes.meta.strides();
        if codes.dtype != DType::I8 || strides[1] != 1 || codes.meta.is_tiled() || self.shape.lanes != LANES {
            return None;
        }
        let stride = strides[0];
        let [_, width] = rows_and_width(&self.x);
        let (size, of_x) = (self.vectors(&codes, stride), self.vectors(&self.x, width));
        kernels::few_rows_matmul_int8::launch(
            &self.x.client,
            self.cubes(),
            CubeDim::new_1d(UNITS),
            of_x,
            size,
            self.x.clone().into_tensor_arg(),
            codes.into_tensor_arg(),
            scales.into_tensor_arg(),
            self.bias(0).clone().into_tensor_arg(),
            self.residual().clone().into_tensor_arg(),
            self.output.clone().into_tensor_arg(),
            self.rows(),
            self.outputs as u32,
            self.groups(),
            (stride / size) as u32,
            self.scale,
            self.shape,
            [element(&self.x), element(self.any_bias())],
        );
        Some(())
    }

    fn nf4(&self, weight: &Nf4Weight) -> Option<()> {
        let codes = bytes(&weight.codes)?;
        if self.shape.lanes != LANES || !weight.block.is_multiple_of(LANES) {
            return None;
        }
        let [_, width] = rows_and_width(&self.x);
        let (size, of_x) = (vector_size(LANES / 2, &[&codes]), self.vectors(&self.x, width));
        let values = tables::kept(&self.x, bytemuck::cast_slice(&nf4::VALUES), nf4::VALUES.len(), DType::F32);
        let (codes_of_absmax, map, absmax, block, offset) = match &weight.absmax {
            Absmax::Plain(absmax) => {
                let absmax = operand(absmax)?.values;
                (codes.clone(), absmax.clone(), absmax, 1, 0.0)
            }
            Absmax::Nested { codes, map, absmax, block, offset } => {
                (bytes(codes)?, operand(map)?.values, operand(absmax)?.values, *block, *offset)
            }
        };
        kernels::few_rows_matmul_nf4::launch(
            &self.x.client,
            self.cubes(),
            CubeDim::new_1d(UNITS),
            of_x,
            size,
            self.x.clone().into_tensor_arg(),
            codes.into_tensor_arg(),
            values.into_tensor_arg(),
            codes_of_absmax.into_tensor_arg(),
            map.into_tensor_arg(),
            absmax.into_tensor_arg(),
            self.bias(0).clone().into_tensor_arg(),
            self.residual().clone().into_tensor_arg(),
            self.output.clone().into_tensor_arg(),
            self.rows(),
            self.outputs as u32,
            self.groups(),
            (weight.block / LANES) as u32,
            block as u32,
            offset,
            self.scale,
            self.shape,
            weight.absmax.is_nested(),
            [element(&self.x), element(self.any_bias())],
        );
        Some(())
    }
}

/// The weight where it lies.
fn rows_apart(weight: &Tensor<2>) -> Option<CubeTensor> {
    let is_read = matches!(weight.dtype(), DType::F32 | DType::BF16 | DType::F16);
    if !is_read || weight.device().is_autodiff() {
        return None;
    }
    strided(weight).filter(|weight| !weight.meta.is_tiled())
}

fn bytes(codes: &Tensor<1, Int>) -> Option<CubeTensor> {
    let codes = codes.clone().try_into_primitive::<Backend>().ok()?;
    (codes.dtype == DType::U8).then(|| into_contiguous(codes))
}
