//! The preprocessing stage: everything that happens once, before training.

pub mod inspect;
pub mod model;
pub mod shards;
pub mod verify;
