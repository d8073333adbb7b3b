//! PEFT adapters: both spellings are read, both are written, wrong shapes and names are errors.

use kernels::device;
use model::config::WeightDtype;
use model::lora::LoraConfig;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use store::adapter::{load_adapter, read_config, save_adapter};
use store::checkpoint::{TensorFiles, TensorSource, write_file};
use tests::{reference, tiny};

type Stored = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

const FIXTURE: &str = "tiny/train_use_lora";
const OLD: &str = "base_model.model.language_model.model.layers.";
const NEW: &str = "base_model.model.model.language_model.layers.";

fn stored(dir: &Path) -> Stored {
    let files = TensorFiles::open_file(&dir.join("adapter_model.safetensors")).expect("the adapter opens");
    let entry = |name: &str| {
        let view = files.get(name).expect("a listed tensor");
        (name.to_string(), (view.shape.to_vec(), view.bytes.to_vec()))
    };
    files.names().into_iter().map(entry).collect()
}

fn config_json() -> Value {
    serde_json::from_slice(&std::fs::read(reference(FIXTURE).join("adapter_config.json")).expect("readable"))
        .expect("JSON")
}

/// An adapter directory with these f32 tensors.
fn folder(config: &Value, tensors: &Stored) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).expect("written");
    let source = |(name, (shape, bytes)): (&String, &(Vec<usize>, Vec<u8>))| {
        let bytes = bytes.clone();
        TensorSource {
            name: name.clone(),
            dtype: WeightDtype::F32.into(),
            shape: shape.clone(),
            bytes: Box::new(move || Ok(bytes)),
        }
    };
    let path = folder.path().join("adapter_model.safetensors");
    write_file(tensors.iter().map(source).collect(), &path).expect("written");
    folder
}

fn error(dir: &Path) -> String {
    let mut model = tiny::model("llava", &device::cpu());
    load_adapter(&mut model, dir, &device::cpu()).expect_err("refused").to_string()
}

#[test]
fn an_adapter_is_written_under_both_spellings_with_the_same_bits() {
    let fixture = stored(&reference(FIXTURE));
    let mut model = tiny::model("llava", &device::cpu());
    let config = load_adapter(&mut model, &reference(FIXTURE), &device::cpu()).expect("loads");
    let projections = ["q_proj", "k_proj", "v_proj", "o_proj"].map(String::from).to_vec();
    let expected = LoraConfig {
        r: 8,
        lora_alpha: 16.0,
        use_rslora: false,
        use_dora: false,
        lora_dropout: 0.0,
        target_modules: projections,
        lora_vision: false,
        modules: None,
    };
    assert_eq!(config, expected);

    let folder = tempfile::tempdir().expect("a folder");
    save_adapter(&model, &config, "base", folder.path()).expect("saved");
    let written = stored(folder.path());
    assert_eq!(written.len(), 2 * fixture.len());
    for (name, tensor) in &fixture {
        let old = name.replace(NEW, OLD).replace("base_model.model.model.multi", "base_model.model.multi");
        assert!(written[name] == *tensor && written[&old] == *tensor, "{name} and {old}");
        assert_ne!(name, &old);
    }
    assert_eq!(read_config(folder.path(), &tiny::config()).expect("read back"), config);
}

#[test]
fn either_spelling_and_peft_s_wrappers_are_read() {
    let fixture = stored(&reference(FIXTURE));
    #[allow(clippy::type_complexity)]
    let renamings: [(&str, fn(&str) -> String); 3] = [
        ("old", |name| name.replace(NEW, OLD).replace("model.model.multi", "model.multi")),
        ("adapter name in the keys", |name| name.replace("lora_A.weight", "lora_A.default.weight")),
        ("modules_to_save", |name| name.replace("projector.linear", "projector.modules_to_save.default.linear")),
    ];
    for (spelling, rename) in renamings {
        let tensors = fixture.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
        let folder = folder(&config_json(), &tensors);
        let mut model = tiny::model("llava", &device::cpu());
        let config = load_adapter(&mut model, folder.path(), &device::cpu()).expect(spelling);
        let saved = tempfile::tempdir().expect("a folder");
        save_adapter(&model, &config, "base", saved.path()).expect("saved");
        let saved = stored(saved.path());
        assert!(fixture.iter().all(|(name, tensor)| saved[name] == *tensor), "{spelling}: other bytes");
    }
}

#[test]
fn a_list_of_targets_and_an_absent_projector_are_read() {
    let mut tensors = stored(&reference(FIXTURE));
    tensors.retain(|name, _| name.contains("lora_") && !name.contains("o_proj"));
    let mut config = config_json();
    config["target_modules"] = json!(["q_proj", "v_proj", "k_proj"]);
    config["modules_to_save"] = Value::Null;
    config["lora_alpha"] = json!(8.5);
    let folder = folder(&config, &tensors);
    let mut model = tiny::model("llava", &device::cpu());
    let config = load_adapter(&mut model, folder.path(), &device::cpu()).expect("loads");
    assert_eq!(
        (config.target_modules, config.lora_alpha),
        (vec!["q_proj".into(), "k_proj".into(), "v_proj".into()], 8.5)
    );
}

#[test]
fn misfits_are_named() {
    let fixture = stored(&reference(FIXTURE));
    let name = format!("{NEW}0.self_attn.q_proj.lora_B.weight");
    let with = |change: &dyn Fn(&mut Stored)| {
        let mut tensors = fixture.clone();
        change(&mut tensors);
        error(folder(&config_json(), &tensors).path())
    };
    let tensor = fixture[&name].clone();
    assert!(with(&|t| drop(t.remove(&name))).contains("layers.0.self_attn.q_proj.lora_B"));
    let text = with(&|t| drop(t.insert(name.clone(), (vec![8, 64], tensor.1.clone()))));
    assert!(text.contains("[8, 64]") && text.contains("[64, 8]"), "{text}");
    assert!(with(&|t| drop(t.insert(name.replace("layers.0", "layers.7"), tensor.clone()))).contains("layers.7"));
    assert!(with(&|t| drop(t.insert("base_model.model.score.weight".into(), tensor.clone()))).contains("score"));
    let mut changed = tensor.clone();
    changed.1[0] ^= 1;
    assert!(with(&|t| drop(t.insert(name.replace(NEW, OLD), changed.clone()))).contains("both spellings"));

    for (key, value) in [("peft_type", json!("IA3")), ("bias", json!("all")), ("fan_in_fan_out", json!(true))] {
        let mut config = config_json();
        config[key] = value;
        let text = error(folder(&config, &fixture).path());
        assert!(text.contains(key) && text.contains("adapter_config.json"), "{key}: {text}");
    }
    let mut other_rank = config_json();
    other_rank["r"] = json!(4);
    assert!(error(folder(&other_rank, &fixture).path()).contains("shape"));
    for (field, value, named) in [
        ("rank_pattern", json!({"layers.1.self_attn.q_proj": 4}), "q_proj.lora_A.weight of shape [8, 64]"),
        ("rank_pattern", json!({"q_proj": 0}), "rank_pattern: found 0 for language_model.model.layers.0"),
        ("rank_pattern", json!({"(q_proj": 4}), "adapter_config.json: rank_pattern: found \"(q_proj\""),
        ("alpha_pattern", json!({"v_proj": -1.0}), "alpha_pattern: found -1 for language_model.model.layers.0"),
    ] {
        let mut config = config_json();
        config[field] = value;
        let text = error(folder(&config, &fixture).path());
        assert!(text.contains(named), "{named}: {text}");
    }
    assert!(error(Path::new("/nonexistent")).contains("no such folder"));
    let unchanged = tiny::model("llava", &device::cpu());
    assert!(
        save_adapter(
            &unchanged,
            &read_config(&reference(FIXTURE), &tiny::config()).expect("read"),
            "base",
            Path::new("/tmp")
        )
        .is_err()
    );
}
