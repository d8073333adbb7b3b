//! The model that an adapter was trained on, compared with the model that it is put on.

use super::named_base;
use crate::fingerprint;
use base::{Error, Result, json};
use model::config::LlavaConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The record of a run, in its folder and in each of its checkpoints: also beside the adapter.
pub const RUN_RECORD: &str = "run.json";
/// Under this name the record has the model's fingerprint and its path.
pub const MODEL_OPTION: &str = "model_name_or_path";
/// Digits of a fingerprint that messages show.
const SHOWN_DIGITS: usize = 12;

/// The part of a run's record that is about the model.
#[derive(Deserialize)]
struct Record {
    function: Function,
}

#[derive(Deserialize)]
struct Function {
    values: BTreeMap<String, String>,
    #[serde(default)]
    paths: BTreeMap<String, String>,
}

/// How sure it is that the models differ in their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The run's record has another fingerprint.
    Record,
    /// The folder that adapter_config.json names has another fingerprint: it may have changed since.
    Name,
    /// One of the two holds its weights in few bits: it may be the rounded other one.
    Rounded,
}

/// An adapter was trained on another model than the one given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct OtherModel {
    source: Source,
    /// Path and fingerprint of the model that the adapter was trained on.
    trained_on: (PathBuf, String),
    /// Path and fingerprint of the model given.
    given: (PathBuf, String),
}

impl OtherModel {
    /// `None` for the adapter's own model, and where nothing is known about it: of a name alone that is no folder here nothing
    /// follows. Files that cannot be read are errors when they are loaded.
    fn of(adapter: &Path, model: &Path) -> Option<Self> {
        let named = named_base(adapter).ok().flatten();
        let (source, path, trained_on) = match recorded(adapter) {
            Some((path, fingerprint)) => (Source::Record, path, fingerprint),
            None => {
                let path = named.clone()?;
                let is_same = path.canonicalize().ok()? == model.canonicalize().ok()?;
                if is_same || LlavaConfig::read(&path).is_err() {
                    return None;
                }
                let fingerprint = fingerprint::of_weights(&path).ok()?;
                (Source::Name, path, fingerprint)
            }
        };
        let given = fingerprint::of_weights(model).ok()?;
        if given == trained_on {
            return None;
        }
        let is_rounded = |dir: &Path| LlavaConfig::read(dir).is_ok_and(|config| config.quantization.is_some());
        let may_be_rounded = is_rounded(model) || is_rounded(&path) || named.is_some_and(|named| is_rounded(&named));
        let source = if may_be_rounded { Source::Rounded } else { source };
        Some(Self { source, trained_on: (path, trained_on), given: (model.to_path_buf(), given) })
    }
}

/// A model's path and fingerprint, for messages.
fn shown((path, fingerprint): &(PathBuf, String)) -> String {
    format!("{} (fingerprint {})", path.display(), fingerprint.get(..SHOWN_DIGITS).unwrap_or(fingerprint))
}

/// Path and fingerprint of the model in the record beside an adapter.
fn recorded(adapter: &Path) -> Option<(PathBuf, String)> {
    let Record { function: Function { mut values, mut paths } } =
        json::read_if_there(&adapter.join(RUN_RECORD)).ok().flatten()?;
    let fingerprint = values.remove(MODEL_OPTION)?;
    Some((PathBuf::from(paths.remove(MODEL_OPTION).unwrap_or_default()), fingerprint))
}

/// Warns where an adapter was trained on another model than `model`, a folder, which `option` has given.
pub fn warn_of_another_model(adapter: &Path, model: &Path, option: &str) {
    let Some(other) = OtherModel::of(adapter, model) else { return };
    let (adapter, trained_on, given) = (adapter.display(), shown(&other.trained_on), shown(&other.given));
    match other.source {
        Source::Rounded => tracing::info!(
            "{adapter}: trained on {trained_on}, found {given}: one of them has weights in few bits, so whether they belong \
             together is not checked"
        ),
        Source::Record | Source::Name => tracing::warn!(
            "{adapter}: trained on {trained_on}, found {given}: its changes are those of another model; give {option} {}",
            other.trained_on.0.display()
        ),
    }
}

/// Refuses a model that the adapter was not trained on, by the record of its run, unless `force` is set.
///
/// # Errors
/// Both models, with their fingerprints.
pub fn require_own_model(adapter: &Path, model: &Path, force: bool) -> Result<()> {
    match OtherModel::of(adapter, model).filter(|other| other.source == Source::Record && !force) {
        None => Ok(()),
        Some(other) => {
            let expected = format!("the model that it was trained on, {}", shown(&other.trained_on));
            let remedy = format!(
                "give --model {}, or --force true to put it on this one all the same",
                other.trained_on.0.display()
            );
            Err(Error::invalid(adapter.display(), format!("the model {}", shown(&other.given)), expected, remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::names;
    use serde_json::json;

    fn folder(of: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a temporary folder");
        of.iter().for_each(|(name, text)| std::fs::write(dir.path().join(name), text).expect("written"));
        dir
    }

    fn model(weights: &str) -> tempfile::TempDir {
        folder(&[(names::CONFIG_FILE, "{}"), (names::WEIGHTS_FILE, weights)])
    }

    #[test]
    fn the_record_decides_and_a_name_alone_does_not() {
        let (own, copy, other) = (model("a"), model("a"), model("b"));
        let link = own.path().with_extension("link");
        std::os::unix::fs::symlink(own.path(), &link).expect("a link");
        let fingerprint = fingerprint::of_weights(own.path()).expect("a fingerprint");
        let values = json!({ MODEL_OPTION: fingerprint });
        let record = json!({"format": 1, "function": {"values": values, "paths": {MODEL_OPTION: "models/own"}}});
        let named = |path: &str| json!({"base_model_name_or_path": path}).to_string();
        let of_run = folder(&[(RUN_RECORD, &record.to_string())]);
        let of_name = folder(&[(names::ADAPTER_CONFIG_FILE, &named("owner/model"))]);
        let of_nothing = folder(&[]);
        for (adapter, model, is_own) in [
            (&of_run, own.path(), true),
            (&of_run, copy.path(), true),
            (&of_run, &link, true),
            (&of_run, other.path(), false),
            (&of_name, other.path(), true),
            (&of_nothing, other.path(), true),
        ] {
            assert_eq!(OtherModel::of(adapter.path(), model).is_none(), is_own);
            let required = require_own_model(adapter.path(), model, false);
            assert_eq!(required.is_ok(), is_own);
            require_own_model(adapter.path(), model, true).expect("forced");
        }
        let error = require_own_model(of_run.path(), other.path(), false).expect_err("refused").to_string();
        let expected = format!("models/own (fingerprint {})", &fingerprint[..SHOWN_DIGITS]);
        assert!(error.contains(&expected) && error.contains("--force true"), "{error}");
        std::fs::remove_file(link).expect("removed");
    }
}
