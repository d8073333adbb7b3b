//! What the command lines of the programs have in common: spellings of options, their values, exit codes, options as data
//! (`PROGRAM options`), command lines that are only checked, folders with weights, completions, man pages and `--version`, tables of recipes, progress, log lines.

#![deny(missing_docs)]

pub mod args;
pub mod check;
pub mod exit;
pub mod inputs;
pub mod log;
pub mod options;
pub mod outputs;
pub mod pages;
pub mod probe;
pub mod progress;
pub mod recipe;
pub mod units;
pub mod values;
pub mod version;
pub mod weighted;

include!(concat!(env!("OUT_DIR"), "/commit.rs"));

pub use progress::Progress;
