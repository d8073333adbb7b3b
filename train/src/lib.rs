//! The trainer: shards and a model in, checkpoints out, data-parallel under ZeRO-2.

pub mod adamw;
pub mod backward;
pub mod checkpoint;
pub mod collective;
pub mod config;
pub mod deepspeed;
pub mod layout;
pub mod loader;
pub mod metrics;
pub mod order;
pub mod parameters;
pub mod recipe;
pub mod resume;
pub mod saving;
pub mod schedule;
pub mod setup;
pub mod trainable;
pub mod trainer;
pub mod zero;
