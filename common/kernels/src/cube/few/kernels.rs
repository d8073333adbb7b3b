//! The kernels, one for each format of weights.

// These lints are about code that cubecl's macro makes of this, or would change it to what the macro does not read.
#![allow(
    clippy::manual_div_ceil,
    clippy::collapsible_else_if,
    clippy::collapsible_if,
    clippy::duplicate_underscore_argument
)]

use crate::MAX_INDEPENDENT_TOKENS;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// Units of a cube.
pub const UNITS: u32 = 256;
/// Groups of outputs of a cube; a plane has one of them at a time.
pub const GROUPS: u32 = 8;
/// Outputs of a group, at most.
pub const MOST_OUTPUTS: usize = 4;
/// Values of a row that a unit multiplies at a time, where rows are whole numbers of so many.
pub const LANES: usize = 8;

/// What is known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows of x, at most.
    pub rows: usize,
    /// Outputs of a group.
    pub outputs: usize,
    /// Values of a row that a unit multiplies at a time.
    pub lanes: usize,
    bias: bool,
    up_bias: bool,
    residual: bool,
    /// There is a second weight: the output is `silu(first) ∘ second`.
    gated: bool,
}

impl Shape {
    /// Sizes are rounded up to a few, so that few kernels are compiled.
    pub fn new(rows: usize, width: usize, biases: &[Option<CubeTensor>; 2], residual: bool, gated: bool) -> Self {
        let rows = rows.next_power_of_two().min(MAX_INDEPENDENT_TOKENS);
        // The more rows of x, the more outputs share what is read of them.
        let outputs = match rows {
            1 | 2 => 1,
            3 | 4 => 2,
            _ => MOST_OUTPUTS,
        };
        let lanes = [LANES, 4, 2].into_iter().find(|&lanes| width.is_multiple_of(lanes)).unwrap_or(1);
        let [bias, up_bias] = [0, 1].map(|of| biases[of].is_some());
        Self { rows, outputs, lanes, bias, up_bias, residual, gated }
    }

    fn sums(self) -> usize {
        self.rows * self.outputs
    }
}

/// Float weights, with the second one of a gated product in `up`.
#[cube(launch)]
pub fn few_rows_matmul<F: Float, W: Float, B: Float, X: Size, N: Size>(
    x: &Buffer<Vector<F, X>>,
    weight: &Buffer<Vector<W, N>>,
    up: &Buffer<Vector<W, N>>,
    bias: &Buffer<B>,
    up_bias: &Buffer<B>,
    residual: &Buffer<F>,
    output: &mut Buffer<F>,
    rows: u32,
    outputs: u32,
    groups: u32,
    stride: u32,
    scale: f32,
    #[comptime] shape: Shape,
    #[define(F, W, B)] _dtypes: [ElemType; 3],
) {
    let planes = max(CUBE_DIM / PLANE_DIM, 1u32);
    // A plane has one group after the other; of a loop over turns, NVRTC keeps more registers.
    let mut group = PLANE_POS;
    while group < GROUPS {
        let first = (CUBE_POS as u32 * GROUPS + group) * comptime!(shape.outputs as u32);
        if first < outputs {
            let mut sums = zeros(comptime!(shape.sums()));
            let mut up_sums = zeros(comptime!(if shape.gated { shape.sums() } else { 1 }));
            for step in 0..groups.div_ceil(PLANE_DIM) {
                let at = step * PLANE_DIM + UNIT_POS_PLANE;
                if at < groups {
                    let mut values = zeros(comptime!(shape.outputs * shape.lanes));
                    read_weight::<W, N>(weight, at, first, outputs, stride, &mut values, shape);
                    add_products::<F, X>(x, at, groups, rows, &values, &mut sums, shape);
                    if comptime!(shape.gated) {
                        read_weight::<W, N>(up, at, first, outputs, stride, &mut values, shape);
                        add_products::<F, X>(x, at, groups, rows, &values, &mut up_sums, shape);
                    }
                }
            }
            #[unroll]
            for n in 0..comptime!(shape.sums()) {
                let row = comptime!((n / shape.outputs) as u32);
                let at = first + comptime!((n % shape.outputs) as u32);
                let mut sum = plane_sum(sums[n]) * scale;
                let mut of_up = 0.0f32;
                if comptime!(shape.gated) {
                    of_up = plane_sum(up_sums[n]);
                }
                if UNIT_POS_PLANE == 0 && rows > row && at < outputs {
                    if comptime!(shape.bias) {
                        sum += f32::cast_from(bias[at as usize]);
                    }
                    let place = (row * outputs + at) as usize;
                    if comptime!(shape.residual) {
                        sum += f32::cast_from(residual[place]);
                    }
                    if comptime!(shape.gated) {
                        if comptime!(shape.up_bias) {
                            of_up += f32::cast_from(up_bias[at as usize]);
                        }
                        // As two products and `swiglu`: each is in the activations' dtype before the next.
                        let gate = f32::cast_from(F::cast_from(sum));
                        let silu = f32::cast_from(F::cast_from(gate / (1.0f32 + (-gate).exp())));
                        sum = silu * f32::cast_from(F::cast_from(of_up));
                    }
                    output[place] = F::cast_from(sum);
                }
            }
        }
        group += planes;
    }
}

/// Three float weights: their outputs side by side. Where those of the first two end is a multiple of a group.
#[cube(launch)]
pub fn few_rows_matmul_joined<F: Float, W: Float, B: Float, X: Size, N: Size>(
    x: &Buffer<Vector<F, X>>,
    first: &Buffer<Vector<W, N>>,
    second: &Buffer<Vector<W, N>>,
    third: &Buffer<Vector<W, N>>,
    first_bias: &Buffer<B>,
    second_bias: &Buffer<B>,
    third_bias: &Buffer<B>,
    output: &mut Buffer<F>,
    rows: u32,
    first_end: u32,
    second_end: u32,
    outputs: u32,
    groups: u32,
    stride: u32,
    #[comptime] shape: Shape,
    #[define(F, W, B)] _dtypes: [ElemType; 3],
) {
    let planes = max(CUBE_DIM / PLANE_DIM, 1u32);
    let mut group = PLANE_POS;
    while group < GROUPS {
        let start = (CUBE_POS as u32 * GROUPS + group) * comptime!(shape.outputs as u32);
        if start < outputs {
            let mut sums = zeros(comptime!(shape.sums()));
            for step in 0..groups.div_ceil(PLANE_DIM) {
                let at = step * PLANE_DIM + UNIT_POS_PLANE;
                if at < groups {
                    let mut values = zeros(comptime!(shape.outputs * shape.lanes));
                    if start < first_end {
                        read_weight::<W, N>(first, at, start, first_end, stride, &mut values, shape);
                    } else if start < second_end {
                        let (of_second, end) = (start - first_end, second_end - first_end);
                        read_weight::<W, N>(second, at, of_second, end, stride, &mut values, shape);
                    } else {
                        let (of_third, end) = (start - second_end, outputs - second_end);
                        read_weight::<W, N>(third, at, of_third, end, stride, &mut values, shape);
                    }
                    add_products::<F, X>(x, at, groups, rows, &values, &mut sums, shape);
                }
            }
            #[unroll]
            for n in 0..comptime!(shape.sums()) {
                let row = comptime!((n / shape.outputs) as u32);
                let at = start + comptime!((n % shape.outputs) as u32);
                let mut sum = plane_sum(sums[n]);
                if UNIT_POS_PLANE == 0 && rows > row && at < outputs {
                    if comptime!(shape.bias) {
                        if at < first_end {
                            sum += f32::cast_from(first_bias[at as usize]);
                        } else if at < second_end {
                            sum += f32::cast_from(second_bias[(at - first_end) as usize]);
                        } else {
                            sum += f32::cast_from(third_bias[(at - second_end) as usize]);
                        }
                    }
                    output[(row * outputs + at) as usize] = F::cast_from(sum);
                }
            }
        }
        group += planes;
    }
}

/// Weights in 8-bit integers.
#[cube(launch)]
pub fn few_rows_matmul_int8<F: Float, B: Float, X: Size, N: Size>(
    x: &Buffer<Vector<F, X>>,
    codes: &Buffer<Vector<i8, N>>,
    scales: &Buffer<f32>,
    bias: &Buffer<B>,
    residual: &Buffer<F>,
    output: &mut Buffer<F>,
    rows: u32,
    outputs: u32,
    groups: u32,
    stride: u32,
    scale: f32,
    #[comptime] shape: Shape,
    #[define(F, B)] _dtypes: [ElemType; 2],
) {
    let planes = max(CUBE_DIM / PLANE_DIM, 1u32);
    let mut group = PLANE_POS;
    while group < GROUPS {
        let first = (CUBE_POS as u32 * GROUPS + group) * comptime!(shape.outputs as u32);
        if first < outputs {
            let mut sums = zeros(comptime!(shape.sums()));
            for step in 0..groups.div_ceil(PLANE_DIM) {
                let at = step * PLANE_DIM + UNIT_POS_PLANE;
                if at < groups {
                    let mut values = zeros(comptime!(shape.outputs * shape.lanes));
                    read_weight::<i8, N>(codes, at, first, outputs, stride, &mut values, shape);
                    add_products::<F, X>(x, at, groups, rows, &values, &mut sums, shape);
                }
            }
            #[unroll]
            for n in 0..comptime!(shape.sums()) {
                let row = comptime!((n / shape.outputs) as u32);
                let at = first + comptime!((n % shape.outputs) as u32);
                let sum = plane_sum(sums[n]);
                if UNIT_POS_PLANE == 0 && rows > row && at < outputs {
                    let sum = sum * scales[at as usize] * scale;
                    write::<F, B>(sum, row, at, outputs, bias, residual, output, shape);
                }
            }
        }
        group += planes;
    }
}

/// Weights in NF4: two codes a byte, the first in the high half; `block` groups share a largest magnitude, which is itself a code
/// (`nested`) or a number of `absmax`.
#[cube(launch)]
pub fn few_rows_matmul_nf4<F: Float, B: Float, X: Size, N: Size>(
    x: &Buffer<Vector<F, X>>,
    codes: &Buffer<Vector<u8, N>>,
    values_of_codes: &Buffer<f32>,
    codes_of_absmax: &Buffer<u8>,
    map: &Buffer<f32>,
    absmax: &Buffer<f32>,
    bias: &Buffer<B>,
    residual: &Buffer<F>,
    output: &mut Buffer<F>,
    rows: u32,
    outputs: u32,
    groups: u32,
    block: u32,
    absmax_block: u32,
    offset: f32,
    scale: f32,
    #[comptime] shape: Shape,
    #[comptime] nested: bool,
    #[define(F, B)] _dtypes: [ElemType; 2],
) {
    let mut table = Shared::<[f32]>::new_slice(16usize);
    if UNIT_POS < 16 {
        table[UNIT_POS as usize] = values_of_codes[UNIT_POS as usize];
    }
    sync_cube();
    let planes = max(CUBE_DIM / PLANE_DIM, 1u32);
    let mut group = PLANE_POS;
    while group < GROUPS {
        let first = (CUBE_POS as u32 * GROUPS + group) * comptime!(shape.outputs as u32);
        if first < outputs {
            let mut sums = zeros(comptime!(shape.sums()));
            for step in 0..groups.div_ceil(PLANE_DIM) {
                let at = step * PLANE_DIM + UNIT_POS_PLANE;
                if at < groups {
                    let mut values = zeros(comptime!(shape.outputs * shape.lanes));
                    #[unroll]
                    for r in 0..comptime!(shape.outputs) {
                        let row = min(first + comptime!(r as u32), outputs - 1);
                        let of_weight = row * groups + at;
                        let of_block = (of_weight / block) as usize;
                        let magnitude = largest(codes_of_absmax, map, absmax, of_block, absmax_block, offset, nested);
                        let lanes = N::value();
                        let vectors = comptime!(LANES / 2 / lanes);
                        #[unroll]
                        for part in 0..vectors {
                            let pairs = codes[of_weight as usize * vectors + part];
                            #[unroll]
                            for lane in 0..lanes {
                                let pair = u32::cast_from(pairs.extract(lane));
                                let place = comptime!(r * LANES + (part * lanes + lane) * 2);
                                values[place] = table[(pair >> 4u32) as usize] * magnitude;
                                values[comptime!(place + 1)] = table[(pair & 15u32) as usize] * magnitude;
                            }
                        }
                    }
                    add_products::<F, X>(x, at, groups, rows, &values, &mut sums, shape);
                }
            }
            #[unroll]
            for n in 0..comptime!(shape.sums()) {
                let row = comptime!((n / shape.outputs) as u32);
                let at = first + comptime!((n % shape.outputs) as u32);
                let sum = plane_sum(sums[n]) * scale;
                if UNIT_POS_PLANE == 0 && rows > row && at < outputs {
                    write::<F, B>(sum, row, at, outputs, bias, residual, output, shape);
                }
            }
        }
        group += planes;
    }
}

/// The largest magnitude of a block.
#[cube]
fn largest(
    codes: &Buffer<u8>,
    map: &Buffer<f32>,
    absmax: &Buffer<f32>,
    block: usize,
    absmax_block: u32,
    offset: f32,
    #[comptime] nested: bool,
) -> f32 {
    if nested {
        map[u32::cast_from(codes[block]) as usize] * absmax[block / absmax_block as usize] + offset
    } else {
        absmax[block]
    }
}

#[cube]
fn zeros(#[comptime] len: usize) -> Array<f32> {
    let mut array = Array::<f32>::new(len);
    #[unroll]
    for i in 0..len {
        array[i] = 0.0f32;
    }
    array
}

/// Group `at` of the weight's rows from `first` on; in place of rows that are not there, the last one.
#[cube]
fn read_weight<W: Numeric, N: Size>(
    weight: &Buffer<Vector<W, N>>,
    at: u32,
    first: u32,
    outputs: u32,
    stride: u32,
    values: &mut Array<f32>,
    #[comptime] shape: Shape,
) {
    let lanes = N::value();
    let vectors = comptime!(shape.lanes / lanes);
    #[unroll]
    for r in 0..comptime!(shape.outputs) {
        let row = min(first + comptime!(r as u32), outputs - 1);
        let base = (row * stride) as usize + at as usize * vectors;
        #[unroll]
        for part in 0..vectors {
            let vector = Vector::<f32, N>::cast_from(weight[base + part]);
            #[unroll]
            for lane in 0..lanes {
                values[comptime!(r * shape.lanes + part * lanes + lane)] = vector.extract(lane);
            }
        }
    }
}

/// Adds the products of group `at` of all rows of x with those of the weight. In place of rows that are not there, the last one.
/// The order of a sum does not depend on the number of rows.
#[cube]
fn add_products<F: Float, X: Size>(
    x: &Buffer<Vector<F, X>>,
    at: u32,
    groups: u32,
    rows: u32,
    values: &Array<f32>,
    sums: &mut Array<f32>,
    #[comptime] shape: Shape,
) {
    let lanes = X::value();
    let vectors = comptime!(shape.lanes / lanes);
    #[unroll]
    for t in 0..comptime!(shape.rows) {
        let row = min(rows - 1, comptime!(t as u32));
        let base = (row * groups + at) as usize * vectors;
        #[unroll]
        for part in 0..vectors {
            let vector = Vector::<f32, X>::cast_from(x[base + part]);
            #[unroll]
            for lane in 0..lanes {
                let input = vector.extract(lane);
                #[unroll]
                for r in 0..comptime!(shape.outputs) {
                    let n = comptime!(t * shape.outputs + r);
                    let value = values[comptime!(r * shape.lanes + part * lanes + lane)];
                    sums[n] = fma(input, value, sums[n]);
                }
            }
        }
    }
}

#[cube]
fn write<F: Float, B: Float>(
    sum: f32,
    row: u32,
    at: u32,
    outputs: u32,
    bias: &Buffer<B>,
    residual: &Buffer<F>,
    output: &mut Buffer<F>,
    #[comptime] shape: Shape,
) {
    let mut sum = sum;
    if comptime!(shape.bias) {
        sum += f32::cast_from(bias[at as usize]);
    }
    let place = (row * outputs + at) as usize;
    if comptime!(shape.residual) {
        sum += f32::cast_from(residual[place]);
    }
    output[place] = F::cast_from(sum);
}
