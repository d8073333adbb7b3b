//! Kinds of LoRA against PEFT: chosen, trained, saved and merged, value by value.
//!
//! PEFT's side is `python/peft_training.py`.

use burn::tensor::{Tensor, TensorData};
use kernels::Quantization;
use model::config::{LlavaConfig, WeightDtype};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use store::adapter::{load_adapter, read_config};
use store::checkpoint::{TensorSource, from_f32, write_file};
use tests::inference::infer_ok;
use tests::references::{self, Reference, TINY};
use tests::runs::json_file;
use tests::tiny::{Tensors, forward_batch, model_at, read_tensors_at, values};
use tests::training::{Split, arguments_of, compare, fail, final_weights, metrics, shards, succeed};
use tests::{assert_norm_close, assert_relative, program, python, python_script, reference};

/// The kinds of `peft_training.py`.
const KINDS: [&str; 8] = [
    "rslora_all_linear",
    "all_linear_alone",
    "dora",
    "dora_all_linear",
    "saved_parts",
    "head",
    "patterns",
    "patterns_head_dora",
];
/// Optimizer steps that it trains.
const STEPS: &str = "4";
/// f32 sums in another order, of the largest value.
const TOLERANCE: f32 = 1e-5;

/// Runs the script; `false` where there is no Python.
fn peft(words: &[&str]) -> bool {
    let Some(mut python) = python() else { return false };
    succeed(python.arg(python_script("peft_training.py")).args(words).env("HF_HUB_OFFLINE", "1"));
    true
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A reference's job with an adapter of its own options, in place of the given one.
fn train(model: Reference, output: &Path, split: Split, more: &[&str]) -> Command {
    let mut words = arguments_of(model, output, "use_lora", split, &[]);
    let given = words.iter().position(|word| word == "--init_adapter").expect("the reference's adapter");
    words.drain(given..given + 2);
    let mut command = Command::new(program("train"));
    command.args(words).args(["--nproc", &split.ranks.to_string(), "--max_steps", STEPS]).args(more);
    command
}

/// The tensors of an adapter, of both spellings the one of transformers 5.
fn adapter_tensors(dir: &Path) -> Tensors {
    let tensors = read_tensors_at(&dir.join("adapter_model.safetensors")).into_iter();
    let is_new =
        |name: &str| ["base_model.model.model.", "base_model.model.lm_head."].iter().any(|new| name.starts_with(new));
    // Beside LoRA on the output weights PEFT also stores these, unchanged; here they are kept where an adapter brought them along.
    let tensors: Tensors = tensors.filter(|(name, _)| is_new(name)).collect();
    let has_lora_on_head = tensors.keys().any(|name| name.contains(".lm_head.lora_"));
    let is_head = |name: &str| name.ends_with(".lm_head.weight") || name.contains(".lm_head.base_layer.");
    tensors.into_iter().filter(|(name, _)| !(has_lora_on_head && is_head(name))).collect()
}

fn shapes(tensors: &Tensors) -> BTreeMap<&str, &[usize]> {
    tensors.iter().map(|(name, (_, shape))| (name.as_str(), shape.as_slice())).collect()
}

/// Losses, gradient norms and all weights from the same adapter.
#[test]
fn training_follows_peft() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let made = folder.path().join("peft");
    if !peft(&[&["train", text(&reference("tiny")), text(&made)], &KINDS[..]].concat()) {
        return;
    }
    for kind in KINDS {
        let of_peft = |name: &str| made.join(kind).join(name);
        let log = json_file(&of_peft("log.json")).as_array().expect("a list of steps").clone();
        let expected = adapter_tensors(&of_peft("trained"));
        for ranks in [1, 2] {
            let output = folder.path().join(format!("{kind}-{ranks}"));
            let split = Split { ranks, micro_batch: 2, accumulation: 2 / ranks };
            succeed(&mut train(TINY, &output, split, &["--init_adapter", text(&of_peft("init"))]));
            let (name, found) = (format!("{kind}, {ranks} ranks"), metrics(&output));
            compare(&name, "loss", &found, &log, 1e-4);
            compare(&name, "grad_norm", &found, &log, 1e-3);
            compare(&name, "learning_rate", &found, &log, 0.0);
            let found = adapter_tensors(&output);
            assert_eq!(shapes(&found), shapes(&expected), "{name}");
            for (tensor, (values, _)) in &expected {
                assert_norm_close(&format!("{name}: {tensor}"), &found[tensor].0, values, 1e-3);
            }
        }
    }
}

/// On a base in few bits, too: as PEFT trains on the values that the codes stand for.
#[test]
fn dora_on_a_rounded_base_follows_peft() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kinds = ["dora", "dora_all_linear", "patterns_head_dora"];
    for (option, format) in
        [("--load_in_4bit", Quantization::Nf4 { double_quant: true }), ("--load_in_8bit", Quantization::Int8)]
    {
        let (rounded, made) = (folder.path().join(format!("{format}")), folder.path().join(format!("peft {format}")));
        super::quantized_training::rounded_model(format, &rounded.join("llava"));
        for file in ["pixels.safetensors", "samples.json", "spec.json"] {
            std::fs::copy(reference("tiny").join(file), rounded.join(file)).expect("copied");
        }
        if !peft(&[&["train", text(&rounded), text(&made)], &kinds[..]].concat()) {
            return;
        }
        for kind in kinds {
            let (of_peft, output) = (made.join(kind), folder.path().join(format!("{kind} {format}")));
            let log = json_file(&of_peft.join("log.json")).as_array().expect("a list of steps").clone();
            let split = Split { ranks: 1, micro_batch: 2, accumulation: 2 };
            succeed(&mut train(TINY, &output, split, &["--init_adapter", text(&of_peft.join("init")), option]));
            let (name, found) = (format!("{kind}, {format}"), metrics(&output));
            compare(&name, "loss", &found, &log, 1e-4);
            compare(&name, "grad_norm", &found, &log, 1e-3);
            let found = adapter_tensors(&output);
            for (tensor, (values, _)) in &adapter_tensors(&of_peft.join("trained")) {
                assert_norm_close(&format!("{name}: {tensor}"), &found[tensor].0, values, 1e-3);
            }
        }
    }
}

/// Options of a run, and the arguments of PEFT's `LoraConfig` that mean the same.
fn choices() -> Vec<(Reference, Vec<&'static str>, Value)> {
    const QKVO: &str = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj)";
    let projector = "multi_modal_projector";
    let tied =
        references::all().find(|model| LlavaConfig::read(&model.llava()).expect("read").text.tie_word_embeddings);
    let tied = tied.expect("a reference with tied embeddings");
    vec![
        (TINY, vec!["--use_dora"], json!({"target_modules": QKVO, "use_dora": true, "modules_to_save": [projector]})),
        (
            TINY,
            vec!["--lora_target_modules", "all-linear", "--use_rslora"],
            json!({"target_modules": "all-linear", "use_rslora": true, "modules_to_save": [projector]}),
        ),
        (
            TINY,
            vec!["--lora_target_modules", "All-Linear", "--modules_to_save", "None"],
            json!({"target_modules": "all-linear"}),
        ),
        (
            TINY,
            vec!["--modules_to_save", "multi_modal_projector, embed_tokens, lm_head"],
            json!({"target_modules": QKVO, "modules_to_save": [projector, "embed_tokens", "lm_head"]}),
        ),
        (
            TINY,
            vec!["--lora_target_modules", "q_proj,lm_head", "--use_dora"],
            json!({
                "target_modules": r".*language_model.*\.(q_proj)|(.*\.)?lm_head", "use_dora": true,
                "modules_to_save": [projector]
            }),
        ),
        (
            TINY,
            vec![
                "--rank_pattern",
                r#"{"layers.0.self_attn.q_proj": 2, "v_proj|k_proj": 8}"#,
                "--alpha_pattern",
                r#"{"self_attn.v_proj": 3.5}"#,
                "--use_rslora",
            ],
            json!({
                "target_modules": QKVO, "use_rslora": true, "modules_to_save": [projector],
                "rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj|k_proj": 8}, "alpha_pattern": {"self_attn.v_proj": 3.5}
            }),
        ),
        (
            TINY,
            // The end of every norm of the language model, and of two of the tower.
            vec!["--modules_to_save", "norm,vision_tower.encoder.layers.1", "--lora_vision"],
            json!({
                "target_modules": format!(r"{QKVO}|.*vision_tower.*\.(q_proj|k_proj|v_proj)"),
                "modules_to_save": ["norm", "vision_tower.encoder.layers.1"]
            }),
        ),
        (
            tied,
            vec!["--lora_target_modules", "all-linear", "--modules_to_save", "embed_tokens"],
            json!({"target_modules": "all-linear", "modules_to_save": ["embed_tokens"]}),
        ),
        (
            tied,
            vec!["--lora_target_modules", "all-linear", "--use_dora", "--use_rslora", "--modules_to_save", ""],
            json!({"target_modules": "all-linear", "use_dora": true, "use_rslora": true}),
        ),
        (
            tied,
            vec!["--modules_to_save", "multi_modal_projector,lm_head"],
            json!({"target_modules": QKVO, "modules_to_save": [projector, "lm_head"]}),
        ),
    ]
}

/// The layers and modules are those that PEFT chooses; the trained adapter gives the same logits there, and the same tensors
/// after a merge.
#[test]
fn chosen_saved_and_merged_as_peft_does() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let choices = choices();
    let mut models: Vec<&str> = choices.iter().map(|(model, ..)| model.name).collect();
    models.dedup();
    for name in models {
        let of_model: Vec<_> = choices.iter().filter(|(model, ..)| model.name == name).collect();
        let (model, dir) = (of_model[0].0, folder.path().join(name));
        let (llava, fresh, merged) = (model.llava(), dir.join("fresh"), dir.join("merged"));
        std::fs::create_dir_all(&merged).expect("made");
        let arguments: Vec<String> = of_model
            .iter()
            .map(|(.., arguments)| {
                let mut arguments = arguments.clone();
                (arguments["r"], arguments["lora_alpha"]) = (json!(4), json!(10));
                arguments.to_string()
            })
            .collect();
        let words = ["fresh", text(&llava), text(&fresh)];
        if !peft(&words.into_iter().chain(arguments.iter().map(String::as_str)).collect::<Vec<_>>()) {
            return;
        }
        let mut adapters = Vec::new();
        for (index, (_, options, _)) in of_model.iter().enumerate() {
            let (name, output) = (format!("{name} {options:?}"), dir.join(format!("run-{index}")));
            let split = Split { ranks: 2, micro_batch: 2, accumulation: 1 };
            let mut command =
                train(model, &output, split, &["--lora_r", "4", "--lora_alpha", "10", "--lora_dropout", "0.1"]);
            succeed(command.args(options));
            let (found, expected) = (adapter_tensors(&output), adapter_tensors(&fresh.join(index.to_string())));
            println!("{name}: {} tensors", found.len());
            assert_eq!(shapes(&found), shapes(&expected), "{name}");
            let is_moved =
                |tensor: &&String| tensor.ends_with("lora_B.weight") && found[*tensor].0.iter().any(|&v| v != 0.0);
            assert!(found.keys().any(|tensor| is_moved(&tensor)), "{name}: nothing was trained");
            adapters.push(output);
        }
        let forward = model.path("forward.safetensors");
        let words = ["merge", text(&forward), text(&merged)];
        assert!(peft(&words.into_iter().chain(adapters.iter().map(|adapter| text(adapter))).collect::<Vec<_>>()));
        for (index, ((_, options, _), adapter)) in of_model.iter().zip(&adapters).enumerate() {
            let name = format!("{name} {options:?}");
            assert_as_in_peft(&name, &llava, adapter, &forward, &merged.join(format!("{index}.safetensors")));
        }
    }
}

/// Logits with an adapter, and all tensors after its merge.
fn assert_as_in_peft(name: &str, llava: &Path, adapter: &Path, forward: &Path, of_peft: &Path) {
    let mut expected = read_tensors_at(of_peft);
    let (logits, _) = expected.remove("logits").expect("logits");
    let device = kernels::device::cpu();
    let (config, mut model) = model_at(llava, &device);
    let batch = forward_batch(&read_tensors_at(forward), config.image_token_index);
    load_adapter(&mut model, adapter, &device).expect("loads");
    let found = values(model.logits(&batch, &batch.supervised().0, &config));
    assert_relative(&format!("{name}: logits"), &found, &logits, TOLERANCE);

    let output = adapter.join("merged");
    infer_ok(&["merge", "--model", text(llava), "--adapter", text(adapter), "--output", text(&output)]);
    let found = read_tensors_at(&output.join("model.safetensors"));
    assert_eq!(shapes(&found), shapes(&expected), "{name}, merged");
    let mut largest = 0f32;
    for (tensor, (expected, _)) in &expected {
        let scale = expected.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
        let difference = found[tensor].0.iter().zip(expected).fold(0f32, |d, (a, b)| d.max((a - b).abs())) / scale;
        assert!(difference <= 1e-6, "{name}, merged: {tensor}: {difference:e}");
        largest = largest.max(difference);
    }
    println!(
        "{name}, merged: largest difference to PEFT's tensors {largest:e} of each one's largest value (tolerance 1e-6)"
    );
}

/// PEFT drops the input of all that DoRA scales, not of LoRA alone; its gradients leave the lengths of rows out.
#[test]
fn a_dora_layer_with_dropout_is_peft_s() {
    let (tokens, inputs, out, rank, scale) = (11, 24, 18, 4, 0.7f32);
    let dropout = kernels::Dropout::new((0..tokens as u64).collect(), 0.4);
    let waves = |seed: usize, len: usize| (0..len).map(|i| ((i * 7 + seed) as f32 * 0.61).sin()).collect::<Vec<f32>>();
    let given: Vec<(&str, Vec<usize>, Vec<f32>)> = vec![
        ("x", vec![tokens, inputs], waves(1, tokens * inputs)),
        ("weight", vec![out, inputs], waves(2, out * inputs)),
        ("bias", vec![out], waves(3, out)),
        ("a", vec![rank, inputs], waves(4, rank * inputs)),
        ("b", vec![out, rank], waves(5, out * rank)),
        ("magnitude", vec![out], waves(6, out).iter().map(|value| 2.0 + value).collect()),
        ("outer", vec![tokens, out], waves(7, tokens * out)),
        ("mask", vec![tokens, inputs], dropout.mask_values(inputs)),
        ("scale", vec![1], vec![scale]),
    ];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (values_file, of_peft) = (folder.path().join("values"), folder.path().join("peft"));
    let source = |(name, shape, values): &(&str, Vec<usize>, Vec<f32>)| {
        let bytes = from_f32(values, WeightDtype::F32);
        let (name, shape) = (name.to_string(), shape.clone());
        TensorSource { name, dtype: WeightDtype::F32.into(), shape, bytes: Box::new(move || Ok(bytes)) }
    };
    write_file(given.iter().map(source).collect(), &values_file).expect("written");
    if !peft(&["layer", text(&values_file), text(&of_peft)]) {
        return;
    }
    let expected = read_tensors_at(&of_peft);
    for (backend, device) in tests::devices() {
        let device = device.autodiff();
        let find = |name: &str| given.iter().find(|(found, ..)| *found == name).expect("given");
        let matrix = |name: &str| {
            let (_, shape, values) = find(name);
            Tensor::<2>::from_data(TensorData::new(values.clone(), shape.clone()), &device)
        };
        let vector = |name: &str| Tensor::<1>::from_data(TensorData::new(find(name).2.clone(), [out]), &device);
        let (x, a, b) = (matrix("x").require_grad(), matrix("a").require_grad(), matrix("b").require_grad());
        let (weight, magnitude) = (matrix("weight"), vector("magnitude").require_grad());
        let gain = magnitude.clone() / kernels::row_norms(weight.clone(), a.clone(), b.clone(), scale);
        let bias = Some(vector("bias"));
        let y = kernels::dora_linear(x.clone(), weight, bias, a.clone(), b.clone(), scale, gain, Some(&dropout));
        let gradients = (y.clone() * matrix("outer")).sum().backward();
        let gradient = |tensor: &Tensor<2>| values(tensor.grad(&gradients).expect("a gradient"));
        let of_magnitude = values(magnitude.grad(&gradients).expect("a gradient"));
        for (name, found) in [
            ("y", values(y)),
            ("x", gradient(&x)),
            ("a", gradient(&a)),
            ("b", gradient(&b)),
            ("magnitude", of_magnitude),
        ] {
            assert_relative(&format!("{backend}: {name}"), &found, &expected[name].0, TOLERANCE);
        }
    }
}

/// Twelve rows a step, with dropout: any number of ranks, and a run that was stopped, train the same.
#[test]
fn ranks_and_resuming_change_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (kind, options) in [
        (
            "rslora, all-linear",
            vec!["--lora_target_modules", "all-linear", "--use_rslora", "--modules_to_save", "None"],
        ),
        ("DoRA", vec!["--use_dora", "--lora_vision"]),
        ("saved modules", vec!["--modules_to_save", "embed_tokens,lm_head"]),
        (
            "head and patterns",
            vec![
                "--lora_target_modules",
                "v_proj,lm_head",
                "--rank_pattern",
                r#"{"lm_head": 3}"#,
                "--alpha_pattern",
                r#"{"v_proj": 5}"#,
            ],
        ),
    ] {
        let mut expected = Vec::new();
        for ranks in [1, 2, 3] {
            let output = folder.path().join(format!("{kind}-{ranks}"));
            let split = Split { ranks, micro_batch: 12 / ranks, accumulation: 1 };
            let more =
                [&["--lora_dropout", "0.2", "--save_strategy", "steps", "--save_steps", "2"], &options[..]].concat();
            succeed(&mut train(TINY, &output, split, &more));
            if ranks == 1 {
                expected = metrics(&output);
            }
            compare(&format!("{kind}, {ranks} ranks"), "loss", &metrics(&output), &expected, 1e-5);
            let whole = final_weights(&output);
            assert!(output.join("checkpoint-4").exists(), "{kind}: the last step is saved");
            std::fs::remove_dir_all(output.join("checkpoint-4")).expect("removed");
            succeed(&mut train(TINY, &output, split, &[&more[..], &["--resume_from_checkpoint", "true"]].concat()));
            assert!(final_weights(&output) == whole, "{kind}, {ranks} ranks: resumed at step 2, other weights");
            let read = read_config(&output.join("checkpoint-2"), &tests::tiny::config()).expect("reads");
            println!("{kind}, {ranks} ranks: resumed with the same bits; {} tensors beside LoRA", trained(&read));
        }
    }
}

/// On the plain operations of a GPU, in bf16: magnitudes are f32, so that they begin as the lengths of the rows.
#[test]
fn dora_in_bf16_follows_f32() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let split = Split { ranks: 2, micro_batch: 2, accumulation: 1 };
    let [f32, bf16] = ["cpu", "cpu-bf16"].map(|device| {
        let output = folder.path().join(device);
        let options =
            ["--use_dora", "--lora_target_modules", "all-linear", "--lora_dropout", "0.1", "--device", device];
        succeed(&mut train(TINY, &output, split, &options));
        metrics(&output)
    });
    compare("DoRA in bf16", "loss", &bf16, &f32, 2e-3);
}

/// Rows of zeros, as padding, have no length that DoRA could divide by: refused before the first step, by the tensor.
#[test]
fn dora_on_rows_of_zeros_is_refused_before_work() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = folder.path().join("model");
    succeed(Command::new("cp").arg("-r").arg(TINY.llava()).arg(&model));
    succeed(Command::new("chmod").arg("-R").arg("u+w").arg(&model));
    let file = model.join("model.safetensors");
    let mut bytes = std::fs::read(&file).expect("weights");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..header]).expect("a header");
    let name = tensors
        .as_object()
        .expect("tensors")
        .keys()
        .find(|name| name.ends_with("layers.1.self_attn.v_proj.weight") && name.contains("language_model"));
    let about = &tensors[name.expect("a matrix")];
    let number = |value: &Value| value.as_u64().expect("a number") as usize;
    let (start, end) = (number(&about["data_offsets"][0]), number(&about["data_offsets"][1]));
    let row = (end - start) / number(&about["shape"][0]);
    bytes[header + start + row..header + start + 4 * row].fill(0);
    std::fs::write(&file, bytes).expect("written");
    let (output, text) = (folder.path().join("run"), model.display().to_string());
    let split = Split { ranks: 1, micro_batch: 2, accumulation: 1 };
    let of_model = ["--model_name_or_path", &text, "--use_dora"];
    let error = fail(&mut train(TINY, &output, split, &of_model));
    for part in [
        "layers.1.self_attn.v_proj.weight: found 3 rows that are all zeros",
        "leave v_proj out of --lora_target_modules",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!output.join("run.json").exists(), "nothing was begun");
    for more in [&of_model[..2], &[&of_model[..], &["--lora_target_modules", "q_proj", "--max_steps", "1"]].concat()] {
        let _ = std::fs::remove_dir_all(&output);
        succeed(&mut train(TINY, &output, split, more));
    }
}

/// The adapter's dropout stays, as its other settings do, unless another is asked for.
#[test]
fn an_adapter_to_go_on_from_keeps_its_dropout() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let adapter = folder.path().join("adapter");
    succeed(Command::new("cp").arg("-r").arg(TINY.path("train_use_lora_init")).arg(&adapter));
    succeed(Command::new("chmod").arg("-R").arg("u+w").arg(&adapter));
    let text = adapter.display().to_string();
    for (own, more, expected) in [(0.0, &[][..], 0.0), (0.25, &[], 0.25), (0.25, &["--lora_dropout", "0.5"], 0.5)] {
        let file = adapter.join("adapter_config.json");
        let mut settings = json_file(&file);
        settings["lora_dropout"] = json!(own);
        base::json::write(&file, &settings).expect("written");
        let output = folder.path().join("run");
        let _ = std::fs::remove_dir_all(&output);
        let words = [&["--train_type", "use_lora", "--init_adapter", &text, "--max_steps", "1"][..], more].concat();
        succeed(&mut tests::runs::train(&shards(), &output, &words));
        for (file, place) in [("train_config.json", "its settings"), ("adapter_config.json", "its output")] {
            let found = json_file(&output.join(file))["lora_dropout"].as_f64();
            assert_eq!(found, Some(expected), "{place} from {own} with {more:?}");
        }
    }
}

fn trained(lora: &model::lora::LoraConfig) -> usize {
    lora.modules.as_ref().map_or(0, |modules| modules.trained.len())
}

#[test]
fn modules_that_cannot_be_are_refused_before_work() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let split = Split { ranks: 1, micro_batch: 2, accumulation: 1 };
    for (options, named) in [
        (&["--lora_target_modules", "all-linear,q_proj"][..], &["lora_target_modules", "all-linear alone"][..]),
        (&["--lora_target_modules", "qkv"], &["lora_target_modules", "\"qkv\"", "q_proj"]),
        (&["--rank_pattern", r#"{"q_proj": 0}"#], &["rank_pattern: found 0 for ", "q_proj"]),
        (&["--rank_pattern", r#"{"q_(proj": 2}"#], &["rank_pattern", "q_(proj", "regular expression"]),
        (
            &["--rank_pattern", r#"{"q_proj": 4, "foo": 2}"#],
            &["rank_pattern: found \"foo\"", "k_proj, o_proj, q_proj, v_proj"],
        ),
        (&["--alpha_pattern", r#"{"mlp.up_proj": 2}"#], &["alpha_pattern: found \"mlp.up_proj\""]),
        (
            &["--rank_pattern", r#"{"q_proj": 4, "layers.0.self_attn.q_proj": 2}"#],
            &["layers.0.self_attn.q_proj", "an expression before it"],
        ),
        (&["--rank_pattern", "q_proj"], &["rank_pattern", "JSON such as"]),
        (&["--alpha_pattern", r#"{"v_proj": 0}"#], &["alpha_pattern: found 0 for ", "above 0"]),
        (&["--modules_to_save", "score"], &["modules_to_save", "\"score\"", "embed_tokens"]),
        (&["--modules_to_save", "language_model"], &["modules_to_save", "language_model", "lora_target_modules"]),
        (
            &["--lora_target_modules", "all-linear", "--modules_to_save", "roj"],
            &["modules_to_save", "roj", "which gets LoRA"],
        ),
        (
            &["--lora_target_modules", "all-linear", "--cache_vision_features"],
            &["cache_vision_features", "frozen vision tower"],
        ),
        (
            &["--modules_to_save", "vision_tower", "--cache_vision_features"],
            &["cache_vision_features", "frozen vision tower"],
        ),
    ] {
        let output = folder.path().join("run");
        let error = fail(&mut train(TINY, &output, split, options));
        assert!(named.iter().all(|named| error.contains(named)), "{options:?}: {error}");
        assert!(!output.join("metrics.jsonl").exists(), "{options:?}: work has begun");
    }
}
