//! Kernels for GPUs in cubecl's language, one module for each group of operations: the same code on CUDA, Vulkan and Metal.
//! `operations.rs` says which operation tries which; `reference` defines what they compute.
//!
//! A kernel reads f32, bf16 or f16, computes in f32 and writes the activations' dtype. Sums have an order that depends on sizes and
//! device only (no float atomics), so that a run repeats bit for bit.
//!
//! Kernels see rows that lie one behind the other ([`operand`] copies what does not: CUDA pads rows). The launch functions that
//! cubecl makes check every access against the buffers' lengths; the functions here check shapes before.

pub(crate) mod accumulate;
pub mod activation;
pub mod adamw;
pub mod attention;
pub(crate) mod cache;
mod caches;
pub mod cross_entropy;
#[cfg(feature = "cuda")]
pub(crate) mod cublas_lt;
pub(crate) mod dropout;
pub mod few;
pub(crate) mod greedy;
pub mod linear;
pub mod lora;
pub mod norm;
mod operand;
mod reduce;
pub mod rope;
pub mod rows;
pub mod seed;
mod tables;
#[cfg(all(test, feature = "wgpu"))]
mod tests;

pub(crate) use operand::{
    Backend, MOST_VALUES, Node, Operand, constant, empty, incoming, is_operand, matrix, operand, record,
    rows_and_width, strided, vector,
};
pub(crate) use reduce::{cube_max, cube_sum, sum_of_squares, total};

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

/// Units of a cube where a unit does as much as any other.
pub(crate) const UNITS: u32 = 256;

/// The element type of a tensor that kernels read.
pub(crate) fn element(tensor: &CubeTensor) -> ElemType {
    ElemType::Float(match tensor.dtype {
        DType::BF16 => FloatKind::BF16,
        DType::F16 => FloatKind::F16,
        _ => FloatKind::F32,
    })
}

/// Values that a unit reads at once from each of the tensors: rows of `width` values are whole numbers of such vectors.
pub(crate) fn vector_size(width: usize, tensors: &[&CubeTensor]) -> usize {
    let fits = |tensor: &&CubeTensor, size: usize| {
        let bytes = size * tensor.dtype.size();
        let largest = tensor.client.properties().hardware.max_vector_size;
        bytes <= 16 && size <= largest && tensor.handle.offset_start.is_none_or(|start| start % bytes as u64 == 0)
    };
    [8, 4, 2]
        .into_iter()
        .find(|&size| width.is_multiple_of(size) && tensors.iter().all(|tensor| fits(tensor, size)))
        .unwrap_or(1)
}

/// A cube for each of `cubes`, in as many dimensions as the device needs for so many: kernels compare `CUBE_POS` with their
/// number, there may be more.
pub(crate) fn cubes(like: &CubeTensor, cubes: usize) -> CubeCount {
    let largest = like.client.properties().hardware.max_cube_count.0 as usize;
    let columns = cubes.min(largest.max(1)).max(1);
    CubeCount::Static(columns as u32, cubes.div_ceil(columns) as u32, 1)
}

/// Cubes of [`UNITS`] with a unit for each of `units`.
pub(crate) fn cubes_of_units(like: &CubeTensor, units: usize) -> CubeCount {
    cubes(like, units.div_ceil(UNITS as usize))
}

/// A cube whose units share a row of so many vectors.
pub(crate) fn cube_of_row(vectors: usize) -> CubeDim {
    CubeDim::new_1d((vectors.next_power_of_two() as u32).clamp(32, UNITS))
}
