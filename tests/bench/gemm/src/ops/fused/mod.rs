//! The matrix product and what it needs.

#[path = "../../../../../../common/src/ops/fused/gemm.rs"]
pub mod gemm;
#[path = "../../../../../../common/src/ops/fused/matrix.rs"]
pub mod matrix;
#[path = "../../../../../../common/src/ops/fused/microkernel.rs"]
mod microkernel;
#[path = "../../../../../../common/src/ops/fused/scratch.rs"]
mod scratch;
#[path = "../../../../../../common/src/ops/fused/simd.rs"]
pub mod simd;
#[path = "../../../../../../common/src/ops/fused/transpose.rs"]
mod transpose;
mod operand {
    pub fn buffer(len: usize) -> Vec<f32> {
        vec![0.0; len]
    }
}
