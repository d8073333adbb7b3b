//! Adapters made by PEFT with all common settings: loaded, merged, written again, trained further.
//!
//! Models, adapters and the right losses are made by `python/peft_adapters.py`.

use kernels::device::cpu;
use model::Llava;
use model::batch::PackedBatch;
use model::config::LlavaConfig;
use model::lora::{self, LoraConfig};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::adapter::{load_adapter, save_adapter};
use store::checkpoint::{LoadAs, load_model, save_model};
use tests::tiny::{forward_batch, read_tensors_at, values};
use tests::training::succeed;
use tests::{python, python_script};

/// f32 sums in another order, over 14 tokens.
const TOLERANCE: f64 = 1e-5;

/// Folder → loss that PEFT computes.
type Losses = BTreeMap<PathBuf, f64>;

/// Runs the script; nothing where there is no Python.
fn peft(command: &str, folder: &Path, adapters: &[PathBuf]) -> Option<Losses> {
    let mut python = python()?;
    python.arg(python_script("peft_adapters.py")).arg(command).arg(folder).args(adapters);
    let output = succeed(python.env("HF_HUB_OFFLINE", "1"));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    Some(serde_json::from_str(text.lines().last().expect("a line")).expect("losses"))
}

/// A model that an adapter is for, and the batch.
struct Base {
    config: LlavaConfig,
    model: Llava,
    batch: PackedBatch,
}

impl Base {
    fn of(adapter: &Path) -> Self {
        let base = std::fs::read_to_string(adapter.join("BASE")).expect("readable");
        let (config, model) = load_model(Path::new(&base), LoadAs::F32, &cpu()).expect("loads");
        let tensors = read_tensors_at(&adapter.with_file_name("batch.safetensors"));
        let batch = forward_batch(&tensors, config.image_token_index);
        Self { config, model, batch }
    }

    fn with(&self, adapter: &Path) -> (Llava, LoraConfig) {
        let mut model = self.model.clone();
        let lora = load_adapter(&mut model, adapter, &cpu()).unwrap_or_else(|error| panic!("{error}"));
        (model, lora)
    }

    fn loss(&self, model: &Llava, config: &LlavaConfig) -> f64 {
        f64::from(values(model.loss(&self.batch, config).0)[0])
    }
}

fn assert_same(what: &str, found: f64, expected: f64) {
    let difference = (found - expected).abs() / expected;
    println!("{what}: loss {found}, PEFT {expected}: relative difference {difference:e} (tolerance {TOLERANCE:e})");
    assert!(difference <= TOLERANCE, "{what}: loss {found}, PEFT {expected}");
}

#[test]
fn what_peft_loads_is_loaded_merged_and_written_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let Some(losses) = peft("make", folder.path(), &[]) else { return };
    assert_eq!(losses.len(), 19, "adapters of the script");
    let mut again = Vec::new();
    for (adapter, &expected) in &losses {
        let name = adapter.file_name().expect("a name").to_string_lossy().into_owned();
        let base = Base::of(adapter);
        let (model, lora) = base.with(adapter);
        assert_same(&name, base.loss(&model, &base.config), expected);

        let merged = lora::merge(model.clone());
        assert_same(&format!("{name}, merged"), base.loss(&merged, &base.config), expected);
        let written = folder.path().join(format!("{name}-merged"));
        std::fs::create_dir(&written).expect("made");
        save_model(&merged, &base.config, &written, usize::MAX).expect("saved");
        let (config, read_back) = load_model(&written, LoadAs::F32, &cpu()).expect("read back");
        assert_eq!(config.text.tie_word_embeddings, merged.language_model.lm_head.is_none(), "{name}");
        assert_same(&format!("{name}, merged, written"), base.loss(&read_back, &config), expected);

        if lora.modules.as_ref().is_some_and(|modules| modules.untrainable.is_some()) {
            continue;
        }
        // What a run at learning rate 0 would write.
        let written = folder.path().join(format!("{name}-again"));
        std::fs::create_dir(&written).expect("made");
        save_adapter(&model, &lora, "base", &written).expect("saved");
        std::fs::copy(adapter.join("BASE"), written.join("BASE")).expect("copied");
        let (read_back, _) = base.with(&written);
        assert_same(&format!("{name}, written again"), base.loss(&read_back, &base.config), expected);
        again.push(written);
    }
    let untrainable = ["tied_together"];
    assert_eq!(again.len(), losses.len() - untrainable.len(), "all but {untrainable:?} can be trained further");
    let of_peft = peft("losses", folder.path(), &again).expect("Python was there");
    for (adapter, found) in of_peft {
        let original = adapter.display().to_string().replace("-again", "");
        assert_same(&format!("{}, in PEFT", adapter.display()), found, losses[Path::new(&original)]);
    }
}
