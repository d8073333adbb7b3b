//! The readers of foreign bytes: the programs' own source files, without the rest of their crates, so that a build takes a
//! minute instead of the time of burn, Arrow and polars.
#![allow(dead_code, unused_imports)]

// What the sources call by its crate's name is here.
extern crate self as common;

#[path = "../../../common/src/error.rs"]
pub mod error;
#[path = "../../../common/src/files.rs"]
pub mod files;
#[path = "../../../common/src/image_files/mod.rs"]
pub mod image_files;
#[path = "../../../common/src/image_processor/mod.rs"]
pub mod image_processor;

pub use error::{Error, Result};

/// Stands for `common::chat`.
pub mod chat {
    pub const IMAGE_TOKEN: &str = "<image>";
}

/// Stands for `common::shard`, which the ledger names.
pub mod shard {
    #[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
    pub struct ShardFile {
        pub file: String,
        pub bytes: u64,
    }
}

pub mod shards;
