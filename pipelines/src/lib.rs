//! Recipes and the runner: stages are the programs `preprocess`, `train` and `infer`, run one after the other over files.

pub mod doctor;
pub mod fingerprint;
pub mod programs;
pub mod quickstart;
pub mod recipe;
pub mod record;
pub mod report;
pub mod run;
pub mod signals;
pub mod stage;
