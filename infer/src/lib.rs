//! Inference with the checkpoints of a run: `generate`, `caption`, `eval`, `score`, `merge`, `quantize`, `export`, `serve`.

pub mod answers;
pub mod args;
pub mod caption;
pub mod engine;
pub mod eval;
pub mod export;
pub mod generate;
pub mod merge;
mod new_directory;
pub mod quantize;
pub mod score;
pub mod serve;
pub mod text_stream;
