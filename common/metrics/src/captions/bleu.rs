//! Corpus BLEU.

use super::{MAX_N, Tokenized, ngram_counts};
use std::collections::BTreeMap;

/// Keeps a zero count from being exactly zero, and a zero total from dividing.
const TINY: f64 = 1e-15;
const SMALL: f64 = 1e-9;

/// Counts of all images: clipped n-gram matches ÷ n-grams of the captions, geometric mean, brevity penalty.
pub(super) fn bleu_4(images: &[Tokenized]) -> f64 {
    if images.is_empty() {
        return 0.0;
    }
    let (mut correct, mut guessed) = ([0usize; MAX_N], [0usize; MAX_N]);
    let (mut caption_words, mut reference_words) = (0, 0);
    for image in images {
        let words = image.caption.len();
        caption_words += words;
        reference_words += closest_length(words, image);
        for n in 1..=MAX_N {
            guessed[n - 1] += (words + 1).saturating_sub(n);
        }
        let allowed = largest_counts(&image.references);
        for (ngram, count) in ngram_counts(&image.caption) {
            correct[ngram.len() - 1] += count.min(allowed.get(ngram).copied().unwrap_or(0));
        }
    }
    let product: f64 = (0..MAX_N).map(|n| (correct[n] as f64 + TINY) / (guessed[n] as f64 + SMALL)).product();
    let ratio = (caption_words as f64 + TINY) / (reference_words as f64 + SMALL);
    let brevity = if ratio < 1.0 { (1.0 - 1.0 / ratio).exp() } else { 1.0 };
    product.powf(1.0 / MAX_N as f64) * brevity
}

/// Length of the reference nearest to the caption's, the shorter of equals.
fn closest_length(words: usize, image: &Tokenized) -> usize {
    image.references.iter().map(Vec::len).min_by_key(|&len| (len.abs_diff(words), len)).unwrap_or(0)
}

fn largest_counts(references: &[Vec<String>]) -> BTreeMap<&[String], usize> {
    let mut largest = BTreeMap::new();
    for reference in references {
        for (ngram, count) in ngram_counts(reference) {
            let known: &mut usize = largest.entry(ngram).or_default();
            *known = (*known).max(count);
        }
    }
    largest
}
