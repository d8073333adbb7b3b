//! LoRA on a base in few bits: the same losses as on the f32 weights that the codes stand for, on any number of ranks, from files
//! in NF4, resumed, merged; and what is refused.

use clap::{Args, FromArgMatches};
use kernels::Quantization;
use kernels::device::cpu;
use model::lora::{AdapterModules, LoraConfig};
use model::quantized;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use store::checkpoint::{LoadAs, copy_processor_files, load_rounded, save_model};
use tests::inference::infer_ok;
use tests::runs::{json_file, shards_with_validation, train};
use tests::tiny::read_tensors_at;
use tests::training::{Split, compare, fail, final_weights, metrics, succeed, threads};
use tests::{assert_norm_close, program, reference};
use train::base_format;
use train::config::Config;

const LORA: [&str; 4] =
    ["--train_type", "use_lora", "--lora_target_modules", "q_proj,k_proj,v_proj,o_proj,up_proj,down_proj"];
const FORMATS: [(&str, Quantization); 3] = [
    ("--load_in_8bit=true", Quantization::Int8),
    ("--load_in_4bit=true", Quantization::Nf4 { double_quant: true }),
    ("--bnb_4bit_use_double_quant=false", Quantization::Nf4 { double_quant: false }),
];

/// The option, and what it needs beside it.
fn words(option: &'static str) -> Vec<&'static str> {
    if option.starts_with("--bnb") { vec!["--load_in_4bit=true", option] } else { vec![option] }
}

/// The tiny model with the values that its codes stand for, in f32.
fn rounded_model(format: Quantization, output: &Path) {
    std::fs::create_dir_all(output).expect("a folder");
    let (config, mut model) = load_rounded(&reference("tiny/llava"), LoadAs::F32, Some(format), &cpu()).expect("loads");
    quantized::dequantize(&mut model, |_| true);
    save_model(&model, &config, output, usize::MAX).expect("written");
    copy_processor_files(&reference("tiny/llava"), output).expect("copied");
}

#[test]
fn losses_and_adapter_are_those_on_the_weights_that_the_codes_stand_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    for (index, (option, format)) in FORMATS.into_iter().enumerate() {
        let path = |name: &str| folder.path().join(format!("{name}{index}"));
        let (model, found, expected) = (path("model"), path("found"), path("expected"));
        rounded_model(format, &model);
        let more = [&LORA[..], &["--max_steps", "6", "--lora_dropout", "0.1"]].concat();
        succeed(&mut train(&shards, &found, &[&more[..], &words(option)].concat()));
        let model = model.display().to_string();
        succeed(&mut train(&shards, &expected, &[&more[..], &["--model_name_or_path", &model]].concat()));
        let name = format!("{format}");
        compare(&name, "loss", &metrics(&found), &metrics(&expected), 1e-5);
        compare(&name, "grad_norm", &metrics(&found), &metrics(&expected), 1e-4);
        let weights = read_tensors_at(&expected.join("adapter_model.safetensors"));
        let of_run = read_tensors_at(&found.join("adapter_model.safetensors"));
        for (tensor, (values, _)) in &weights {
            assert_norm_close(&format!("{name}: {tensor}"), &of_run[tensor].0, values, 1e-3);
        }
        let exact = folder.path().join(format!("exact{index}"));
        succeed(&mut train(&shards, &exact, &more));
        assert_ne!(metrics(&exact)[0]["loss"], metrics(&found)[0]["loss"], "{name}: the base was not rounded");
        // The hash of frozen tensors is that of the codes.
        let hash = |run: &Path| json_file(&run.join("trainable.json"))["frozen"].clone();
        assert_eq!(hash(&exact)["values"], hash(&found)["values"]);
        assert_ne!(hash(&exact)["sha256"], hash(&found)["sha256"]);
    }
}

#[test]
fn any_number_of_ranks_gives_the_same_losses() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (option, format) in FORMATS {
        let run = |ranks, micro_batch| {
            let output = folder.path().join(format!("{format}-{ranks}-{micro_batch}"));
            let more = [&["--num_train_epochs", "3"][..], &words(option)].concat();
            let split = Split { ranks, micro_batch, accumulation: 12 / ranks / micro_batch };
            succeed(&mut threads(&output, "use_lora", split, &more));
            metrics(&output)
        };
        let expected = run(1, 12);
        for (ranks, micro_batch) in [(2, 3), (3, 2)] {
            let (name, found) = (format!("{format}, {ranks} ranks"), run(ranks, micro_batch));
            compare(&name, "loss", &found, &expected, 1e-5);
            compare(&name, "grad_norm", &found, &expected, 1e-4);
        }
    }
}

#[test]
fn a_run_resumes_exactly_and_files_in_nf4_give_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let (whole, parts, stored) =
        (folder.path().join("whole"), folder.path().join("parts"), folder.path().join("stored"));
    let more = [&LORA[..], &["--save_strategy", "steps", "--save_steps", "3", "--load_in_4bit"]].concat();
    succeed(&mut train(&shards, &whole, &[&more[..], &["--max_steps", "6"]].concat()));
    succeed(&mut train(&shards, &parts, &[&more[..], &["--max_steps", "6"]].concat()));
    std::fs::remove_dir_all(parts.join("checkpoint-6")).expect("saved");
    let resume = ["--max_steps", "6", "--resume_from_checkpoint", "true"];
    succeed(&mut train(&shards, &parts, &[&more[..], &resume].concat()));
    assert!(final_weights(&parts) == final_weights(&whole), "resumed: other weights");
    // On another base the adapter would mean something else.
    let other = [&LORA[..], &["--save_strategy", "steps", "--save_steps", "3"], &resume].concat();
    for (base, named) in [(&["--load_in_8bit"][..], "load_in_8bit"), (&[], "load_in_4bit")] {
        let error = fail(&mut train(&shards, &parts, &[&other[..], base].concat()));
        assert!(error.contains(named) && error.contains("true"), "{error}");
    }

    let model = folder.path().join("nf4").display().to_string();
    infer_ok(&["quantize", "--model", &reference("tiny/llava").display().to_string(), "--output", &model]);
    let of_files = [&LORA[..], &["--max_steps", "6", "--model_name_or_path", &model]].concat();
    succeed(&mut train(&shards, &stored, &of_files));
    compare("files in NF4", "loss", &metrics(&stored), &metrics(&whole), 0.0);
    assert!(final_weights(&stored) == final_weights(&whole), "files in NF4: other weights");
    for (words, named) in [
        (&["--train_type", "freeze_vision"][..], &["train_type freeze_vision", "quantization_config"][..]),
        (&["--train_type", "none"], &["train_type none", "quantization_config"]),
        (&["--train_type", "projector"], &["train_type projector", "quantization_config"]),
        (&["--load_in_8bit"], &["quantization_config", "load_in_8bit"]),
    ] {
        let words = [&["--max_steps", "1", "--model_name_or_path", model.as_str()][..], words].concat();
        let error = fail(&mut train(&shards, &folder.path().join("refused"), &words));
        assert!(named.iter().all(|named| error.contains(named)), "{error}");
        assert!(!folder.path().join("refused/run.json").exists(), "work was begun");
    }

    // The adapter goes into the model that was rounded.
    let merged = folder.path().join("merged");
    let base = reference("tiny/llava").display().to_string();
    let (adapter, output) = (whole.display().to_string(), merged.display().to_string());
    infer_ok(&["merge", "--model", &base, "--adapter", &adapter, "--output", &output]);
    let [before, after] = [reference("tiny/llava/model.safetensors"), merged.join("model.safetensors")]
        .map(|path| read_tensors_at(&path));
    let lora = read_tensors_at(&whole.join("adapter_model.safetensors"));
    let layer = "language_model.model.layers.1.mlp.up_proj";
    let matrix = |name: &str| &lora[&format!("base_model.model.{layer}.{name}.weight")];
    let ((a, a_shape), (b, b_shape)) = (matrix("lora_A"), matrix("lora_B"));
    let (rank, inputs, outputs) = (a_shape[0], a_shape[1], b_shape[0]);
    let value = |row: usize, column: usize| {
        let product: f32 = (0..rank).map(|k| b[row * rank + k] * a[k * inputs + column]).sum();
        before[&format!("{layer}.weight")].0[row * inputs + column] + 8.0 / 32.0 * product
    };
    let expected: Vec<f32> = (0..outputs * inputs).map(|index| value(index / inputs, index % inputs)).collect();
    assert_norm_close("merged", &after[&format!("{layer}.weight")].0, &expected, 1e-6);
}

#[test]
fn what_would_change_the_base_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    for (words, named) in [
        (vec!["--load_in_4bit", "--train_type", "none"], &["load_in_4bit", "train_type none", "use_lora"][..]),
        (vec!["--load_in_8bit", "--train_type", "freeze_vision"], &["load_in_8bit", "train_type freeze_vision"]),
        (vec!["--load_in_8bit", "--train_type", "projector"], &["load_in_8bit", "train_type projector"]),
        (vec!["--load_in_8bit", "--load_in_4bit"], &["load_in_8bit", "one format"]),
        (vec!["--load_in_4bit", "--bnb_4bit_quant_type", "fp4"], &["bnb_4bit_quant_type", "fp4", "nf4"]),
        (vec!["--load_in_4bit", "--llm_int8_skip_modules", "q_proj"], &["llm_int8_skip_modules"]),
    ] {
        let output = folder.path().join("refused");
        let error = fail(&mut train(&shards, &output, &words));
        assert!(named.iter().all(|named| error.contains(named)), "{words:?}: {error}");
        assert!(!output.exists(), "{words:?}: work was begun");
    }
}

/// Of an adapter's `modules_to_save`.
#[test]
fn a_matrix_of_the_base_that_is_trained_whole_is_refused_by_name() {
    let matrix = "language_model.model.layers.1.mlp.gate_proj.weight";
    let of = |trained: &str, words: &[&str]| {
        let words = [&["train", "--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o"], words].concat();
        let words = cli::args::with_dashes(words.into_iter().map(std::ffi::OsString::from));
        let matches = Config::augment_args(clap::Command::new("train")).get_matches_from(words);
        let config = Config::from_arg_matches(&matches).expect("options of train");
        let modules = AdapterModules {
            lora: BTreeSet::from(["language_model.model.layers.0.self_attn.q_proj".to_string()]),
            trained: BTreeSet::from([trained.to_string()]),
            kept: BTreeSet::new(),
            unties_head: false,
            untrainable: None,
            fields: Vec::new(),
        };
        let model = tests::tiny::config();
        let lora = LoraConfig { modules: Some(modules), ..config.lora(&model).expect("settings of LoRA") };
        base_format::of_run(&config, &model, Some(&lora)).map_err(|error| error.to_string())
    };
    let nf4 = Some(Quantization::Nf4 { double_quant: true });
    assert_eq!(of(matrix, &[]), Ok(None));
    assert_eq!(of(base::names::LM_HEAD, &["--load_in_4bit"]), Ok(nf4));
    assert_eq!(of(base::names::EMBED_TOKENS, &["--load_in_8bit"]), Ok(Some(Quantization::Int8)));
    let error = of(matrix, &["--load_in_4bit"]).expect_err("refused");
    assert!(error.contains(matrix) && error.contains("modules_to_save"), "{error}");
}

/// The plan counts the bytes of the codes.
#[test]
fn the_plan_counts_what_is_held() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let weights = |more: &[&str]| {
        let mut command = Command::new(program("train"));
        command.arg("plan").arg("--model_name_or_path").arg(reference("tiny/llava"));
        command.arg("--data_path").arg(&shards).arg("--output_dir").arg(folder.path().join("run")).args(more);
        let plan = String::from_utf8(succeed(&mut command).stdout).expect("UTF-8");
        let line = plan.lines().find(|line| line.trim_start().starts_with("weights ")).expect("a line of weights");
        let words: Vec<&str> = line.split_whitespace().collect();
        let unit = match words[2] {
            "kB" => 1e3,
            "MB" => 1e6,
            other => panic!("{other}: {line}"),
        };
        words[1].parse::<f64>().expect("a number") * unit
    };
    let exact = weights(&[]);
    for (option, format) in FORMATS {
        let matrices = [[64, 64]; 4].into_iter().chain([[128, 64]; 3]);
        let saved: usize = matrices.map(|shape| 4 * shape[0] * shape[1] - format.bytes_of(shape)).sum();
        let found = exact - weights(&words(option));
        println!("{format}: {found} bytes less, {} by the format", 3 * saved);
        // The plan has one decimal.
        assert!((found - 3.0 * saved as f64).abs() <= 1e5, "{format}: {found}, {}", 3 * saved);
    }
}
