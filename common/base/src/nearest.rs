//! The nearest of the names that are known, for messages about one that is not.

use std::path::{Path, PathBuf};

/// The candidate with the smallest edit distance, unless so much is different that nobody would mean it.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A name that only goes on (`lora_rank`) is nearer than one with other letters (`local_rank`).
    let distance = |candidate: &str| match name.strip_prefix(candidate) {
        Some(_) if candidate.len() > 4 => 1.min(edit_distance(name, candidate)),
        _ => edit_distance(name, candidate),
    };
    let (distance, candidate) = candidates.map(|candidate| (distance(candidate), candidate)).min()?;
    (distance <= (name.chars().count() / 3).max(1)).then_some(candidate)
}

/// The path that exists and is nearly this one, which does not: its first missing part is taken for a neighbour of nearly that name, or
/// of the same name in other letters (`A.JPG`).
pub fn nearest_path(path: &Path) -> Option<PathBuf> {
    let folder = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => Some(parent.to_path_buf()),
        _ if path.is_absolute() => None,
        _ => Some(PathBuf::from(".")),
    };
    if path.exists() {
        return None;
    }
    let mut missing = path;
    while !folder(missing)?.exists() {
        missing = missing.parent()?;
    }
    let entries = std::fs::read_dir(folder(missing)?).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let name = missing.file_name()?.to_str()?;
    let same = names.iter().find(|other| other.to_lowercase() == name.to_lowercase());
    let found = same.map(String::as_str).or_else(|| nearest(name, names.iter().map(String::as_str)))?;
    let rest = path.strip_prefix(missing).ok()?;
    let meant = missing.with_file_name(found);
    let meant = if rest.as_os_str().is_empty() { meant } else { meant.join(rest) };
    meant.exists().then_some(meant)
}

/// `did you mean PATH? ` before a remedy, where there is a path that is nearly this one.
pub fn did_you_mean(path: &Path) -> String {
    nearest_path(path).map(|path| format!("did you mean {}? ", path.display())).unwrap_or_default()
}

/// Letters to insert, delete, replace, or to exchange with their neighbours.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut next = vec![i + 1];
        for j in 0..b.len() {
            let replaced = row[j] + usize::from(a[i] != b[j]);
            let mut least = replaced.min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && (a[i], a[i - 1]) == (b[j - 1], b[j]) {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_likely_names_are_suggested() {
        assert_eq!(nearest("learning_rat", ["seed", "learning_rate", "lora_r"].into_iter()), Some("learning_rate"));
        assert_eq!(nearest("widht", ["note", "width"].into_iter()), Some("width"));
        assert_eq!(nearest("sede", ["seed", "steps"].into_iter()), Some("seed"));
        assert_eq!(nearest("lora_rank", ["local_rank", "lora_r"].into_iter()), Some("lora_r"));
        assert_eq!(nearest("bits", ["bf16", "seed"].into_iter()), None);
        assert_eq!(nearest("galore_rank", ["seed", "nproc", "bf16"].into_iter()), None);
        assert_eq!(nearest("x", [].into_iter()), None);
    }

    #[test]
    fn only_likely_paths_are_suggested() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("quickstart/llava")).expect("made");
        std::fs::write(at("quickstart/Photo.JPG"), "").expect("written");
        for (path, meant) in [
            ("quickstart/lava", Some("quickstart/llava")),
            ("quikstart/llava", Some("quickstart/llava")),
            ("quickstart/photo.jpg", Some("quickstart/Photo.JPG")),
            ("quikstart/other", None),
            ("elsewhere/llava", None),
            ("quickstart", None),
        ] {
            assert_eq!(nearest_path(&at(path)), meant.map(at), "{path}");
        }
        assert_eq!(nearest_path(Path::new("/")), None);
        assert_eq!(nearest_path(Path::new("")), None);
    }
}
