//! What the three programs share: formats, processors, and the model. `common` knows none of the programs.

pub mod adapter;
pub mod args;
pub mod batch;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod dataset;
pub mod device;
pub mod error;
pub mod exact;
pub mod fields;
pub mod files;
pub mod fingerprint;
pub mod hub;
pub mod image_files;
pub mod image_processor;
pub mod json;
pub mod memory;
pub mod model;
pub mod names;
pub mod ops;
pub mod output;
pub mod processor_fit;
pub mod pulse;
pub mod shard;
pub mod vision_cache;

pub use error::{Error, Result};

/// Label of a token that is not supervised, as in PyTorch's cross entropy and in the stored `labels`.
pub const IGNORE_INDEX: i32 = -100;
