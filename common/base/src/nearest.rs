//! The nearest of the names that are known, for messages about one that is not.

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
}
