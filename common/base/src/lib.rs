//! Error types, files that appear whole or not at all, JSON, output helpers, Hugging Face's names. Knows nothing of the other crates.

pub mod error;
pub mod exact;
pub mod fields;
pub mod files;
pub mod json;
mod mix;
pub mod names;
mod nearest;
pub mod output;
pub mod pulse;
mod row;

pub use error::{Error, Mismatch, Result};
pub use mix::{mix, splitmix};
pub use nearest::nearest;
pub use row::Row;

/// Label of a token that is not supervised, as in PyTorch's cross entropy and in the stored `labels`.
pub const IGNORE_INDEX: i32 = -100;
