//! Forward/backward kernels for the CPU backend, one module for each group of operations; `operations.rs` says which operation
//! tries which. Beside each kernel stands what it keeps for its backward step (`…_kept`).
//!
//! The work of a kernel is divided by the sizes alone, never by the number of threads, and parts are summed in order: one,
//! two or four threads give the same bits.

pub mod activation;
mod adamw;
pub mod add;
mod again;
#[cfg_attr(not(all(target_arch = "x86_64", target_os = "linux", not(miri))), allow(dead_code))]
mod amx;
pub mod attention;
pub mod cross_entropy;
pub mod dora;
mod dot_products;
mod dropout;
mod few;
pub mod gemm;
mod int8;
pub mod linear;
pub mod matrix;
mod microkernel;
mod nf4;
pub mod norm;
mod operand;
mod output;
pub mod rope;
pub mod rows;
mod scratch;
pub mod seed;
mod simd;
mod team;
#[cfg(test)]
pub(crate) mod tests;
mod transpose;
mod weights;

pub use adamw::{AdamWCoefficients, adamw};
pub use again::Again;
pub use dropout::drop_values;
pub use int8::int8_rows;
pub use nf4::nf4_rows;
pub use operand::{move_codes_into_huge_pages, move_into_huge_pages};
pub use rows::append_rows;
pub use simd::{Isa, isa};
