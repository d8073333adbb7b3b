//! Projection and cross entropy together, a chunk of the vocabulary at a time.
//!
//! The gradient of the hidden states is summed up in the forward step, relative to the largest logit so far, as the sum of
//! exponentials is: the weight, which fits no cache, is read once, and without a gradient of its own no logit is kept.

use super::gemm::{Packed, Start, gemm_serial};
use super::matrix::{Matrix, MatrixMut};
use super::operand::{self, bytes_of, floats, incoming, record, zeros};
use super::output::{Place, Unwritten, filled_chunks};
use super::scratch::{Aligned, give, take, unused};
use super::simd::{LINE, exp, multiversion, prefetch};
use crate::CrossEntropies;
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::cell::Cell;

/// Values of the weight in a chunk: it stays in the second-level cache from its logits to the weighted sum of its rows.
const CHUNK: usize = 1 << 16;
/// Values of the sums of the hidden states' gradient, of which there is one for each part of the vocabulary.
const PARTIAL_SUMS: usize = 16 << 20;
/// Up to so many logits are kept for the weight's gradient (48 MB); more are computed again.
const KEPT: usize = 12 << 20;
/// Supervised rows are filled up to a multiple of this, so that logits come in whole vectors.
const LANES: usize = 16;

/// See [`crate::cross_entropy_sum`].
pub fn cross_entropy_sum(hidden: &Tensor<2>, weight: &Tensor<2>, targets: &[u32]) -> Option<CrossEntropies> {
    let (hidden, weight) = (operand::operand(hidden)?, operand::operand(weight)?);
    let ([rows, width], [vocabulary, _]) = (operand::dims(&hidden.values), operand::dims(&weight.values));
    if targets.len() != rows || targets.iter().any(|&target| target as usize >= vocabulary) {
        return None;
    }
    let padded = Sizes { rows, width, vocabulary }.padded();
    let mut filled = zeros(padded * width);
    filled[..rows * width].copy_from_slice(floats(&hidden.values));
    let mut problem = Problem {
        hidden: operand::tensor(filled, [padded, width]),
        weight: weight.values,
        targets: targets.to_vec(),
        tracked: [hidden.node.tracked(), weight.node.tracked()],
        lse: Vec::new(),
        logits: Vec::new(),
        of_hidden: Vec::new(),
    };
    let (sum, losses) = problem.forward();
    let nodes = [hidden.node, weight.node];
    let rows = Tensor::from_primitive::<Flex>(operand::tensor(losses, [rows]));
    Some(CrossEntropies { sum: record(CrossEntropy, nodes, || problem, operand::tensor(vec![sum], [1])), rows })
}

/// Sizes that decide how the work is divided.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Supervised rows.
    pub rows: usize,
    /// Width of the hidden states.
    pub width: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
}

impl Sizes {
    /// Rows filled up to whole vectors.
    fn padded(self) -> usize {
        self.rows.next_multiple_of(LANES)
    }

    /// Whether the logits are kept for the gradient of a trained weight.
    fn keeps_logits(self, weight_trained: bool) -> bool {
        weight_trained && self.padded() * self.vocabulary <= KEPT
    }

    /// Tokens of the vocabulary in a chunk and in a part. They depend on sizes only, as everything that decides the order of sums:
    /// any number of threads gives the same.
    fn divided(self) -> (usize, usize) {
        let chunk = (CHUNK / self.width.max(1)).clamp(32, 256);
        let parts = (PARTIAL_SUMS / (self.padded() * self.width).max(1)).clamp(2, 64);
        (chunk, self.vocabulary.div_ceil(chunk).div_ceil(parts).max(1) * chunk)
    }
}

/// Bytes that [`cross_entropy_sum`] keeps for its backward step: the hidden states, their gradient, and of a trained weight the
/// logits, unless there are too many.
pub fn cross_entropy_sum_kept(sizes: Sizes, weight_trained: bool) -> usize {
    let logits = if sizes.keeps_logits(weight_trained) { sizes.padded() * sizes.vocabulary } else { 0 };
    bytes_of((sizes.padded() + sizes.rows) * sizes.width + sizes.padded() + logits)
}

/// Bytes that the forward step of [`cross_entropy_sum`] needs while it works: the sums of the parts of the vocabulary.
pub fn cross_entropy_sum_working(sizes: Sizes) -> usize {
    let (_, part) = sizes.divided();
    bytes_of(sizes.vocabulary.div_ceil(part) * sizes.rows * sizes.width)
}

/// Logits are held with a row for each token of the vocabulary: then the weight is read where it lies.
#[derive(Clone, Debug)]
struct Problem {
    /// `[S, D]`, S filled up with zero rows.
    hidden: FlexTensor,
    /// `[V, D]`
    weight: FlexTensor,
    targets: Vec<u32>,
    /// Whether hidden and weight want gradients.
    tracked: [bool; 2],
    /// Logarithm of the sum of exponentials of every row, infinite for the rows that fill up.
    lse: Vec<f32>,
    /// `[V, S]` for the weight's gradient, or nothing.
    logits: Vec<f32>,
    /// Gradient of hidden without the rows that fill up, or nothing.
    of_hidden: Vec<f32>,
}

/// What a part of the vocabulary adds to every row.
struct Part {
    largest: Vec<f32>,
    /// Σ exp(logit − largest)
    total: Vec<f32>,
    /// Σ exp(logit − largest) · the token's row of the weight, `[S, D]` without the rows that fill up; nothing if not wanted.
    weighted: Vec<f32>,
    /// Logits of targets.
    picked: Vec<(usize, f32)>,
}

impl Part {
    fn new(rows: usize, weighted: usize) -> Self {
        let (largest, total) = (vec![f32::NEG_INFINITY; rows], vec![0.0; rows]);
        Self { largest, total, weighted: zeros(weighted), picked: Vec::new() }
    }

    /// Adds a chunk, whose logits become exponentials. logits `[tokens, S]`, weight `[tokens, D]`; `next` are the values of the
    /// chunk that follows.
    fn add(&mut self, logits: &mut [f32], weight: Matrix, next: &[f32]) {
        let rows = self.total.len();
        // The next chunk is fetched while nothing else is read from memory.
        let (now, later) = next.split_at(next.len() / 2);
        let shrunk = raise(&mut self.largest, logits, now);
        exponentials(logits, &self.largest, &mut self.total, &shrunk, later);
        if self.weighted.is_empty() {
            return;
        }
        for (sums, &factor) in self.weighted.chunks_exact_mut(weight.columns).zip(&shrunk) {
            if factor != 1.0 {
                sums.iter_mut().for_each(|sum| *sum *= factor);
            }
        }
        let supervised = self.weighted.len() / weight.columns;
        let exponentials = Matrix::new(logits, weight.rows, rows).transposed().block(0..supervised, 0..weight.rows);
        gemm_serial(exponentials, weight, MatrixMut::new(&mut self.weighted, supervised, weight.columns), Start::Keep);
    }
}

impl Problem {
    /// Rows (with padding), width, vocabulary.
    fn sizes(&self) -> (usize, usize, usize) {
        let ([rows, width], [vocabulary, _]) = (operand::dims(&self.hidden), operand::dims(&self.weight));
        (rows, width, vocabulary)
    }

    fn divided(&self) -> (usize, usize) {
        self.division().divided()
    }

    fn division(&self) -> Sizes {
        let (_, width, vocabulary) = self.sizes();
        Sizes { rows: self.targets.len(), width, vocabulary }
    }

    fn weight_rows(&self, first: usize, tokens: usize) -> Matrix<'_> {
        let (_, width, vocabulary) = self.sizes();
        Matrix::new(floats(&self.weight), vocabulary, width).block(first..first + tokens, 0..width)
    }

    fn hidden(&self) -> Matrix<'_> {
        let (rows, width, _) = self.sizes();
        Matrix::new(floats(&self.hidden), rows, width)
    }

    /// The loss and that of each row. Leaves what the backward step needs.
    fn forward(&mut self) -> (f32, Vec<f32>) {
        let (rows, width, vocabulary) = self.sizes();
        if rows == 0 {
            return (0.0, Vec::new());
        }
        let [hidden_tracked, weight_tracked] = self.tracked;
        let keep = self.division().keeps_logits(weight_tracked);
        let mut kept = Unwritten::new(if keep { vocabulary * rows } else { 0 });
        let hidden = Packed::new(self.hidden().transposed());
        let (chunk, part_len) = self.divided();
        let kept_parts = parts_of(kept.places(), part_len * rows, vocabulary.div_ceil(part_len));
        let part = |(index, kept): (usize, &mut [Place])| {
            let mut part = Part::new(rows, if hidden_tracked { self.targets.len() * width } else { 0 });
            let tokens = index * part_len..vocabulary.min((index + 1) * part_len);
            let end = tokens.end;
            for first in tokens.clone().step_by(chunk) {
                let (tokens, skipped) = (chunk.min(tokens.end - first), first - tokens.start);
                with_scratch(tokens * rows, |logits| {
                    let weight = self.weight_rows(first, tokens);
                    hidden.multiply(weight, MatrixMut::new(logits, tokens, rows));
                    let picked = self.targets_among(first, tokens);
                    part.picked.extend(picked.map(|(row, token)| (row, logits[token * rows + row])));
                    if keep {
                        kept[skipped * rows..][..tokens * rows].write_copy_of_slice(logits);
                    }
                    let next = self.weight_rows(first + tokens, chunk.min(end - first - tokens));
                    part.add(logits, weight, next.values());
                });
            }
            part
        };
        let parts: Vec<Part> = kept_parts.into_par_iter().enumerate().map(part).collect();
        // SAFETY: there are no places, or every part has written the logits of all its chunks.
        self.logits = unsafe { kept.assume_written() };
        self.finish(&parts)
    }

    /// Brings the parts together.
    fn finish(&mut self, parts: &[Part]) -> (f32, Vec<f32>) {
        let (rows, width, _) = self.sizes();
        let (mut largest, mut total) = (vec![f32::NEG_INFINITY; rows], vec![0f32; rows]);
        let mut picked = vec![0f32; self.targets.len()];
        for part in parts {
            merge(&mut largest, &mut total, part);
            part.picked.iter().for_each(|&(row, logit)| picked[row] = logit);
        }
        self.lse = largest.iter().zip(&total).map(|(largest, total)| largest + total.ln()).collect();
        self.lse[picked.len()..].fill(f32::INFINITY);
        if self.tracked[0] {
            let mut of_hidden = zeros(self.targets.len() * width);
            of_hidden.par_chunks_mut(width.max(1)).enumerate().for_each(|(row, of_hidden)| {
                for part in parts {
                    let share = exp(part.largest[row] - self.lse[row]);
                    let sums = &part.weighted[row * width..][..width];
                    of_hidden.iter_mut().zip(sums).for_each(|(sum, value)| *sum += share * value);
                }
                let target = self.weight_rows(self.targets[row] as usize, 1);
                of_hidden.iter_mut().zip(target.row(0)).for_each(|(sum, value)| *sum -= value);
            });
            self.of_hidden = of_hidden;
        }
        // f64: the sum over thousands of rows must not lose the single row.
        let losses = || self.lse.iter().zip(&picked).map(|(&lse, &picked)| f64::from(lse) - f64::from(picked));
        (losses().sum::<f64>() as f32, losses().map(|loss| loss as f32).collect())
    }

    /// Rows whose target is among `tokens` tokens from `first` on, and which of these it is.
    fn targets_among(&self, first: usize, tokens: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let among = move |target: usize| target.checked_sub(first).filter(|&token| token < tokens);
        self.targets.iter().enumerate().filter_map(move |(row, &target)| Some((row, among(target as usize)?)))
    }

    /// Gradient of the weight, times `factor`.
    fn of_weight(&mut self, factor: f32) -> Vec<f32> {
        let (rows, width, vocabulary) = self.sizes();
        if rows == 0 {
            return zeros(vocabulary * width);
        }
        let mut kept = std::mem::take(&mut self.logits);
        let (chunk, _) = self.divided();
        let hidden = Packed::new(self.hidden());
        let transposed = kept.is_empty().then(|| Packed::new(self.hidden().transposed()));
        let kept = parts_of(&mut kept, chunk * rows, vocabulary.div_ceil(chunk));
        let kept = kept.into_par_iter().enumerate();
        filled_chunks(vocabulary * width, chunk * width, kept, |(index, kept), of_weight| {
            let (first, tokens) = (index * chunk, of_weight.len() / width);
            let of_weight = MatrixMut::new(of_weight, tokens, width);
            let multiply = |logits: &mut [f32]| {
                self.slopes(logits, first, factor);
                hidden.multiply_into(Matrix::new(logits, tokens, rows), of_weight).into_values()
            };
            match &transposed {
                None => multiply(kept),
                Some(transposed) => with_scratch(tokens * rows, |logits| {
                    transposed.multiply(self.weight_rows(first, tokens), MatrixMut::new(logits, tokens, rows));
                    multiply(logits)
                }),
            }
        })
    }

    /// Turns a chunk of logits into their gradients.
    fn slopes(&self, logits: &mut [f32], first: usize, factor: f32) {
        let rows = self.lse.len();
        probabilities(logits, &self.lse, factor);
        for (row, token) in self.targets_among(first, logits.len() / rows) {
            logits[token * rows + row] -= factor;
        }
    }
}

/// `values` in `number` parts of at most `len`, empty ones if there are no values.
fn parts_of<T>(values: &mut [T], len: usize, number: usize) -> Vec<&mut [T]> {
    if values.is_empty() {
        return (0..number).map(|_| &mut [][..]).collect();
    }
    values.chunks_mut(len.max(1)).collect()
}

/// Calls `f` with memory of this thread, whose values are those of its last use.
fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut memory = take(&LOGITS, len);
    let value = f(&mut memory[..len]);
    give(&LOGITS, memory);
    value
}

thread_local! {
    static LOGITS: Cell<Aligned> = const { unused() };
}

/// Values that are fetched into the cache in as many turns as a loop has.
struct Fetched<'a> {
    turns: std::slice::Chunks<'a, f32>,
}

impl<'a> Fetched<'a> {
    #[inline(always)]
    fn new(values: &'a [f32], turns: usize) -> Self {
        Self { turns: values.chunks(values.len().div_ceil(turns.max(1)).max(1)) }
    }

    #[inline(always)]
    fn next(&mut self) {
        let values = self.turns.next().unwrap_or_default();
        values.chunks(LINE).for_each(|line| prefetch(line.as_ptr()));
    }
}

multiversion! {
    // `largest` becomes that of every column, too; gives the factors that rescale sums relative to the old largest value.
    // `fetched` is asked for along the way.
    fn raise(largest: &mut [f32], logits: &[f32], fetched: &[f32]) -> Vec<f32> {
        let mut shrunk = largest.to_vec();
        let mut fetched = Fetched::new(fetched, logits.len() / largest.len());
        for token in logits.chunks_exact(largest.len()) {
            fetched.next();
            for (largest, &logit) in largest.iter_mut().zip(token) {
                *largest = if *largest >= logit || largest.is_nan() { *largest } else { logit };
            }
        }
        for (before, &largest) in shrunk.iter_mut().zip(&*largest) {
            *before = if *before == largest { 1.0 } else { exp(*before - largest) };
        }
        shrunk
    }
}

multiversion! {
    // Logits become exponentials relative to `largest`, which are added to what `shrunk` leaves of `total`.
    // `fetched` is asked for along the way.
    fn exponentials(logits: &mut [f32], largest: &[f32], total: &mut [f32], shrunk: &[f32], fetched: &[f32]) {
        total.iter_mut().zip(shrunk).for_each(|(total, factor)| *total *= factor);
        let mut fetched = Fetched::new(fetched, logits.len() / largest.len());
        for token in logits.chunks_exact_mut(largest.len()) {
            fetched.next();
            for ((logit, &largest), total) in token.iter_mut().zip(largest).zip(&mut *total) {
                *logit = exp(*logit - largest);
                *total += *logit;
            }
        }
    }
}

fn merge(largest: &mut [f32], total: &mut [f32], part: &Part) {
    for ((largest, total), (&part_largest, &part_total)) in
        largest.iter_mut().zip(total).zip(part.largest.iter().zip(&part.total))
    {
        let both = if part_largest > *largest || part_largest.is_nan() { part_largest } else { *largest };
        let share = |of: f32, sum: f32| if sum == 0.0 { 0.0 } else { exp(of - both) * sum };
        *total = share(*largest, *total) + share(part_largest, part_total);
        *largest = both;
    }
}

multiversion! {
    fn probabilities(logits: &mut [f32], lse: &[f32], factor: f32) {
        for token in logits.chunks_exact_mut(lse.len()) {
            for (logit, &lse) in token.iter_mut().zip(lse) {
                *logit = exp(*logit - lse) * factor;
            }
        }
    }
}

#[derive(Debug)]
struct CrossEntropy;

impl Backward<Flex, 2> for CrossEntropy {
    type State = Problem;

    fn backward(self, ops: Ops<Problem, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let factor = floats(&incoming(&ops, gradients))[0];
        let mut problem = ops.state;
        let (_, width, vocabulary) = problem.sizes();
        let rows = problem.targets.len();
        let [hidden, weight] = ops.parents;
        if let Some(hidden) = hidden {
            let mut of_hidden = std::mem::take(&mut problem.of_hidden);
            of_hidden.iter_mut().for_each(|value| *value *= factor);
            gradients.register::<Flex>(hidden.id, operand::tensor(of_hidden, [rows, width]));
        }
        if let Some(weight) = weight {
            let of_weight = problem.of_weight(factor);
            gradients.register::<Flex>(weight.id, operand::tensor(of_weight, [vocabulary, width]));
        }
    }
}
