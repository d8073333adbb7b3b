//! Layers that all families are built from, with their names in a checkpoint.

pub mod embedding;
pub(crate) mod init;
pub mod linear;
pub mod norm;

pub use embedding::Embedding;
pub use linear::{Linear, LoraMatrix, LoraSlots};
pub use norm::{LayerNorm, RmsNorm};
