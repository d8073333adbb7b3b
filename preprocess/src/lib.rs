//! The preprocessing stage: work that is done once, before training.

#[cfg(feature = "inspect")]
pub mod inspect;
pub mod model;
pub mod shards;
pub mod verify;
