//! Settings of a file of answers, stored beside it: its lines do not name model, adapter or sampling.

use super::journal::Compared;
use crate::args::{ModelArgs, SamplingArgs};
use anyhow::Result;
use base::{Error, files, names};
use serde_json::json;
use std::path::Path;

/// Model and adapter, compared by content, not by path.
///
/// # Errors
/// A file that cannot be read.
pub fn of_model(model: &ModelArgs) -> Result<Vec<Compared>> {
    let (dir, adapter) = model.placed()?;
    Ok(vec![
        Compared::contents("model", &model.model, model_sha256(&dir)?),
        match &adapter {
            Some(adapter) => Compared::contents("adapter", adapter, model_sha256(adapter)?),
            None => Compared::value("adapter", json!(null)),
        },
        Compared::value("weights", json!(format!("{:?}", model.weights()))),
    ])
}

/// Every option of sampling.
pub fn of_sampling(sampling: &SamplingArgs) -> Vec<Compared> {
    let settings = [
        ("max_new_tokens", json!(sampling.max_new_tokens)),
        ("temperature", json!(sampling.temperature)),
        ("top_p", json!(sampling.top_p)),
        ("top_k", json!(sampling.top_k)),
        ("seed", json!(sampling.seed)),
        ("repetition_penalty", json!(sampling.repetition_penalty)),
        ("stop", json!(sampling.stop)),
    ];
    settings.map(|(name, value)| Compared::value(name, value)).into()
}

/// SHA-256 over the files of a model or an adapter in a folder: configuration, weights, tokenizer, processor.
fn model_sha256(dir: &Path) -> Result<String> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
        let path = entry.map_err(Error::io(dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if names::is_part_of_model(&name) {
            lines.push(format!("{name} {}", files::tree_sha256_of_file(&path)?));
        }
    }
    lines.sort_unstable();
    Ok(files::sha256_hex(lines.join("\n").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_what_it_holds() {
        let [first, second] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let write = |dir: &Path, name: &str, text: &str| std::fs::write(dir.join(name), text).expect("written");
        let sha256 = || [first.path(), second.path()].map(|dir| model_sha256(dir).expect("readable"));
        for dir in [first.path(), second.path()] {
            write(dir, "model.safetensors", "weights");
            write(dir, "config.json", "{}");
        }
        write(second.path(), "metrics.jsonl", "of no account");
        let [a, b] = sha256();
        assert_eq!(a, b, "the same model elsewhere");
        for (name, text) in [("model.safetensors", "weightz"), ("tokenizer.json", "{}"), ("adapter_config.json", "{}")]
        {
            let before = model_sha256(second.path()).expect("readable");
            write(second.path(), name, text);
            assert_ne!(model_sha256(second.path()).expect("readable"), before, "{name}");
        }
    }
}
