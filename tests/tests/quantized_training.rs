//! LoRA on a base in few bits: the same losses as on the f32 weights that the codes stand for, on any number of ranks, from files
//! in NF4, resumed, merged; and what is refused.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use clap::{Args, FromArgMatches};
use kernels::Quantization;
use kernels::device::cpu;
use model::lora::{AdapterModules, LoraConfig};
use model::named::{NamedMapper, map_named};
use model::quantized;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use store::checkpoint::{LoadAs, copy_processor_files, load_rounded, save_model};
use tests::inference::infer_ok;
use tests::runs::{json_file, shards_with_validation, train};
use tests::tiny::{Tensors, read_tensors_at};
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
pub fn rounded_model(format: Quantization, output: &Path) {
    std::fs::create_dir_all(output).expect("a folder");
    let (config, mut model) =
        load_rounded(&reference("tiny/llava"), LoadAs::F32, Some(&format.into()), &cpu()).expect("loads");
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
        (
            &["--load_in_4bit", "--llm_int8_skip_modules", "down_proj"],
            &["quantization_config", "llm_int8_skip_modules"],
        ),
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
        (vec!["--load_in_8bit", "--load_in_4bit"], &["load_in_8bit", "one format"]),
        (vec!["--load_in_4bit", "--bnb_4bit_quant_type", "fp4"], &["bnb_4bit_quant_type", "fp4", "nf4"]),
        (
            vec!["--llm_int8_skip_modules", "q_proj"],
            &["llm_int8_skip_modules: found q_proj", "load_in_8bit or load_in_4bit"],
        ),
        (
            vec!["--load_in_4bit", "--llm_int8_skip_modules", "down_proj,mm_proj"],
            &["llm_int8_skip_modules: found \"mm_proj\""],
        ),
        (
            vec!["--load_in_4bit", "--llm_int8_skip_modules", "(q"],
            &["llm_int8_skip_modules", "(q", "regular expression"],
        ),
    ] {
        let output = folder.path().join("refused");
        let error = fail(&mut train(&shards, &output, &words));
        assert!(named.iter().all(|named| error.contains(named)), "{words:?}: {error}");
        assert!(!output.exists(), "{words:?}: work was begun");
    }
}

/// The projector alone, on a frozen language model in few bits: the same losses and the same projector as on the f32 weights that
/// the codes stand for; the output has the weights of the model that was given.
#[test]
fn a_projector_is_trained_on_a_base_in_few_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let words_of = |option| {
        [
            &["--train_type", "projector", "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3"][..],
            &words(option),
        ]
        .concat()
    };
    for (index, (option, format)) in FORMATS.into_iter().enumerate() {
        let path = |name: &str| folder.path().join(format!("{name}{index}"));
        let (model, found, expected) = (path("model"), path("found"), path("expected"));
        rounded_model(format, &model);
        let more = words_of(option);
        succeed(&mut train(&shards, &found, &more));
        let model = model.display().to_string();
        let plain = ["--train_type", "projector", "--max_steps", "6", "--model_name_or_path", &model];
        succeed(&mut train(&shards, &expected, &plain));
        let name = format!("projector, {format}");
        compare(&name, "loss", &metrics(&found), &metrics(&expected), 1e-5);
        compare(&name, "grad_norm", &metrics(&found), &metrics(&expected), 1e-4);
        let [of_run, of_values, original] = [found.clone(), expected, reference("tiny/llava")]
            .map(|dir| read_tensors_at(&dir.join("model.safetensors")));
        assert_eq!(of_run.keys().collect::<Vec<_>>(), original.keys().collect::<Vec<_>>());
        for (tensor, (values, _)) in &of_run {
            match tensor.starts_with(base::names::PROJECTOR) {
                true => {
                    assert_norm_close(&format!("{name}: {tensor}"), values, &of_values[tensor].0, 1e-3);
                    assert_ne!(*values, original[tensor].0, "{name}: {tensor} was not trained");
                }
                false => assert!(*values == original[tensor].0, "{name}: {tensor} has changed"),
            }
        }
        // From a checkpoint, and as the model of another run.
        let whole = final_weights(&found);
        std::fs::remove_dir_all(found.join("checkpoint-6")).expect("saved");
        let said = succeed(&mut train(&shards, &found, &[&more[..], &["--resume_from_checkpoint", "true"]].concat()));
        assert!(String::from_utf8_lossy(&said.stderr).contains("checkpoint-3 at step 3"), "{name}: not resumed");
        assert!(final_weights(&found) == whole, "{name}, resumed: other weights");
    }
}

/// Of files in few bits, the same run writes the same codes again.
#[test]
fn a_projector_is_trained_on_files_in_few_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    for (option, of_infer) in [("--load_in_8bit=true", &["--load-in-8bit"][..]), ("--load_in_4bit=true", &[])] {
        let path = |name: &str| folder.path().join(format!("{name}{}", of_infer.len()));
        let (model, stored, on_the_fly) = (path("model").display().to_string(), path("stored"), path("on the fly"));
        let original = reference("tiny/llava").display().to_string();
        infer_ok(&[&["quantize", "--model", &original, "--output", &model][..], of_infer].concat());
        let more = ["--train_type", "projector", "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2"];
        let of_files = [&more[..], &["--model_name_or_path", &model]].concat();
        succeed(&mut train(&shards, &stored, &of_files));
        succeed(&mut train(&shards, &on_the_fly, &[&more[..], &[option]].concat()));
        compare(option, "loss", &metrics(&stored), &metrics(&on_the_fly), 0.0);
        let bytes = |dir: &Path| std::fs::read(dir.join("model.safetensors")).expect("readable");
        let [before, after] = [Path::new(&model), &stored].map(|dir| {
            let bytes = bytes(dir);
            let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
            let of_text = tensors.iter().filter(|(name, _)| !name.starts_with(base::names::PROJECTOR));
            of_text.map(|(name, view)| (name.to_string(), view.dtype(), view.data().to_vec())).collect::<BTreeSet<_>>()
        });
        assert!(before == after, "{option}: other codes or weights");
        let whole = final_weights(&stored);
        std::fs::remove_dir_all(stored.join("checkpoint-4")).expect("saved");
        succeed(&mut train(&shards, &stored, &[&of_files[..], &["--resume_from_checkpoint", "true"]].concat()));
        assert!(final_weights(&stored) == whole, "{option}, resumed: other weights");
    }
}

/// Layers that are left as they are: rounded are the others.
#[test]
fn modules_to_skip_stay_as_they_are() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = shards_with_validation(folder.path());
    let more = [&LORA[..], &["--max_steps", "4", "--load_in_4bit"]].concat();
    let format = Quantization::Nf4 { double_quant: true };
    for (skip, is_skipped) in [
        ("down_proj,lm_head", (|name: &str| name.contains("down_proj")) as fn(&str) -> bool),
        ("model.language_model.layers.0", |name| name.contains("language_model.model.layers.0.")),
        (r"language_model.*layers\.[12]\..*(up|gate)_proj", |name| {
            ["layers.1.mlp.up", "layers.1.mlp.gate", "layers.2.mlp.up", "layers.2.mlp.gate"]
                .iter()
                .any(|end| name.contains(end))
        }),
    ] {
        let (model, found, expected) =
            (folder.path().join("model"), folder.path().join("found"), folder.path().join("expected"));
        std::fs::create_dir_all(&model).expect("a folder");
        let (config, mut rounded) =
            load_rounded(&reference("tiny/llava"), LoadAs::F32, Some(&format.into()), &cpu()).expect("loads");
        quantized::dequantize(&mut rounded, |_| true);
        let exact = read_tensors_at(&reference("tiny/llava/model.safetensors"));
        let rounded = map_named(rounded, &mut Replace { values: &exact, is_replaced: is_skipped });
        save_model(&rounded, &config, &model, usize::MAX).expect("written");
        copy_processor_files(&reference("tiny/llava"), &model).expect("copied");
        succeed(&mut train(&shards, &found, &[&more[..], &["--llm_int8_skip_modules", skip]].concat()));
        let plain = model.display().to_string();
        let plain = [&LORA[..], &["--max_steps", "4", "--model_name_or_path", &plain]].concat();
        succeed(&mut train(&shards, &expected, &plain));
        compare(skip, "loss", &metrics(&found), &metrics(&expected), 1e-5);
        compare(skip, "grad_norm", &metrics(&found), &metrics(&expected), 1e-4);
        for dir in [&model, &found, &expected] {
            std::fs::remove_dir_all(dir).expect("removed");
        }
    }
    // The plan counts them as floats.
    let weights = |more: &[&str]| weights_of_plan(&shards, folder.path(), more);
    let (all, skipped) =
        (weights(&["--load_in_4bit"]), weights(&["--load_in_4bit", "--llm_int8_skip_modules", "down_proj"]));
    let expected = 3 * (4 * 128 * 64 - format.bytes_of([128, 64]));
    assert!((skipped - all - expected as f64).abs() <= 1e5, "{skipped} − {all}: {expected}");
}

/// Puts other values in the place of some tensors.
struct Replace<'a> {
    values: &'a Tensors,
    is_replaced: fn(&str) -> bool,
}

impl NamedMapper for Replace<'_> {
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !(self.is_replaced)(&name) {
            return param;
        }
        let (values, shape) = self.values[&name].clone();
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), &cpu()))
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
            ..AdapterModules::default()
        };
        let model = tests::tiny::config();
        let lora = LoraConfig { modules: Some(modules), ..config.lora(&model).expect("settings of LoRA") };
        let rounding = base_format::of_run(&config, &model, Some(&lora)).map_err(|error| error.to_string());
        rounding.map(|rounding| rounding.map(|rounding| rounding.format))
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
    let weights = |more: &[&str]| weights_of_plan(&shards, folder.path(), more);
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

/// Bytes of the weights by `train plan`.
fn weights_of_plan(shards: &Path, folder: &Path, more: &[&str]) -> f64 {
    let mut command = Command::new(program("train"));
    command.arg("plan").arg("--model_name_or_path").arg(reference("tiny/llava"));
    command.arg("--data_path").arg(shards).arg("--output_dir").arg(folder.join("run")).args(more);
    let plan = String::from_utf8(succeed(&mut command).stdout).expect("UTF-8");
    let line = plan.lines().find(|line| line.trim_start().starts_with("weights ")).expect("a line of weights");
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = match words[2] {
        "kB" => 1e3,
        "MB" => 1e6,
        other => panic!("{other}: {line}"),
    };
    words[1].parse::<f64>().expect("a number") * unit
}
