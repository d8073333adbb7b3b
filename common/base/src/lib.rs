//! Error types, atomic files, JSON, argument and output helpers, Hugging Face's names. Depends on no other crate of the project.

pub mod args;
mod counted;
pub mod error;
pub mod exact;
pub mod fields;
pub mod files;
pub mod json;
pub mod names;
pub mod output;
pub mod pulse;
mod row;

pub use counted::counted;
pub use error::{Error, Result};
pub use row::Row;

/// Label of a token that is not supervised, as in PyTorch's cross entropy and in the stored `labels`.
pub const IGNORE_INDEX: i32 = -100;
