//! The readers of foreign bytes: the programs' own source files, without the rest of their crates, so that a build takes a
//! minute instead of the time of burn, Arrow and polars.
#![allow(dead_code, unused_imports)]

// What the sources call by its crate's name is here.
extern crate self as common;

#[path = "../../../common/src/dataset/mod.rs"]
pub mod dataset;
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

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Role {
        System,
        User,
        Assistant,
    }

    impl Role {
        pub fn as_str(self) -> &'static str {
            match self {
                Self::System => "system",
                Self::User => "user",
                Self::Assistant => "assistant",
            }
        }
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Message {
        pub role: Role,
        pub content: String,
    }
}
