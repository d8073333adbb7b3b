//! The trainer: shards and a model in, checkpoints out, data-parallel under ZeRO-2.

/// Writes a line to stderr in one piece. `eprintln!` writes each of its arguments on its own, so that the lines of two ranks
/// that share a terminal begin within one another.
#[macro_export]
macro_rules! tell {
    ($($argument:tt)*) => {{
        let line = format!($($argument)*) + "\n";
        // Where stderr is closed, the work goes on.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }};
}

pub mod adamw;
pub mod backward;
pub mod batch;
pub mod buffers;
pub mod captions;
pub mod checkpoint;
pub mod collective;
pub mod config;
pub mod deepspeed;
pub mod evaluate;
pub mod gradient;
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
pub mod run;
pub mod saving;
pub mod schedule;
pub mod setup;
pub mod signals;
pub mod state;
pub mod tensorboard;
pub mod trainability;
pub mod trainable;
pub mod trainer;
pub mod watch;
pub mod zero;
