//! Folders with weights, as the value of an option: `shards/a:1.0,shards/b:0.3`, a list of such, or a table `{ a = 1.0 }`.

use base::json::Distinct;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The largest weight: rows of an epoch stay countable.
const MOST_PASSES: f64 = 1e6;

/// A folder and its weight.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedFolder {
    /// The folder.
    pub dir: PathBuf,
    /// Above 0 and at most a million; 1 unless it was given.
    pub weight: f64,
}

/// One folder or several, each once; none if nothing was given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WeightedFolders(Vec<WeightedFolder>);

impl WeightedFolders {
    /// The folders in their order.
    pub fn folders(&self) -> &[WeightedFolder] {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The only folder, if it has the weight 1 (as without any weight) and its name alone is read as that folder.
    fn plain(&self) -> Option<&Path> {
        match self.0.as_slice() {
            [WeightedFolder { dir, weight: 1.0 }] if self.is_read_from(&dir.to_string_lossy()) => Some(dir),
            _ => None,
        }
    }

    fn is_read_from(&self, text: &str) -> bool {
        text.parse().is_ok_and(|read: Self| read == *self)
    }

    fn of(folders: Vec<WeightedFolder>) -> Result<Self, String> {
        for (index, WeightedFolder { dir, weight }) in folders.iter().enumerate() {
            let shown = dir.display();
            if dir.as_os_str().is_empty() {
                return Err("found no folder before a weight or a comma, expected FOLDER:WEIGHT,…".to_string());
            }
            if !(*weight > 0.0 && weight.is_finite()) {
                return Err(format!(
                    "found weight {weight} of {shown}, expected a number above 0; leave the folder out"
                ));
            }
            if *weight > MOST_PASSES {
                return Err(format!(
                    "found weight {weight:e} of {shown}, expected a number of passes in an epoch, above 0 and at most \
                     {MOST_PASSES}; give a smaller one, and more epochs"
                ));
            }
            if let Some(other) = folders[..index].iter().find(|other| place(&other.dir) == place(dir)) {
                let as_other = if other.dir == *dir { String::new() } else { format!(", as {}", other.dir.display()) };
                return Err(format!(
                    "found {shown} twice{as_other}, expected each folder once; give it one weight, such as {shown}:2"
                ));
            }
        }
        Ok(Self(folders))
    }

    fn of_table(table: Map<String, Value>) -> Result<Self, String> {
        let folder = |(dir, weight): (String, Value)| {
            let number = weight.as_f64().or_else(|| weight.as_str()?.parse().ok());
            let weight = number.ok_or_else(|| format!("found weight {weight} of {dir}, expected a number above 0"))?;
            Ok(WeightedFolder { dir: dir.into(), weight })
        };
        Self::of(table.into_iter().map(folder).collect::<Result<_, String>>()?)
    }
}

impl FromStr for WeightedFolders {
    type Err = String;

    /// A text that names a folder is that folder, whatever its characters.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if Path::new(text).is_dir() {
            return Ok(Self(vec![WeightedFolder { dir: text.into(), weight: 1.0 }]));
        }
        if text.trim_start().starts_with('{') {
            let table = serde_json::from_str(text).and_then(|Distinct(table)| serde_json::from_value(table));
            let table = table.map_err(|error| format!("found {text}: {error}; expected {{\"FOLDER\": WEIGHT, …}}"))?;
            return Self::of_table(table);
        }
        let folder =
            |word: &str| match word.rsplit_once(':').and_then(|(dir, weight)| Some((dir, weight.parse().ok()?))) {
                Some((dir, weight)) => WeightedFolder { dir: dir.into(), weight },
                None => WeightedFolder { dir: word.into(), weight: 1.0 },
            };
        Self::of(text.split(',').map(str::trim).map(folder).collect())
    }
}

impl fmt::Display for WeightedFolders {
    /// As it is read again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(dir) = self.plain() {
            return write!(f, "{}", dir.display());
        }
        let words: Vec<String> =
            self.0.iter().map(|WeightedFolder { dir, weight }| format!("{}:{weight}", dir.display())).collect();
        let words = words.join(",");
        if self.is_read_from(&words) {
            return f.write_str(&words);
        }
        let pairs = self.0.iter().map(|folder| (folder.dir.display().to_string(), folder.weight.into()));
        write!(f, "{}", Value::Object(pairs.collect()))
    }
}

impl Serialize for WeightedFolders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.plain() {
            Some(dir) => dir.serialize(serializer),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for WeightedFolders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The same for all spellings of a folder: `shards/a`, `./shards/a`, a link to it.
fn place(dir: &Path) -> PathBuf {
    dir.canonicalize().or_else(|_| std::path::absolute(dir)).unwrap_or_else(|_| dir.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Result<Vec<(String, f64)>, String> {
        let folders: WeightedFolders = text.parse()?;
        Ok(folders.0.iter().map(|folder| (folder.dir.display().to_string(), folder.weight)).collect())
    }

    #[test]
    fn every_form_is_read_and_comes_back() {
        let pair = |dir: &str, weight| (dir.to_string(), weight);
        for (text, expected) in [
            ("", vec![]),
            ("shards/a", vec![pair("shards/a", 1.0)]),
            ("shards/a:1.0", vec![pair("shards/a", 1.0)]),
            ("shards/a:0.5", vec![pair("shards/a", 0.5)]),
            ("a:1.0,b:0.3", vec![pair("a", 1.0), pair("b", 0.3)]),
            ("a, b", vec![pair("a", 1.0), pair("b", 1.0)]),
            ("host:a,b:c:2", vec![pair("host:a", 1.0), pair("b:c", 2.0)]),
            (r#"{"b": 0.3, "a": "1"}"#, vec![pair("b", 0.3), pair("a", 1.0)]),
            (r#"{"a,b": 1, "c:4": 2}"#, vec![pair("a,b", 1.0), pair("c:4", 2.0)]),
            (r#"{"a,b": 1}"#, vec![pair("a,b", 1.0)]),
            (r#"{"a,b": 0.5}"#, vec![pair("a,b", 0.5)]),
            (r#"{"c:4": 1}"#, vec![pair("c:4", 1.0)]),
        ] {
            assert_eq!(pairs(text).expect(text), expected, "{text}");
            let shown = text.parse::<WeightedFolders>().expect(text).to_string();
            assert_eq!(pairs(&shown).expect(&shown), expected, "{text} shown as {shown}");
            let json = serde_json::to_string(&text.parse::<WeightedFolders>().expect(text)).expect("JSON");
            assert_eq!(serde_json::from_str::<WeightedFolders>(&json).expect(&json).0.len(), expected.len(), "{json}");
        }
    }

    #[test]
    fn an_existing_folder_may_have_any_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let dir = folder.path().join("a,b:2");
        std::fs::create_dir(&dir).expect("made");
        let text = dir.display().to_string();
        assert_eq!(pairs(&text), Ok(vec![(text.clone(), 1.0)]));
        let json = serde_json::to_string(&text.parse::<WeightedFolders>().expect("a folder")).expect("JSON");
        assert_eq!(json, format!("{text:?}"), "as a path");
    }

    #[test]
    fn links_to_a_folder_are_that_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [real, link] = ["real", "link"].map(|name| folder.path().join(name));
        std::fs::create_dir(&real).expect("made");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        let twice = pairs(&format!("{}/../real,{}", real.display(), link.display())).expect_err("one folder");
        assert!(twice.contains(&format!("found {} twice", link.display())), "{twice}");
    }

    #[test]
    fn what_is_no_mixture_is_refused() {
        for (text, named) in [
            ("a:0", "found weight 0 of a, expected a number above 0"),
            ("a:1,b:-0.3", "found weight -0.3 of b"),
            ("a:nan", "found weight NaN of a"),
            ("a:inf", "found weight inf of a"),
            (
                "b,a:1e308",
                "found weight 1e308 of a, expected a number of passes in an epoch, above 0 and at most 1000000",
            ),
            (":2", "no folder"),
            ("a,,b", "no folder"),
            ("a:1,a:2", "found a twice, expected each folder once"),
            ("./a,a:2", "found a twice, as ./a, expected each folder once"),
            ("a/b/,a/./b", "found a/./b twice"),
            (r#"{"a": 0}"#, "found weight 0 of a"),
            (r#"{"a": [1]}"#, "found weight [1] of a"),
            (r#"{"a": 1, "a": 2}"#, "the key a twice"),
            (r#"{"a": 1"#, "expected {\"FOLDER\": WEIGHT, …}"),
        ] {
            let error = pairs(text).expect_err(text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
