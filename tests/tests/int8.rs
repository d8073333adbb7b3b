//! Files in 8-bit integers as bitsandbytes has them: read with its values, written, trained on. The values are recorded by
//! `tests/data/int8/make.py`.

use base::names::{self, int8};
use kernels::device::cpu;
use kernels::{Quantization, QuantizedWeight};
use model::quantized;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::checkpoint::{LoadAs, load_model, save_model};
use tests::inference::infer_ok;
use tests::runs::json_file;
use tests::{assert_relative, project_file, reference, tiny};

/// Dtype, shape and bytes of a file's tensors.
type Raw = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn recorded(file: &str) -> PathBuf {
    project_file("data/int8").join(file)
}

fn raw(path: &Path) -> Raw {
    let bytes = std::fs::read(path).expect("readable");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    tensors.tensors().into_iter().map(tensor).collect()
}

#[test]
fn a_model_saved_by_transformers_has_its_values_and_logits() {
    let expected = tiny::read_tensors_at(&recorded("forward.safetensors"));
    for (backend, device) in tests::devices() {
        let (config, model) = load_model(&recorded("llava"), LoadAs::F32, &device).expect("loads");
        assert_eq!(config.quantization, Some(Quantization::Int8));
        let weights = quantized::weights(&model);
        assert_eq!(weights.len(), 14);
        for (name, weight) in weights {
            let [new, ..] = [names::module_spellings(name.strip_suffix(".weight").expect("a weight"))];
            let (values, shape) = &expected[&format!("values.{}", new[2])];
            assert_eq!(weight.dims().to_vec(), *shape, "{name}");
            // bitsandbytes multiplies by 1/127 at the end.
            let found = tiny::values(weight.dequantized(0..shape[0]));
            assert_relative(&format!("{backend}: {name}"), &found, values, 2.5e-7);
        }
        let batch = tiny::forward_batch(&expected, config.image_token_index);
        let positions: Vec<usize> = (0..batch.input_ids.len()).collect();
        let logits = tiny::values(model.logits(&batch, &positions, &config));
        assert_relative(&format!("{backend}: logits"), &logits, &expected["logits"].0, 1e-5);
        let (loss, tokens) = model.loss(&batch, &config);
        assert_relative(&format!("{backend}: loss"), &tiny::values(loss / tokens as f32), &expected["loss"].0, 1e-5);
    }
}

#[test]
fn what_transformers_saved_is_written_again() {
    let (config, model) = load_model(&recorded("llava"), LoadAs::Stored, &cpu()).expect("loads");
    let folder = tempfile::tempdir().expect("a folder");
    save_model(&model, &config, folder.path(), usize::MAX).expect("written");
    let canonical = |(name, tensor): (String, _)| (names::canonical(&name).expect("a name of a LLaVA"), tensor);
    let read = |dir: &Path| raw(&dir.join("model.safetensors")).into_iter().map(canonical).collect::<Raw>();
    let [found, expected] = [folder.path(), &recorded("llava")].map(read);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, (dtype, shape, bytes)) in &expected {
        let written = &found[name];
        assert_eq!((&written.0, &written.1), (dtype, shape), "{name}");
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("4 bytes"))).collect()
        };
        match name.ends_with(int8::SCB) {
            true => assert_relative(name, &floats(&written.2), &floats(bytes), 1.2e-7),
            false => assert!(written.2 == *bytes, "{name}"),
        }
    }
    let (again, read_back) = load_model(folder.path(), LoadAs::Stored, &cpu()).expect("loads");
    let bytes = |model| quantized::weights(model).iter().map(|(_, weight)| weight.bytes()).collect::<Vec<_>>();
    assert_eq!(again, config);
    assert!(bytes(&read_back) == bytes(&model), "other codes or scales");
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let layer = "language_model.model.layers.1.mlp.up_proj";
    let of = |tensors: &Raw, end: &str| {
        let is_it = |name: &&String| names::canonical(name).is_some_and(|name| name == format!("{layer}{end}"));
        tensors.keys().find(is_it).expect("a tensor").clone()
    };
    type Change<'a> = Box<dyn Fn(&mut Raw, &mut Value) + 'a>;
    let refused = |change: &Change<'_>| {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut tensors, mut config) =
            (raw(&recorded("llava/model.safetensors")), json_file(&recorded("llava/config.json")));
        change(&mut tensors, &mut config);
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).expect("a view"))
        });
        let path = folder.path().join("model.safetensors");
        safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, &path).expect("written");
        load_model(folder.path(), LoadAs::F32, &cpu()).map(|_| ()).expect_err("refused").to_string()
    };
    let changed = |end: &'static str, change: fn(&mut (Dtype, Vec<usize>, Vec<u8>))| -> Change<'_> {
        Box::new(move |tensors, _| change(tensors.get_mut(&of(tensors, end)).expect("a tensor")))
    };
    let without = |end: &'static str| -> Change<'_> {
        Box::new(move |tensors, _| drop(tensors.remove(&of(tensors, end)).expect("a tensor")))
    };
    for (change, named) in [
        (changed(int8::FORMAT, |tensor| tensor.2[0] = 2), &["up_proj.weight_format", "[2]", "row by row"][..]),
        (
            changed(int8::SCB, |tensor| (tensor.1, tensor.2) = (vec![1], vec![0; 4])),
            &["up_proj.SCB", "F32 [1]", "F32 [48]"],
        ),
        (changed(".weight", |tensor| tensor.0 = Dtype::U8), &["up_proj.weight", "U8 [48, 32]", "a matrix of I8"]),
        (changed(".weight", |tensor| tensor.1 = vec![32, 48]), &["up_proj.weight", "[32, 48]", "[48, 32]"]),
        (without(int8::SCB), &["up_proj.weight", "I8", "bitsandbytes"]),
        (without(".weight"), &["up_proj.weight", "none", "codes"]),
    ] {
        let error = refused(&change);
        assert!(named.iter().all(|named| error.contains(named)), "{named:?}: {error}");
    }
    for (field, value, named) in [
        ("load_in_4bit", json!(true), "load_in_8bit true, load_in_4bit true"),
        ("load_in_8bit", json!(false), "load_in_8bit false, load_in_4bit false"),
        ("quant_method", json!("gptq"), "quant_method"),
    ] {
        let error = refused(
            &(Box::new(|_: &mut Raw, config: &mut Value| {
                config["quantization_config"][field] = value.clone();
            }) as Change<'_>),
        );
        assert!(error.contains(named), "{error}");
    }
}

/// `infer quantize --load-in-8bit`: the values of rounding on the fly.
#[test]
fn a_model_is_written_in_8_bits_and_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (model, output) = (reference("tiny/llava").display().to_string(), path("int8"));
    let report = infer_ok(&["quantize", "--model", &model, "--output", &output, "--load-in-8bit"]);
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let values = 3 * (4 * 64 * 64 + 3 * 64 * 128);
    assert_eq!((&report["matrices"], &report["values"]), (&json!(21), &json!(values)));
    assert_eq!(report["bytes"], json!(values + 3 * 4 * (4 * 64 + 2 * 128 + 64)));
    let (config, stored) = load_model(Path::new(&output), LoadAs::Stored, &cpu()).expect("loads");
    assert_eq!(config.quantization, Some(Quantization::Int8));
    let (_, mut rounded) = load_model(&reference("tiny/llava"), LoadAs::Stored, &cpu()).expect("loads");
    rounded.language_model.quantize_layers(Quantization::Int8);
    let bytes = |weights: Vec<(String, QuantizedWeight)>| {
        weights.into_iter().map(|(name, weight)| (name, weight.bytes())).collect::<Vec<_>>()
    };
    assert!(bytes(quantized::weights(&stored)) == bytes(quantized::weights(&rounded)), "other codes");
}
