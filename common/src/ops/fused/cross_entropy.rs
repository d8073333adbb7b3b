//! Projection and cross entropy together, a chunk of the vocabulary at a time.

use super::gemm::{Start, gemm};
use super::matrix::{Matrix, MatrixMut};
use super::operand::{self, buffer, floats, incoming, record, zeros};
use super::simd::{exp, multiversion};
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

/// Logits in a chunk.
const CHUNK: usize = 1 << 20;
/// Vocabulary rows in one task of the passes over a chunk.
const TASK_ROWS: usize = 256;
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
        logits: Vec::with_capacity(if keep { padded * vocabulary } else { 0 }),
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

    /// The first token and the number of tokens of every chunk.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (rows, _, vocabulary) = self.sizes();
        let tokens = (CHUNK / rows.max(1)).max(TASK_ROWS);
        (0..vocabulary).step_by(tokens).map(move |first| (first, tokens.min(vocabulary - first)))
    }

    fn weight_rows(&self, first: usize, tokens: usize) -> Matrix<'_> {
        let (_, width, vocabulary) = self.sizes();
        Matrix::new(floats(&self.weight), vocabulary, width).block(first..first + tokens, 0..width)
    }

    fn hidden(&self) -> Matrix<'_> {
        let (rows, width, _) = self.sizes();
        Matrix::new(floats(&self.hidden), rows, width)
    }

    fn compute_logits(&self, first: usize, tokens: usize, logits: &mut [f32]) {
        let (rows, _, _) = self.sizes();
        let logits = MatrixMut::new(logits, tokens, rows);
        gemm(self.weight_rows(first, tokens), self.hidden().transposed(), logits, Start::Zero);
    }

    fn forward(&mut self, keep: bool) -> f32 {
        let (rows, _, _) = self.sizes();
        let (mut largest, mut total) = (vec![f32::NEG_INFINITY; rows], vec![0f32; rows]);
        let mut picked = vec![0f32; self.targets.len()];
        let mut scratch = Vec::new();
        for (first, tokens) in self.chunks() {
            scratch.resize(tokens * rows, 0.0);
            self.compute_logits(first, tokens, &mut scratch);
            let parts: Vec<_> =
                scratch.par_chunks(TASK_ROWS * rows.max(1)).map(|part| statistics(part, rows)).collect();
            parts.iter().for_each(|part| merge(&mut largest, &mut total, part));
            for (row, &target) in self.targets.iter().enumerate() {
                if let Some(token) = (target as usize).checked_sub(first).filter(|&token| token < tokens) {
                    picked[row] = scratch[token * rows + row];
                }
            }
            if keep {
                self.logits.extend_from_slice(&scratch);
            }
        }
        self.lse = largest.iter().zip(&total).map(|(largest, total)| largest + total.ln()).collect();
        self.lse[picked.len()..].fill(f32::INFINITY);
        // f64: the sum over thousands of rows must not lose the single row.
        self.lse.iter().zip(&picked).map(|(&lse, &picked)| f64::from(lse) - f64::from(picked)).sum::<f64>() as f32
    }

    /// Gradients of hidden (without the filled-up rows) and of the weight, times `factor`; empty where not wanted.
    fn backward(&mut self, factor: f32) -> [Vec<f32>; 2] {
        let (rows, width, vocabulary) = self.sizes();
        let [hidden_tracked, weight_tracked] = self.tracked;
        let mut of_hidden = zeros(if hidden_tracked { rows * width } else { 0 });
        let mut of_weight = buffer(if weight_tracked { vocabulary * width } else { 0 });
        let mut kept = std::mem::take(&mut self.logits);
        let mut scratch = Vec::new();
        for (first, tokens) in self.chunks() {
            let logits = if kept.is_empty() {
                scratch.resize(tokens * rows, 0.0);
                self.compute_logits(first, tokens, &mut scratch);
                &mut scratch[..]
            } else {
                &mut kept[first * rows..(first + tokens) * rows]
            };
            self.slopes(logits, first, factor);
            let slopes = Matrix::new(logits, tokens, rows);
            if weight_tracked {
                let of_weight = &mut of_weight[first * width..(first + tokens) * width];
                gemm(slopes, self.hidden(), MatrixMut::new(of_weight, tokens, width), Start::Zero);
            }
            if hidden_tracked {
                let of_hidden = MatrixMut::new(&mut of_hidden, rows, width);
                gemm(slopes.transposed(), self.weight_rows(first, tokens), of_hidden, Start::Keep);
            }
        }
        if hidden_tracked {
            of_hidden.truncate(self.targets.len() * width);
        }
        [of_hidden, of_weight]
    }

    /// Turns a chunk of logits into their gradients.
    fn slopes(&self, logits: &mut [f32], first: usize, factor: f32) {
        let rows = self.lse.len();
        let tokens = logits.len() / rows.max(1);
        logits.par_chunks_mut(TASK_ROWS * rows.max(1)).for_each(|part| probabilities(part, &self.lse, factor));
        for (row, &target) in self.targets.iter().enumerate() {
            if let Some(token) = (target as usize).checked_sub(first).filter(|&token| token < tokens) {
                logits[token * rows + row] -= factor;
            }
        }
    }
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
