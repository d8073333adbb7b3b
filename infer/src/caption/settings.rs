//! Settings of a file of captions, stored beside it: its lines do not name model, adapter or data.

use super::journal::Compared;
use crate::args::CaptionArgs;
use anyhow::Result;
use base::{Error, files, names};
use chat::dataset::chat_file;
use serde_json::json;
use shards::INDEX_FILE;
use std::path::{Path, PathBuf};
use store::hub::{self, Wanted};

fn index_file(shards: &Path) -> PathBuf {
    shards.join(INDEX_FILE)
}

/// All settings that change a caption. Models and data are compared by content, not by path.
pub(super) fn settings(args: &CaptionArgs) -> Result<Vec<Compared>> {
    let model = hub::resolve(&args.model.model, Wanted::Llava)?;
    let mut settings = vec![
        Compared::contents("model", &args.model.model, model_sha256(&model)?),
        match &args.model.adapter {
            Some(adapter) => Compared::contents("adapter", adapter, model_sha256(adapter)?),
            None => Compared::value("adapter", json!(null)),
        },
    ];
    for (name, source, index) in [
        ("images", &args.source.images, None),
        ("data", &args.source.data, Some(chat_file as fn(&Path) -> PathBuf)),
        ("shards", &args.source.shards, Some(index_file)),
    ] {
        settings.push(match (source, index) {
            (None, _) => Compared::value(name, json!(null)),
            // Pictures may be added after the captioned ones: lines are compared by name.
            (Some(folder), None) => Compared::value(name, json!(folder)),
            (Some(folder), Some(index)) => Compared::contents(name, folder, files::sha256_of_file(&index(folder))?),
        });
    }
    if let Some(references) = args.references_file() {
        settings.push(Compared::contents("references", &references, files::sha256_of_file(&references)?));
    }
    let sampling = &args.sampling;
    settings.extend(
        [
            ("weights", json!(format!("{:?}", args.model.weights()))),
            ("split", json!(format!("{:?}", args.split))),
            ("prompt", json!(args.prompt)),
            ("system_prompt", json!(args.system_prompt)),
            ("max_new_tokens", json!(sampling.max_new_tokens)),
            ("temperature", json!(sampling.temperature)),
            ("top_p", json!(sampling.top_p)),
            ("top_k", json!(sampling.top_k)),
            ("seed", json!(sampling.seed)),
            ("repetition_penalty", json!(sampling.repetition_penalty)),
            ("stop", json!(sampling.stop)),
        ]
        .map(|(name, value)| Compared::value(name, value)),
    );
    Ok(settings)
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
