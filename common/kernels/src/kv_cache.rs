//! Key and value cache of a sequence, in buffers allocated once.

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
            let rows = rows.reshape([new, kv_heads, head_dim]).permute([1, 0, 2]);
            old.slice_assign([0..kv_heads, self.len..self.len + new, 0..head_dim], rows)
        };
        self.buffers = Some((write(old_keys, keys), write(old_values, values)));
        self.len += new;
    }
}
