//! The nearest of the names that are known, for messages about one that is not.

/// The candidate with the smallest edit distance, unless so much is different that nobody would mean it.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, candidate) = candidates.map(|candidate| (edit_distance(name, candidate), candidate)).min()?;
    (distance <= (name.len() / 3).max(2)).then_some(candidate)
}

/// Letters to insert, delete or replace.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a_char) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &b_char) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a_char != b_char);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
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
        assert_eq!(nearest("galore_rank", ["seed", "nproc", "bf16"].into_iter()), None);
        assert_eq!(nearest("x", [].into_iter()), None);
    }
}
