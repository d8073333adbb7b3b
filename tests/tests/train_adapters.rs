//! Training from foreign adapters: all of their modules are trained and written.

use anyhow::Result;
use base::names::{self, Block};
use burn::module::Param;
use burn::tensor::Tensor;
use kernels::device::cpu;
use model::Llava;
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use model::lora::{AdapterModules, LoraConfig, attach};
use model::named::{NamedMapper, map_named};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use store::adapter::{load_adapter, read_config, save_adapter};
use tests::tiny::{gradients, read_tensors_at};
use tests::training::{fail, succeed};
use tests::{adapters, assert_relative, program, reference, runs, tiny};
use train::backward::{BlockHooks, Pass, forward_backward};
use train::config::TrainType;
use train::gradient::BlockGradient;
use train::layout::Layout;
use train::trainable::{Choice, layout, select};

/// LoRA in single layers of every part, the embedding and the head in full.
fn mixed() -> LoraConfig {
    let lora = [
        "language_model.model.layers.0.self_attn.q_proj",
        "language_model.model.layers.1.mlp.down_proj",
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1",
        "vision_tower.vision_model.encoder.layers.1.self_attn.out_proj",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
    ];
    let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    let modules = AdapterModules {
        lora: set(&lora),
        trained: set(&[names::EMBED_TOKENS, names::LM_HEAD]),
        fields: vec![
            ("target_modules".into(), json!(lora)),
            ("modules_to_save".into(), json!(["embed_tokens", "lm_head"])),
        ],
        ..AdapterModules::default()
    };
    LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        use_rslora: false,
        use_dora: false,
        lora_dropout: 0.0,
        target_modules: vec!["q_proj".into(), "down_proj".into()],
        lora_vision: false,
        modules: Some(modules),
    }
}

/// Gives every LoRA matrix values, so that both of a pair get gradients.
struct Randomize;

impl NamedMapper for Randomize {
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !names::is_lora(&name) {
            return param;
        }
        let tensor = param.val();
        let (shape, device) = (tensor.dims(), tensor.device());
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|index| ((index + name.len()) as f32 * 0.37).sin() * 0.2).collect();
        Param::from_tensor(Tensor::from_data(burn::tensor::TensorData::new(values, shape), &device))
    }
}

/// Two rows with an image each, everything after the images supervised.
fn batch(config: &LlavaConfig) -> PackedBatch {
    let mut batch = PackedBatch { num_images: 2, ..Default::default() };
    for row in 0..2u32 {
        let start = batch.input_ids.len();
        let image = vec![config.image_token_index; config.image_seq_length()];
        batch.image_positions.extend(start + 1..start + 1 + image.len());
        batch.input_ids.push(row + 1);
        batch.input_ids.extend(image);
        batch.input_ids.extend((0..6).map(|token| (row * 7 + token * 5) % 59));
        batch.seq_lens.push(batch.input_ids.len() - start);
        let supervised = batch.input_ids[start..].iter().enumerate();
        let first = 1 + config.image_seq_length();
        batch.labels.extend(supervised.map(|(at, &id)| if at > first { id as i32 } else { base::IGNORE_INDEX }));
        batch.ids.push(row.to_string());
    }
    let side = config.vision.image_size;
    batch.pixel_values = (0..2 * 3 * side * side).map(|index| (index as f32 * 0.37).sin()).collect();
    batch
}

/// The gradients by the names of their parameters.
struct Collected<'a> {
    layout: &'a Layout,
    found: &'a mut BTreeMap<String, Vec<f32>>,
}

impl BlockHooks for Collected<'_> {
    fn before_forward(&mut self, _: &mut Llava, _: Block) -> Result<()> {
        Ok(())
    }

    fn after_backward(&mut self, block: usize, gradient: BlockGradient) -> Result<()> {
        let slots = &self.layout.blocks[block].params;
        match gradient {
            BlockGradient::Params(params) => {
                self.found.extend(slots.iter().map(|slot| slot.name.clone()).zip(params));
            }
            BlockGradient::Rows(rows) => {
                let mut dense = vec![0.0; slots[0].len];
                for (row, values) in rows {
                    dense[row * values.len()..][..values.len()].copy_from_slice(&values);
                }
                self.found.insert(slots[0].name.clone(), dense);
            }
            BlockGradient::OnDevice(_) => unreachable!("the CPU's gradients are values"),
        }
        Ok(())
    }
}

/// The walk over blocks gives the gradients of the whole graph, for every part that such an adapter trains.
#[test]
fn gradients_of_every_part_are_those_of_the_whole_graph() {
    assert_gradients(&mixed(), 2 * 6 + 2);
    assert_gradients(&LoraConfig { use_dora: true, ..mixed() }, 3 * 6 + 2);
}

fn assert_gradients(lora: &LoraConfig, tensors: usize) {
    let (config, device) = (adapters::config(), cpu().autodiff());
    let mut model = adapters::model(&device);
    attach(&mut model, lora, 1, &device);
    let model = map_named(model, &mut Randomize);
    let choice = Choice::new(TrainType::UseLora, Some(lora));
    let model = select(model, choice, &config);
    let batch = batch(&config);
    let expected = gradients(&model, &model.loss(&batch, &config).0);
    let layout = layout(&model, choice, &config, 0, 1);
    let trained: Vec<&str> =
        layout.blocks.iter().flat_map(|block| &block.params).map(|slot| slot.name.as_str()).collect();
    assert_eq!(trained.len(), tensors, "{trained:?}");
    assert_eq!(expected.keys().map(String::as_str).collect::<BTreeSet<_>>(), trained.iter().copied().collect());

    for recompute in [false, true] {
        let mut found: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        let mut walked = model.clone();
        let mut pass = Pass {
            model: &mut walked,
            config: &config,
            layout: &layout,
            recompute,
            kept_features: None,
            dropout: None,
            loss_scale: 1.0,
            on_device: false,
        };
        let mut hooks = Collected { layout: &layout, found: &mut found };
        let _loss = forward_backward(&mut pass, &batch, &mut hooks).expect("a step");
        for (name, expected) in &expected {
            assert!(expected.iter().any(|&value| value != 0.0), "{name} has a gradient");
            assert_relative(name, &found[name], expected, 1e-5);
        }
    }
}

/// An adapter with LoRA in every part for the tiny LLaVA, written as PEFT would.
fn tiny_adapter(dir: &Path) -> LoraConfig {
    let (lora, device) = (mixed(), cpu());
    let mut model = tiny::model("llava", &device);
    attach(&mut model, &lora, 1, &device);
    let model: Llava = map_named(model, &mut Randomize);
    std::fs::create_dir(dir).expect("made");
    save_adapter(&model, &lora, "base", dir).expect("saved");
    lora
}

#[test]
fn every_part_of_the_given_adapter_is_trained_and_written() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = runs::shards_with_validation(folder.path());
    let given = folder.path().join("given");
    let lora = tiny_adapter(&given);
    assert_eq!(read_config(&given, &tiny::config()).expect("read"), lora);
    let run = |rate: &str, nproc: &str| {
        let output = folder.path().join(format!("run-{rate}-{nproc}"));
        let mut command = runs::train(&shards, &output, &["--train_type", "use_lora", "--max_steps", "4"]);
        command.args(["--learning_rate", rate, "--nproc", nproc]).arg("--init_adapter").arg(&given);
        succeed(&mut command);
        output
    };
    let tensors = |dir: &Path| read_tensors_at(&dir.join("adapter_model.safetensors"));
    let before = tensors(&given);
    let still = run("0", "1");
    assert_eq!(tensors(&still), before, "at learning rate 0 the adapter is written as it was given");
    let moved = run("0.01", "2");
    let after = tensors(&moved);
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    let unchanged: Vec<&String> =
        before.iter().filter(|(name, tensor)| after[*name].0 == tensor.0).map(|(name, _)| name).collect();
    assert_eq!(unchanged, Vec::<&String>::new(), "tensors that were not trained");
    let config = runs::json_file(&moved.join("adapter_config.json"));
    assert_eq!(config["modules_to_save"], json!(["embed_tokens", "lm_head"]));
    load_adapter(&mut tiny::model("llava", &cpu()), &moved, &cpu()).expect("loads again");
}

#[test]
fn what_cannot_be_trained_is_said_before_the_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shards = runs::shards_with_validation(folder.path());
    let given = folder.path().join("given");
    std::fs::create_dir(&given).expect("made");
    let config = json!({
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["lm_head"], "init_lora_weights": "mica"
    });
    let head = "base_model.model.lm_head";
    let matrices = [(format!("{head}.lora_A.weight"), vec![4, 64]), (format!("{head}.lora_B.weight"), vec![640, 4])];
    adapters::write(&given, &config, &matrices);
    let mut command = runs::train(&shards, &folder.path().join("run"), &["--train_type", "use_lora"]);
    let error = fail(command.arg("--init_adapter").arg(&given));
    assert!(error.contains("init_lora_weights mica") && error.contains("infer merge"), "{error}");
    let mut plan = Command::new(program("train"));
    plan.arg("plan").arg("--model_name_or_path").arg(reference("tiny/llava")).args(["--train_type", "use_lora"]);
    let error = fail(plan.arg("--data_path").arg(&shards).arg("--init_adapter").arg(&given));
    assert!(error.contains("init_lora_weights mica"), "{error}");
    // It can be used, and merged.
    let mut model = tiny::model("llava", &cpu());
    assert!(load_adapter(&mut model, &given, &cpu()).expect("loads").has_lora(names::HEAD));
}

/// As a run, and as a plan: before anything is made.
#[test]
fn a_model_is_no_adapter_to_go_on_from() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (shards, output) = (runs::shards_with_validation(folder.path()), folder.path().join("run"));
    let model = reference("tiny/llava");
    let mut run = runs::train(&shards, &output, &["--train_type", "use_lora"]);
    let mut plan = Command::new(program("train"));
    plan.arg("plan").arg("--model_name_or_path").arg(&model).args(["--train_type", "use_lora"]);
    plan.arg("--data_path").arg(&shards);
    for command in [&mut run, &mut plan] {
        let error = fail(command.arg("--init_adapter").arg(&model));
        let found = format!("{}: found a whole model, expected an adapter", model.display());
        assert!(error.contains(&found) && error.contains("train --model_name_or_path"), "{error}");
    }
    assert!(!output.exists(), "nothing is begun");
}
