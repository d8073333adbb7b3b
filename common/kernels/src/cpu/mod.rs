//! Forward/backward kernels for the CPU backend. Each function gives `None` where it does not apply (another backend, a
//! number format without a kernel), and the caller takes the plain composition.
//!
//! The work of a kernel is divided by the sizes alone, never by the number of threads, and parts are summed in order: one,
//! two or four threads give the same bits.

mod activation;
mod adamw;
mod add;
mod again;
mod attention;
mod cross_entropy;
mod dot_products;
mod dropout;
pub mod gemm;
mod linear;
pub mod matrix;
mod microkernel;
mod norm;
mod operand;
mod rope;
mod rows;
mod scratch;
mod seed;
mod simd;
#[cfg(test)]
mod tests;
mod transpose;
mod weights;

pub use activation::{gelu, gelu_tanh, quick_gelu, swiglu};
pub use adamw::{AdamWCoefficients, adamw};
pub use add::add;
pub use again::Again;
pub use attention::{attention, attention_cached, attention_of_last};
pub use cross_entropy::cross_entropy_sum;
pub use dropout::drop_values;
pub use linear::{linear, lora_linear};
pub use norm::{layer_norm, rms_norm};
pub use operand::move_into_huge_pages;
pub use rope::rope;
pub use rows::{embedding, replace_rows, select_rows};
pub use seed::with_gradient;
