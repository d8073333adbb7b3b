//! The caches of several sequences as arguments of one launch: each is a buffer of its own, so that sequences join and leave without
//! a copy and their memory is freed when they leave.

use super::{MOST_VALUES, strided, vector_size};
use crate::MAX_INDEPENDENT_TOKENS;
use crate::kv_cache::LayerCache;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Sequences of a launch, at most: a decode step's, unless the device takes fewer buffers.
pub(super) const MOST: usize = MAX_INDEPENDENT_TOKENS;

/// One sequence's keys and values in a layer, `[kv_heads, capacity, head_dim]` each, where they lie.
pub(super) struct Cached {
    keys: CubeTensor,
    values: CubeTensor,
    /// Tokens held.
    pub len: usize,
}

impl Cached {
    /// All caches; `None` where one is on another backend, in another dtype, of other sizes or larger than kernels count.
    pub fn all(caches: &[&LayerCache], dtype: DType, [kv_heads, head_dim]: [usize; 2]) -> Option<Vec<Self>> {
        let buffer = |x: &Tensor<3>| {
            strided(x).filter(|x| {
                let [heads, capacity, width] = x.meta.shape().dims();
                let values = heads.max(1) * x.meta.strides()[0].max(capacity * width);
                x.dtype == dtype
                    && !x.meta.is_tiled()
                    && [heads, width] == [kv_heads, head_dim]
                    && values <= MOST_VALUES
            })
        };
        let cached = |cache: &&LayerCache| {
            let (keys, values) = cache.buffers();
            let cached = Self { keys: buffer(keys)?, values: buffer(values)?, len: cache.len() };
            let [keys, values] = [&cached.keys.meta, &cached.values.meta];
            (keys.shape() == values.shape() && keys.strides() == values.strides()).then_some(cached)
        };
        caches.iter().map(cached).collect()
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.keys.meta.shape()[1]
    }

    /// Values that a unit reads at once of rows of `width`, from this cache and `others`.
    pub fn vector_size(&self, width: usize, others: &[&CubeTensor]) -> usize {
        let size = vector_size(width, &[others, &[&self.keys, &self.values]].concat());
        if self.strides().into_iter().all(|stride| stride.is_multiple_of(size)) { size } else { 1 }
    }

    fn strides(&self) -> [usize; 2] {
        let strides = self.keys.meta.strides();
        [strides[0], strides[1]]
    }
}

/// Sequences that a launch with so many other buffers takes on the device of `like`.
pub(super) fn most_of_launch(like: &CubeTensor, other_buffers: usize) -> usize {
    most_of_buffers(like.client.properties().hardware.max_bindings as usize, other_buffers)
}

/// As above, for a device that takes so many buffers.
fn most_of_buffers(buffers: usize, other_buffers: usize) -> usize {
    // One more is for sizes and strides.
    let caches = buffers.saturating_sub(other_buffers + 1) / 2;
    [MOST, MOST / 2, MOST / 4].into_iter().find(|&of_launch| of_launch <= caches).unwrap_or(1)
}

/// The caches of a launch. There are kernels for 1, 2, 4 and 8: places beyond the last sequence have its buffers and are not read.
pub(super) struct OfLaunch<'a> {
    caches: &'a [Cached],
}

impl<'a> OfLaunch<'a> {
    pub fn new(caches: &'a [Cached]) -> Self {
        Self { caches }
    }

    fn places(&self) -> impl Iterator<Item = &'a Cached> {
        let last = self.caches.len() - 1;
        (0..self.caches.len().next_power_of_two()).map(move |place| &self.caches[place.min(last)])
    }

    pub fn keys(&self) -> impl Iterator<Item = BufferArg> {
        self.places().map(|cached| cached.keys.clone().into_buffer_arg())
    }

    pub fn values(&self) -> impl Iterator<Item = BufferArg> {
        self.places().map(|cached| cached.values.clone().into_buffer_arg())
    }

    pub fn lens(&self) -> impl Iterator<Item = u32> {
        self.places().map(|cached| cached.len as u32)
    }

    /// From a head to the next, in vectors of `size`.
    pub fn head_strides(&self, size: usize) -> impl Iterator<Item = u32> {
        self.places().map(move |cached| (cached.strides()[0] / size) as u32)
    }

    /// From a token to the next, in vectors of `size`.
    pub fn token_strides(&self, size: usize) -> impl Iterator<Item = u32> {
        self.places().map(move |cached| (cached.strides()[1] / size) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::most_of_buffers;

    #[test]
    fn a_device_with_few_buffers_takes_fewer_sequences() {
        let expected = [(1024, 8), (23, 8), (22, 4), (15, 4), (14, 2), (11, 2), (10, 1), (7, 1), (0, 1)];
        for (buffers, sequences) in expected {
            assert_eq!(most_of_buffers(buffers, 6), sequences, "{buffers} buffers");
        }
    }
}
