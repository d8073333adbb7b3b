//! Names like `openai/clip-vit-large-patch14-336` in place of a directory: the local Hugging Face cache, or a download into it.
//!
//! `HF_HOME` says where the cache is, `HF_ENDPOINT` which server is asked, `HF_HUB_OFFLINE=1` that none is.

use base::{Error, Result, files, names};
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// What a directory is needed for: which files it has to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// `config.json` alone.
    Config,
    /// A CLIP: configuration, weights, image processor.
    VisionTower,
    /// A Qwen2: configuration, weights, tokenizer.
    LanguageModel,
    /// A whole LLaVA.
    Llava,
}

impl Wanted {
    /// Files beside the weights.
    fn files(self) -> &'static [&'static str] {
        const TOWER: &[&str] = &[names::CONFIG_FILE, names::PREPROCESSOR_CONFIG_FILE];
        const TEXT: &[&str] = &[names::CONFIG_FILE, names::TOKENIZER_FILE, names::TOKENIZER_CONFIG_FILE];
        const LLAVA: &[&str] =
            &[names::CONFIG_FILE, names::PREPROCESSOR_CONFIG_FILE, names::TOKENIZER_FILE, names::TOKENIZER_CONFIG_FILE];
        match self {
            Self::Config => &[names::CONFIG_FILE],
            Self::VisionTower => TOWER,
            Self::LanguageModel => TEXT,
            Self::Llava => LLAVA,
        }
    }

    /// Files that are not there. The image processor's settings may also be in `processor_config.json`, where transformers 5
    /// writes them.
    fn lacking(self, has: impl Fn(&str) -> bool) -> Vec<&'static str> {
        let stands_in = |file: &str| file == names::PREPROCESSOR_CONFIG_FILE && has(names::PROCESSOR_CONFIG_FILE);
        self.files().iter().copied().filter(|file| !has(file) && !stands_in(file)).collect()
    }

    fn has_weights(self) -> bool {
        self != Self::Config
    }
}

/// Folders that people keep models in: a name that begins so is a path, not a repository's.
const FOLDERS: [&str; 10] =
    ["models", "model", "runs", "run", "checkpoints", "output", "outputs", "weights", "data", "quickstart"];
/// Owners of published models by the beginnings of their names, for commands in messages.
const OWNERS: [(&str, &str); 5] =
    [("clip-", "openai"), ("siglip", "google"), ("Qwen", "Qwen"), ("Llama-", "meta-llama"), ("vicuna", "lmsys")];

/// The directory that a name stands for: itself if there is such a directory, else the repository's snapshot in the local cache,
/// downloaded first if it is not there whole.
///
/// # Errors
/// A folder that is not there, or that has an adapter in place of a model; a repository that is not in the cache and cannot be
/// downloaded, or that lacks files: with the files that are needed.
pub fn resolve(name: &Path, wanted: Wanted) -> Result<PathBuf> {
    let id = match repository(name) {
        Some(id) if is_repository(name) => id,
        _ if name.as_os_str().is_empty() => return Ok(name.to_path_buf()),
        _ => return require_folder(name, wanted).map(|()| name.to_path_buf()),
    };
    let cache = Cache::from_env();
    let missing = missing(&cache, id, wanted);
    if missing.is_empty() {
        return snapshot(&cache, id, wanted);
    }
    let found = |why: String| -> Error {
        let cache_dir = cache.path().display();
        let expected = format!("{} (in {cache_dir}, or a directory)", missing.join(", "));
        let remedy = format!(
            "on a machine with network: hf download {id} --local-dir DIR (the weights and the .json, .jinja and .txt files); \
             then give DIR instead of the name"
        );
        Error::invalid(id, why, expected, remedy)
    };
    if is_offline() {
        return Err(found("no complete copy in the cache, and HF_HUB_OFFLINE forbids to download one".into()));
    }
    download(id, wanted).map_err(|why| found(format!("no complete copy in the cache, and no download: {why}")))?;
    snapshot(&cache, id, wanted)
}

/// The folder of the local cache.
pub fn cache_folder() -> PathBuf {
    Cache::from_env().path().clone()
}

/// The server that is asked, unless `HF_HUB_OFFLINE` forbids it.
pub fn server() -> Option<String> {
    let given = std::env::var("HF_ENDPOINT").ok();
    (!is_offline()).then(|| given.unwrap_or_else(|| "https://huggingface.co".to_string()))
}

fn is_offline() -> bool {
    std::env::var_os("HF_HUB_OFFLINE").is_some_and(|value| value != "0")
}

/// Whether a name stands for a repository: there is no such file or folder, it looks like `owner/name`, and there is no folder
/// `owner` either.
pub fn is_repository(name: &Path) -> bool {
    let is_path =
        |id: &str| id.split_once('/').is_some_and(|(owner, _)| FOLDERS.contains(&owner) || Path::new(owner).is_dir());
    !name.exists() && repository(name).is_some_and(|id| !is_path(id))
}

/// Refuses a folder that is not there, and one with an adapter where a model is wanted.
///
/// # Errors
/// With the command that makes or downloads it.
pub fn require_folder(dir: &Path, wanted: Wanted) -> Result<()> {
    if !dir.exists() {
        return Err(Error::invalid(dir.display(), "no such folder", wanted.name(), wanted.command(dir)));
    }
    let has = |file: &str| dir.join(file).exists();
    if has(names::ADAPTER_CONFIG_FILE) && !has(names::CONFIG_FILE) {
        let base = crate::adapter::base_of(dir)?.unwrap_or_else(|| PathBuf::from("MODEL"));
        let (base, dir) = (base.display(), dir.display());
        let remedy = format!(
            "give its model, {base}, and the adapter beside it: infer --model {base} --adapter {dir}, train \
             --model_name_or_path {base} --init_adapter {dir}; or merge the two (infer merge)"
        );
        return Err(Error::invalid(dir, "an adapter", "a whole model", remedy));
    }
    if !has(names::CONFIG_FILE) {
        let remedy = match with_config(dir) {
            Some(folder) => format!("give the folder itself, {}", folder.display()),
            None => "give the folder that has it, or download all files of the model".to_string(),
        };
        return Err(Error::invalid(dir.display(), format!("no {}", names::CONFIG_FILE), wanted.name(), remedy));
    }
    Ok(())
}

/// The last folder in `dir` that holds a model, or an adapter: a checkpoint, or a download's folder.
fn with_config(dir: &Path) -> Option<PathBuf> {
    let folders = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let has_config = |folder: &PathBuf| {
        [names::CONFIG_FILE, names::ADAPTER_CONFIG_FILE].iter().any(|file| folder.join(file).is_file())
    };
    // Of checkpoint-900 and checkpoint-1000 the second.
    folders.filter(has_config).max_by_key(|folder| (folder.as_os_str().len(), folder.clone()))
}

impl Wanted {
    fn name(self) -> &'static str {
        match self {
            Self::Config => "a model directory (its config.json is enough)",
            Self::VisionTower => "the directory of a vision tower",
            Self::LanguageModel => "the directory of a language model",
            Self::Llava => "a LLaVA directory",
        }
    }

    /// The command that makes the folder.
    fn command(self, dir: &Path) -> String {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let meant = base::did_you_mean(dir);
        let owner = OWNERS.iter().find(|(begin, _)| name.starts_with(begin)).map_or("OWNER", |(_, owner)| owner);
        let dir = dir.display();
        match self {
            Self::Llava => format!(
                "{meant}check the path; or make it: preprocess model --vision-tower DIR --language-model DIR --output {dir} \
                 (docs/real-job.md, step 2); or download one: hf download OWNER/NAME --local-dir {dir}"
            ),
            _ => format!(
                "{meant}check the path; or download it: hf download {owner}/{name} --local-dir {dir} (docs/real-job.md, step 1)"
            ),
        }
    }
}

/// `owner/name`, if a path looks like that and like nothing else.
fn repository(name: &Path) -> Option<&str> {
    let id = name.to_str()?;
    let (owner, repository) = id.split_once('/')?;
    let plain = |part: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(legal) && !part.starts_with('.')
    };
    (plain(owner) && plain(repository)).then_some(id)
}

/// Files that the cache does not have.
fn missing(cache: &Cache, id: &str, wanted: Wanted) -> Vec<String> {
    let repo = cache.repo(Repo::model(id.to_string()));
    let mut missing: Vec<String> =
        wanted.lacking(|file| repo.get(file).is_some()).into_iter().map(String::from).collect();
    let is_whole = [names::WEIGHTS_FILE, names::PICKLED_WEIGHTS_FILE].iter().any(|file| repo.get(file).is_some());
    if wanted.has_weights() && !is_whole {
        match repo.get(names::WEIGHTS_INDEX_FILE).and_then(|index| parts(&index).ok()) {
            Some(parts) => missing.extend(parts.into_iter().filter(|part| repo.get(part).is_none())),
            None => missing.push(format!(
                "{} (or {} and the parts that it names, or {})",
                names::WEIGHTS_FILE,
                names::WEIGHTS_INDEX_FILE,
                names::PICKLED_WEIGHTS_FILE
            )),
        }
    }
    missing
}

/// The cache's folder with a repository's files under their names.
fn snapshot(cache: &Cache, id: &str, wanted: Wanted) -> Result<PathBuf> {
    let config = cache.repo(Repo::model(id.to_string())).get(names::CONFIG_FILE);
    config.as_deref().and_then(Path::parent).map(Path::to_path_buf).ok_or_else(|| {
        let expected = wanted.files().join(", ");
        Error::invalid(id, "an incomplete download", expected, "try again")
    })
}

/// Names of the files that an index of weights lists.
fn parts(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parts: BTreeSet<String> = base::json::read::<Index>(index)?.weight_map.into_values().collect();
    for part in &parts {
        files::in_folder(Path::new(""), part, index.display())?;
    }
    Ok(parts)
}

/// Downloads what a repository has of a model directory's files.
fn download(id: &str, wanted: Wanted) -> Result<(), String> {
    let text = |error: hf_hub::api::sync::ApiError| error.to_string();
    let api = ApiBuilder::from_env().with_progress(std::io::stderr().is_terminal()).with_retries(3).build();
    let api = api.map_err(text)?;
    let repo = api.model(id.to_string());
    let listed: Vec<String> = repo.info().map_err(text)?.siblings.into_iter().map(|file| file.rfilename).collect();
    let lacks = wanted.lacking(|file| listed.iter().any(|listed| listed == file));
    if !lacks.is_empty() {
        return Err(format!("the repository has no {}", lacks.join(", ")));
    }
    let has = |name: &str| listed.iter().any(|listed| listed == name);
    let (whole, in_parts) = (has(names::WEIGHTS_FILE), has(names::WEIGHTS_INDEX_FILE));
    let pickled = !whole && !in_parts && has(names::PICKLED_WEIGHTS_FILE);
    if wanted.has_weights() && !whole && !in_parts && !pickled {
        let known = [names::WEIGHTS_FILE, names::WEIGHTS_INDEX_FILE, names::PICKLED_WEIGHTS_FILE].join(", ");
        return Err(format!("the repository has none of {known}"));
    }
    let needed = |name: &&String| match wanted {
        Wanted::Config => *name == names::CONFIG_FILE,
        // The parts are not needed where the whole is there too.
        _ if whole && name.ends_with(".safetensors") => *name == names::WEIGHTS_FILE,
        _ => names::is_model_file(name) || (pickled && *name == names::PICKLED_WEIGHTS_FILE),
    };
    for name in listed.iter().filter(needed) {
        tracing::info!("{id}: {name}");
        // Both become names of files in the cache.
        let file = api.metadata(&repo.url(name)).map_err(|error| format!("{name}: {error}"))?;
        for (header, value) in [("etag", file.etag()), ("x-repo-commit", file.commit_hash())] {
            if !names::is_plain(value) {
                return Err(format!("{name}: the server's {header} is {value:?}, expected a name without a path"));
            }
        }
        let path = repo.get(name).map_err(|error| format!("{name}: {error}"))?;
        // From here on the cache says that it has the file: after a power cut, too.
        File::open(&path).and_then(|file| file.sync_all()).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_owner_and_name_are_a_repository() {
        for (path, is_one) in [
            ("openai/clip-vit-large-patch14-336", true),
            ("Qwen/Qwen1.5-4B-Chat", true),
            ("./models/clip", false),
            ("../clip", false),
            ("models/clip/v2", false),
            ("/models/clip", false),
            ("clip", false),
            ("models/", false),
        ] {
            assert_eq!(repository(Path::new(path)).is_some(), is_one, "{path}");
        }
    }

    #[test]
    fn a_directory_is_itself() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = resolve(folder.path(), Wanted::Llava).expect_err("nothing in it").to_string();
        assert!(error.contains("no config.json"), "{error}");
        std::fs::write(folder.path().join(names::CONFIG_FILE), "{}").expect("a file");
        assert_eq!(resolve(folder.path(), Wanted::Llava).expect("a directory"), folder.path());
    }

    #[test]
    fn a_folder_that_is_not_there_is_no_repository() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (path, wanted, command) in [
            ("no/such/place", Wanted::Llava, "preprocess model --vision-tower"),
            ("models/llava", Wanted::Llava, "--output models/llava"),
            ("models/Qwen1.5-4B-Chat", Wanted::LanguageModel, "hf download Qwen/Qwen1.5-4B-Chat --local-dir models/"),
            ("models/clip-vit-x", Wanted::VisionTower, "hf download openai/clip-vit-x --local-dir models/clip-vit-x"),
        ] {
            let error = resolve(Path::new(path), wanted).expect_err(path).to_string();
            assert!(error.starts_with(&format!("{path}: found no such folder")) && error.contains(command), "{error}");
        }
        let adapter = folder.path().join("adapter");
        std::fs::create_dir(&adapter).expect("created");
        let config = r#"{"base_model_name_or_path": "models/base"}"#;
        std::fs::write(adapter.join(names::ADAPTER_CONFIG_FILE), config).expect("written");
        let error = resolve(&adapter, Wanted::Llava).expect_err("an adapter").to_string();
        assert!(error.contains("found an adapter") && error.contains("--model models/base --adapter"), "{error}");
    }
}
