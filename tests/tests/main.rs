//! The one integration-test binary; a module per area.

mod absences;
mod adapter;
mod assemble;
mod caption;
mod caption_metrics;
mod chat;
mod chat_templates;
mod checkpoint;
mod config;
mod dataset;
mod deadlines;
mod edge;
mod evaluation;
mod export;
mod faults;
mod forward;
mod generate;
mod generation;
#[cfg(feature = "ndarray")]
mod generic_backend;
mod hub;
mod image_zip;
mod inspect;
mod interop;
mod load_dataset;
mod merge;
mod mixed_precision;
mod mixed_rows;
mod moving_in;
mod mpi;
mod options;
mod output;
mod page;
mod peft_adapters;
mod pixels;
mod plan;
mod preprocess_restart;
mod prompts;
mod published_files;
mod quickstart;
mod recipes;
mod records;
mod rejects;
mod resume;
mod run_best;
mod run_folder;
mod run_resume;
mod score;
mod seeds;
mod serve;
mod serve_browsers;
mod serve_clients;
mod serve_connections;
mod serve_stopping;
mod shards;
mod stopping;
mod train_adapters;
mod train_cost;
mod train_parity;
mod two_stage;
mod unwritable;
mod zero2;

mod skeleton {
    #[test]
    fn reference_material_is_there() {
        tests::shared("fixtures/tiny/spec.json");
    }
}
