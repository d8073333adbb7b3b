//! What a pass through the layers knows of its batch besides the hidden states.

use super::TextConfig;
use crate::dropout::{LoraDropout, SiteDropout};
use burn::tensor::{Device, Tensor};
use kernels::kv_cache::KvCache;
use kernels::{Dropout, LinearInput, Rope};

/// A packed batch of T tokens, as the layers see it.
#[derive(Clone, Debug)]
pub struct TextContext {
    /// Sizes and epsilon.
    pub config: TextConfig,
    /// Tokens of each sequence; sums to T.
    pub seq_lens: Vec<usize>,
    /// Rotations of the T tokens.
    pub rope: Rope,
    /// Dropout of LoRA branches; `row_keys` has one entry for each sequence.
    pub dropout: Option<LoraDropout>,
    /// Tokens whose output the last layer computes; `None`: all.
    last: Option<LastTokens>,
}

/// The last tokens of each sequence of a packed batch.
#[derive(Clone, Debug)]
pub struct LastTokens {
    /// Tokens of each sequence, counted from its end; may be 0.
    pub lens: Vec<usize>,
    /// Their rows in the batch.
    rows: Vec<usize>,
    /// Rotations of these tokens.
    pub rope: Rope,
}

impl TextContext {
    /// The context of whole sequences, each from position 0, without dropout. `device` is that of the hidden states.
    pub fn new(config: &TextConfig, seq_lens: &[usize], device: &Device) -> Self {
        let positions: Vec<usize> = seq_lens.iter().flat_map(|&len| 0..len).collect();
        Self::at(config, seq_lens, &positions, device)
    }

    /// The context of `seq_lens[i]` new tokens of the sequence of `caches[i]`.
    pub fn continuing(config: &TextConfig, seq_lens: &[usize], caches: &[&mut KvCache], device: &Device) -> Self {
        let past = caches.iter().map(|cache| cache.len());
        let positions: Vec<usize> = past.zip(seq_lens).flat_map(|(past, &new)| past..past + new).collect();
        Self::at(config, seq_lens, &positions, device)
    }

    fn at(config: &TextConfig, seq_lens: &[usize], positions: &[usize], device: &Device) -> Self {
        let rope = Rope::new(positions, &config.inverse_frequencies(), device);
        Self { config: config.clone(), seq_lens: seq_lens.to_vec(), rope, dropout: None, last: None }
    }

    /// The same for a pass of which only the outputs at `positions` (ascending) are used: the last layer computes, of each
    /// sequence, the tokens from the first of them on.
    pub fn for_positions(self, positions: &[usize]) -> Self {
        let used = !positions.is_empty() && self.config.num_hidden_layers > 0;
        let last = used.then(|| LastTokens::new(&self, positions));
        Self { last, ..self }
    }

    /// The same without autodiff, for layers whose graph is not wanted.
    pub fn inner(&self) -> Self {
        let last = self.last.as_ref().map(|last| LastTokens { rope: inner(&last.rope), ..last.clone() });
        Self { rope: inner(&self.rope), last, ..self.clone() }
    }

    /// Where `positions` stand among the tokens that the last layer computes.
    pub fn places(&self, positions: &[usize]) -> Vec<usize> {
        match &self.last {
            Some(last) => positions.iter().map(|position| last.rows.partition_point(|row| row < position)).collect(),
            None => positions.to_vec(),
        }
    }

    /// The tokens whose output `layer` computes; `None`: all.
    pub fn last_tokens(&self, layer: usize) -> Option<&LastTokens> {
        self.last.as_ref().filter(|_| layer + 1 == self.config.num_hidden_layers)
    }

    /// Dropout at a projection of all tokens.
    pub fn dropout(&self, layer: usize, projection: usize) -> Option<SiteDropout<'_>> {
        self.dropout.as_ref()?.at(&self.seq_lens, layer, projection)
    }

    /// Dropout at the output weights, of the tokens at `positions`.
    pub fn head_dropout(&self, positions: &[usize]) -> Option<Dropout> {
        Some(self.dropout(self.config.num_hidden_layers, 0)?.of_positions(positions))
    }

    /// Dropout at a projection of the tokens whose output `layer` computes.
    pub fn output_dropout(&self, layer: usize, projection: usize) -> Option<SiteDropout<'_>> {
        let dropout = self.dropout(layer, projection)?;
        Some(match self.last_tokens(layer) {
            Some(last) => dropout.of_last(&last.lens),
            None => dropout,
        })
    }
}

impl LastTokens {
    fn new(context: &TextContext, positions: &[usize]) -> Self {
        let (mut start, mut lens, mut rows) = (0, Vec::new(), Vec::new());
        for &len in &context.seq_lens {
            let end = start + len;
            let first = positions[positions.partition_point(|&position| position < start)..].first();
            let first = first.map_or(end, |&first| first.min(end));
            lens.push(end - first);
            rows.extend(first..end);
            start = end;
        }
        let rope = &context.rope;
        if rows.iter().copied().eq(0..start) {
            return Self { lens, rows, rope: rope.clone() };
        }
        let [cos, sin] = [&rope.cos, &rope.sin].map(|table| kernels::select_rows(table.clone(), &rows));
        Self { lens, rows, rope: Rope { cos, sin } }
    }

    /// The rows of these tokens: x `[T, D]` → `[last tokens, D]`.
    pub fn select(&self, x: Tensor<2>) -> Tensor<2> {
        let [tokens, _] = x.dims();
        if self.rows.len() == tokens { x } else { kernels::select_rows(x, &self.rows) }
    }

    /// As [`LastTokens::select`].
    pub fn select_input(&self, x: LinearInput) -> LinearInput {
        let [tokens, _] = x.values.dims();
        if self.rows.len() == tokens { x } else { kernels::select_rows(x.values, &self.rows).into() }
    }
}

fn inner(rope: &Rope) -> Rope {
    Rope { cos: rope.cos.clone().inner(), sin: rope.sin.clone().inner() }
}
