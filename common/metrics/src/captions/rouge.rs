//! ROUGE-L: longest common subsequence.

use super::Tokenized;

/// Weight of recall against precision.
const BETA: f64 = 1.2;

/// Mean over images of the F-measure of the best precision and the best recall among the references.
pub(super) fn rouge_l(images: &[Tokenized]) -> f64 {
    let sum: f64 = images.iter().map(image_score).sum();
    if images.is_empty() { 0.0 } else { sum / images.len() as f64 }
}

fn image_score(image: &Tokenized) -> f64 {
    let (mut precision, mut recall) = (0f64, 0f64);
    for reference in &image.references {
        let (caption_len, reference_len) = (python_len(&image.caption), python_len(reference));
        // Two empty sentences share the one empty word that `"".split(" ")` gives.
        let both_empty = image.caption.is_empty() && reference.is_empty();
        let common = if both_empty { 1 } else { longest_common_subsequence(&image.caption, reference) } as f64;
        precision = precision.max(common / caption_len);
        recall = recall.max(common / reference_len);
    }
    if precision == 0.0 || recall == 0.0 {
        return 0.0;
    }
    (1.0 + BETA * BETA) * precision * recall / (recall + BETA * BETA * precision)
}

/// `len("a b".split(" "))`: an empty sentence counts one word.
fn python_len(words: &[String]) -> f64 {
    words.len().max(1) as f64
}

fn longest_common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for left in a {
        let mut diagonal = 0;
        for (column, right) in b.iter().enumerate() {
            let above = row[column + 1];
            row[column + 1] = if left == right { diagonal + 1 } else { above.max(row[column]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
