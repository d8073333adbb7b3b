//! Error types, atomic files, JSON, output helpers, Hugging Face's names. Depends on no other crate of the project.

mod attachment;
mod counted;
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

pub use attachment::{Attachment, Content};
pub use counted::counted;
pub use error::{Error, Mismatch, Result};
pub use mix::{mix, splitmix};
pub use nearest::{did_you_mean, nearest, nearest_path};
pub use row::Row;

/// Label of a token that is not supervised, as in PyTorch's cross entropy and in the stored `labels`.
pub const IGNORE_INDEX: i32 = -100;
