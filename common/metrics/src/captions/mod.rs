//! Caption metrics with pycocoevalcap's definitions: BLEU-4, ROUGE-L, CIDEr-D over Penn Treebank tokens.

mod bleu;
mod cider;
pub mod ptb;
mod rouge;

use serde::Serialize;
use std::collections::BTreeMap;

/// Figures of a set of captions against their references.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CaptionMetrics {
    /// Images compared.
    pub images: usize,
    /// Corpus BLEU with 1- to 4-grams, closest reference length, 0 to 1.
    pub bleu_4: f64,
    /// Mean of the images' ROUGE-L F-measure (β = 1.2), 0 to 1.
    pub rouge_l: f64,
    /// Mean of the images' CIDEr-D (σ = 6), 0 to 10. Depends on the whole set: the references are its corpus.
    pub cider_d: f64,
}

/// A caption and its references as tokens.
struct Tokenized {
    caption: Vec<String>,
    references: Vec<Vec<String>>,
}

/// Compares captions with their references, at least one each.
///
/// # Source
/// pycocoevalcap 1.2 `bleu_scorer.py`, `rouge.py`, `cider_scorer.py`. With no images every figure is 0.
pub fn caption_metrics(captions: &[(String, Vec<String>)]) -> CaptionMetrics {
    let tokenized: Vec<Tokenized> = captions
        .iter()
        .filter(|(_, references)| !references.is_empty())
        .map(|(caption, references)| Tokenized {
            caption: ptb::tokenize(caption),
            references: references.iter().map(|reference| ptb::tokenize(reference)).collect(),
        })
        .collect();
    let words: Vec<Tokenized> = tokenized.iter().map(Tokenized::split_at_no_break_spaces).collect();
    CaptionMetrics {
        images: tokenized.len(),
        rouge_l: rouge::rouge_l(&tokenized),
        bleu_4: bleu::bleu_4(&words),
        cider_d: cider::cider_d(&words),
    }
}

impl Tokenized {
    /// BLEU and CIDEr split at any white space, no-break spaces within a token ("1 1/2") among it; ROUGE at spaces alone.
    fn split_at_no_break_spaces(&self) -> Self {
        let split =
            |tokens: &[String]| tokens.iter().flat_map(|token| token.split('\u{a0}').map(String::from)).collect();
        Self { caption: split(&self.caption), references: self.references.iter().map(|tokens| split(tokens)).collect() }
    }
}

/// Longest n-gram that BLEU and CIDEr count.
const MAX_N: usize = 4;

/// How often each n-gram of 1 to [`MAX_N`] words stands in a sentence.
fn ngram_counts(words: &[String]) -> BTreeMap<&[String], usize> {
    let mut counts = BTreeMap::new();
    for n in 1..=MAX_N {
        for ngram in words.windows(n) {
            *counts.entry(ngram).or_default() += 1;
        }
    }
    counts
}
