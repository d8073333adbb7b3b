//! The preprocessing stage: work that is done once, before training.

pub mod inspect;
pub mod model;
pub mod shards;
pub mod verify;
