//! The trainer: shards and a model in, checkpoints out, data-parallel under ZeRO-2.

pub use common::tell;

pub mod adamw;
pub mod backward;
pub mod buffers;
pub mod captions;
pub mod checkpoint;
pub mod collective;
pub mod config;
pub mod deepspeed;
pub mod domains;
pub mod evaluate;
pub mod gradient;
pub mod interval;
pub mod layout;
pub mod loader;
pub mod metrics;
pub mod order;
pub mod parameters;
pub mod parts;
pub mod plan;
pub mod progress;
pub mod recipe;
pub mod resume;
pub mod saving;
pub mod schedule;
pub mod setup;
pub mod signals;
pub mod tensorboard;
pub mod trainability;
pub mod trainable;
pub mod trainer;
pub mod trainer_options;
pub mod watch;
pub mod zero;
