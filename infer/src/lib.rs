//! Inference with the checkpoints of a run: `generate`, `caption`, `score`, `merge`, `export`, `serve`.

pub mod args;
pub mod caption;
pub mod engine;
pub mod export;
pub mod generate;
pub mod merge;
pub mod metrics;
pub mod score;
pub mod serve;
pub mod text_stream;
