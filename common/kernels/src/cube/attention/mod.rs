//! Attention within packed sequences without a matrix of scores in memory: one launch forward, two backward. Of the scores, only
//! the logarithm of each row's sum is kept; the backward step computes them again, the gradient of q for a block of rows, those of
//! k and v for a block of keys, so that every sum has one order (no atomics).
//!
//! A table on the device says where sequences begin and how long they are: 20 bytes for each, uploaded once for a batch.
//!
//! # Arithmetic
//! For T tokens of a sequence, h heads of d: 4 · h · d · T² FLOP forward, half of that under a causal mask, and 3.5 times as much
//! backward (7 products, 2 forward). A language layer of the real job (8 rows of 620 tokens, 20 heads of 128, causal): 8 · 20 · 55
//! pairs of 64 × 64 blocks, 2.1 MFLOP each: 18.5 GFLOP forward (15.8 without the parts of blocks beyond the diagonal), 64.6
//! backward; 40 layers 3.3 TFLOP, of the micro-step's 67. Memory in bf16: q, k, v, output 25.4 MB each, lse 0.4 MB forward: 102
//! MB, 21 µs at 4.8 TB/s; backward reads those and the gradient and writes three: 204 MB. From the cache: a pair of blocks reads
//! three 16 KB factors forward, 432 MB for the layer, 43 FLOP a byte; a matrix of scores would be 123 MB, written and read several
//! times. At the 67 TFLOP/s of an H200's f32 units a layer is 1.2 ms at best, 50 ms for all: arithmetic bounds it, not
//! memory. In half precision the products are those of tensor cores. No GPU has run any of it: these are counts, not times.

mod backward;
mod block;
mod forward;
mod one_token;
mod plain;
mod rows;
mod tensor_cores;
#[cfg(all(test, feature = "wgpu"))]
mod tests;

use super::{
    Backend, Operand, constant, element, empty, incoming, operand, record, rows_and_width, strided, tables, vector_size,
};
use crate::Mask;
use crate::kv_cache::LayerCache;
use crate::packed_heads::head_dim;
use block::{BLOCK, LANES, Products, SIDE, Sizes, UNITS};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::zspace::{Strides, metadata::Metadata};
use rows::SEQUENCE;

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
    of_sequences(q, k, v, [heads, kv_heads], seq_lens, seq_lens, mask, None)
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
    of_sequences(q, k, v, [heads, kv_heads], query_lens, seq_lens, Mask::Causal, None)
}

/// With the best products of the device, or with these.
#[allow(clippy::too_many_arguments)]
fn of_sequences(
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    heads: [usize; 2],
    query_lens: &[usize],
    seq_lens: &[usize],
    mask: Mask,
    products: Option<Products>,
) -> Option<Tensor<2>> {
    let (q, k, v) = (operand(q)?, operand(k)?, operand(v)?);
    if [&k, &v].iter().any(|x| x.values.dtype != q.values.dtype) {
        return None;
    }
    let keys = [&k, &v].map(|x| rows_and_width(&x.values));
    let mut batch = Batch::new(&q.values, &keys, heads, query_lens, seq_lens, mask)?;
    batch.sizes.products = products.unwrap_or(batch.sizes.products);
    let (by_head, output) = (|x: &CubeTensor| batch.by_head(x), empty_like(&q.values));
    let lse = batch.forward(&q.values, [by_head(&k.values), by_head(&v.values)], &output, 0..query_lens.len());
    let nodes = [q.node, k.node, v.node];
    let kept = output.clone();
    let saved = || Saved { q: q.values, k: k.values, v: v.values, output: kept, lse, batch };
    Some(record(Attention, nodes, saved, output))
}

/// See [`crate::attention_cached`]. For one token of each sequence a launch or two, otherwise one for each cache.
pub fn attention_cached(
    q: &Tensor<2>,
    caches: &[&LayerCache],
    seq_lens: &[usize],
    heads: usize,
    kv_heads: usize,
) -> Option<Tensor<2>> {
    if let Some(output) = one_token::attention(q, caches, seq_lens, heads, kv_heads) {
        return Some(output);
    }
    let Operand { values: q, node } = operand(q).filter(|q| !q.node.tracked())?;
    let cached: Vec<usize> = caches.iter().map(|cache| cache.len()).collect();
    let batch = Batch::new(&q, &[], [heads, kv_heads], seq_lens, &cached, Mask::Causal)?.of_caches(seq_lens, &cached);
    let buffer = |x: &Tensor<3>| strided(x).filter(|x| batch.reads(x) && x.dtype == q.dtype);
    let buffers = caches.iter().map(|cache| {
        let (keys, values) = cache.buffers();
        Some([buffer(keys)?, buffer(values)?])
    });
    let buffers: Vec<[CubeTensor; 2]> = buffers.collect::<Option<_>>()?;
    let output = empty_like(&q);
    for (sequence, buffers) in buffers.into_iter().enumerate() {
        batch.forward(&q, buffers, &output, sequence..sequence + 1);
    }
    Some(constant(node, output))
}

fn empty_like(x: &CubeTensor) -> CubeTensor {
    empty(x, x.meta.shape().clone(), x.dtype)
}

/// A packed batch: its sizes, and its table on the device.
#[derive(Clone, Debug)]
struct Batch {
    sizes: Sizes,
    kv_heads: usize,
    table: Vec<u32>,
    longest: Longest,
}

/// Tokens of the longest sequence.
#[derive(Clone, Copy, Debug)]
struct Longest {
    queries: usize,
    keys: usize,
}

impl Batch {
    /// `None` where the kernels do not apply: sizes that do not fit each other, head dimensions other than multiples of 8 from 32
    /// to 128, a device with too small cubes, no queries.
    fn new(
        q: &CubeTensor,
        keys: &[[usize; 2]],
        [heads, kv_heads]: [usize; 2],
        query_lens: &[usize],
        seq_lens: &[usize],
        mask: Mask,
    ) -> Option<Self> {
        let size = rows_and_width(q);
        let head_dim = head_dim(size, keys, [heads, kv_heads], query_lens, seq_lens)?;
        let mut sizes = Sizes { group: heads / kv_heads, head_dim, products: Products::Plain };
        let longest = |lens: &[usize]| lens.iter().copied().max().unwrap_or(0);
        let longest = Longest { queries: longest(query_lens), keys: longest(seq_lens) };
        let hardware = &q.client.properties().hardware;
        let most = hardware.max_cube_count;
        let cubes = [kv_heads, query_lens.len(), (longest.queries * sizes.group).max(longest.keys).div_ceil(BLOCK)];
        let fits = matches!(sizes.head_dim, 32..=128)
            && sizes.head_dim.is_multiple_of(8)
            && size[0] > 0
            && hardware.max_units_per_cube as usize >= UNITS
            && hardware.max_shared_memory_size >= sizes.shared_bytes(size_of::<f32>())
            && cubes.into_iter().zip([most.0, most.1, most.2]).all(|(cubes, most)| cubes <= most as usize);
        let on_tensor_cores = Sizes { products: Products::TensorCores, ..sizes };
        if tensor_cores::has(&q.client, element(q))
            && hardware.max_shared_memory_size >= on_tensor_cores.shared_bytes(q.dtype.size())
        {
            sizes = on_tensor_cores;
        }
        fits.then(|| Self { sizes, kv_heads, table: table(query_lens, seq_lens, mask), longest })
    }

    /// With the keys of every sequence in a buffer of its own.
    fn of_caches(mut self, query_lens: &[usize], seq_lens: &[usize]) -> Self {
        self.table = table(query_lens, seq_lens, Mask::Causal);
        for sequence in self.table.chunks_exact_mut(SEQUENCE) {
            sequence[2] = 0;
        }
        self
    }

    /// Whether this is a cache of keys or values that the kernels read.
    fn reads(&self, x: &CubeTensor) -> bool {
        let [heads, _, head_dim] = x.meta.shape().dims();
        let strides = x.meta.strides();
        [heads, head_dim] == [self.kv_heads, self.sizes.head_dim]
            && strides[2] == 1
            && strides.iter().take(2).all(|stride| stride.is_multiple_of(LANES))
    }

    /// `[tokens, kv_heads · head_dim]` as `[kv_heads, tokens, head_dim]`, where it lies.
    fn by_head(&self, x: &CubeTensor) -> CubeTensor {
        let ([tokens, width], head_dim) = (rows_and_width(x), self.sizes.head_dim);
        let meta = Metadata::new(Shape::new([self.kv_heads, tokens, head_dim]), Strides::new(&[head_dim, width, 1]));
        CubeTensor { meta: Box::new(meta), ..x.clone() }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.sizes.head_dim as f32).sqrt()
    }

    /// Cubes for blocks of so many rows of the longest sequence.
    fn cubes(&self, sequences: usize, rows: usize) -> CubeCount {
        CubeCount::Static(self.kv_heads as u32, sequences as u32, rows.div_ceil(BLOCK) as u32)
    }

    fn rows(&self) -> usize {
        self.longest.queries * self.sizes.group
    }

    /// Values that a unit reads at once.
    fn lanes(&self, tensors: &[&CubeTensor]) -> usize {
        vector_size(self.sizes.head_dim, tensors).min(LANES)
    }

    /// The sizes for tensors that are read so many values at once: tensor cores take pairs.
    fn sizes(&self, lanes: usize) -> Sizes {
        Sizes { products: if lanes == 1 { Products::Plain } else { self.sizes.products }, ..self.sizes }
    }

    /// Writes the output of these sequences; gives the logarithms of the sums of all rows' exponentials, `[queries, heads]`.
    fn forward(
        &self,
        q: &CubeTensor,
        [k, v]: [CubeTensor; 2],
        output: &CubeTensor,
        sequences: std::ops::Range<usize>,
    ) -> CubeTensor {
        let [queries, _] = rows_and_width(q);
        let lse = empty(q, [queries, self.kv_heads * self.sizes.group], DType::F32);
        let lanes = self.lanes(&[q, &k, &v]);
        forward::forward::launch(
            &q.client,
            self.cubes(sequences.len(), self.rows()),
            CubeDim::new_2d(SIDE as u32, SIDE as u32),
            lanes,
            q.clone().into_tensor_arg(),
            k.into_tensor_arg(),
            v.into_tensor_arg(),
            on_device(q, &self.table),
            output.clone().into_tensor_arg(),
            lse.clone().into_buffer_arg(),
            sequences.start as u32,
            self.scale(),
            self.sizes(lanes),
            element(q),
        );
        lse
    }
}

/// Five numbers for each sequence, see [`SEQUENCE`].
fn table(query_lens: &[usize], seq_lens: &[usize], mask: Mask) -> Vec<u32> {
    let (mut first_query, mut first_key) = (0, 0);
    let mut table = Vec::with_capacity(SEQUENCE * seq_lens.len());
    for (&queries, &keys) in query_lens.iter().zip(seq_lens) {
        let seen = if mask == Mask::Causal { keys - queries } else { keys };
        table.extend([first_query, queries, first_key, keys, seen].map(|number| number as u32));
        (first_query, first_key) = (first_query + queries, first_key + keys);
    }
    table
}

/// The table on the device of `like`: all layers of a batch have the same.
fn on_device(like: &CubeTensor, table: &[u32]) -> BufferArg {
    tables::kept(like, bytemuck::cast_slice(table), table.len(), DType::U32).into_buffer_arg()
}

#[derive(Clone, Debug)]
struct Saved {
    q: CubeTensor,
    k: CubeTensor,
    v: CubeTensor,
    output: CubeTensor,
    /// Logarithms of the sums of all rows' exponentials, f32 `[queries, heads]`.
    lse: CubeTensor,
    batch: Batch,
}

impl Saved {
    /// The gradient of q; and Σ gradient ∘ output of every row, f32 `[queries, heads]`.
    fn of_q(&self, gradient: &CubeTensor) -> (CubeTensor, CubeTensor) {
        let Self { q, k, v, output, lse, batch } = self;
        let (delta, of_q) = (empty_like(lse), empty_like(q));
        let lanes = batch.lanes(&[q, k, v, output, gradient]);
        backward::backward_q::launch(
            &q.client,
            batch.cubes(batch.table.len() / SEQUENCE, batch.rows()),
            CubeDim::new_2d(SIDE as u32, SIDE as u32),
            lanes,
            q.clone().into_tensor_arg(),
            batch.by_head(k).into_tensor_arg(),
            batch.by_head(v).into_tensor_arg(),
            on_device(q, &batch.table),
            output.clone().into_tensor_arg(),
            gradient.clone().into_tensor_arg(),
            lse.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            of_q.clone().into_tensor_arg(),
            batch.scale(),
            batch.sizes(lanes),
            element(q),
        );
        (of_q, delta)
    }

    /// The gradients of k and v.
    fn of_k_and_v(&self, gradient: &CubeTensor, delta: &CubeTensor) -> [CubeTensor; 2] {
        let Self { q, k, v, lse, batch, .. } = self;
        let (of_k, of_v) = (empty_like(k), empty_like(v));
        let lanes = batch.lanes(&[q, k, v, gradient]);
        backward::backward_kv::launch(
            &q.client,
            batch.cubes(batch.table.len() / SEQUENCE, batch.longest.keys),
            CubeDim::new_2d(SIDE as u32, SIDE as u32),
            lanes,
            q.clone().into_tensor_arg(),
            batch.by_head(k).into_tensor_arg(),
            batch.by_head(v).into_tensor_arg(),
            on_device(q, &batch.table),
            gradient.clone().into_tensor_arg(),
            lse.clone().into_buffer_arg(),
            delta.clone().into_buffer_arg(),
            batch.by_head(&of_k).into_tensor_arg(),
            batch.by_head(&of_v).into_tensor_arg(),
            batch.scale(),
            batch.sizes(lanes),
            element(q),
        );
        [of_k, of_v]
    }
}

/// Parents are q, k and v.
#[derive(Debug)]
struct Attention;

impl Backward<Backend, 3> for Attention {
    type State = Saved;

    fn backward(self, ops: Ops<Saved, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = incoming(&ops, gradients);
        let [q, k, v] = ops.parents;
        let (of_q, delta) = ops.state.of_q(&gradient);
        if let Some(q) = q {
            gradients.register::<Backend>(q.id, of_q);
        }
        if k.is_some() || v.is_some() {
            let of_k_and_v = ops.state.of_k_and_v(&gradient, &delta);
            for (parent, gradient) in [k, v].into_iter().zip(of_k_and_v) {
                if let Some(parent) = parent {
                    gradients.register::<Backend>(parent.id, gradient);
                }
            }
        }
    }
}
