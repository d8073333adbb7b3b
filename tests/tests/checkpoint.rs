//! Weights: all namings are read, written weights equal the read ones, wrong shapes and names are errors.

use burn::tensor::{DType, Tensor};
use kernels::device;
use model::Llava;
use model::config::{LlavaConfig, WeightDtype};
use std::collections::BTreeMap;
use std::path::Path;
use store::checkpoint::{
    LoadAs, TensorFiles, TensorSource, expected_tensors, load_model, model_tensors, save_model, write_tensors,
};
use tests::{reference, tiny};

type Stored = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// Names, shapes and bytes of a directory's weights.
fn stored(dir: &Path) -> Stored {
    let files = TensorFiles::open(dir).expect("the weights open");
    let entry = |name: &str| {
        let view = files.get(name).expect("a listed tensor");
        (name.to_string(), (view.shape.to_vec(), view.bytes.to_vec()))
    };
    files.names().into_iter().map(entry).collect()
}

fn error(dir: &Path) -> String {
    load_model(dir, LoadAs::F32, &device::cpu()).expect_err("an error").to_string()
}

/// A folder with the tiny config and these f32 tensors.
fn folder(config: &LlavaConfig, tensors: &Stored) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    config.write(folder.path()).expect("written");
    let lazy = |(name, (shape, bytes)): (&String, &(Vec<usize>, Vec<u8>))| {
        let bytes = bytes.clone();
        TensorSource {
            name: name.clone(),
            dtype: WeightDtype::F32.into(),
            shape: shape.clone(),
            bytes: Box::new(move || Ok(bytes)),
        }
    };
    write_tensors(tensors.iter().map(lazy).collect(), folder.path(), usize::MAX).expect("written");
    folder
}

#[test]
fn loading_and_saving_keeps_every_bit() {
    let source = reference("tiny/llava");
    let original = stored(&source);
    let (config, model) = load_model(&source, LoadAs::F32, &device::cpu()).expect("loads");
    for (max_part_bytes, files) in [(usize::MAX, 1), (300_000, 5)] {
        let folder = tempfile::tempdir().expect("a folder");
        save_model(&model, &config, folder.path(), max_part_bytes).expect("saved");
        assert!(stored(folder.path()) == original, "max_part_bytes {max_part_bytes}: other bytes");
        let written = std::fs::read_dir(folder.path()).expect("listed").filter(|entry| {
            entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|ext| ext == "safetensors"))
        });
        assert_eq!(written.count(), files, "files of at most {max_part_bytes} bytes");
        assert_eq!(LlavaConfig::read(folder.path()).expect("read"), config);
        // Saving the other way into the same folder leaves one set of weights.
        save_model(&model, &config, folder.path(), usize::MAX).expect("saved");
        assert!(!folder.path().join("model.safetensors.index.json").exists());
    }
}

#[test]
fn the_layout_is_the_models_own() {
    let config = tiny::config();
    let model = tiny::model("llava", &device::cpu());
    let found: Vec<_> = model_tensors(&model, WeightDtype::F32).into_iter().map(|t| (t.name, t.shape)).collect();
    let expected: Vec<_> = expected_tensors(&config).into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_naming_gives_the_same_model() {
    let original = stored(&reference("tiny/llava"));
    #[allow(clippy::type_complexity)]
    let renamings: [(&str, fn(&str) -> String); 3] = [
        ("5.x", |name| match name.strip_prefix("language_model.lm_head.") {
            Some(rest) => format!("lm_head.{rest}"),
            None => {
                let name = name.replace("language_model.model.", "language_model.").replace("vision_model.", "");
                format!("model.{name}")
            }
        }),
        ("5.x without model", |name| match name.strip_prefix("language_model.lm_head.") {
            Some(rest) => format!("lm_head.{rest}"),
            None => name.replace("language_model.model.", "language_model.").replace("vision_model.", ""),
        }),
        ("4.52", |name| match name.strip_prefix("language_model.lm_head.") {
            Some(rest) => format!("lm_head.{rest}"),
            None => format!("model.{}", name.replace("language_model.model.", "language_model.")),
        }),
    ];
    for (naming, rename) in renamings {
        let renamed = original.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
        let folder = folder(&tiny::config(), &renamed);
        let (config, model) = load_model(folder.path(), LoadAs::F32, &device::cpu()).expect(naming);
        let saved = tempfile::tempdir().expect("a folder");
        save_model(&model, &config, saved.path(), usize::MAX).expect("saved");
        assert!(stored(saved.path()) == original, "{naming}: other bytes");
    }
}

#[test]
fn a_tied_head_is_not_stored_but_may_be_there() {
    let mut config = tiny::config();
    config.text.tie_word_embeddings = true;
    let mut tensors = stored(&reference("tiny/llava"));
    let different = folder(&config, &tensors);
    assert!(error(different.path()).contains("lm_head"), "a head that differs from the embedding it is tied to");
    let embedding = tensors["language_model.model.embed_tokens.weight"].clone();
    tensors.insert("language_model.lm_head.weight".into(), embedding);
    for stored_too in [true, false] {
        if !stored_too {
            tensors.remove("language_model.lm_head.weight");
        }
        let folder = folder(&config, &tensors);
        let (_, model) = load_model(folder.path(), LoadAs::F32, &device::cpu()).expect("loads");
        assert!(model.language_model.lm_head.is_none());
    }
}

#[test]
fn half_precision_is_kept_or_widened() {
    let source = reference("tiny/llava");
    let (mut config, model) = load_model(&source, LoadAs::F32, &device::cpu()).expect("loads");
    for dtype in [WeightDtype::Bf16, WeightDtype::F16] {
        config.dtype = dtype;
        let folder = tempfile::tempdir().expect("a folder");
        save_model(&model, &config, folder.path(), usize::MAX).expect("saved");
        let narrow = stored(folder.path());
        for load_as in [LoadAs::Stored, LoadAs::F32] {
            let (_, again) = load_model(folder.path(), load_as, &device::cpu()).expect("loads");
            let resaved = tempfile::tempdir().expect("a folder");
            save_model(&again, &config, resaved.path(), usize::MAX).expect("saved");
            assert!(stored(resaved.path()) == narrow, "{dtype:?} through {load_as:?}: other bytes");
        }
    }
}

/// As training in bf16 loads: frozen weights rounded to nearest even, masters with all their digits.
#[test]
fn weights_are_rounded_as_they_are_read_but_for_those_named() {
    let is_master = |name: &str| name.starts_with("multi_modal_projector");
    let (_, exact) = load_model(&reference("tiny/llava"), LoadAs::F32, &device::cpu()).expect("loads");
    let (_, mixed) =
        load_model(&reference("tiny/llava"), LoadAs::Bf16Except(&is_master), &device::cpu()).expect("loads");
    let values = |tensor: Tensor<2>| tensor.cast(DType::F32).into_data().try_to_vec::<f32>().expect("f32");
    let weights = |model: &Llava| {
        let layer = model.language_model.model.layers[0].mlp.up_proj.weight.val();
        [model.multi_modal_projector.linear_1.weight.val(), layer]
    };
    let ([exact_master, exact_frozen], [master, frozen]) = (weights(&exact), weights(&mixed));
    assert_eq!((master.dtype(), frozen.dtype()), (DType::F32, DType::BF16));
    assert_eq!(values(master), values(exact_master));
    assert_eq!(values(frozen), values(exact_frozen.cast(DType::BF16)));
}

#[test]
fn misfits_are_named_with_the_remedy() {
    let config = tiny::config();
    let original = stored(&reference("tiny/llava"));
    let name = "multi_modal_projector.linear_1.bias";

    let mut missing = original.clone();
    missing.remove(name);
    let text = error(folder(&config, &missing).path());
    assert!(text.contains(name) && text.contains("[64]"), "{text}");

    let mut extra = original.clone();
    extra.insert("multi_modal_projector.linear_3.bias".into(), original[name].clone());
    assert!(error(folder(&config, &extra).path()).contains("linear_3.bias"));

    let mut misshapen = original.clone();
    misshapen.insert(name.into(), (vec![32, 2], original[name].1.clone()));
    let text = error(folder(&config, &misshapen).path());
    assert!(text.contains(name) && text.contains("[32, 2]") && text.contains("[64]"), "{text}");

    let mut doubled = original.clone();
    doubled.insert(format!("model.{name}"), original[name].clone());
    assert!(error(folder(&config, &doubled).path()).contains("same tensor"));

    let mut other_vocabulary = config.clone();
    other_vocabulary.text.vocab_size = 641;
    let text = error(folder(&other_vocabulary, &original).path());
    assert!(text.contains("1 more"), "embedding and head: {text}");

    let mut buffers = original.clone();
    buffers.insert("vision_tower.vision_model.embeddings.position_ids".into(), original[name].clone());
    buffers.insert("language_model.model.layers.0.self_attn.rotary_emb.inv_freq".into(), original[name].clone());
    assert!(
        load_model(folder(&config, &buffers).path(), LoadAs::F32, &device::cpu()).is_ok(),
        "stored buffers are harmless"
    );
}

#[test]
fn damaged_and_missing_files_are_named() {
    let config = tiny::config();
    let original = stored(&reference("tiny/llava"));
    let truncated = folder(&config, &original);
    let path = truncated.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("read");
    for length in [0, 4, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).expect("written");
        assert!(error(truncated.path()).contains("model.safetensors"), "{length} bytes");
    }
    std::fs::remove_file(&path).expect("removed");
    assert!(error(truncated.path()).contains("no weights"));
    std::fs::write(truncated.path().join("pytorch_model-00001-of-00002.bin"), b"").expect("written");
    assert!(error(truncated.path()).contains("pickled weights in parts"));
    std::fs::write(truncated.path().join("pytorch_model.bin"), b"").expect("written");
    assert!(error(truncated.path()).contains("pytorch_model.bin"));

    let (config, model) = load_model(&reference("tiny/llava"), LoadAs::F32, &device::cpu()).expect("loads");
    let parts = tempfile::tempdir().expect("a folder");
    save_model(&model, &config, parts.path(), 300_000).expect("saved");
    std::fs::remove_file(parts.path().join("model-00002-of-00005.safetensors")).expect("removed");
    assert!(error(parts.path()).contains("model-00002-of-00005.safetensors"));
}
