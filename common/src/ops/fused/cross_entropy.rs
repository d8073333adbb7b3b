//! Projection and cross entropy together, a chunk of the vocabulary at a time.

use super::gemm::{Packed, Start, gemm_serial};
use super::matrix::{Matrix, MatrixMut};
use super::operand::{self, buffer, floats, incoming, record, zeros};
use super::scratch::{give, take};
use super::simd::{exp, multiversion};
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::cell::Cell;

/// Values of the weight in a chunk: it stays in the second-level cache from its logits to its gradients.
const CHUNK: usize = 1 << 16;
/// Values of the sums of the hidden states' gradient, of which there is one for each group of chunks.
const PARTIAL_SUMS: usize = 16 << 20;
/// Up to so many logits are kept for the backward step (48 MB); more are computed again.
const KEPT: usize = 12 << 20;
/// Supervised rows are filled up to a multiple of this, so that logits come in whole vectors.
const LANES: usize = 16;

/// See [`crate::ops::cross_entropy_sum`].
pub fn cross_entropy_sum(hidden: &Tensor<2>, weight: &Tensor<2>, targets: &[u32]) -> Option<Tensor<1>> {
    let (hidden, weight) = (operand::operand(hidden)?, operand::operand(weight)?);
    let ([rows, width], [vocabulary, _]) = (operand::dims(&hidden.values), operand::dims(&weight.values));
    if targets.len() != rows || targets.iter().any(|&target| target as usize >= vocabulary) {
        return None;
    }
    let padded = rows.next_multiple_of(LANES);
    let mut filled = zeros(padded * width);
    filled[..rows * width].copy_from_slice(floats(&hidden.values));
    let tracked = [&hidden.node, &weight.node].map(|node| node.tracked());
    let keep = tracked.contains(&true) && padded * vocabulary <= KEPT;
    let mut problem = Problem {
        hidden: operand::tensor(filled, [padded, width]),
        weight: weight.values,
        targets: targets.to_vec(),
        lse: Vec::new(),
        logits: Vec::new(),
        tracked,
    };
    let loss = problem.forward(keep);
    let nodes = [hidden.node, weight.node];
    Some(record(CrossEntropy, nodes, || problem, operand::tensor(vec![loss], [1])))
}

/// Logits are held with a row for each token of the vocabulary: then the weight is read where it lies, once.
#[derive(Clone, Debug)]
struct Problem {
    /// `[S, D]`, S filled up with zero rows.
    hidden: FlexTensor,
    /// `[V, D]`
    weight: FlexTensor,
    targets: Vec<u32>,
    /// Logarithm of the sum of exponentials of every row, infinite for the rows that fill up.
    lse: Vec<f32>,
    /// `[V, S]`, or nothing.
    logits: Vec<f32>,
    /// Whether hidden and weight want gradients.
    tracked: [bool; 2],
}

impl Problem {
    fn sizes(&self) -> (usize, usize, usize) {
        let ([rows, width], [vocabulary, _]) = (operand::dims(&self.hidden), operand::dims(&self.weight));
        (rows, width, vocabulary)
    }

    /// Tokens of the vocabulary in a chunk. Depends on sizes only, as everything that decides the order of sums.
    fn chunk(&self) -> usize {
        let (_, width, _) = self.sizes();
        (CHUNK / width.max(1)).clamp(32, 256)
    }

    fn weight_rows(&self, first: usize, tokens: usize) -> Matrix<'_> {
        let (_, width, vocabulary) = self.sizes();
        Matrix::new(floats(&self.weight), vocabulary, width).block(first..first + tokens, 0..width)
    }

    fn hidden(&self) -> Matrix<'_> {
        let (rows, width, _) = self.sizes();
        Matrix::new(floats(&self.hidden), rows, width)
    }

    fn forward(&mut self, keep: bool) -> f32 {
        let (rows, _, vocabulary) = self.sizes();
        if rows == 0 {
            return 0.0;
        }
        let chunk = self.chunk();
        let hidden = Packed::new(self.hidden().transposed());
        let mut kept = buffer(if keep { vocabulary * rows } else { 0 });
        let of_chunk = |first: usize, logits: &mut [f32]| {
            let tokens = logits.len() / rows;
            hidden.multiply(self.weight_rows(first, tokens), MatrixMut::new(logits, tokens, rows));
            let picked = self.targets_among(first, tokens).map(|(row, token)| (row, logits[token * rows + row]));
            (statistics(logits, rows), picked.collect::<Vec<_>>())
        };
        let parts: Vec<_> = if keep {
            let chunks = kept.par_chunks_mut(chunk * rows).enumerate();
            chunks.map(|(index, logits)| of_chunk(index * chunk, logits)).collect()
        } else {
            let chunks = (0..vocabulary.div_ceil(chunk)).into_par_iter();
            let scratch = |index: usize| {
                with_scratch(chunk.min(vocabulary - index * chunk) * rows, |logits| of_chunk(index * chunk, logits))
            };
            chunks.map(scratch).collect()
        };
        let (mut largest, mut total) = (vec![f32::NEG_INFINITY; rows], vec![0f32; rows]);
        let mut picked = vec![0f32; self.targets.len()];
        for (statistics, of_targets) in &parts {
            merge(&mut largest, &mut total, statistics);
            of_targets.iter().for_each(|&(row, logit)| picked[row] = logit);
        }
        self.logits = kept;
        self.lse = largest.iter().zip(&total).map(|(largest, total)| largest + total.ln()).collect();
        self.lse[picked.len()..].fill(f32::INFINITY);
        // f64: the sum over thousands of rows must not lose the single row.
        self.lse.iter().zip(&picked).map(|(&lse, &picked)| f64::from(lse) - f64::from(picked)).sum::<f64>() as f32
    }

    /// Rows whose target is among `tokens` tokens from `first` on, and which of these it is.
    fn targets_among(&self, first: usize, tokens: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let among = move |target: usize| target.checked_sub(first).filter(|&token| token < tokens);
        self.targets.iter().enumerate().filter_map(move |(row, &target)| Some((row, among(target as usize)?)))
    }

    /// Gradients of hidden (without the filled-up rows) and of the weight, times `factor`; empty where not wanted.
    ///
    /// Chunks are done in groups, each with a sum of its own, which are added in order: any number of threads gives the same.
    fn backward(&mut self, factor: f32) -> [Vec<f32>; 2] {
        let (rows, width, vocabulary) = self.sizes();
        let [hidden_tracked, weight_tracked] = self.tracked;
        if rows == 0 {
            return [Vec::new(), zeros(if weight_tracked { vocabulary * width } else { 0 })];
        }
        let mut of_weight = buffer(if weight_tracked { vocabulary * width } else { 0 });
        let mut kept = std::mem::take(&mut self.logits);
        let (chunk, groups) = (self.chunk(), (PARTIAL_SUMS / (rows * width).max(1)).clamp(2, 64));
        let group = vocabulary.div_ceil(chunk).div_ceil(groups).max(1) * chunk;
        let groups = vocabulary.div_ceil(group);
        let hidden = Packed::new(self.hidden());
        let transposed = kept.is_empty().then(|| Packed::new(self.hidden().transposed()));
        // Nothing, for every group, of what there is not.
        let parts = |values, width: usize| parts_of(values, group * width, groups);
        let work = parts(&mut kept[..], rows).into_par_iter().zip(parts(&mut of_weight[..], width)).enumerate();
        let sums: Vec<Vec<f32>> = work
            .map(|(index, (kept, of_weight))| {
                let tokens = index * group..vocabulary.min((index + 1) * group);
                let mut of_hidden = zeros(if hidden_tracked { rows * width } else { 0 });
                for first in tokens.clone().step_by(chunk) {
                    let (tokens, skipped) = (chunk.min(tokens.end - first), first - tokens.start);
                    let mut of_chunk = |logits: &mut [f32]| {
                        self.slopes(logits, first, factor);
                        let slopes = Matrix::new(logits, tokens, rows);
                        if weight_tracked {
                            let of_weight = &mut of_weight[skipped * width..][..tokens * width];
                            hidden.multiply(slopes, MatrixMut::new(of_weight, tokens, width));
                        }
                        if hidden_tracked {
                            let of_hidden = MatrixMut::new(&mut of_hidden, rows, width);
                            gemm_serial(slopes.transposed(), self.weight_rows(first, tokens), of_hidden, Start::Keep);
                        }
                    };
                    match &transposed {
                        Some(transposed) => with_scratch(tokens * rows, |logits| {
                            let target = MatrixMut::new(logits, tokens, rows);
                            transposed.multiply(self.weight_rows(first, tokens), target);
                            of_chunk(logits);
                        }),
                        None => of_chunk(&mut kept[skipped * rows..][..tokens * rows]),
                    }
                }
                of_hidden
            })
            .collect();
        let mut of_hidden = zeros(if hidden_tracked { rows * width } else { 0 });
        for sum in sums {
            of_hidden.iter_mut().zip(sum).for_each(|(total, value)| *total += value);
        }
        of_hidden.truncate(self.targets.len() * width);
        [of_hidden, of_weight]
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
fn parts_of(values: &mut [f32], len: usize, number: usize) -> Vec<&mut [f32]> {
    if values.is_empty() {
        return (0..number).map(|_| &mut [][..]).collect();
    }
    values.chunks_mut(len.max(1)).collect()
}

/// Calls `f` with memory of this thread, whose values are whatever was there.
fn with_scratch<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut memory = take(&LOGITS, len);
    let value = f(&mut memory[..len]);
    give(&LOGITS, memory);
    value
}

thread_local! {
    static LOGITS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

multiversion! {
    // The largest logit of every column and the sum of exponentials relative to it.
    fn statistics(logits: &[f32], rows: usize) -> (Vec<f32>, Vec<f32>) {
        let (mut largest, mut total) = (vec![f32::NEG_INFINITY; rows], vec![0f32; rows]);
        for token in logits.chunks_exact(rows) {
            for (largest, &logit) in largest.iter_mut().zip(token) {
                *largest = if *largest >= logit || largest.is_nan() { *largest } else { logit };
            }
        }
        for token in logits.chunks_exact(rows) {
            for ((total, &largest), &logit) in total.iter_mut().zip(&largest).zip(token) {
                *total += exp(logit - largest);
            }
        }
        (largest, total)
    }
}

fn merge(largest: &mut [f32], total: &mut [f32], part: &(Vec<f32>, Vec<f32>)) {
    for ((largest, total), (&part_largest, &part_total)) in
        largest.iter_mut().zip(total).zip(part.0.iter().zip(&part.1))
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
        let [of_hidden, of_weight] = problem.backward(factor);
        let [hidden, weight] = ops.parents;
        if let Some(hidden) = hidden {
            gradients.register::<Flex>(hidden.id, operand::tensor(of_hidden, [rows, width]));
        }
        if let Some(weight) = weight {
            gradients.register::<Flex>(weight.id, operand::tensor(of_weight, [vocabulary, width]));
        }
    }
}
