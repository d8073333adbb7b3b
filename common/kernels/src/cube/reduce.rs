//! Sums within a cube, and of columns.

use super::{cubes_of_units, element, empty};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::{Tensor as Buffer, *};

/// Planes of the largest cube on the device with the smallest.
const PLANES: usize = 256;

/// The sum of all units' values, for every unit. All units of the cube have to take part. Ordered: within planes, then over planes.
#[cube]
pub(crate) fn cube_sum(value: f32) -> f32 {
    let mut partial = Shared::<[f32]>::new_slice(PLANES);
    let of_plane = plane_sum(value);
    if UNIT_POS_PLANE == 0 {
        partial[PLANE_POS as usize] = of_plane;
    }
    sync_cube();
    let planes = CUBE_DIM.div_ceil(PLANE_DIM);
    let mut total = 0.0f32;
    for plane in 0..planes {
        total += partial[plane as usize];
    }
    sync_cube();
    total
}

/// The largest of all units' values, for every unit. All units of the cube have to take part.
#[cube]
pub(crate) fn cube_max(value: f32) -> f32 {
    let mut partial = Shared::<[f32]>::new_slice(PLANES);
    let of_plane = plane_max(value);
    if UNIT_POS_PLANE == 0 {
        partial[PLANE_POS as usize] = of_plane;
    }
    sync_cube();
    let planes = CUBE_DIM.div_ceil(PLANE_DIM);
    let mut largest = partial[0];
    for plane in 1..planes {
        largest = largest.max(partial[plane as usize]);
    }
    sync_cube();
    largest
}

/// Cubes that a sum of many values is divided among.
const PARTS: usize = 256;

/// A cube for each part of `x`: the sum of its values, or of their squares.
#[cube(launch)]
fn part_sums<F: Float>(
    x: &Buffer<F>,
    sums: &mut Buffer<f32>,
    len: u32,
    part: u32,
    first: u32,
    #[comptime] squares: bool,
    #[define(F)] _dtype: ElemType,
) {
    let start = CUBE_POS as u32 * part;
    let mut sum = 0.0f32;
    for step in 0..part.div_ceil(CUBE_DIM) {
        let of_part = step * CUBE_DIM + UNIT_POS;
        if of_part < part && start + of_part < len {
            let value = f32::cast_from(x[(start + of_part) as usize]);
            if squares {
                sum += value * value;
            } else {
                sum += value;
            }
        }
    }
    let sum = cube_sum(sum);
    if UNIT_POS == 0 && start < len {
        sums[first as usize + CUBE_POS] = sum;
    }
}

/// Values of a part of a sum of so many.
fn part_of(len: usize) -> usize {
    len.div_ceil(PARTS).max(super::UNITS as usize * 16)
}

/// Writes the sums of parts of `x` to `sums` from `first` on; gives the number of the next one.
fn write_part_sums(x: &CubeTensor, len: usize, squares: bool, sums: &CubeTensor, first: usize) -> usize {
    let part = part_of(len);
    let parts = len.div_ceil(part);
    part_sums::launch(
        &x.client,
        CubeCount::Static(parts.max(1) as u32, 1, 1),
        CubeDim::new_1d(super::UNITS),
        x.clone().into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        len as u32,
        part as u32,
        first as u32,
        squares,
        element(x),
    );
    first + parts
}

/// The sum of `len` values, or of their squares, f32 `[1]`: of parts, then of their sums, in order.
pub(crate) fn total(x: &CubeTensor, len: usize, squares: bool) -> CubeTensor {
    let parts = len.div_ceil(part_of(len)).max(1);
    let sums = empty(x, [parts], DType::F32);
    write_part_sums(x, len, squares, &sums, 0);
    if parts == 1 { sums } else { total(&sums, parts, false) }
}

/// See [`crate::sum_of_squares`]; `None` on another backend. A launch for each tensor, one or two for the sum of their parts.
pub(crate) fn sum_of_squares(tensors: &[&burn::tensor::Tensor<1>]) -> Option<burn::tensor::Tensor<1>> {
    let tensors: Option<Vec<_>> = tensors.iter().map(|tensor| Some(super::operand(tensor)?.values)).collect();
    // An empty one has no cube that writes a sum.
    let tensors: Vec<_> = tensors?.into_iter().filter(|tensor| tensor.meta.num_elements() > 0).collect();
    let lens = tensors.iter().map(|tensor| tensor.meta.num_elements());
    let parts: usize = lens.map(|len| len.div_ceil(part_of(len))).sum();
    let sums = empty(tensors.first()?, [parts], DType::F32);
    let write = |first, tensor: &CubeTensor| write_part_sums(tensor, tensor.meta.num_elements(), true, &sums, first);
    tensors.iter().fold(0, write);
    let sum = if parts == 1 { sums } else { total(&sums, parts, false) };
    Some(burn::tensor::Tensor::from_primitive::<super::Backend>(sum))
}

/// A unit for each column: the sum of `partial` `[groups, width]` over the groups, in order.
#[cube(launch)]
fn sum_of_groups<W: Float>(
    partial: &Buffer<f32>,
    total: &mut Buffer<W>,
    groups: u32,
    width: u32,
    #[define(W)] _dtype: ElemType,
) {
    let column = ABSOLUTE_POS;
    if column < width as usize {
        let mut sum = 0.0f32;
        for group in 0..groups {
            sum += partial[(group * width) as usize + column];
        }
        total[column] = W::cast_from(sum);
    }
}

/// Sums of the columns of `partial`, f32 `[groups, width]` → `[width]` in `dtype`.
pub(crate) fn column_totals(partial: &CubeTensor, groups: usize, width: usize, dtype: DType) -> CubeTensor {
    let total = empty(partial, [width], dtype);
    if width > 0 {
        sum_of_groups::launch(
            &partial.client,
            cubes_of_units(partial, width),
            CubeDim::new_1d(super::UNITS),
            partial.clone().into_tensor_arg(),
            total.clone().into_tensor_arg(),
            groups as u32,
            width as u32,
            element(&total),
        );
    }
    total
}
