//! Attention within packed sequences. A block of queries at a time meets all its keys; of the scores, only the logarithm
//! of each query's sum is kept for the backward step, which computes them again.

mod backward;

use super::dot_products::dots;
use super::gemm::Packed;
use super::matrix::{Matrix, MatrixMut, Tile};
use super::operand::{self, bytes_of, floats, record};
use super::output::{Place, Unwritten};
use super::scratch::{Aligned, give, take, unused};
use super::simd::{Isa, exp, isa, max, multiversion, sum};
use super::team;
use crate::Mask;
use crate::kv_cache::LayerCache;
use crate::packed_heads::head_dim;
use backward::{Attention, Saved};
use burn::tensor::Tensor;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// Queries in a block.
const QUERIES: usize = 64;
/// Keys are filled up to a multiple of this, so that scores come in whole vectors.
const LANES: usize = 16;
/// With at most so many new queries, keys are read where they lie.
const FEW_QUERIES: usize = 4;
/// Of these, so many at a time, for as many queries.
const KEYS: usize = 4;
const HEADS: usize = 4;

/// See [`crate::attention`].
pub fn attention(
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    heads: usize,
    kv_heads: usize,
    seq_lens: &[usize],
    mask: Mask,
) -> Option<Tensor<2>> {
    of_sequences(q, k, v, heads, kv_heads, seq_lens, seq_lens, mask)
}

/// See [`crate::attention_of_last`].
pub fn attention_of_last(
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    heads: usize,
    kv_heads: usize,
    query_lens: &[usize],
    seq_lens: &[usize],
) -> Option<Tensor<2>> {
    of_sequences(q, k, v, heads, kv_heads, query_lens, seq_lens, Mask::Causal)
}

#[allow(clippy::too_many_arguments)]
fn of_sequences(
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    heads: usize,
    kv_heads: usize,
    query_lens: &[usize],
    seq_lens: &[usize],
    mask: Mask,
) -> Option<Tensor<2>> {
    let (q, k, v) = (operand::operand(q)?, operand::operand(k)?, operand::operand(v)?);
    let [size, of_k, of_v] = [&q, &k, &v].map(|x| operand::dims(&x.values));
    let head_dim = head_dim(size, &[of_k, of_v], [heads, kv_heads], query_lens, seq_lens)?;
    let layout = Layout::new(heads, kv_heads, head_dim, query_lens, seq_lens, mask);
    let (keys, values) = (floats(&k.values), floats(&v.values));
    let contexts: Vec<Context> = (layout.tasks().into_par_iter())
        .map(|task| {
            Context::new(
                layout.queries(floats(&q.values), &task),
                layout.keys(keys, &task),
                layout.keys(values, &task),
                mask,
            )
        })
        .collect();
    let (output, lse) = attend(&layout, &contexts);
    let output = operand::tensor(output, size);
    let nodes = [q.node, k.node, v.node];
    Some(record(Attention, nodes, || Saved { q: q.values, k: k.values, v: v.values, lse, layout }, output))
}

/// Bytes that [`attention`] and [`attention_of_last`] keep for their backward step: q `[queries, heads · head_dim]`, k and v
/// `[tokens, kv_heads · head_dim]`, and a number for each query and head.
pub fn attention_kept(queries: usize, tokens: usize, heads: usize, kv_heads: usize, head_dim: usize) -> usize {
    bytes_of(queries * heads * head_dim + 2 * tokens * kv_heads * head_dim + queries * heads)
}

/// See [`crate::attention_cached`].
pub fn attention_cached(
    q: &Tensor<2>,
    caches: &[&LayerCache],
    seq_lens: &[usize],
    heads: usize,
    kv_heads: usize,
) -> Option<Tensor<2>> {
    let q = operand::operand(q).filter(|q| !q.node.tracked())?;
    let size = operand::dims(&q.values);
    let cached: Vec<usize> = caches.iter().map(|cache| cache.len()).collect();
    let head_dim = head_dim(size, &[], [heads, kv_heads], seq_lens, &cached)?;
    let buffers = caches.iter().map(|cache| {
        let (keys, values) = cache.buffers();
        Some((cache.len(), operand::operand(keys)?.values, operand::operand(values)?.values))
    });
    let buffers: Vec<_> = buffers.collect::<Option<_>>()?;
    let layout = Layout::new(heads, kv_heads, head_dim, seq_lens, seq_lens, Mask::Causal);
    let context = |(index, task): (usize, Task)| {
        let (len, keys, values) = &buffers[index / kv_heads];
        let [k, v] = [keys, values].map(|cache| {
            // `[kv_heads, capacity, head_dim]`
            let head = floats(cache).chunks_exact(floats(cache).len() / kv_heads).nth(task.kv_head);
            Matrix::new(&head.unwrap_or_default()[..len * layout.head_dim], *len, layout.head_dim)
        });
        Context::new(layout.queries(floats(&q.values), &task), k, v, Mask::Causal)
    };
    let contexts: Vec<Context> = if seq_lens.iter().all(|&queries| queries <= FEW_QUERIES) {
        layout.tasks().into_iter().enumerate().map(context).collect()
    } else {
        layout.tasks().into_par_iter().enumerate().map(context).collect()
    };
    let (output, _) = attend(&layout, &contexts);
    Some(q.node.constant(operand::tensor(output, size)))
}

/// Sizes of a packed batch.
#[derive(Clone, Debug)]
struct Layout {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    /// Queries of each sequence: its last tokens, or all.
    query_lens: Vec<usize>,
    seq_lens: Vec<usize>,
    mask: Mask,
}

/// The tokens of one sequence and one key/value head.
#[derive(Clone, Debug)]
struct Task {
    queries: Range<usize>,
    keys: Range<usize>,
    kv_head: usize,
}

impl Layout {
    fn new(
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        query_lens: &[usize],
        seq_lens: &[usize],
        mask: Mask,
    ) -> Self {
        Self { heads, kv_heads, head_dim, query_lens: query_lens.to_vec(), seq_lens: seq_lens.to_vec(), mask }
    }

    /// Query heads of a key/value head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn tasks(&self) -> Vec<Task> {
        let rows = |lens: &[usize]| -> Vec<Range<usize>> {
            let mut start = 0;
            lens.iter().map(|len| (start..start + len, start += len).0).collect()
        };
        let sequences = rows(&self.query_lens).into_iter().zip(rows(&self.seq_lens));
        let heads = |(queries, keys): (Range<usize>, Range<usize>)| {
            (0..self.kv_heads).map(move |kv_head| Task { queries: queries.clone(), keys: keys.clone(), kv_head })
        };
        sequences.flat_map(heads).collect()
    }

    /// `[Σ query_lens, heads · head_dim]` divided among the tasks, in their order.
    fn query_parts<'a>(&self, data: &'a mut [Place]) -> Vec<MatrixMut<'a, Place>> {
        self.parts(data, self.heads, &self.query_lens)
    }

    /// `[T, kv_heads · head_dim]` divided among the tasks, in their order.
    fn key_parts<'a>(&self, data: &'a mut [Place]) -> Vec<MatrixMut<'a, Place>> {
        self.parts(data, self.kv_heads, &self.seq_lens)
    }

    /// All elements of `data`, in parts that do not overlap.
    fn parts<'a>(&self, data: &'a mut [Place], heads: usize, lens: &[usize]) -> Vec<MatrixMut<'a, Place>> {
        let width = heads * self.head_dim;
        let sequences = MatrixMut::new(data, lens.iter().sum(), width).row_groups(lens);
        sequences
            .into_iter()
            .flat_map(|sequence| match sequence.rows {
                // No rows make no tiles, but every task has its part.
                0 => (0..self.kv_heads).map(|_| MatrixMut::new(&mut [], 0, width / self.kv_heads)).collect(),
                _ => sequence.column_groups(width / self.kv_heads),
            })
            .collect()
    }

    /// A task's part of `[Σ query_lens, heads · head_dim]`: the heads that share its key/value head.
    fn queries<'a>(&self, data: &'a [f32], task: &Task) -> Matrix<'a> {
        self.view(data, task.queries.clone(), task.kv_head, self.group())
    }

    /// A task's part of `[T, kv_heads · head_dim]`.
    fn keys<'a>(&self, data: &'a [f32], task: &Task) -> Matrix<'a> {
        self.view(data, task.keys.clone(), task.kv_head, 1)
    }

    /// Rows of a matrix of heads, and of these the `part`-th `group`.
    fn view<'a>(&self, data: &'a [f32], rows: Range<usize>, part: usize, group: usize) -> Matrix<'a> {
        let width = self.kv_heads * group * self.head_dim;
        let columns = part * group * self.head_dim..(part + 1) * group * self.head_dim;
        Matrix::new(data, data.len() / width.max(1), width).block(rows, columns)
    }
}

/// Attention of every task's queries, `[Σ query_lens, heads · head_dim]`; and for every task the logarithms of the sums of every
/// query's exponentials, head by head.
fn attend(layout: &Layout, contexts: &[Context]) -> (Vec<f32>, Vec<Vec<f32>>) {
    let head_dim = layout.head_dim;
    let values = layout.query_lens.iter().sum::<usize>() * layout.heads * head_dim;
    let mut output = Unwritten::new(values);
    // A few queries of all heads are done at once: one task reads the keys. Else a block of one head's is a unit of work.
    let units = layout.query_parts(output.places()).into_iter().zip(contexts).map(|(part, context)| {
        let mut blocks = part.tiles(QUERIES, head_dim);
        blocks.sort_by_key(|block| (block.column, block.row));
        let together = if context.packed.is_none() { blocks.len().max(1) } else { 1 };
        (context, blocks, together)
    });
    let (mut groups, mut groups_of_task) = (Vec::new(), Vec::with_capacity(contexts.len()));
    for (context, blocks, together) in units {
        groups_of_task.push(blocks.len().div_ceil(together));
        let mut blocks = blocks.into_iter().peekable();
        while blocks.peek().is_some() {
            groups.push((context, blocks.by_ref().take(together).collect::<Vec<_>>()));
        }
    }
    let of_group = |(context, blocks): (&Context, Vec<Tile<Place>>)| -> Vec<f32> {
        match &context.packed {
            None => context.attend_few(blocks),
            Some(packed) => blocks.into_iter().flat_map(|block| context.attend(block, packed)).collect(),
        }
    };
    let lse: Vec<Vec<f32>> = if contexts.iter().all(|context| context.packed.is_none()) {
        team::map(groups, of_group)
    } else {
        groups.into_par_iter().with_max_len(1).map(of_group).collect()
    };
    assert_eq!(lse.iter().map(Vec::len).sum::<usize>() * head_dim, values, "values of the blocks");
    // SAFETY: a number of `lse` stands for a row of a block that was written, blocks do not overlap, and all have as many values
    // as the output.
    let output = unsafe { output.assume_written() };
    let mut lse = lse.into_iter();
    (output, groups_of_task.iter().map(|&groups| lse.by_ref().take(groups).flatten().collect()).collect())
}

/// What the queries of a group of heads, the last positions of their sequence, look at: the keys and values of one head.
struct Context<'a> {
    /// `[L, group · head_dim]`
    q: Matrix<'a>,
    /// `[S, head_dim]`
    k: Matrix<'a>,
    /// `[S, head_dim]`
    v: Matrix<'a>,
    /// Kᵀ and V as the products take them, unless the queries are few.
    packed: Option<[Packed; 2]>,
    mask: Mask,
}

impl<'a> Context<'a> {
    fn new(q: Matrix<'a>, k: Matrix<'a>, v: Matrix<'a>, mask: Mask) -> Self {
        let many = q.rows > FEW_QUERIES;
        let packed = many.then(|| [Packed::new(k.transposed()), Packed::new(v)]);
        Self { q, k, v, packed, mask }
    }

    /// Keys that a query sees.
    fn seen(&self, query: usize) -> usize {
        match self.mask {
            Mask::Causal => self.k.rows - self.q.rows + query + 1,
            _ => self.k.rows,
        }
    }

    /// Writes one head's attention for a block of queries; gives the logarithm of the sum of every query's exponentials.
    fn attend(&self, block: Tile<Place>, [keys, values]: &[Packed; 2]) -> Vec<f32> {
        let Tile { row: first, column, part } = block;
        let (rows, head_dim) = (part.rows, part.columns);
        let q = self.q.block(first..first + rows, column..column + head_dim);
        let most = self.seen(first + rows - 1);
        let width = most.next_multiple_of(LANES);
        let mut memory = take(&SCORES, rows * width);
        let scores = &mut memory[..rows * width];
        keys.multiply(q, MatrixMut::new(scores, rows, width).first_columns(width.min(keys.padded_columns())));
        let scale = 1.0 / (head_dim as f32).sqrt();
        let lse = scores.chunks_exact_mut(width).zip(first..).map(|(row, query)| softmax(row, self.seen(query), scale));
        let lse = lse.collect();
        values.multiply_into(Matrix::new(scores, rows, width).block(0..rows, 0..most), part);
        give(&SCORES, memory);
        lse
    }

    /// The same for blocks of few queries, which have all of a group's rows: keys are read once for several heads.
    fn attend_few(&self, blocks: Vec<Tile<Place>>) -> Vec<f32> {
        let (keys, head_dim) = (self.k.rows, self.k.columns);
        let width = keys.next_multiple_of(LANES);
        let queries = blocks.iter().flat_map(|block| {
            let rows = block.row..block.row + block.part.rows;
            rows.map(|query| (query, &self.q.row(query)[block.column..][..head_dim]))
        });
        let queries: Vec<(usize, &[f32])> = queries.collect();
        let mut memory = take(&SCORES, queries.len() * width);
        let scores = &mut memory[..queries.len() * width];
        // As many as have their sums in registers.
        let together = if isa() == Isa::Avx512 { HEADS } else { 1 };
        for (queries, scores) in queries.chunks(together).zip(scores.chunks_mut((together * width).max(1))) {
            match *queries {
                [(_, a), (_, b), (_, c), (_, d)] => self.scores([a, b, c, d], scores, width),
                [(_, a), (_, b), (_, c)] => self.scores([a, b, c], scores, width),
                [(_, a), (_, b)] => self.scores([a, b], scores, width),
                _ => queries.iter().for_each(|(_, query)| self.scores([query], scores, width)),
            }
        }
        let scale = 1.0 / (head_dim as f32).sqrt();
        let rows = scores.chunks_exact_mut(width.max(1)).zip(&queries);
        let lse = rows.map(|(scores, &(query, _))| softmax(scores, self.seen(query), scale)).collect();
        let mut parts: Vec<MatrixMut<Place>> = blocks.into_iter().flat_map(|block| block.part.single_rows()).collect();
        let mut outputs: Vec<&mut [Place]> = parts.iter_mut().map(|part| part.row_mut(0)).collect();
        let weights: Vec<&[f32]> = scores.chunks_exact(width.max(1)).map(|scores| &scores[..keys]).collect();
        for (weights, outputs) in weights.chunks(together).zip(outputs.chunks_mut(together)) {
            weighted_sums(weights, self.v, outputs);
        }
        give(&SCORES, memory);
        lse
    }

    /// Scores of some queries, `width` apart. The queries take the place of weights: several keys meet them at a time.
    fn scores<const Q: usize>(&self, queries: [&[f32]; Q], scores: &mut [f32], width: usize) {
        let whole = self.k.rows / KEYS * KEYS;
        for key in (0..whole).step_by(KEYS) {
            let sums: [[f32; KEYS]; Q] = dots(std::array::from_fn(|next| self.k.row(key + next)), queries);
            for (query, sums) in sums.iter().enumerate() {
                scores[query * width + key..][..KEYS].copy_from_slice(sums);
            }
        }
        for key in whole..self.k.rows {
            let sums: [[f32; 1]; Q] = dots([self.k.row(key)], queries);
            sums.iter().enumerate().for_each(|(query, [sum])| scores[query * width + key] = *sum);
        }
    }
}

thread_local! {
    static SCORES: Cell<Aligned> = const { unused() };
}

/// For each of at most [`HEADS`] lists of weights, Σ weights[i] · row i of `values`, whose rows are read once for all of them.
fn weighted_sums(weights: &[&[f32]], values: Matrix, outputs: &mut [&mut [Place]]) {
    match (weights, outputs) {
        ([a, b, c, d], [to_a, to_b, to_c, to_d]) => four_sums([a, b, c, d], values, [to_a, to_b, to_c, to_d]),
        ([a, b, c], [to_a, to_b, to_c]) => three_sums([a, b, c], values, [to_a, to_b, to_c]),
        ([a, b], [to_a, to_b]) => two_sums([a, b], values, [to_a, to_b]),
        (weights, outputs) => {
            weights.iter().zip(outputs).for_each(|(weights, output)| one_sum([weights], values, [output]));
        }
    }
}

multiversion! {
    fn one_sum(weights: [&[f32]; 1], values: Matrix, outputs: [&mut [Place]; 1]) {
        sums_of(weights, values, outputs);
    }
}
multiversion! {
    fn two_sums(weights: [&[f32]; 2], values: Matrix, outputs: [&mut [Place]; 2]) {
        sums_of(weights, values, outputs);
    }
}
multiversion! {
    fn three_sums(weights: [&[f32]; 3], values: Matrix, outputs: [&mut [Place]; 3]) {
        sums_of(weights, values, outputs);
    }
}
multiversion! {
    fn four_sums(weights: [&[f32]; 4], values: Matrix, outputs: [&mut [Place]; 4]) {
        sums_of(weights, values, outputs);
    }
}

/// Writes all outputs, a stretch of columns at a time, so that their sums stay in registers.
#[inline(always)]
fn sums_of<const Q: usize>(weights: [&[f32]; Q], values: Matrix, mut outputs: [&mut [Place]; Q]) {
    const COLUMNS: usize = 64;
    let columns = outputs.first().map_or(0, |output| output.len());
    let mut start = 0;
    while columns - start >= COLUMNS {
        weighted_columns::<Q, COLUMNS>(weights, values, start, &mut outputs);
        start += COLUMNS;
    }
    while columns - start >= LANES {
        weighted_columns::<Q, LANES>(weights, values, start, &mut outputs);
        start += LANES;
    }
    while start < columns {
        weighted_columns::<Q, 1>(weights, values, start, &mut outputs);
        start += 1;
    }
}

/// Writes `N` columns of all outputs.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Arrays side by side.
fn weighted_columns<const Q: usize, const N: usize>(
    weights: [&[f32]; Q],
    values: Matrix,
    start: usize,
    outputs: &mut [&mut [Place]; Q],
) {
    let rows = weights.first().map_or(0, |weights| weights.len());
    let weights = weights.map(|weights| &weights[..rows]);
    let mut sums = [[0f32; N]; Q];
    for row in 0..rows {
        if let Some(values) = values.row(row)[start..].first_chunk::<N>() {
            for query in 0..Q {
                let weight = weights[query][row];
                for column in 0..N {
                    sums[query][column] = weight.mul_add(values[column], sums[query][column]);
                }
            }
        }
    }
    for (output, sums) in outputs.iter_mut().zip(&sums) {
        output[start..start + N].write_copy_of_slice(sums);
    }
}

multiversion! {
    // Turns scaled scores into probabilities, 0 for the keys not seen; gives the logarithm of the sum.
    fn softmax(scores: &mut [f32], seen: usize, scale: f32) -> f32 {
        let (scores, hidden) = scores.split_at_mut(seen);
        let largest = max(scores) * scale;
        for score in scores.iter_mut() {
            *score = exp(*score * scale - largest);
        }
        let total = sum(scores.len(), |i| scores[i]);
        let inverse = 1.0 / total;
        for score in scores.iter_mut() {
            *score *= inverse;
        }
        hidden.fill(0.0);
        largest + total.ln()
    }
}
