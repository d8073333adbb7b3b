//! Model directories and adapters on disk, and the Hugging Face hub.

pub mod adapter;
pub mod checkpoint;
pub mod fingerprint;
pub mod hub;
pub mod processors;
pub mod skip_modules;
