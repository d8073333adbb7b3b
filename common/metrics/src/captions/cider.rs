//! CIDEr-D: tf-idf weighted n-gram similarity with clipping and a length penalty.

use super::{MAX_N, Tokenized, ngram_counts};
use std::collections::{BTreeMap, BTreeSet};

/// Width of the penalty on the difference of lengths.
const SIGMA: f64 = 6.0;

/// tf-idf of one sentence's n-grams by n, their norms, and its length (counted in 2-grams, as the original does).
struct Vector<'a> {
    weights: [BTreeMap<&'a [String], f64>; MAX_N],
    norms: [f64; MAX_N],
    length: f64,
}

/// Mean over images of ten times the mean similarity to the references.
pub(super) fn cider_d(images: &[Tokenized]) -> f64 {
    if images.is_empty() {
        return 0.0;
    }
    let frequency = document_frequency(images);
    let log_images = (images.len() as f64).ln();
    let score = |image| image_score(image, &frequency, log_images);
    images.iter().map(score).sum::<f64>() / images.len() as f64
}

fn image_score(image: &Tokenized, frequency: &BTreeMap<&[String], f64>, log_images: f64) -> f64 {
    let caption = vector(&image.caption, frequency, log_images);
    let similarity = |reference| similarity(&caption, &vector(reference, frequency, log_images));
    10.0 * image.references.iter().map(|words| similarity(words)).sum::<f64>() / image.references.len() as f64
}

/// In how many images' references an n-gram stands.
fn document_frequency(images: &[Tokenized]) -> BTreeMap<&[String], f64> {
    let mut frequency = BTreeMap::new();
    for image in images {
        let ngrams: BTreeSet<&[String]> =
            image.references.iter().flat_map(|words| ngram_counts(words).into_keys()).collect();
        for ngram in ngrams {
            *frequency.entry(ngram).or_default() += 1.0;
        }
    }
    frequency
}

fn vector<'a>(words: &'a [String], frequency: &BTreeMap<&[String], f64>, log_images: f64) -> Vector<'a> {
    let mut vector = Vector { weights: Default::default(), norms: [0.0; MAX_N], length: 0.0 };
    for (ngram, count) in ngram_counts(words) {
        let n = ngram.len() - 1;
        let idf = log_images - frequency.get(ngram).copied().unwrap_or(1.0).max(1.0).ln();
        let weight = count as f64 * idf;
        vector.norms[n] += weight * weight;
        vector.weights[n].insert(ngram, weight);
        if n == 1 {
            vector.length += count as f64;
        }
    }
    vector.norms = vector.norms.map(f64::sqrt);
    vector
}

/// Mean over n of the clipped cosine, with the length penalty.
fn similarity(caption: &Vector, reference: &Vector) -> f64 {
    let difference = caption.length - reference.length;
    let penalty = (-difference * difference / (2.0 * SIGMA * SIGMA)).exp();
    let cosine = |n: usize| {
        let product = |(ngram, &weight): (&&[String], &f64)| {
            let other = reference.weights[n].get(ngram).copied().unwrap_or(0.0);
            weight.min(other) * other
        };
        let dot: f64 = caption.weights[n].iter().map(product).sum();
        let norms = caption.norms[n] * reference.norms[n];
        if norms == 0.0 { dot } else { dot / norms }
    };
    penalty * (0..MAX_N).map(cosine).sum::<f64>() / MAX_N as f64
}
