//! Keys and values of the tokens that a sequence already has, in buffers allocated once.

use crate::config::TextConfig;
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
    /// `[capacity, kv_heads · head_dim]`; the first `len` rows are filled. `None` only while a row is being written.
    buffers: Option<(Tensor<2>, Tensor<2>)>,
    len: usize,
}

impl KvCache {
    /// An empty cache for a sequence of at most `capacity` tokens (prompt and answer).
    pub fn new(config: &TextConfig, capacity: usize, device: &Device) -> Self {
        let width = config.num_key_value_heads * config.head_dim();
        let layers = (0..config.num_hidden_layers).map(|_| LayerCache::new(capacity, width, device)).collect();
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
    fn new(capacity: usize, width: usize, device: &Device) -> Self {
        let buffer = || Tensor::zeros([capacity, width], device);
        Self { buffers: Some((buffer(), buffer())), len: 0 }
    }

    /// Tokens held.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The whole key and value buffers, `[capacity, kv_heads · head_dim]` each; only the first [`Self::len`] rows count.
    pub fn buffers(&self) -> (&Tensor<2>, &Tensor<2>) {
        let (keys, values) = self.buffers.as_ref().expect("the buffers are taken only inside append");
        (keys, values)
    }

    /// The filled rows of keys and values, `[len, kv_heads · head_dim]` each.
    pub fn filled(&self) -> (Tensor<2>, Tensor<2>) {
        let (keys, values) = self.buffers();
        (keys.clone().narrow(0, 0, self.len), values.clone().narrow(0, 0, self.len))
    }

    /// Writes the next tokens' keys and values behind those that are there. keys and values `[new, kv_heads · head_dim]`.
    ///
    /// The buffers are given away and taken back, so that a backend that owns them alone writes in place.
    pub fn append(&mut self, keys: Tensor<2>, values: Tensor<2>) {
        let [new, _] = keys.dims();
        let (old_keys, old_values) = self.buffers.take().expect("the buffers are taken only inside append");
        let rows = self.len..self.len + new;
        self.buffers = Some((old_keys.slice_assign([rows.clone()], keys), old_values.slice_assign([rows], values)));
        self.len += new;
    }
}
