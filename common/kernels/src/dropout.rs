//! Dropout as a function of token and channel: masks are computed where they are needed and never stored.

use super::cpu;
use base::splitmix;
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Dropout of an input `[T, width]`.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// For each token the number that, with the channel, decides whether a value is dropped.
    pub(super) streams: Arc<[u64]>,
    /// What the streams follow from, for devices that compute them where they need them.
    #[cfg_attr(not(feature = "cube"), allow(dead_code))]
    pub(super) sequences: Option<(Arc<[SequenceStreams]>, u64)>,
    /// Of 65,536: how many values are dropped.
    pub(super) threshold: u16,
    /// What the others are multiplied by.
    pub(super) kept: f32,
}

/// The streams of a sequence's tokens: at a site, token t has `splitmix(splitmix(hash ^ site) ^ t)`.
#[derive(Clone, Debug)]
pub struct SequenceStreams {
    /// That of the sequence: the same at all sites.
    pub hash: u64,
    /// Numbers of the tokens that are computed.
    pub tokens: Range<usize>,
}

impl Dropout {
    /// As [`Dropout::new`], for sequences one after another, at one of the places of a model that drop values.
    pub fn of_sequences(sequences: Vec<SequenceStreams>, site: u64, probability: f64) -> Self {
        let streams = sequences.iter().flat_map(|SequenceStreams { hash, tokens }| {
            let hash = splitmix(hash ^ site);
            tokens.clone().map(move |token| splitmix(hash ^ token as u64))
        });
        let streams = streams.collect();
        let sequences = sequences.into_iter().filter(|sequence| !sequence.tokens.is_empty());
        Self { sequences: Some((sequences.collect(), site)), ..Self::new(streams, probability) }
    }

    /// Drops each value with `probability` (below 1) and divides the others by 1 − probability. `streams` has a number for each
    /// token.
    pub fn new(streams: Vec<u64>, probability: f64) -> Self {
        let threshold = (probability * 65536.0).round() as u16;
        Self { streams: streams.into(), sequences: None, threshold, kept: (1.0 / (1.0 - probability)) as f32 }
    }

    /// What an input is multiplied by, 0 or 1 / (1 − probability): `[T, width]`.
    pub fn mask(&self, width: usize, device: &Device) -> Tensor<2> {
        #[cfg(feature = "cube")]
        if let Some(mask) = crate::cube::dropout::mask(self, width, device) {
            return mask;
        }
        Tensor::from_data(TensorData::new(self.mask_values(width), [self.streams.len(), width]), device)
    }

    /// The same as values, row by row.
    pub fn mask_values(&self, width: usize) -> Vec<f32> {
        let mut values = vec![1.0; self.streams.len() * width];
        let rows = values.par_chunks_mut(width.max(1)).enumerate();
        rows.for_each(|(token, row)| cpu::drop_values(self, token, width, row));
        values
    }
}
