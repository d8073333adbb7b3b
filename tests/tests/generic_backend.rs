//! The generic path of the model, which a GPU takes too: the trainer on burn's ndarray backend against transformers' Trainer.
//! (Forward passes and gradients on this backend are in `forward`.)

use burn::tensor::Device;
use clap::{Args, Command, FromArgMatches};
use common::device::DeviceKind;
use std::time::Duration;
use tests::training::{Split, arguments, compare_log, compare_weights};
use train::collective::launch::run_ranks;
use train::config::Config;
use train::signals::StopRequest;
use train::{recipe, trainer};

#[test]
fn eight_steps_on_ndarray_equal_transformers_trainer() {
    let device: Device = DeviceKind::Ndarray.open().expect("a build with the feature ndarray").autodiff();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cases = [
        ("none", "model.safetensors"),
        ("freeze_vision", "model.safetensors"),
        ("use_lora", "adapter_model.safetensors"),
    ];
    for (train_type, weights) in cases {
        for ranks in [1, 2] {
            let name = format!("ndarray, {train_type}, {ranks} ranks");
            let output = folder.path().join(format!("{train_type}-{ranks}"));
            let split = Split { ranks, micro_batch: 2, accumulation: 2 / ranks };
            let more = ["--nproc", if ranks == 1 { "1" } else { "2" }, "--device", "ndarray"];
            let words = std::iter::once("train".to_string()).chain(arguments(&output, train_type, split, &more));
            let words = common::args::with_dashes(words.map(std::ffi::OsString::from));
            let matches = Config::augment_args(Command::new("train")).get_matches_from(words);
            let config = Config::from_arg_matches(&matches).expect("options of train");
            let config = recipe::resolve(config, &matches, None).expect("valid options");
            run_ranks(config.nproc, Duration::from_secs(60), |rank| {
                trainer::run(&config, rank, &device, &StopRequest::default())
            })
            .expect("the run succeeds");
            compare_log(&name, &output, train_type);
            compare_weights(&name, &output.join(weights), &format!("fixtures/tiny/train_{train_type}/{weights}"));
        }
    }
}
