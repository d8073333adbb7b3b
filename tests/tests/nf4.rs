//! NF4 against bitsandbytes: codes, magnitudes and values of matrices, a model that transformers has saved in 4 bits, and the
//! files that are written. The values are recorded by `tests/data/nf4/make.py`.

use base::names;
use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use half::bf16;
use kernels::device::cpu;
use kernels::nf4::{Absmax, Nf4Weight, dynamic_map};
use kernels::{Quantization, QuantizedWeight};
use model::config::LlavaConfig;
use model::named::{NamedMapper, map_named};
use model::quantized;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::checkpoint::{LoadAs, load_model, save_model};
use tests::inference::{infer, infer_ok};
use tests::{assert_close, assert_relative, project_file, reference, tiny};

fn recorded(file: &str) -> PathBuf {
    project_file("data/nf4").join(file)
}

/// The tensors of a file as bytes.
fn raw(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(path).expect("readable");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    tensors.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("4 bytes"))).collect()
}

fn state(tensors: &BTreeMap<String, Vec<u8>>, weight: &str) -> Value {
    serde_json::from_slice(&tensors[&format!("{weight}{}", names::nf4::STATE)]).expect("JSON")
}

#[test]
fn codes_and_values_are_those_of_bitsandbytes() {
    let (tensors, shapes) =
        (raw(&recorded("matrices.safetensors")), tiny::read_tensors_at(&recorded("matrices.safetensors")));
    let sources: Vec<&str> = tensors.keys().filter_map(|name| name.strip_suffix(".source")).collect();
    assert_eq!(sources.len(), 7);
    for source in sources {
        let (values, shape) = &shapes[&format!("{source}.source")];
        let shape = [shape[0], shape[1]];
        let matrix = Tensor::<2>::from_data(TensorData::new(values.clone(), shape), &Device::flex());
        for (kind, double_quant) in [("plain", false), ("nested", true)] {
            let name = format!("{source}.{kind}.weight");
            let part = |end: &str| tensors[&format!("{name}{end}")].clone();
            let found = Nf4Weight::quantize(matrix.clone(), double_quant);
            assert_eq!(found.codes.clone().into_data().bytes().to_vec(), tensors[&name], "{name}: codes");
            let recorded = match found.absmax {
                Absmax::Plain(absmax) => {
                    let expected = floats(&part(names::nf4::ABSMAX));
                    assert_eq!(absmax.try_into_vec_as::<f32>().expect("f32"), expected, "{name}: absmax");
                    Absmax::of_values(expected, &cpu())
                }
                Absmax::Nested { codes, map, absmax, block, offset } => {
                    let map_expected = floats(&part(names::nf4::NESTED_QUANT_MAP));
                    assert_eq!(map.try_into_vec_as::<f32>().expect("f32"), map_expected, "{name}: map");
                    assert_eq!(dynamic_map().to_vec(), map_expected);
                    let codes_expected = part(names::nf4::ABSMAX);
                    assert_eq!(codes.into_data().bytes().to_vec(), codes_expected, "{name}: codes of absmax");
                    let state = state(&tensors, &name);
                    assert_eq!(state["nested_blocksize"], json!(block));
                    // torch sums in an order that depends on the machine.
                    let expected = state["nested_offset"].as_f64().expect("a number") as f32;
                    assert_relative(&format!("{name}: offset"), &[offset], &[expected], 2.5e-7);
                    let absmax_expected = floats(&part(names::nf4::NESTED_ABSMAX));
                    let absmax = absmax.try_into_vec_as::<f32>().expect("f32");
                    assert_close(&format!("{name}: nested absmax"), &absmax, &absmax_expected, 2.5e-7 * expected);
                    Absmax::of_codes((codes_expected, map_expected), absmax_expected, block, expected, &cpu())
                }
            };
            let weight = Nf4Weight::from_parts(tensors[&name].clone(), recorded, found.block, shape, &cpu());
            let found = tiny::values(weight.dequantized(0..shape[0]));
            let expected = &shapes[&format!("{source}.{kind}.values")].0;
            // bitsandbytes rounds the values to the dtype of the weight.
            let rounded = |value: f32| if source == "half" { bf16::from_f32(value).to_f32() } else { value };
            let bad = found.iter().zip(expected).position(|(found, expected)| rounded(*found) != *expected);
            assert_eq!(bad, None, "{name}: first value that differs");
            println!("{name}: {} values are the same, bit for bit", found.len());
        }
    }
}

#[test]
fn a_model_saved_by_transformers_gives_its_logits_loss_and_gradients() {
    let expected = tiny::read_tensors_at(&recorded("forward.safetensors"));
    for (backend, device) in tests::devices() {
        let (config, model) = load_model(&recorded("llava"), LoadAs::F32, &device).expect("loads");
        assert_eq!(config.quantization, Some(Quantization::Nf4 { double_quant: true }));
        assert_eq!(quantized::weights(&model).len(), 14);
        let batch = tiny::forward_batch(&expected, config.image_token_index);
        let positions: Vec<usize> = (0..batch.input_ids.len()).collect();
        let logits = tiny::values(model.logits(&batch, &positions, &config));
        assert_relative(&format!("{backend}: logits"), &logits, &expected["logits"].0, 1e-5);

        let (_, model) = load_model(&recorded("llava"), LoadAs::F32, &device.autodiff()).expect("loads");
        let name = "multi_modal_projector.linear_1.weight";
        let model = map_named(model, &mut Trained(name));
        let (loss, tokens) = model.loss(&batch, &config);
        let loss = loss / tokens as f32;
        assert_relative(&format!("{backend}: loss"), &tiny::values(loss.clone()), &expected["loss"].0, 1e-5);
        let gradients = tiny::gradients(&model, &loss);
        assert_relative(&format!("{backend}: gradient"), &gradients[name], &expected["projector_grad"].0, 1e-4);
    }
}

/// Lets one parameter collect gradients.
struct Trained(&'static str);

impl NamedMapper for Trained {
    fn map<const D: usize>(&mut self, name: String, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.set_require_grad(name == self.0)
    }
}

#[test]
fn what_transformers_saved_is_written_again() {
    let (config, model) = load_model(&recorded("llava"), LoadAs::Stored, &cpu()).expect("loads");
    let folder = tempfile::tempdir().expect("a folder");
    save_model(&model, &config, folder.path(), usize::MAX).expect("written");
    let json = |dir: &Path| tests::runs::json_file(&dir.join("config.json"))["quantization_config"].clone();
    assert_eq!(json(folder.path()), json(&recorded("llava")));
    // transformers has several spellings of the names.
    let canonical = |(name, bytes): (String, Vec<u8>)| (names::canonical(&name).expect("a name of a LLaVA"), bytes);
    let read = |dir: &Path| raw(&dir.join("model.safetensors")).into_iter().map(canonical).collect::<BTreeMap<_, _>>();
    let [found, expected] = [folder.path(), &recorded("llava")].map(read);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        match name.strip_suffix(names::nf4::STATE) {
            Some(weight) => assert_eq!(state(&found, weight), state(&expected, weight), "{name}"),
            None => assert!(found[name] == *bytes, "{name}"),
        }
    }
    let (again, model) = load_model(folder.path(), LoadAs::Stored, &cpu()).expect("loads");
    assert_eq!((again, quantized::weights(&model).len()), (config, 14));
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let weight = "language_model.model.layers.1.mlp.up_proj.weight";
    type Change<'a> = Box<dyn Fn(&mut BTreeMap<String, Vec<u8>>, &mut Value) + 'a>;
    let refused = |change: &Change<'_>| {
        let folder = tempfile::tempdir().expect("a folder");
        let mut config = tests::runs::json_file(&recorded("llava/config.json"));
        let mut tensors = raw(&recorded("llava/model.safetensors"));
        change(&mut tensors, &mut config);
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        let bytes = std::fs::read(recorded("llava/model.safetensors")).expect("readable");
        let old = SafeTensors::deserialize(&bytes).expect("safetensors");
        let views = tensors.iter().map(|(name, bytes)| {
            let view = old.tensor(name).expect("a tensor");
            let shape = if view.data().len() == bytes.len() { view.shape().to_vec() } else { vec![bytes.len()] };
            let dtype = if view.data().len() == bytes.len() { view.dtype() } else { safetensors::Dtype::U8 };
            (name.clone(), safetensors::tensor::TensorView::new(dtype, shape, bytes).expect("a view"))
        });
        let path = folder.path().join("model.safetensors");
        safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &path).expect("written");
        load_model(folder.path(), LoadAs::F32, &cpu()).map(|_| ()).expect_err("refused").to_string()
    };
    let state_of = format!("{weight}{}", names::nf4::STATE);
    let with_state = |from: &'static str, to: &'static str| {
        let name = state_of.clone();
        move |tensors: &mut BTreeMap<String, Vec<u8>>, _: &mut Value| {
            let text = String::from_utf8(tensors[&name].clone()).expect("UTF-8");
            assert!(text.contains(from), "{text}");
            tensors.insert(name.clone(), text.replace(from, to).into_bytes());
        }
    };
    let without = |end: &'static str| {
        move |tensors: &mut BTreeMap<String, Vec<u8>>, _: &mut Value| {
            tensors.remove(&format!("{weight}{end}")).expect("a tensor");
        }
    };
    let with_config = |field: &'static str, value: Value| {
        move |_: &mut BTreeMap<String, Vec<u8>>, config: &mut Value| {
            config["quantization_config"][field] = value.clone()
        }
    };
    let cases: Vec<(Change<'_>, Vec<&str>)> = vec![
        (Box::new(with_state("\"nf4\"", "\"fp4\"")), vec![&state_of, "fp4"]),
        (Box::new(with_state("\"blocksize\": 64", "\"blocksize\": 63")), vec![&state_of, "blocksize 63"]),
        (Box::new(with_state("{", "[")), vec![&state_of, "description"]),
        (Box::new(with_state("[96, 64]", "[64, 96]")), vec![weight, "shape [64, 96]", "[96, 64]"]),
        (Box::new(with_state("[96, 64]", "[96, 65]")), vec![weight, "shape [96, 65]"]),
        (Box::new(without(names::nf4::ABSMAX)), vec!["up_proj.weight.absmax", "none", "96 bytes"]),
        (Box::new(without("")), vec![weight, "none"]),
        (Box::new(without(names::nf4::STATE)), vec![weight, "U8"]),
        (
            Box::new(|tensors: &mut BTreeMap<String, Vec<u8>>, _: &mut Value| {
                tensors.get_mut(&format!("{weight}{}", names::nf4::QUANT_MAP)).expect("a tensor")[3] = 0;
            }),
            vec!["up_proj.weight.quant_map", "sixteen"],
        ),
        (Box::new(with_config("load_in_8bit", json!(true))), vec!["quantization_config", "load_in_8bit"]),
        (Box::new(with_config("bnb_4bit_quant_type", json!("fp4"))), vec!["bnb_4bit_quant_type", "NF4"]),
        (Box::new(with_config("quant_method", json!("awq"))), vec!["quant_method", "awq"]),
        (Box::new(with_config("group_size", json!(128))), vec!["unknown field group_size"]),
    ];
    for (change, words) in cases {
        let error = refused(&change);
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    }
}

/// `infer quantize`, and the programs on its output.
#[test]
fn a_model_is_written_in_nf4_and_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (model, output) = (reference("tiny/llava").display().to_string(), path("nf4"));
    let report: Value =
        serde_json::from_str(&infer_ok(&["quantize", "--model", &model, "--output", &output])).expect("JSON");
    assert_eq!((&report["matrices"], &report["values"]), (&json!(21), &json!(3 * (4 * 64 * 64 + 3 * 64 * 128))));
    let (config, rounded) = load_model(Path::new(&output), LoadAs::Stored, &cpu()).expect("loads");
    assert_eq!(config.quantization, Some(Quantization::Nf4 { double_quant: true }));
    let written: usize = raw(&Path::new(&output).join("model.safetensors"))
        .iter()
        .filter(|(name, _)| name.starts_with("language_model."))
        .filter(|(name, _)| {
            names::nf4::PARTS[..4].iter().any(|part| name.ends_with(part)) || name.ends_with("_proj.weight")
        })
        // The map of the codes is part of the program.
        .filter(|(name, _)| !name.ends_with(names::nf4::QUANT_MAP) || name.ends_with(names::nf4::NESTED_QUANT_MAP))
        .map(|(_, bytes)| bytes.len())
        .sum();
    assert_eq!(report["bytes"], json!(written));
    let (_, plain) = load_model(&reference("tiny/llava"), LoadAs::Stored, &cpu()).expect("loads");
    let mut plain = plain;
    plain.language_model.quantize_layers(Quantization::Nf4 { double_quant: true });
    let values = |weights: Vec<(String, QuantizedWeight)>| {
        weights.into_iter().map(|(name, weight)| (name, weight.bytes())).collect::<Vec<_>>()
    };
    assert!(values(quantized::weights(&rounded)) == values(quantized::weights(&plain)), "other codes");

    let shards = tests::training::shards().display().to_string();
    let loss = |model: &str, extra: &[&str]| {
        let scores = path("scores.jsonl");
        let args = ["score", "--model", model, "--shards", &shards, "--output", &scores];
        let total: Value = serde_json::from_str(&infer_ok(&[&args[..], extra].concat())).expect("JSON");
        total["loss"].as_f64().expect("a number")
    };
    let on_the_fly = ["--quantize", "nf4"];
    let (exact, stored) = (loss(&model, &[]), loss(&output, &[]));
    println!("nf4 − as given: {:e} nats a token (tolerance 0.1)", stored - exact);
    assert!(stored != exact && (stored - exact).abs() < 0.1);
    // The same codes, and the head in 8 bits.
    let (with_head, of_stored) = (loss(&model, &on_the_fly), loss(&output, &on_the_fly));
    println!("head in 8 bits: {:e} nats a token (tolerance 0.01)", with_head - stored);
    assert!(with_head == of_stored && with_head != stored && (with_head - stored).abs() < 0.01);

    // What is written whole is made from exact weights.
    let adapter = reference("tiny/train_use_lora").display().to_string();
    for command in [
        &["merge", "--model", &output, "--adapter", &adapter, "--output", &path("merged")][..],
        &["quantize", "--model", &output, "--output", &path("again")],
    ] {
        let refused = infer(command);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && error.contains("quantization_config"), "{error}");
        assert!(error.contains("the original model"), "{error}");
    }
    assert!(LlavaConfig::read(Path::new(&model)).expect("read").quantization.is_none());
}
