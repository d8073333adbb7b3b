//! The backward step of attention: it computes the probabilities of a block of queries again.

use super::{Layout, QUERIES, SCORES};
use crate::Mask;
use crate::cpu::gemm::{Packed, Start, gemm_serial};
use crate::cpu::matrix::{Matrix, MatrixMut};
use crate::cpu::operand::{self, floats, incoming};
use crate::cpu::output::{Place, Unwritten};
use crate::cpu::scratch::{Aligned, give, take, unused};
use crate::cpu::simd::{exp, multiversion};
use burn::backend::Flex;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::backend::flex::FlexTensor;
use rayon::prelude::*;
use std::cell::Cell;

thread_local! {
    static GRAD_SCORES: Cell<Aligned> = const { unused() };
}

/// What the step needs.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    pub(super) q: FlexTensor,
    pub(super) k: FlexTensor,
    pub(super) v: FlexTensor,
    /// For every task.
    pub(super) lse: Vec<Vec<f32>>,
    pub(super) layout: Layout,
}

#[derive(Debug)]
pub(super) struct Attention;

impl Backward<Flex, 3> for Attention {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let Saved { q, k, v, lse, layout } = ops.state;
        let [mut of_q, mut of_k, mut of_v] = [&q, &k, &v].map(|values| Unwritten::new(floats(values).len()));
        let parts = layout.query_parts(of_q.places()).into_par_iter();
        let parts = parts.zip(layout.key_parts(of_k.places())).zip(layout.key_parts(of_v.places()));
        parts.zip(layout.tasks()).zip(&lse).for_each(|((((of_q, of_k), of_v), task), lse)| {
            let inputs = Inputs {
                q: layout.queries(floats(&q), &task),
                k: layout.keys(floats(&k), &task),
                v: layout.keys(floats(&v), &task),
                gradient: layout.queries(floats(&gradient), &task),
            };
            inputs.backward(lse, layout.mask, of_q, of_k, of_v);
        });
        // SAFETY: the tasks' parts have all places (`Layout::parts`), and the step of each task writes all of its parts.
        let [of_q, of_k, of_v] = [of_q, of_k, of_v].map(|gradient| unsafe { gradient.assume_written() });
        for (parent, (gradient, values)) in ops.parents.into_iter().zip([(of_q, q), (of_k, k), (of_v, v)]) {
            if let Some(parent) = parent {
                gradients.register::<Flex>(parent.id, operand::tensor(gradient, operand::dims(&values)));
            }
        }
    }
}

/// A task's part of the inputs and of the output's gradient.
struct Inputs<'a> {
    q: Matrix<'a>,
    k: Matrix<'a>,
    v: Matrix<'a>,
    gradient: Matrix<'a>,
}

impl Inputs<'_> {
    /// Writes all of the three gradients. Scores are held with a row for each key here: then every product below reads its factors
    /// in order.
    fn backward(
        &self,
        lse: &[f32],
        mask: Mask,
        of_q: MatrixMut<Place>,
        of_k: MatrixMut<Place>,
        of_v: MatrixMut<Place>,
    ) {
        let Self { q, k, v, gradient } = *self;
        let (len, head_dim) = (k.rows, k.columns);
        // Keys before the first query.
        let past = len - q.rows;
        let scale = 1.0 / (head_dim as f32).sqrt();
        let keys = Packed::new(k);
        let (mut of_k, mut of_v) = (of_k.fill(0.0), of_v.fill(0.0));
        let [mut scores, mut slopes] = [&SCORES, &GRAD_SCORES].map(|scratch| take(scratch, len * QUERIES));
        let mut tiles = of_q.tiles(QUERIES, head_dim);
        tiles.sort_by_key(|tile| tile.column);
        let mut lse = lse;
        for tile in tiles {
            let (first, rows) = (tile.row, tile.part.rows);
            let columns = tile.column..tile.column + head_dim;
            let q = q.block(first..first + rows, columns.clone());
            let gradient = gradient.block(first..first + rows, columns);
            let seen = if mask == Mask::Causal { past + first + rows } else { len };
            let (k, v) = (k.block(0..seen, 0..head_dim), v.block(0..seen, 0..head_dim));
            let (scores, slopes) = (&mut scores[..seen * rows], &mut slopes[..seen * rows]);
            gemm_serial(k, q.transposed(), MatrixMut::new(scores, seen, rows), Start::Zero);
            gemm_serial(v, gradient.transposed(), MatrixMut::new(slopes, seen, rows), Start::Zero);
            let (block_lse, rest) = lse.split_at(rows);
            lse = rest;
            let first_query = if mask == Mask::Causal { past + first } else { len };
            probabilities(scores, slopes, block_lse, scale, first_query);
            let (scores, slopes) = (Matrix::new(scores, seen, rows), Matrix::new(slopes, seen, rows));
            gemm_serial(scores, gradient, of_v.rows(0..seen), Start::Keep);
            gemm_serial(slopes, q, of_k.rows(0..seen), Start::Keep);
            keys.multiply_into(slopes.transposed(), tile.part);
        }
        give(&SCORES, scores);
        give(&GRAD_SCORES, slopes);
    }
}

multiversion! {
    // scores `[keys, queries]` become probabilities; slopes, the gradients of the probabilities, become those of the
    // scores before scaling. Query i of the block sees the keys up to `first_query` + i.
    fn probabilities(scores: &mut [f32], slopes: &mut [f32], lse: &[f32], scale: f32, first_query: usize) {
        let queries = lse.len();
        let mut mean = [0f32; QUERIES];
        let mean = &mut mean[..queries];
        for (key, (scores, slopes)) in scores.chunks_exact_mut(queries).zip(slopes.chunks_exact(queries)).enumerate() {
            let hidden = key.saturating_sub(first_query).min(queries);
            scores[..hidden].fill(0.0);
            for query in hidden..queries {
                let probability = exp(scores[query] * scale - lse[query]);
                scores[query] = probability;
                mean[query] += probability * slopes[query];
            }
        }
        for (scores, slopes) in scores.chunks_exact(queries).zip(slopes.chunks_exact_mut(queries)) {
            for ((slope, &probability), &mean) in slopes.iter_mut().zip(scores).zip(&*mean) {
                *slope = probability * (*slope - mean) * scale;
            }
        }
    }
}
