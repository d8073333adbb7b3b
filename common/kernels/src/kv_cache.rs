//! Key and value cache of a sequence, in buffers allocated once.

use crate::Rope;
use burn::tensor::{Device, Tensor};

/// The cache of one sequence: a key and a value buffer for each layer.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    capacity: usize,
}

/// One layer's keys and values of one sequence.
#[derive(Debug)]
pub struct LayerCache {
    /// `[kv_heads, capacity, head_dim]`: what one head reads for every new token lies together. The first `len` rows of each
    /// head are filled. `None` only while a row is being written.
    buffers: Option<(Tensor<3>, Tensor<3>)>,
    len: usize,
}

impl KvCache {
    /// An empty cache of `layers` layers for a sequence of at most `capacity` tokens (prompt and answer).
    pub fn new(layers: usize, kv_heads: usize, head_dim: usize, capacity: usize, device: &Device) -> Self {
        let shape = [kv_heads, capacity, head_dim];
        let layers = (0..layers).map(|_| LayerCache::new(shape, device)).collect();
        Self { layers, capacity }
    }

    /// Tokens held. All layers hold the same number between calls of the model.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, LayerCache::len)
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `len` tokens; the buffers stay.
    pub fn truncate(&mut self, len: usize) {
        for layer in &mut self.layers {
            layer.len = layer.len.min(len);
        }
    }

    /// A layer's part.
    pub fn layer(&self, layer: usize) -> &LayerCache {
        &self.layers[layer]
    }

    /// A layer's part, to append to.
    pub fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }
}

impl LayerCache {
    fn new(shape: [usize; 3], device: &Device) -> Self {
        let buffer = || Tensor::zeros(shape, device);
        Self { buffers: Some((buffer(), buffer())), len: 0 }
    }

    /// Tokens held.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The whole key and value buffers, `[kv_heads, capacity, head_dim]` each; only the first [`Self::len`] rows of each head count.
    pub fn buffers(&self) -> (&Tensor<3>, &Tensor<3>) {
        let (keys, values) = self.buffers.as_ref().expect("the buffers are taken only inside append");
        (keys, values)
    }

    /// The filled rows of keys and values, `[kv_heads, len, head_dim]` each.
    pub fn filled(&self) -> (Tensor<3>, Tensor<3>) {
        let (keys, values) = self.buffers();
        (keys.clone().narrow(1, 0, self.len), values.clone().narrow(1, 0, self.len))
    }

    /// Appends the next tokens' keys and values. keys and values `[new, kv_heads · head_dim]`.
    ///
    /// The buffers are given away and taken back, so that a backend that owns them alone writes in place.
    pub fn append(&mut self, keys: Tensor<2>, values: Tensor<2>) {
        let [new, _] = keys.dims();
        let (old_keys, old_values) = self.buffers.take().expect("the buffers are taken only inside append");
        let [kv_heads, _, head_dim] = old_keys.dims();
        let write = |old: Tensor<3>, rows: Tensor<2>| {
            crate::cpu::append_rows(old, &rows, self.len).unwrap_or_else(|old| {
                let rows = rows.reshape([new, kv_heads, head_dim]).permute([1, 0, 2]);
                old.slice_assign([0..kv_heads, self.len..self.len + new, 0..head_dim], rows)
            })
        };
        self.buffers = Some((write(old_keys, keys), write(old_values, values)));
        self.len += new;
    }
}

/// Rotates the queries and keys of `seq_lens[i]` new tokens of every sequence and appends keys and values to `caches[i]`; gives the
/// rotated queries. On a GPU, one token of each sequence is one launch.
///
/// # Shapes
/// q `[Σ query_lens, heads · head_dim]` of the last `query_lens[i]` tokens of every sequence, with `rope_of_queries`; k and v
/// `[Σ seq_lens, kv_heads · head_dim]` → as q.
pub fn append_rotated(
    [q, k, v]: [Tensor<2>; 3],
    [rope_of_queries, rope]: [&Rope; 2],
    [heads, kv_heads]: [usize; 2],
    seq_lens: &[usize],
    caches: &mut [&mut LayerCache],
) -> Tensor<2> {
    #[cfg(feature = "cube")]
    if seq_lens.iter().all(|&len| len == 1) && q.dims()[0] == seq_lens.len() {
        let layers: Vec<&LayerCache> = caches.iter().map(|cache| &**cache).collect();
        if let Some(q) = crate::cube::cache::append_rotated([&q, &k, &v], rope, [heads, kv_heads], &layers) {
            caches.iter_mut().for_each(|cache| cache.len += 1);
            return q;
        }
    }
    let q = crate::rope(q, rope_of_queries, heads);
    let k = crate::rope(k, rope, kv_heads);
    let mut start = 0;
    for (cache, &len) in caches.iter_mut().zip(seq_lens) {
        let rows = |x: &Tensor<2>| x.clone().narrow(0, start, len);
        cache.append(rows(&k), rows(&v));
        start += len;
    }
    q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_rows_stand_behind_those_of_their_head() {
        let (device, [kv_heads, head_dim, capacity]) = (Device::flex(), [2, 3, 5]);
        let mut cache = KvCache::new(1, kv_heads, head_dim, capacity, &device);
        // Tokens 0, then 1 and 2, then 3: key i of head h of token t is 100 t + 10 h + i, the value is its negative.
        let rows = |tokens: std::ops::Range<usize>| {
            let values: Vec<f32> = tokens
                .clone()
                .flat_map(|token| (0..kv_heads * head_dim).map(move |at| (100 * token + 10 * (at / 3) + at % 3) as f32))
                .collect();
            Tensor::<1>::from_floats(values.as_slice(), &device).reshape([tokens.len(), kv_heads * head_dim])
        };
        for tokens in [0..1, 1..3, 3..4] {
            cache.layer_mut(0).append(rows(tokens.clone()), -rows(tokens));
        }
        let (keys, values) = cache.layer(0).filled();
        let expected: Vec<f32> = (0..kv_heads)
            .flat_map(|head| {
                (0..4).flat_map(move |token| (0..head_dim).map(move |i| (100 * token + 10 * head + i) as f32))
            })
            .collect();
        assert_eq!(keys.into_data().try_into_vec::<f32>().expect("f32"), expected);
        assert_eq!((-values).into_data().try_into_vec::<f32>().expect("f32"), expected);
    }
}
